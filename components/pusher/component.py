"""TFX's Pusher with an executor that publishes a version atomically."""

from __future__ import annotations

from tfx import components as tfx_components
from tfx.dsl.components.base import executor_spec

from components.pusher.executor import Executor


class Pusher(tfx_components.Pusher):
    """Pushes a model that Evaluator and InfraValidator have blessed."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
