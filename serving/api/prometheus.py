"""What the server counts and times, under TensorFlow Serving's own names, labels and buckets, as a Prometheus page.

A page for TensorFlow Serving's dashboards and alerts has to spell `:tensorflow:serving:request_count` without the
`_total` that Prometheus' own client adds, so the page is written here; each metric takes about a microsecond a call.
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

# A model's name as a client spells it becomes a label: beyond this many, new ones count together, so that nonsense
# names cannot fill the server's memory.
_MAX_CELLS = 1000
_OTHER = "(other)"


class _Metric(ABC):
    """One metric; a cell for each set of label values."""

    kind: str

    def __init__(self, name: str, *labels: str) -> None:
        """Args:
        name: as in TensorFlow's monitoring, `/tensorflow/serving/request_count`.
        labels: names, in TensorFlow Serving's order.
        """
        self.name = name
        self._labels = labels
        self._lock = threading.Lock()

    @property
    def prometheus_name(self) -> str:
        """`:tensorflow:serving:request_count`."""
        return self.name.replace("/", ":")

    def _label_text(self, values: tuple[str, ...]) -> list[str]:
        return [f'{label}="{_escaped(value)}"' for label, value in zip(self._labels, values, strict=True)]

    def lines(self) -> Iterator[str]:
        """The metric's part of the page; none before the first value."""
        samples = list(self._samples())
        if samples:
            yield f"# TYPE {self.prometheus_name} {self.kind}"
            yield from samples

    @abstractmethod
    def _samples(self) -> Iterator[str]: ...

    @abstractmethod
    def first_value(self) -> int:
        """What ReloadConfigResponse reports of it: the first cell's integer."""


class Counter(_Metric):
    """Only ever goes up."""

    kind = "counter"

    def __init__(self, name: str, *labels: str) -> None:
        super().__init__(name, *labels)
        self._cells: dict[tuple[str, ...], int] = {}

    def increment(self, *values: str, by: int = 1) -> None:
        """Adds to the cell of these label values."""
        with self._lock:
            cells = self._cells
            if values not in cells and len(cells) >= _MAX_CELLS:
                values = (_OTHER,) * len(self._labels)
            cells[values] = cells.get(values, 0) + by

    def value(self, *values: str) -> int:
        """What the cell of these label values has reached."""
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
    """Counts of values in buckets that grow exponentially (TensorFlow's Sampler)."""

    kind = "histogram"

    def __init__(self, name: str, *labels: str, scale: float, growth: float, buckets: int) -> None:
        """Args:
        name: see `_Metric`.
        labels: see `_Metric`.
        scale: upper limit of the first bucket.
        growth: factor from one limit to the next.
        buckets: how many, besides the last one without a limit.
        """
        super().__init__(name, *labels)
        self._limits = [scale * growth**power for power in range(buckets)]
        self._limit_texts = [*(f"{limit:.6g}" for limit in self._limits), "+Inf"]
        self._cells: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def record(self, value: float, *values: str) -> None:
        """Counts `value` in the cell of these label values."""
        # TensorFlow's bucket holds values below its limit, not those equal to it.
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
        return 0  # a distribution has no integer value; TensorFlow Serving reports its protobuf default

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
    """Every metric of one server. Times are in microseconds.

    Names, labels and buckets are those in TensorFlow Serving's sources: servables/tensorflow/util.cc and
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
        """Counts a request and, where it succeeded, its time.

        Args:
            model: its name as in the request.
            api: `Predict`, `Classify`, … on gRPC; `predict`, … on REST, "" for what has no method.
            entrypoint: `GRPC` or `REST`.
            code: how it ended.
            seconds: from the request's arrival to its answer.
        """
        if code is grpc.StatusCode.OK:
            self.request_latency.record(seconds * 1e6, model, api, entrypoint)
        self.request_count.increment(model, code.name)

    def record_warmup(self, path: Path, seconds: float, error: BaseException | None) -> None:
        """Times the warm-up of a version's folder; `error` is what it ended with."""
        code = error.code.name if isinstance(error, ServingError) else "OK" if error is None else "UNKNOWN"
        self.warmup_latency.record(seconds * 1e6, str(path), code)

    def first_value(self, name: str) -> int:
        """The integer of the metric of that name (`/tensorflow/…`), 0 where there is none."""
        return next((metric.first_value() for metric in self._metrics() if metric.name == name), 0)

    def page(self) -> str:
        """The page in Prometheus' text format."""
        metrics = sorted(self._metrics(), key=lambda metric: metric.name)
        return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"

    def _metrics(self) -> list[_Metric]:
        return [value for value in vars(self).values() if isinstance(value, _Metric)]


def _latency(name: str, *labels: str) -> Distribution:
    return Distribution(name, *labels, scale=10, growth=1.8, buckets=33)


def _escaped(value: str) -> str:
    # A line feed would end the sample; TensorFlow Serving leaves it in.
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
