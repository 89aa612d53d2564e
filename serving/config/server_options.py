"""The server's options, each declared once: name, type, default and help text.

`ServerOptions` holds what TensorFlow Serving has flags for, for everyone who embeds a server. `CommandLine` adds what a
server process needs; `parse` builds its argument parser from the fields, for `tandem serve` and `python -m
serving.server`. Flags are understood in TensorFlow Serving's spelling, too (`--model_base_path=…`). Imports neither
TensorFlow nor gRPC, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.config.errors import ConfigFileError

if TYPE_CHECKING:
    from serving.config.batching_parameters import BatchingParameters
    from serving.config.model_config import ModelSettings
    from serving.config.ssl_config import Tls

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"
_GROUPS = ("models", "network", "running")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_INT32_MAX = (1 << 31) - 1


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return _BOOLEANS[text.lower()]


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= _INT32_MAX:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 to {_INT32_MAX}, got {text!r}")
    return int(text)


def _seconds_or_zero(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return seconds


def _seconds(text: str) -> float:
    seconds = _seconds_or_zero(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return seconds


def _flag(
    group: str,
    help: str,
    *,
    names: Sequence[str] = (),
    type: Callable[[str], Any] = str,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Describe a field's flag on the command line, as metadata of the field.

    Args:
        group: heading in `--help`.
        help: text in `--help`.
        names: the flag and its aliases; by default the field's name.
        type: converts the text; `_boolean` makes a switch, which needs no value.
        metavar: name of the value in `--help`.
        choices: all values allowed.
    """
    return {"group": group, "help": help, "names": names, "type": type, "metavar": metavar, "choices": choices}


@dataclass(frozen=True)
class ServerOptions:
    """TensorFlow Serving's flags of the same names; see docs/server.md.

    options = ServerOptions(enable_batching=True, monitoring_config_file=Path("monitoring.config"))
    with ModelServer("work/movielens/serving/movielens", options=options) as server:
        server.wait_until_available(timeout=60)
    """

    model_config_file: Path | None = field(
        default=None,
        metadata=_flag(
            "models",
            "text proto ModelServerConfig: several models, their version policies and labels; instead of --model-dir",
            type=Path,
            metavar="FILE",
        ),
    )
    model_config_file_poll_wait_s: float = field(
        default=1.0,
        metadata=_flag(
            "models",
            "time between two reads of the model config file; 0 reads it once (default: %(default)s)",
            names=("--model-config-file-poll-wait-seconds",),
            type=_seconds_or_zero,
            metavar="SECONDS",
        ),
    )
    allow_version_labels_for_unavailable_models: bool = field(
        default=False,
        metadata=_flag(
            "models",
            "allow a new label on a version that is not available yet (default: %(default)s)",
            type=_boolean,
        ),
    )
    ssl_config_file: Path | None = field(
        default=None,
        metadata=_flag(
            "network",
            "text proto SSLConfig: TLS on both ports, mutual TLS (default: no encryption)",
            type=Path,
            metavar="FILE",
        ),
    )
    max_message_bytes: int | None = field(
        default=None,
        metadata=_flag(
            "network",
            "reject larger requests (default: no limit on gRPC, 1 GiB on REST)",
            type=_positive,
            metavar="BYTES",
        ),
    )
    grpc_max_threads: int | None = field(
        default=None,
        metadata=_flag(
            "network",
            "threads for gRPC requests (default: 4 per core and at least 8; more with batching)",
            type=_positive,
            metavar="THREADS",
        ),
    )
    enable_batching: bool = field(
        default=False,
        metadata=_flag("running", "merge concurrent Predict requests (default: %(default)s)", type=_boolean),
    )
    batching_parameters_file: Path | None = field(
        default=None,
        metadata=_flag(
            "running",
            "text proto BatchingParameters (default: TensorFlow Serving's defaults)",
            type=Path,
            metavar="FILE",
        ),
    )
    monitoring_config_file: Path | None = field(
        default=None,
        metadata=_flag(
            "running",
            f"text proto MonitoringConfig: path of the Prometheus page (default: {PROMETHEUS_PATH})",
            type=Path,
            metavar="FILE",
        ),
    )

    def models(self) -> list[ModelSettings] | None:
        """Return the models of the model config file; None without a file.

        Raises:
            ConfigFileError: see `read_model_config_file`.
        """
        from serving.config.model_config import read_model_config_file

        return None if self.model_config_file is None else read_model_config_file(self.model_config_file)

    def batching(self) -> BatchingParameters | None:
        """Return the batching parameters; None without batching.

        Raises:
            ConfigFileError: a rejected file, or a file without `enable_batching`.
        """
        from serving.config.batching_parameters import BatchingParameters

        if not self.enable_batching:
            if self.batching_parameters_file is not None:
                raise ConfigFileError(
                    "server_options.batching_parameters_file is set without setting server_options.enable_batching to "
                    "true: add --enable-batching, or remove --batching-parameters-file "
                    f"{self.batching_parameters_file}"
                )
            return None
        if self.batching_parameters_file is None:
            return BatchingParameters()
        return BatchingParameters.read(self.batching_parameters_file)

    def metrics_path(self) -> str | None:
        """Return the path of the Prometheus page; None if the page is disabled.

        Raises:
            ConfigFileError: a rejected file, or a path without a leading slash.
        """
        if self.monitoring_config_file is None:
            return PROMETHEUS_PATH
        from serving.config.server_config_pb2 import MonitoringConfig
        from serving.config.text_proto import read_text_proto

        prometheus = read_text_proto(self.monitoring_config_file, MonitoringConfig()).prometheus_config
        if not prometheus.enable:
            return None
        path = str(prometheus.path or PROMETHEUS_PATH)
        if not path.startswith("/"):
            raise ConfigFileError(f"{self.monitoring_config_file}: path: expected a leading slash, got {path!r}")
        return path

    def tls(self) -> Tls | None:
        """Return the certificate and key; None without TLS.

        Raises:
            ConfigFileError: see `Tls.read`.
        """
        if self.ssl_config_file is None:
            return None
        from serving.config.ssl_config import Tls

        return Tls.read(self.ssl_config_file)


