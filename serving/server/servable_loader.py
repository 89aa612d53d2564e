"""Loads a version: its SavedModel and warm-up requests, with metrics."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from serving.api.prometheus import ServingMetrics
from serving.server.batching import Batcher
from serving.server.servable import Servable
from serving.server.warm_up import run_warmup

_logger = logging.getLogger(__name__)


class ServableLoader:
    """Loader that `ServableVersions` calls for each version."""

    def __init__(self, metrics: ServingMetrics, batcher: Batcher | None = None) -> None:
        """Make a loader.

        Args:
            metrics: counts loads and warm-ups.
            batcher: merges concurrent Predict requests of each servable; None for no batching.
        """
        self._metrics = metrics
        self._batcher = batcher

    def __call__(self, name: str, version: int, path: Path) -> Servable:
        """Load a version and run its warm-up requests.

        Raises:
            ServingError: it does not load, or a warm-up request fails; it is unloaded again.
        """
        started = time.monotonic()
        try:
            servable = Servable.load(name, version, path, metrics=self._metrics, batcher=self._batcher)
        except Exception:
            self._metrics.load_attempts.increment(str(path), "fail")
            raise
        self._metrics.load_attempts.increment(str(path), "success")
        loaded = time.monotonic()
        self._metrics.load_latency.increment(str(path), by=round((loaded - started) * 1e6))
        try:
            requests = run_warmup(servable, path)
        except BaseException as error:
            servable.close()
            self._metrics.record_warmup(path, time.monotonic() - loaded, error)
            raise
        if requests:
            self._metrics.record_warmup(path, time.monotonic() - loaded, None)
            self._metrics.warmup_records.increment(str(path), "OK", by=requests)
        elapsed = time.monotonic() - started
        _logger.info("version %d of model %s: loaded in %.2f s, %d warm-up requests", version, name, elapsed, requests)
        return servable
