"""Runs the DAG in this process on TFX's launcher, and says what happens as it happens.

The steps are those of TFX's LocalDagRunner; it has no way to watch the single components.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from tfx.dsl.compiler import compiler
from tfx.orchestration import pipeline
from tfx.proto.orchestration import pipeline_pb2
from tfx.types.artifact import Artifact

from pipeline.dag import NEVER_CACHED
from pipeline.runners.launch import Launches


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


def compile_dag(dag: pipeline.Pipeline) -> pipeline_pb2.Pipeline:
    """TFX's intermediate representation of a DAG: all that a launcher needs, in any process.

    Args:
        dag: From `create_pipeline`, with a connection to ML Metadata.
    """
    compiled = compiler.Compiler().compile(dag)
    for node in compiled.nodes:
        if node.pipeline_node.node_info.id in NEVER_CACHED:
            node.pipeline_node.execution_options.caching_options.enable_cache = False
    return compiled


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
    launches = Launches(compile_dag(dag), run_id)
    runs = []
    for name in launches.names:
        start = time.monotonic()
        started(name)
        try:
            outcome = launches.launch(name)
        except Exception as error:
            raise ComponentError(name, time.monotonic() - start) from error
        component = ComponentRun(name, time.monotonic() - start, outcome.cached, outcome.outputs)
        runs.append(component)
        finished(component)
    return runs