@dataclass(frozen=True)
class CommandLine(ServerOptions):
    """All options of a server process."""

    model_dir: str | None = field(
        default=None,
        metadata=_flag(
            "models",
            "folder that holds the numbered versions of one model, as the Pusher writes them",
            names=("--model-dir", "--model-base-path"),
            metavar="DIR",
        ),
    )
    model_name: str = field(
        default="recommender",
        metadata=_flag(
            "models",
            "the model's name in requests (default: %(default)s)",
            names=("--model-name", "--model"),
            metavar="NAME",
        ),
    )
    poll_interval_s: float = field(
        default=1.0,
        metadata=_flag(
            "models",
            "time between two looks for a new version (default: %(default)s)",
            names=("--poll-interval", "--file-system-poll-wait-seconds"),
            type=_seconds,
            metavar="SECONDS",
        ),
    )
    fail_fast: bool = field(
        default=False,
        metadata=_flag(
            "models",
            "exit with code 1 if no version of a model loads, instead of waiting for one (default: %(default)s)",
            type=_boolean,
        ),
    )
    host: str = field(default="127.0.0.1", metadata=_flag("network", "address to bind (default: %(default)s)"))
    port: int = field(
        default=8500, metadata=_flag("network", "gRPC port; 0 selects a free one (default: %(default)s)", type=_port)
    )
    rest_port: int = field(
        default=8501,
        metadata=_flag(
            "network",
            "REST port; 0 selects a free one (default: %(default)s)",
            names=("--rest-port", "--rest-api-port"),
            type=_port,
        ),
    )
    drain_s: float = field(
        default=30.0,
        metadata=_flag(
            "running",
            "time that running requests get to finish on SIGTERM (default: %(default)s)",
            names=("--drain",),
            type=_seconds,
            metavar="SECONDS",
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_flag(
            "running",
            "lowest level of the log on stderr (default: %(default)s)",
            choices=("debug", "info", "warning", "error"),
        ),
    )


def parse(
    arguments: Sequence[str], *, program: str = "python -m serving.server", defaults: Mapping[str, Any] | None = None
) -> CommandLine:
    """Read a command line; exits with code 2 on a wrong one and with 0 on `--help`.

    Args:
        arguments: without the program's name.
        program: the name in `--help`.
        defaults: values of fields that differ from `CommandLine`'s defaults.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage="%(prog)s (--model-dir DIR | --model-config-file FILE) [OPTION ...]",
        description="Serve folders of SavedModel versions with TensorFlow Serving's gRPC and REST API until Ctrl-C.",
        epilog="TensorFlow Serving's spelling of its flags works, too: --model_base_path=DIR, --enable_batching=true.",
        allow_abbrev=False,
    )
    groups = {name: parser.add_argument_group(name) for name in _GROUPS}
    for each in sorted(fields(CommandLine), key=lambda each: each.name not in CommandLine.__annotations__):
        _add(groups[each.metadata["group"]], each)
    parser.set_defaults(**(defaults or {}))
    known = [name for each in fields(CommandLine) for name in _names(each)]
    namespace, unknown = parser.parse_known_args([_spelled(each, known) for each in arguments])
    if unknown:
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
        parser.error(f"unknown option {unknown[0]}; {hint}")
    options = CommandLine(**vars(namespace))
    if (options.model_dir is None) == (options.model_config_file is None):
        parser.error("expected either --model-dir or --model-config-file")
    return options


def _add(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    flag = option.metadata
    details: dict[str, Any] = {key: flag[key] for key in ("help", "type", "metavar", "choices")}
    if flag["type"] is _boolean:  # on without a value, or `=true` and `=false` as TensorFlow Serving's flags
        details |= {"nargs": "?", "const": True, "metavar": "true|false"}
    group.add_argument(*_names(option), dest=option.name, default=option.default, **details)


def _names(option: Field[Any]) -> tuple[str, ...]:
    return tuple(option.metadata["names"]) or (f"--{option.name.replace('_', '-')}",)


def _spelled(argument: str, known: Sequence[str]) -> str:
    """Translate `--enable_batching` and `--no-enable-batching` to the parser's spelling."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    positive = "--" + name.removeprefix("--no-")
    if name.startswith("--no-") and not equals and positive in known:
        return f"{positive}=false"
    return name + equals + value
