"""Commands about pushed models: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from commands.subcommands.shared_options import DEFAULT_MODEL, ModelName


def serve(
    model_dir: Annotated[
        Path | None, typer.Option(help="Folder with numbered versions, as the Pusher writes them.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes any free one.")] = 8500,
    rest_port: Annotated[int, typer.Option(help="REST port; 0 takes any free one.")] = 8501,
    model: ModelName = DEFAULT_MODEL,
    model_config_file: Annotated[
        Path | None,
        typer.Option(help="TensorFlow Serving's model config file (models, versions, labels) instead of a folder."),
    ] = None,
    allow_version_labels_for_unavailable_models: Annotated[
        bool, typer.Option(help="A new label may name a version that is not loaded yet, as all are at the start.")
    ] = True,
    enable_batching: Annotated[bool, typer.Option(help="Merge concurrent Predict requests.")] = False,
    batching_parameters_file: Annotated[
        Path | None, typer.Option(help="TensorFlow Serving's batching parameters file.")
    ] = None,
    monitoring_config_file: Annotated[
        Path | None, typer.Option(help="TensorFlow Serving's monitoring config file: the Prometheus page.")
    ] = None,
    ssl_config_file: Annotated[
        Path | None, typer.Option(help="TensorFlow Serving's SSL config file: TLS, mutual TLS.")
    ] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Refuse larger requests.", min=1)] = None,
) -> None:
    """Serve pushed models with TensorFlow Serving's gRPC and REST API until Ctrl-C."""
    from serving.server.model_server import run as serve_until_stopped

    arguments = [*("--model-name", model), *("--host", host, "--port", str(port), "--rest-port", str(rest_port))]
    given = {
        "--model-dir": model_dir,
        "--model-config-file": model_config_file,
        "--batching-parameters-file": batching_parameters_file,
        "--monitoring-config-file": monitoring_config_file,
        "--ssl-config-file": ssl_config_file,
        "--max-message-bytes": max_message_bytes,
    }
    for option, value in given.items():
        if value is not None:
            arguments += [option, str(value)]
    if allow_version_labels_for_unavailable_models:
        arguments.append("--allow-version-labels-for-unavailable-models")
    if enable_batching:
        arguments.append("--enable-batching")
    serve_until_stopped(arguments)
