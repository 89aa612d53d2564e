"""Evaluator with the recipe's gates, on the eval split and its slices."""

from __future__ import annotations

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.standard_component_specs import (
    BASELINE_MODEL_KEY,
    BLESSING_KEY,
    EVALUATION_KEY,
    EXAMPLES_KEY,
    MODEL_KEY,
)

from components.evaluator.executor import SETTINGS_KEY, Executor
from components.evaluator.settings import EvaluatorSettings


class EvaluatorSpec(component_spec.ComponentSpec):
    """Inputs and outputs of TFX's Evaluator, and the settings."""

    PARAMETERS: ClassVar = {SETTINGS_KEY: component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        BASELINE_MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS: ClassVar = {
        EVALUATION_KEY: component_spec.ChannelParameter(type=standard_artifacts.ModelEvaluation),
        BLESSING_KEY: component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(base_beam_component.BaseBeamComponent):
    """Evaluates the exported model on the raw eval split and blesses it if it passes every gate of the recipe."""

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        baseline_model: types.BaseChannel | None,
        settings: EvaluatorSettings,
    ) -> None:
        """Build the component.

        Args:
            examples: Raw examples with the split `eval`.
            model: The candidate model.
            baseline_model: Output of a ModelResolver, which may hold no model; None without a resolver.
            settings: Gates, slices and columns of the recipe.
        """
        spec = EvaluatorSpec(
            **{
                EXAMPLES_KEY: examples,
                MODEL_KEY: model,
                **({} if baseline_model is None else {BASELINE_MODEL_KEY: baseline_model}),
                SETTINGS_KEY: settings.model_dump_json(),
                EVALUATION_KEY: types.Channel(type=standard_artifacts.ModelEvaluation),
                BLESSING_KEY: types.Channel(type=standard_artifacts.ModelBlessing),
            }
        )
        super().__init__(spec=spec)
