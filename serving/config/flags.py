"""The server's command line.

TensorFlow Serving's own flags are understood in its spelling, too (`--model_base_path=…`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.config.server_options import ServerOptions

DEFAULT_MODEL = "recommender"
DEFAULT_PORT = 8500
DEFAULT_REST_PORT = 8501
_DRAIN_S = 30.0
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def parse(arguments: Sequence[str] | None, defaults: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; exits with code 2 on a wrong one.

    Args:
        arguments: None for `defaults`.
        defaults: the process's own, without the program's name.
    """
    parser = _parser()
    options = parser.parse_args([_dashes(each) for each in (defaults if arguments is None else arguments)])
    if (options.model_dir is None) == (options.model_config_file is None):
        parser.error("give one of --model-dir and --model-config-file")
    return options


def server_options(options: argparse.Namespace) -> ServerOptions:
    """The options that TensorFlow Serving has, too."""
    return ServerOptions(
        model_config_file=options.model_config_file,
        model_config_file_poll_wait_s=options.model_config_file_poll_wait_seconds,
        allow_version_labels_for_unavailable_models=options.allow_version_labels_for_unavailable_models,
        enable_batching=options.enable_batching,
        batching_parameters_file=options.batching_parameters_file,
        monitoring_config_file=options.monitoring_config_file,
        ssl_config_file=options.ssl_config_file,
        max_message_bytes=options.max_message_bytes,
        grpc_max_threads=options.grpc_max_threads,
    )


def _dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve folders of SavedModel versions, as TensorFlow Serving does.",
        allow_abbrev=False,
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model-dir", "--model-base-path", metavar="DIR", help="folder that holds the numbered versions"
    )
    models.add_argument("--model-name", default=DEFAULT_MODEL, help="the model's name in requests (%(default)s)")
    models.add_argument(
        "--model-config-file",
        type=Path,
        metavar="FILE",
        help="text proto ModelServerConfig: models, version policies, labels; instead of --model-dir",
    )
    models.add_argument(
        "--model-config-file-poll-wait-seconds",
        type=_wait,
        default=1.0,
        metavar="SECONDS",
        help="time between looks at that file, 0 to read it once (%(default)s)",
    )
    models.add_argument(
        "--allow-version-labels-for-unavailable-models",
        **_switch(),
        help="a new label may name a version that is not available yet",
    )
    models.add_argument(
        "--poll-interval",
        "--file-system-poll-wait-seconds",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between looks for a new version (%(default)s)",
    )
    models.add_argument(
        "--fail-fast", action="store_true", help="exit 1 when no version of a model loads, instead of waiting for one"
    )
    network = parser.add_argument_group("network")
    network.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    network.add_argument("--port", type=_port, default=DEFAULT_PORT, help="gRPC port, 0 for a free one (%(default)s)")
    network.add_argument(
        "--rest-port",
        "--rest-api-port",
        type=_port,
        default=DEFAULT_REST_PORT,
        help="REST port, 0 for a free one (%(default)s)",
    )
    network.add_argument(
        "--ssl-config-file", type=Path, metavar="FILE", help="text proto SSLConfig: TLS on both ports, mutual TLS"
    )
    network.add_argument(
        "--max-message-bytes", type=_positive, metavar="BYTES", help="refuse larger requests (no limit)"
    )
    network.add_argument(
        "--grpc-max-threads", type=_positive, metavar="THREADS", help="threads that answer gRPC calls (four a core)"
    )
    running = parser.add_argument_group("running")
    running.add_argument("--enable-batching", **_switch(), help="merge concurrent Predict requests")
    running.add_argument("--batching-parameters-file", type=Path, metavar="FILE", help="text proto BatchingParameters")
    running.add_argument(
        "--monitoring-config-file", type=Path, metavar="FILE", help="text proto MonitoringConfig: the Prometheus page"
    )
    running.add_argument(
        "--drain",
        type=_seconds,
        default=_DRAIN_S,
        metavar="SECONDS",
        help="time that running calls get to finish on SIGTERM (%(default)s)",
    )
    running.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def _switch() -> dict[str, Any]:
    """On by itself, or `=true` and `=false` as TensorFlow Serving's flags are written."""
    return {"nargs": "?", "const": True, "default": False, "type": _boolean, "metavar": "true|false"}


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return _BOOLEANS[text.lower()]


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {(1 << 31) - 1}")
    return int(text)


def _seconds(text: str) -> float:
    seconds = _wait(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give seconds above 0")
    return seconds


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give seconds above 0")
    return seconds
