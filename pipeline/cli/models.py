"""Commands about pushed models: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_MODEL, ModelName


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
