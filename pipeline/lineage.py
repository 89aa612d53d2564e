"""ML Metadata, read: which steps a run had, what each took and gave, and what an artifact was made from.

For the report and the commands about runs. Only `ml_metadata` is imported, so that they start without TFX.
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
    """What a step made."""

    id: int
    type: str
    uri: str
    properties: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """One component in one run."""

    id: int
    component: str
    run_id: str
    state: StepState
    started: float
    """Seconds since 1970."""
    seconds: float
    properties: dict[str, Any]
    inputs: tuple[tuple[str, int], ...]
    """Name of the input and id of the artifact."""
    outputs: tuple[tuple[str, int], ...]
    """The same of what it gave: made, taken from the cache, or (by a TFX Resolver) looked up."""


class Lineage:
    """The metadata of one workdir. What is read is kept, so an instance shows the state at its first questions."""

    def __init__(self, workdir: Path) -> None:
        """Opens `metadata.sqlite` of `workdir` for reading; where there is none yet, there are no runs."""
        self._store: metadata_store.MetadataStore | None = None
        path = workdir / METADATA_FILE
        if path.is_file():
            connection = metadata_store_pb2.ConnectionConfig()
            connection.sqlite.filename_uri = str(path)
            connection.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
            self._store = metadata_store.MetadataStore(connection)

    @property
    def run_ids(self) -> Sequence[str]:
        """All runs, in the order they began."""
        return list(self._runs)

    def steps(self, run_id: str) -> Sequence[Step]:
        """The steps of a run in the order they began; empty where the run is not known or got to none."""
        return sorted((step for step in self._steps.values() if step.run_id == run_id), key=lambda step: step.id)

    def outputs(self, step: Step) -> dict[str, StoredArtifact]:
        """What a step gave, by the name of the output."""
        return {key: self._artifacts[id_] for key, id_ in step.outputs if id_ in self._artifacts}

    def output(self, run_id: str, component: str, key: str) -> StoredArtifact | None:
        """One output of one step of a run; None where it did not get that far."""
        found = (self.outputs(step).get(key) for step in self.steps(run_id) if step.component == component)
        return next((artifact for artifact in found if artifact is not None), None)

    @property
    def types(self) -> dict[int, str]:
        """The type of every artifact, by id."""
        return {id_: artifact.type for id_, artifact in self._artifacts.items()}

    def origin(self, artifact_id: int, without: Sequence[str] = ()) -> Sequence[tuple[Step, StoredArtifact]]:
        """How an artifact came about: each artifact that it was made from, with the step that really made it.

        The chain leads through other runs where something was taken from their cache.

        Args:
            artifact_id: The artifact.
            without: Inputs that are not followed, by name.

        Returns:
            In the order they were made; the artifact itself is last. Empty for an unknown artifact.
        """
        # Whoever gave it later took it from the cache or looked it up.
        makers: dict[int, Step] = {}
        for step in sorted(self._steps.values(), key=lambda step: step.id):
            for _, id_ in step.outputs:
                makers.setdefault(id_, step)
        found: dict[int, tuple[Step, StoredArtifact]] = {}
        wanted = [artifact_id]
        while wanted:
            id_ = wanted.pop()
            maker = makers.get(id_)
            if maker is not None and id_ not in found and id_ in self._artifacts:
                found[id_] = (maker, self._artifacts[id_])
                wanted.extend(source for name, source in maker.inputs if name not in without)
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
                taken: list[tuple[str, int]] = []
                given: list[tuple[str, int]] = []
                for event in events:
                    if event.execution_id == execution.id:
                        name = next((part.key for part in event.path.steps if part.key), "")
                        (taken if event.type in _INPUTS else given).append((name, int(event.artifact_id)))
                steps[execution.id] = Step(
                    id=execution.id,
                    component=components.get(execution.id, execution.type),
                    run_id=run_id,
                    state=_STATES.get(execution.last_known_state, "unfinished"),
                    started=execution.create_time_since_epoch / 1000,
                    seconds=(execution.last_update_time_since_epoch - execution.create_time_since_epoch) / 1000,
                    properties=_values(execution.custom_properties),
                    inputs=tuple(taken),
                    outputs=tuple(given),
                )
        return steps


def _values(properties: Any) -> dict[str, Any]:
    """ML Metadata's typed values as Python's; structs are left out."""
    kinds = {name: value.WhichOneof("value") for name, value in properties.items()}
    return {name: getattr(properties[name], kind) for name, kind in kinds.items() if kind and kind != "struct_value"}
