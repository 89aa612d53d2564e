"""TFX's Evaluator, with an executor that also writes the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from tfx import v1 as tfx
from tfx.dsl.components.base import executor_spec

from components.evaluator.eval_config import eval_config
from components.evaluator.executor import Executor
from pipeline.recipe import Gate


class Evaluator(tfx.components.Evaluator):
    """Measures the exported model on the raw eval split and blesses it if it passes every gate of the recipe."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: tfx.types.BaseChannel,
        model: tfx.types.BaseChannel,
        baseline_model: tfx.types.BaseChannel | None,
        gates: Sequence[Gate],
        label: str,
        negatives: bool = False,
    ) -> None:
        """Builds the component.

        Args:
            examples: Raw examples; the split `eval` is measured.
            model: The candidate.
            baseline_model: The last blessed model, if there is one; None where none is looked up.
            gates: The recipe's gates.
            label: The raw feature that holds the label.
            negatives: Whether the examples hold sampled negatives.
        """
        super().__init__(
            examples=examples,
            model=model,
            baseline_model=baseline_model,
            example_splits=["eval"],
            eval_config=eval_config(gates, label, negatives),
        )
