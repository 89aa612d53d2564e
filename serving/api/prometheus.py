"""The server's metrics as a Prometheus page, with TensorFlow Serving's names, labels and buckets.

Dashboards and alerts for TensorFlow Serving expect `:tensorflow:serving:request_count` without the `_total` that
Prometheus' client library adds, so this module writes the page itself. Recording a value takes about 1 µs.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import grpc

from serving.api.status import ServingError

# The model's name in a request becomes a label value. Beyond this number of cells, new ones count together, so that
# arbitrary names cannot fill the server's memory.
_MAX_CELLS = 1000
_OTHER = "(other)"


class _Metric(ABC):
    """A metric with a cell for each combination of label values."""

    kind: str

    def __init__(self, name: str, *labels: str) -> None:
        """Make a metric without values.

        Args:
            name: as in TensorFlow's monitoring, such as `/tensorflow/serving/request_count`.
            labels: names, in TensorFlow Serving's order.
        """
        self.name = name
        self._labels = labels
        self._lock = threading.Lock()

    @property
    def prometheus_name(self) -> str:
        """The name on the page, such as `:tensorflow:serving:request_count`."""
        return self.name.replace("/", ":")

    def _label_text(self, values: tuple[str, ...]) -> list[str]:
        return [f'{label}="{_escaped(value)}"' for label, value in zip(self._labels, values, strict=True)]

    def lines(self) -> Iterator[str]:
        """Yield the metric's lines of the page; none before the first value."""
        samples = list(self._samples())
        if samples:
            yield f"# TYPE {self.prometheus_name} {self.kind}"
            yield from samples

    @abstractmethod
    def _samples(self) -> Iterator[str]: ...

    @abstractmethod
    def first_value(self) -> int:
        """Return the first cell's integer, for ReloadConfigResponse."""


class Counter(_Metric):
    """Counter: a number per cell that only increases."""

    kind = "counter"

    def __init__(self, name: str, *labels: str) -> None:
        super().__init__(name, *labels)
        self._cells: dict[tuple[str, ...], int] = {}

    def increment(self, *values: str, by: int = 1) -> None:
        """Increase the cell of these label values."""
        with self._lock:
            cells = self._cells
            if values not in cells and len(cells) >= _MAX_CELLS:
                values = (_OTHER,) * len(self._labels)
            cells[values] = cells.get(values, 0) + by

    def value(self, *values: str) -> int:
        """Return the value of the cell of these label values."""
        with self._lock:
            return self._cells.get(values, 0)

    def first_value(self) -> int:
        with self._lock:
            return next(iter(self._cells.values()), 0)

    def _samples(self) -> Iterator[str]:
        with self._lock:
            cells = sorted(self._cells.items())
        for values, value in cells:
            yield f"{self.prometheus_name}{{{','.join(self._label_text(values))}}} {value}"


class Distribution(_Metric):
    """Histogram with exponential buckets (TensorFlow's Sampler)."""

    kind = "histogram"

    def __init__(self, name: str, *labels: str, scale: float, growth: float, buckets: int) -> None:
        """Make a histogram without values.

        Args:
            name: see `_Metric`.
            labels: see `_Metric`.
            scale: upper limit of the first bucket.
            growth: factor from one limit to the next.
            buckets: number of buckets, without the last one, which has no limit.
        """
        super().__init__(name, *labels)
        self._limits = [scale * growth**power for power in range(buckets)]
        self._limit_texts = [*(f"{limit:.6g}" for limit in self._limits), "+Inf"]
        self._cells: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def record(self, value: float, *values: str) -> None:
        """Count `value` in the cell of these label values."""
        # TensorFlow's buckets hold values below their limit, not equal to it.
        bucket = bisect.bisect_right(self._limits, value)
        with self._lock:
            cell = self._cells.get(values)
            if cell is None:
                if len(self._cells) >= _MAX_CELLS:
                    values = (_OTHER,) * len(self._labels)
                cell = self._cells.setdefault(values, ([0] * (len(self._limits) + 1), [0.0]))
            cell[0][bucket] += 1
            cell[1][0] += value

    def first_value(self) -> int:
        return 0  # a histogram has no integer value; TensorFlow Serving reports protobuf's default

    def _samples(self) -> Iterator[str]:
        with self._lock:
            cells = sorted((values, (list(counts), total[0])) for values, (counts, total) in self._cells.items())
        name = self.prometheus_name
        for values, (counts, total) in cells:
            labels = self._label_text(values)
            for limit, count in zip(self._limit_texts, itertools.accumulate(counts), strict=True):
                bucket = ",".join([*labels, f'le="{limit}"'])
                yield f"{name}_bucket{{{bucket}}} {count}"
            yield f"{name}_sum{{{','.join(labels)}}} {total!r}"
            yield f"{name}_count{{{','.join(labels)}}} {sum(counts)}"


