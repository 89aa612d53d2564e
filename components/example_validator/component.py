"""TFX's ExampleValidator, with an executor that fails on anomalies instead of only writing them down."""

from __future__ import annotations

from tfx import components as tfx_components
from tfx.dsl.components.base import executor_spec

from components.example_validator.executor import Executor


class ExampleValidator(tfx_components.ExampleValidator):
    """Validates statistics against the schema; an anomaly stops the run before training."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
