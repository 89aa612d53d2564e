"""Launches the components of a run with TFX's portable launcher, for the local runner and Airflow's tasks.

It does not import the DAG's definition: an Airflow task needs only the executor of its own component.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.orchestration.portable.beam_executor_operator import BeamExecutorOperator
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.proto.orchestration import executable_spec_pb2, pipeline_pb2
from tfx.types.artifact import Artifact


@dataclasses.dataclass(frozen=True)
class ComponentRun:
    """Result and duration of one component of a run."""

    name: str
    seconds: float
    cached: bool
    outputs: dict[str, list[Artifact]]


class ComponentError(Exception):
    """A component failed; `__cause__` is its error."""

    def __init__(self, component: str, seconds: float) -> None:
        super().__init__(component)
        self.component = component
        self.seconds = seconds


@dataclasses.dataclass(frozen=True)
class LaunchResult:
    """Result of launching a component."""

    cached: bool
    outputs: dict[str, list[Artifact]]


class InputsMissing(Exception):
    """An upstream component has no outputs in this run."""


class Launches:
    """The components of one run, launched one by one, in one process or in several."""

    def __init__(
        self, compiled: pipeline_pb2.Pipeline, run_id: str, beam_args: Sequence[str] | None = None
    ) -> None:  # fmt: skip
        """Prepare the compiled DAG for one run.

        Args:
            compiled: The DAG, from `compile_dag`.
            run_id: Id of the run in ML Metadata.
            beam_args: Beam's pipeline options. Default: those that the DAG was compiled with.
        """
        self._beam_args = beam_args
        self._compiled = pipeline_pb2.Pipeline()
        self._compiled.CopyFrom(compiled)
        runtime_parameter_utils.substitute_runtime_parameter(
            self._compiled, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
        )
        self._nodes = {node.pipeline_node.node_info.id: node.pipeline_node for node in self._compiled.nodes}
        self._deployment = runner_utils.extract_local_deployment_config(self._compiled)
        config = self._deployment.metadata_connection_config
        self._connection = getattr(config, config.WhichOneof("connection_config"))

    @property
    def names(self) -> tuple[str, ...]:
        """The components in topological order."""
        return tuple(self._nodes)

    def launch(self, name: str) -> LaunchResult:
        """Run a component or take its outputs from the cache; skip it if it is complete in this run.

        Raises:
            InputsMissing: An upstream component has no outputs in this run.
            Exception: The component's own error.
        """
        executor = runner_utils.extract_executor_spec(self._deployment, name)
        with_args = executor if self._beam_args is None else _with_beam_args(executor, self._beam_args)
        execution = launcher.Launcher(
            pipeline_node=self._nodes[name],
            mlmd_connection=metadata.Metadata(self._connection),
            pipeline_info=self._compiled.pipeline_info,
            pipeline_runtime_spec=self._compiled.runtime_spec,
            # For the cache key: results do not depend on the Beam runner.
            executor_spec=_with_beam_args(executor, ()),
            custom_driver_spec=runner_utils.extract_custom_driver_spec(self._deployment, name),
            custom_executor_operators={
                executable_spec_pb2.BeamExecutableSpec: lambda **_: BeamExecutorOperator(with_args)
            },
        ).launch()
        with metadata.Metadata(self._connection) as store:
            # The launcher raises no error for missing inputs.
            found = store.store.get_executions_by_id([execution.execution_id] if execution.execution_id else [])
            if not found or not execution_lib.is_execution_successful(found[0]):
                raise InputsMissing(f"{name} did not run: an upstream component has no outputs in this run")
            outputs = execution_lib.get_output_artifacts(store, execution.execution_id)
        cached = found[0].last_known_state == metadata_store_pb2.Execution.CACHED
        return LaunchResult(cached, {key: list(artifacts) for key, artifacts in outputs.items()})


def run(
    compiled: pipeline_pb2.Pipeline,
    run_id: str,
    started: Callable[[str], None],
    finished: Callable[[ComponentRun], None],
) -> list[ComponentRun]:
    """Run every component, in order.

    Args:
        compiled: The DAG, from `compile_dag`.
        run_id: Id of the run in ML Metadata.
        started: Called with each component's name before it runs.
        finished: Called with each component's result.

    Raises:
        ComponentError: A component failed; later components did not run.
    """
    launches = Launches(compiled, run_id)
    runs = []
    for name in launches.names:
        start = time.monotonic()
        started(name)
        try:
            result = launches.launch(name)
        except Exception as error:
            raise ComponentError(name, time.monotonic() - start) from error
        component = ComponentRun(name, time.monotonic() - start, result.cached, result.outputs)
        runs.append(component)
        finished(component)
    return runs


def _with_beam_args(executor: Any, args: Sequence[str]) -> Any:
    """Return a compiled executor with other Beam arguments if it is a Beam executor."""
    if not isinstance(executor, executable_spec_pb2.BeamExecutableSpec):
        return executor
    changed = executable_spec_pb2.BeamExecutableSpec()
    changed.CopyFrom(executor)
    del changed.beam_pipeline_args[:]
    del changed.beam_pipeline_args_placeholders[:]
    changed.beam_pipeline_args.extend(args)
    for arg in args:
        changed.beam_pipeline_args_placeholders.add().value.string_value = arg
    return changed
