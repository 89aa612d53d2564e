"""Commands about pushed models: `serve`, `promote`, `rollback`, `batch`, `export`."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import DEFAULT_MODEL, AsJson, ModelName

if TYPE_CHECKING:
    from pipeline.release import Released

ModelDir = Annotated[Path, typer.Option(help="Folder with numbered versions, as the Pusher writes them.")]


class Label(StrEnum):
    """The labels that a version can be promoted to."""

    CANARY = "canary"
    STABLE = "stable"


def serve(
    model_dir: Annotated[Path, typer.Option(help="Folder with numbered versions, as the Pusher writes them.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes any free one.")] = 8500,
    rest_port: Annotated[int, typer.Option(help="REST port; 0 takes any free one.")] = 8501,
    model: ModelName = DEFAULT_MODEL,
) -> None:
    """Serve a pushed model with TensorFlow Serving's gRPC and REST API until Ctrl-C."""
    from serving.server import main as serve_forever

    raise typer.Exit(
        serve_forever(
            [
                *("--model-dir", str(model_dir), "--model-name", model),
                *("--host", host, "--port", str(port), "--rest-port", str(rest_port)),
            ]
        )
    )


def promote(
    model_dir: ModelDir,
    label: Annotated[Label, typer.Option(help="The label that clients ask for.")],
    version: Annotated[int | None, typer.Option(help="Version to point it at. [default: the newest]")] = None,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Point a label at a version, in the models.config beside MODEL_DIR that servers follow."""
    _no_greeting()
    from pipeline.release import promote as point

    _print_released(point(model_dir, label.value, version, model), as_json)


def rollback(
    model_dir: ModelDir,
    to: Annotated[int | None, typer.Option(help="Version to go back to. [default: the one before]")] = None,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Go back to an older version: move `stable` in models.config, or without labels make it the newest again."""
    _no_greeting()
    from pipeline.release import rollback as go_back

    _print_released(go_back(model_dir, to, model), as_json)


def _print_released(released: Released, as_json: bool) -> None:
    if as_json:
        fields = {"label": released.label, "version": released.version, "before": released.before}
        config = None if released.config is None else str(released.config)
        print(json.dumps({**fields, "copy_of": released.copy_of, "config": config}))
    elif released.label is not None:
        before = "" if released.before is None else f" (it was at {released.before})"
        print(f"{released.config}: {released.label} is version {released.version}{before}")
    else:
        print(
            f"Version {released.copy_of} is the newest again, as version {released.version} "
            f"(version {released.before} was the newest)"
        )


def _no_greeting() -> None:
    # TensorFlow greets with a page of CPU features.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
