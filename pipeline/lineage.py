"""Reader of ML Metadata: the executions of a run with their inputs and outputs, and the lineage of an artifact.

The report and the commands about runs use it. It imports only `ml_metadata`, so that they start without TFX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2

from pipeline.workdir import METADATA_FILE

StepState = Literal["done", "cached", "failed", "unfinished"]

_RUN, _NODE = "pipeline_run", "node"
_INPUTS = (metadata_store_pb2.Event.INPUT, metadata_store_pb2.Event.INTERNAL_INPUT)
_STATES: dict[int, StepState] = {
    metadata_store_pb2.Execution.COMPLETE: "done",
    metadata_store_pb2.Execution.CACHED: "cached",
    metadata_store_pb2.Execution.FAILED: "failed",
    metadata_store_pb2.Execution.CANCELED: "failed",
}


@dataclasses.dataclass(frozen=True)
class StoredArtifact:
    """An output artifact in ML Metadata."""

    id: int
    type: str
    uri: str
    properties: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """One execution of a component in one run."""

    id: int
    component: str
    run_id: str
    state: StepState
    started: float
    """Seconds since 1970."""
    seconds: float
    properties: dict[str, Any]
    inputs: tuple[tuple[str, int], ...]
    """Name of the input and id of each artifact."""
    outputs: tuple[tuple[str, int], ...]
    """Name of the output and id of each artifact: new, cached, or resolved by a TFX Resolver."""


class Lineage:
    """The metadata of one work folder. Values are cached, so an instance shows the state of its first queries."""

    def __init__(self, workdir: Path) -> None:
        """Open `metadata.sqlite` of `workdir` for reading; without the file, there are no runs."""
        self._store: metadata_store.MetadataStore | None = None
        path = workdir / METADATA_FILE
        if path.is_file():
            connection = metadata_store_pb2.ConnectionConfig()
            connection.sqlite.filename_uri = str(path)
            connection.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
            self._store = metadata_store.MetadataStore(connection)

    @property
    def run_ids(self) -> Sequence[str]:
        """All runs, in the order of their start."""
        return list(self._runs)

    def steps(self, run_id: str) -> Sequence[Step]:
        """Return the steps of a run in the order of their start; empty for an unknown run."""
        return sorted((step for step in self._steps.values() if step.run_id == run_id), key=lambda step: step.id)

    def outputs(self, step: Step) -> dict[str, StoredArtifact]:
        """Return the output artifacts of a step, by the name of the output."""
        return {key: self._artifacts[id_] for key, id_ in step.outputs if id_ in self._artifacts}

    def output(self, run_id: str, component: str, key: str) -> StoredArtifact | None:
        """Return one output artifact of one component in a run; None if the run has none."""
        found = (self.outputs(step).get(key) for step in self.steps(run_id) if step.component == component)
        return next((artifact for artifact in found if artifact is not None), None)

    @property
    def types(self) -> dict[int, str]:
        """The type of every artifact, by id."""
        return {id_: artifact.type for id_, artifact in self._artifacts.items()}

    def origin(self, artifact_id: int, without: Sequence[str] = ()) -> Sequence[tuple[Step, StoredArtifact]]:
        """Return the artifacts that an artifact was made from, each with the step that made it.

        The lineage includes steps of earlier runs if their outputs were cached.

        Args:
            artifact_id: The artifact.
            without: Inputs that are not followed, by name.

        Returns:
            Steps and artifacts in the order of the steps; the artifact itself is last. Empty for an unknown artifact.
        """
        # Later steps with the same output took it from the cache or resolved it.
        makers: dict[int, Step] = {}
        for step in sorted(self._steps.values(), key=lambda step: step.id):
            for _, id_ in step.outputs:
                makers.setdefault(id_, step)
        found: dict[int, tuple[Step, StoredArtifact]] = {}
        waiting = [artifact_id]
        while waiting:
            id_ = waiting.pop()
            maker = makers.get(id_)
            if maker is not None and id_ not in found and id_ in self._artifacts:
                found[id_] = (maker, self._artifacts[id_])
                waiting.extend(source for name, source in maker.inputs if name not in without)
        return [found[id_] for id_ in sorted(found, key=lambda id_: (found[id_][0].id, id_))]

    @cached_property
    def _runs(self) -> dict[str, int]:
        contexts = self._store.get_contexts_by_type(_RUN) if self._store is not None else []
        return {context.name: context.id for context in sorted(contexts, key=lambda context: int(context.id))}

    @cached_property
    def _artifacts(self) -> dict[int, StoredArtifact]:
        artifacts = self._store.get_artifacts() if self._store is not None else []
        return {
            artifact.id: StoredArtifact(artifact.id, artifact.type, artifact.uri, _values(artifact.custom_properties))
            for artifact in artifacts
        }

    @cached_property
    def _steps(self) -> dict[int, Step]:
        if self._store is None:
            return {}
        components = {
            execution.id: context.name.partition(".")[2]
            for context in self._store.get_contexts_by_type(_NODE)
            for execution in self._store.get_executions_by_context(context.id)
        }
        steps = {}
        for run_id, context_id in self._runs.items():
            executions = self._store.get_executions_by_context(context_id)
            events = self._store.get_events_by_execution_ids([execution.id for execution in executions])
            for execution in executions:
                inputs: list[tuple[str, int]] = []
                outputs: list[tuple[str, int]] = []
                for event in events:
                    if event.execution_id == execution.id:
                        name = next((part.key for part in event.path.steps if part.key), "")
                        (inputs if event.type in _INPUTS else outputs).append((name, int(event.artifact_id)))
                steps[execution.id] = Step(
                    id=execution.id,
                    component=components.get(execution.id, execution.type),
                    run_id=run_id,
                    state=_STATES.get(execution.last_known_state, "unfinished"),
                    started=execution.create_time_since_epoch / 1000,
                    seconds=(execution.last_update_time_since_epoch - execution.create_time_since_epoch) / 1000,
                    properties=_values(execution.custom_properties),
                    inputs=tuple(inputs),
                    outputs=tuple(outputs),
                )
        return steps


def _values(properties: Any) -> dict[str, Any]:
    """Convert ML Metadata's typed values to Python's, except structs."""
    kinds = {name: value.WhichOneof("value") for name, value in properties.items()}
    return {name: getattr(properties[name], kind) for name, kind in kinds.items() if kind and kind != "struct_value"}
