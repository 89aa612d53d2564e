"""Request batching: concurrent Predict requests of one signature are merged along dimension 0.

Parameters and their meaning are those of TensorFlow Serving's `--batching_parameters_file`. There are two differences,
neither of which fails a request that TensorFlow Serving answers: requests that cannot be merged (a scalar input of
another value, inputs of different numbers of rows, other shapes without padding) run separately instead of being
rejected, and if a merged run fails, each of its requests runs alone, so that only the faulty ones fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.api.prometheus import ServingMetrics
from serving.api.status import invalid_argument, resource_exhausted, unavailable
from serving.api.tensor_proto import Array
from serving.config.batching_parameters import BatchingParameters

# Runs the signature on its inputs, in the signature's order; raises the graph's errors.
Executor = Callable[..., Sequence[Any]]


class _Task:
    """One request: its inputs, and the event for which its thread waits."""

    def __init__(self, feeds: list[Array], rows: int, deadline: float | None) -> None:
        self.feeds = feeds
        self.rows = rows
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.outputs: Sequence[Any] = ()
        self.error: Exception | None = None
        self.done = threading.Event()


class _Batch:
    """Requests of one queue that run together."""

    def __init__(self, queue: BatchQueue) -> None:
        self.queue = queue
        self.tasks: list[_Task] = []
        self.rows = 0
        self.opened = time.monotonic()
        self.closed = False


class BatchQueue:
    """Queue of the requests of one signature and one choice of outputs; see `Batcher.queue`."""

    def __init__(self, batcher: Batcher, executor: Executor) -> None:
        self._batcher = batcher
        self.executor = executor
        self.batches: deque[_Batch] = deque()
        self.open: dict[tuple[Any, ...], _Batch] = {}

    def run(self, feeds: list[Array], deadline: float | None = None) -> Sequence[Any]:
        """Run a request in a batch, and wait for its outputs.

        Args:
            feeds: the inputs, in the executor's order.
            deadline: the client's deadline as `time.monotonic()`; None for no deadline.

        Returns:
            The outputs, in the executor's order.

        Raises:
            ServingError: INVALID_ARGUMENT for more rows than max_batch_size, UNAVAILABLE for a full queue,
                RESOURCE_EXHAUSTED when the deadline passes in the queue; otherwise the executor's error.
        """
        rows = _rows(feeds)
        if not rows:
            return self.executor(*feeds)
        task = _Task(feeds, rows, deadline)
        self._batcher.submit(self, task)
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.outputs


class Batcher:
    """Batch threads of a server, shared by all queues, as TensorFlow Serving's SharedBatchScheduler."""

    def __init__(self, parameters: BatchingParameters, metrics: ServingMetrics) -> None:
        self.parameters = parameters
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queues: deque[BatchQueue] = deque()
        self._stopped = False
        for number in range(parameters.num_batch_threads):
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True).start()

    def queue(self, executor: Executor) -> BatchQueue:
        """Make a queue for the requests of an executor."""
        return BatchQueue(self, executor)

    def stop(self) -> None:
        """Stop the threads as soon as all queues are empty."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def submit(self, queue: BatchQueue, task: _Task) -> None:
        """Add a request to an open batch, or open one; see `BatchQueue.run`."""
        limit = self.parameters.max_batch_size
        if task.rows > limit:
            raise invalid_argument(f"Task size {task.rows} is larger than maximum input batch size {limit}")
        self._metrics.input_batch_size.record(task.rows)
        key = self._key(task.feeds)
        with self._changed:
            if self._stopped:
                raise unavailable("The server is shutting down.")
            batch = queue.open.get(key)
            if batch is None or batch.rows + task.rows > limit:
                enqueued = len(queue.batches)
                if enqueued >= self.parameters.max_enqueued_batches:
                    raise unavailable(
                        "The batch scheduling queue to which this task was submitted is full; currently "
                        f"{enqueued} batches enqueued and max_enqueued_batches is "
                        f"{self.parameters.max_enqueued_batches}"
                    )
                if batch is not None:
                    batch.closed = True
                batch = queue.open[key] = _Batch(queue)
                queue.batches.append(batch)
                if len(queue.batches) == 1:
                    self._queues.append(queue)
            batch.tasks.append(task)
            batch.rows += task.rows
            if batch.rows == limit:
                batch.closed = True
                del queue.open[key]
            self._changed.notify()

    def _key(self, feeds: list[Array]) -> tuple[Any, ...]:
        """Return a key; requests with the same key can be concatenated."""
        if self.parameters.pad_variable_length_inputs:
            return tuple(feed.ndim or _scalar(feed) for feed in feeds)
        return tuple(feed.shape[1:] if feed.ndim else _scalar(feed) for feed in feeds)

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._next_batch()
            if batch is None:
                return
            try:
                self._process(batch)
            finally:
                for task in batch.tasks:
                    task.done.set()

    def _next_batch(self) -> _Batch | None:
        """Return the next batch that is full or timed out, by queue in turn (with the lock held); None at the end."""
        while True:
            now = time.monotonic()
            wait: float | None = None
            for _ in range(len(self._queues)):
                queue = self._queues[0]
                self._queues.rotate(-1)
                for batch in queue.batches:
                    left = batch.opened + self.parameters.batch_timeout_s - now
                    if batch.closed or left <= 0 or self._stopped:
                        self._take(queue, batch)
                        return batch
                    wait = left if wait is None else min(wait, left)
            if self._stopped:
                return None
            self._changed.wait(wait)

    def _take(self, queue: BatchQueue, batch: _Batch) -> None:
        queue.batches.remove(batch)
        if not batch.closed:
            batch.closed = True
            queue.open = {key: each for key, each in queue.open.items() if each is not batch}
        if not queue.batches:
            self._queues.remove(queue)

    def _process(self, batch: _Batch) -> None:
        now = time.monotonic()
        tasks = []
        for task in batch.tasks:
            self._metrics.queuing_latency.record((now - task.enqueued) * 1e6, self.parameters.thread_pool_name)
            if task.deadline is not None and task.deadline <= now:
                task.error = resource_exhausted("Run() timeout exceeded while waiting in batching queue")
            else:
                tasks.append(task)
        if not tasks:
            return
        executor = batch.queue.executor
        try:
            self._run_merged(executor, tasks)
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].error = error
                return
            for task in tasks:
                try:
                    task.outputs = executor(*task.feeds)
                except Exception as own_error:
                    task.error = own_error

    def _run_merged(self, executor: Executor, tasks: list[_Task]) -> None:
        rows = sum(task.rows for task in tasks)
        size = self.parameters.padded(rows)
        self._metrics.processed_batch_size.record(size)
        self._metrics.padding_size.record(size - rows, str(size))
        self._metrics.wrapped_run_count.increment()
        if len(tasks) == 1 and size == rows:
            tasks[0].outputs = executor(*tasks[0].feeds)
            return
        feeds = [
            _merged([task.feeds[position] for task in tasks], size - rows) for position in range(len(tasks[0].feeds))
        ]
        outputs = [np.asarray(value) for value in executor(*feeds)]
        for output in outputs:
            if not output.ndim or output.shape[0] != size:
                raise invalid_argument(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    f"input tensors: {output.shape}, expected {size} rows"
                )
        start = 0
        for task in tasks:
            task.outputs = [output[start : start + task.rows] for output in outputs]
            start += task.rows


def _rows(feeds: list[Array]) -> int:
    """Return the number of rows; 0 for a request that cannot be merged."""
    sizes = {feed.shape[0] for feed in feeds if feed.ndim}
    return sizes.pop() if len(sizes) == 1 else 0


def _scalar(feed: Array) -> tuple[str, Any]:
    return "scalar", feed.item()


def _merged(parts: list[Array], padding: int) -> Array:
    """Concatenate the parts, padded to one shape, and `padding` copies of the last part's first row."""
    first = parts[0]
    if not first.ndim:
        return first
    if any(part.shape[1:] != first.shape[1:] for part in parts):
        longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        parts = [_padded(part, longest) for part in parts]
    return np.concatenate([*parts, *[parts[-1][:1]] * padding])


def _padded(part: Array, sizes: list[int]) -> Array:
    """Pad a tensor to `sizes` after its first dimension with its first element, as TensorFlow Serving does."""
    if list(part.shape[1:]) == sizes:
        return part
    if not part.size:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    whole = np.full((part.shape[0], *sizes), part.flat[0], dtype=part.dtype)
    whole[tuple(slice(size) for size in part.shape)] = part
    return whole
