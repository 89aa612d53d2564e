"""Runs the DAG in this process on TFX's launcher and Beam's in-memory runner, and says what happens as it happens.

The steps are those of TFX's LocalDagRunner; it has no way to watch the single components.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata, pipeline
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.types.artifact import Artifact

from pipeline.dag import NEVER_CACHED

# In memory: Beam's default would first try to download its Prism runner, and several processes only pay off beyond
# about a million rows on one machine.
# The container image is never used; naming one keeps TFX from packing its own installation for each component (1.3 s).
BEAM_ARGS = ("--runner=FnApiRunner", "--sdk_container_image=unused")


@dataclasses.dataclass(frozen=True)
class ComponentRun:
    """One component of one run."""

    name: str
    seconds: float
    cached: bool
    outputs: dict[str, list[Artifact]]


class ComponentError(Exception):
    """A component failed; `__cause__` is its own error."""

    def __init__(self, component: str, seconds: float) -> None:
        super().__init__(component)
        self.component = component
        self.seconds = seconds


def run(
    dag: pipeline.Pipeline,
    run_id: str,
    started: Callable[[str], None],
    finished: Callable[[ComponentRun], None],
) -> list[ComponentRun]:
    """Runs every component, in order.

    Args:
        dag: From `create_pipeline`, with a connection to ML Metadata.
        run_id: Name of the run in ML Metadata.
        started: Called with each component's name before it runs.
        finished: Called with each component's outcome.

    Raises:
        ComponentError: A component failed; the ones behind it did not run.
    """
    compiled = compiler.Compiler().compile(dag)
    runtime_parameter_utils.substitute_runtime_parameter(compiled, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
    deployment = runner_utils.extract_local_deployment_config(compiled)
    connection = getattr(
        deployment.metadata_connection_config, deployment.metadata_connection_config.WhichOneof("connection_config")
    )
    runs = []
    for node in compiled.nodes:
        pipeline_node = node.pipeline_node
        name = pipeline_node.node_info.id
        if name in NEVER_CACHED:
            pipeline_node.execution_options.caching_options.enable_cache = False
        start = time.monotonic()
        started(name)
        try:
            execution = launcher.Launcher(
                pipeline_node=pipeline_node,
                mlmd_connection=metadata.Metadata(connection),
                pipeline_info=compiled.pipeline_info,
                pipeline_runtime_spec=compiled.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(deployment, name),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
            ).launch()
        except Exception as error:
            raise ComponentError(name, time.monotonic() - start) from error
        with metadata.Metadata(connection) as store:
            cached, outputs = _outcome(store, execution.execution_id)
        component = ComponentRun(name, time.monotonic() - start, cached, outputs)
        runs.append(component)
        finished(component)
    return runs


def _outcome(store: metadata.Metadata, execution_id: int) -> tuple[bool, dict[str, list[Artifact]]]:
    """Whether an execution came from the cache, and its output artifacts, as ML Metadata has them."""
    (execution,) = store.store.get_executions_by_id([execution_id])
    cached = execution.last_known_state == metadata_store_pb2.Execution.CACHED
    return cached, {key: list(found) for key, found in execution_lib.get_output_artifacts(store, execution_id).items()}
