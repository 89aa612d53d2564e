"""Workdirs with the marks that runs leave, made without running anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

STATES = {
    "done": mlmd.Execution.COMPLETE,
    "cached": mlmd.Execution.CACHED,
    "failed": mlmd.Execution.FAILED,
    "unfinished": mlmd.Execution.RUNNING,
}


@dataclasses.dataclass
class Marks:
    """A workdir; its methods leave what a run would leave."""

    workdir: Path

    def __post_init__(self) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        connection = mlmd.ConnectionConfig()
        connection.sqlite.filename_uri = str(self.workdir / "metadata.sqlite")
        connection.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self._store = metadata_store.MetadataStore(connection)
        self._types = {
            name: self._store.put_context_type(mlmd.ContextType(name=name))
            for name in ("pipeline", "pipeline_run", "node")
        }
        self._contexts: dict[tuple[str, str], int] = {}

    def folder(self, run_id: str, **files: Any) -> Path:
        """The run's folder with files by stem: text as it is in `.txt`, everything else as `.json`."""
        folder = self.workdir / "runs" / run_id
        folder.mkdir(parents=True, exist_ok=True)
        for stem, content in files.items():
            if isinstance(content, str):
                (folder / f"{stem}.txt").write_text(content)
            else:
                (folder / f"{stem}.json").write_text(json.dumps(content))
        return folder

    def artifact(self, type_: str, uri: Path | str = "", **properties: Any) -> int:
        """An artifact in ML Metadata; returns its id."""
        kind = self._store.put_artifact_type(mlmd.ArtifactType(name=type_))
        artifact = mlmd.Artifact(type_id=kind, uri=str(uri), state=mlmd.Artifact.LIVE)
        for name, value in properties.items():
            if isinstance(value, int):
                artifact.custom_properties[name].int_value = value
            else:
                artifact.custom_properties[name].string_value = value
        (id_,) = self._store.put_artifacts([artifact])
        return int(id_)

    def step(
        self,
        run_id: str,
        component: str,
        state: str = "done",
        inputs: Sequence[tuple[str, int]] = (),
        outputs: Sequence[tuple[str, int]] = (),
        properties: Mapping[str, str] | None = None,
    ) -> int:
        """An execution in ML Metadata, as TFX's launcher leaves it; returns its id."""
        kind = self._store.put_execution_type(mlmd.ExecutionType(name=f"components.{component}"))
        execution = mlmd.Execution(type_id=kind, last_known_state=STATES[state])
        for name, value in (properties or {}).items():
            execution.custom_properties[name].string_value = value
        (id_,) = self._store.put_executions([execution])
        contexts = [("pipeline_run", run_id), ("node", f"movielens.{component}")]
        self._store.put_attributions_and_associations(
            [], [mlmd.Association(execution_id=id_, context_id=self._context(*context)) for context in contexts]
        )
        events = []
        for names, kind in ((inputs, mlmd.Event.INPUT), (outputs, mlmd.Event.OUTPUT)):
            for name, artifact in names:
                event = mlmd.Event(execution_id=id_, artifact_id=artifact, type=kind)
                event.path.steps.add().key = name
                event.path.steps.add().index = 0
                events.append(event)
        if events:
            self._store.put_events(events)
        return int(id_)

    def _context(self, kind: str, name: str) -> int:
        if (kind, name) not in self._contexts:
            (id_,) = self._store.put_contexts([mlmd.Context(type_id=self._types[kind], name=name)])
            self._contexts[kind, name] = id_
        return self._contexts[kind, name]


RESULT: dict[str, Any] = {
    "run_id": "20260101-120000",
    "recipe": "movielens",
    "seconds": 100.0,
    "components": [
        {"name": "InteractionExampleGen", "seconds": 3.0, "cached": True},
        {"name": "Trainer", "seconds": 90.0, "cached": False},
    ],
    "rows": {"read": 1000, "rejected": 3, "merged": 0, "negatives": 0, "train": 800, "eval": 197, "catalogue": 50},
    "metrics": {"top_100_accuracy": 0.4, "rmse": 0.9},
    "verdict": {
        "examples": 197,
        "metrics": {"top_100_accuracy": 0.4, "rmse": 0.9},
        "baselines": {"top_100_accuracy": 0.3, "rmse": 0.95},
        "last_blessed": {"top_100_accuracy": 0.41, "rmse": 0.91},
        "blessed": True,
        "bounds": [
            {
                "metric": "top_100_accuracy",
                "condition": "at_least",
                "allowed": 0.27,
                "limit": 0.27,
                "measured": 0.4,
                "passed": True,
                "margin": 0.13,
            }
        ],
        "slices": [
            {
                "name": "user_activity",
                "value": "light",
                "examples": 20,
                "metrics": {"top_100_accuracy": 0.2, "rmse": 1.1},
                "baselines": {"top_100_accuracy": 0.25, "rmse": 1.0},
            },
            {
                "name": "item_popularity",
                "value": "head",
                "examples": 170,
                "metrics": {"top_100_accuracy": 0.5, "rmse": 0.85},
                "baselines": {"top_100_accuracy": 0.4, "rmse": 0.9},
            },
        ],
    },
    "not_servable": None,
    "blessed": True,
    "pushed_model": "serving/movielens/17",
    "log": "log.txt",
}


def result(run_id: str, **changes: Any) -> dict[str, Any]:
    """`result.json` of a pushed run, with changes."""
    return json.loads(json.dumps(RESULT)) | {"run_id": run_id} | changes
