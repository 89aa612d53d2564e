"""How a server is set up beyond its model folder and its ports: TensorFlow Serving's configuration files, read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from serving.config.batching_parameters import BatchingParameters
from serving.config.errors import ConfigFileError
from serving.config.model_config import ModelSettings, read_model_config_file
from serving.config.server_config_pb2 import MonitoringConfig
from serving.config.ssl_config import Tls
from serving.config.text_proto import read_text_proto

PROMETHEUS_PATH = "/monitoring/prometheus/metrics"

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ServerOptions:
    """TensorFlow Serving's flags of the same names; see docs/server.md.

    Attributes:
        model_config_file: text proto `ModelServerConfig`: several models, their version policies and labels. None for
            one model in one folder.
        model_config_file_poll_wait_s: seconds between looks at that file; 0 reads it once.
        allow_version_labels_for_unavailable_models: a new label may name a version that is not available yet.
        enable_batching: merge concurrent Predict requests.
        batching_parameters_file: text proto `BatchingParameters`; None for the defaults.
        monitoring_config_file: text proto `MonitoringConfig`: whether and where the Prometheus page is. None for
            /monitoring/prometheus/metrics (TensorFlow Serving has no page without the file).
        ssl_config_file: text proto `SSLConfig`; None for clear text.
        max_message_bytes: larger requests are refused; None for no limit on gRPC, 1 GiB on REST.
        grpc_max_threads: threads that answer gRPC calls; None for four a core, at least eight, and more with batching.
    """

    model_config_file: Path | None = None
    model_config_file_poll_wait_s: float = 1.0
    allow_version_labels_for_unavailable_models: bool = False
    enable_batching: bool = False
    batching_parameters_file: Path | None = None
    monitoring_config_file: Path | None = None
    ssl_config_file: Path | None = None
    max_message_bytes: int | None = None
    grpc_max_threads: int | None = None

    def models(self) -> list[ModelSettings] | None:
        """The models of the model config file; None without one.

        Raises:
            ConfigFileError: see `read_model_config_file`.
        """
        return None if self.model_config_file is None else read_model_config_file(self.model_config_file)

    def batching(self) -> BatchingParameters | None:
        """The batching parameters; None without batching.

        Raises:
            ConfigFileError: a wrong file, or one given without `enable_batching`.
        """
        if not self.enable_batching:
            if self.batching_parameters_file is not None:
                raise ConfigFileError(
                    "server_options.batching_parameters_file is set without setting server_options.enable_batching to "
                    f"true: add --enable-batching, or leave --batching-parameters-file {self.batching_parameters_file} "
                    "out"
                )
            return None
        if self.batching_parameters_file is None:
            return BatchingParameters()
        return BatchingParameters.read(self.batching_parameters_file)

    def metrics_path(self) -> str | None:
        """Where the Prometheus page is; None for nowhere.

        Raises:
            ConfigFileError: a wrong file, or a path that does not begin with a slash.
        """
        if self.monitoring_config_file is None:
            return PROMETHEUS_PATH
        prometheus = read_text_proto(self.monitoring_config_file, MonitoringConfig()).prometheus_config
        if not prometheus.enable:
            return None
        path = str(prometheus.path or PROMETHEUS_PATH)
        if not path.startswith("/"):
            raise ConfigFileError(f"{self.monitoring_config_file}: path {path!r} does not begin with a slash")
        return path

    def tls(self) -> Tls | None:
        """The certificate and key; None for clear text.

        Raises:
            ConfigFileError: see `Tls.read`.
        """
        return None if self.ssl_config_file is None else Tls.read(self.ssl_config_file)
