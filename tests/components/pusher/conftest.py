"""A folder that TensorFlow Serving would watch, models to push into it, and the Pusher's real executor."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import pytest
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.utils import json_utils, proto_utils

from components.pusher.executor import SETTINGS_KEY, Executor, PusherSettings

# A model is a folder of files to the Pusher.
FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.data-00000-of-00001": b"weights" * 1000,
    "variables/variables.index": b"index",
    "assets/vocabulary": b"one\ntwo\n",
    "assets.extra/tf_serving_warmup_requests": b"requests",
}


@dataclasses.dataclass(frozen=True)
class Pushed:
    """The PushedModel artifact after a run."""

    pushed: int
    destination: str | None
    version: str | None
    folder: Path
    """The artifact's own copy of the model."""


@pytest.fixture
def serving_dir(tmp_path: Path) -> Path:
    return tmp_path / "serving" / "shop"


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a Model artifact whose files end with `name`."""

    def make(name: str) -> Path:
        for path, content in FILES.items():
            target = tmp_path / "models" / name / "Format-Serving" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content + name.encode())
        return tmp_path / "models" / name

    return make


@pytest.fixture
def push(serving_dir: Path, tmp_path: Path) -> Callable[..., Pushed]:
    """Runs the executor on a model with the two blessings, and with settings that are not the defaults."""
    counter = iter(range(100))

    def run(model: Path, *, evaluator: bool = True, infra_validator: bool = True, **settings: Any) -> Pushed:
        def artifact(kind: type, uri: Path, **properties: int) -> Any:
            made = kind()
            made.uri = str(uri)
            for name, value in properties.items():
                made.set_int_custom_property(name, value)
            return made

        def blessing(kind: type, file: str, blessed: bool) -> Any:
            folder = tmp_path / f"blessing-{next(counter)}"
            folder.mkdir()
            (folder / file).write_text("")
            return artifact(kind, folder, blessed=int(blessed))

        model_file = "BLESSED" if evaluator else "NOT_BLESSED"
        infra_file = "INFRA_BLESSED" if infra_validator else "INFRA_NOT_BLESSED"
        result = artifact(standard_artifacts.PushedModel, tmp_path / f"pushed-{next(counter)}")
        Executor().Do(
            {
                standard_component_specs.MODEL_KEY: [artifact(standard_artifacts.Model, model)],
                standard_component_specs.MODEL_BLESSING_KEY: [
                    blessing(standard_artifacts.ModelBlessing, model_file, evaluator)
                ],
                standard_component_specs.INFRA_BLESSING_KEY: [
                    blessing(standard_artifacts.InfraBlessing, infra_file, infra_validator)
                ],
            },
            {standard_component_specs.PUSHED_MODEL_KEY: [result]},
            {
                standard_component_specs.PUSH_DESTINATION_KEY: proto_utils.proto_to_json(
                    pusher_pb2.PushDestination(
                        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(serving_dir))
                    )
                ),
                standard_component_specs.CUSTOM_CONFIG_KEY: json_utils.dumps(
                    {SETTINGS_KEY: PusherSettings(**settings).model_dump_json()}
                ),
            },
        )
        return Pushed(
            pushed=result.get_int_custom_property("pushed"),
            destination=result.get_string_custom_property("pushed_destination") or None,
            version=result.get_string_custom_property("pushed_version") or None,
            folder=Path(result.uri),
        )

    return run


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """The content of every file below a folder."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