class ServingMetrics:
    """All metrics of a server. Times are in microseconds.

    Names, labels and buckets are from TensorFlow Serving's sources: servables/tensorflow/util.cc and
    saved_model_warmup_util.cc, batching/batching_session.cc and batching_util.h, and TensorFlow's
    cc/saved_model/loader.cc.
    """

    def __init__(self) -> None:
        serving = "/tensorflow/serving/"
        session = serving + "batching_session/"
        self.load_attempts = Counter("/tensorflow/cc/saved_model/load_attempt_count", "model_path", "status")
        self.load_latency = Counter("/tensorflow/cc/saved_model/load_latency", "model_path")
        self.request_count = Counter(serving + "request_count", "model_name", "status")
        self.request_latency = _latency(serving + "request_latency", "model_name", "API", "entrypoint")
        self.runtime_latency = _latency(serving + "runtime_latency", "model_name", "API", "runtime")
        self.warmup_latency = _latency(serving + "model_warmup_latency", "model_path", "status")
        self.warmup_records = Counter(serving + "model_warmup_records_read", "model_path", "status")
        self.queuing_latency = Distribution(
            session + "queuing_latency", "thread_pool_name", scale=100, growth=1.2, buckets=52
        )
        self.wrapped_run_count = Counter(session + "wrapped_run_count")
        self.input_batch_size = Distribution(session + "input_batch_size", scale=1, growth=2, buckets=14)
        self.processed_batch_size = Distribution(session + "processed_batch_size", scale=1, growth=2, buckets=14)
        self.padding_size = Distribution(
            session + "padding_size", "execution_batch_size", scale=1, growth=2, buckets=14
        )

    def record_request(self, model: str, api: str, entrypoint: str, code: grpc.StatusCode, seconds: float) -> None:
        """Count a request and, if it succeeded, its latency.

        Args:
            model: the model's name in the request.
            api: `Predict`, `Classify` or `Regress` on gRPC; `predict`, `classify`, `regress` or "" on REST.
            entrypoint: `GRPC` or `REST`.
            code: the response's status code.
            seconds: from the request's arrival to its response.
        """
        if code is grpc.StatusCode.OK:
            self.request_latency.record(seconds * 1e6, model, api, entrypoint)
        self.request_count.increment(model, code.name)

    def record_warmup(self, path: Path, seconds: float, error: BaseException | None) -> None:
        """Record the latency of a warm-up; `error` is its error, None for success."""
        code = error.code.name if isinstance(error, ServingError) else "OK" if error is None else "UNKNOWN"
        self.warmup_latency.record(seconds * 1e6, str(path), code)

    def first_value(self, name: str) -> int:
        """Return the integer of a metric by name (`/tensorflow/…`); 0 for an unknown name."""
        return next((metric.first_value() for metric in self._metrics() if metric.name == name), 0)

    def page(self) -> str:
        """Return the page in Prometheus' text format."""
        metrics = sorted(self._metrics(), key=lambda metric: metric.name)
        return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"

    def _metrics(self) -> list[_Metric]:
        return [value for value in vars(self).values() if isinstance(value, _Metric)]


def _latency(name: str, *labels: str) -> Distribution:
    return Distribution(name, *labels, scale=10, growth=1.8, buckets=33)


def _escaped(value: str) -> str:
    # A line feed would end the sample; TensorFlow Serving does not escape it.
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
