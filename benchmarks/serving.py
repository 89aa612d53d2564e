"""Measure the embedded server under load, and the index `ivf` against brute force: `make bench-serving`.

The pipeline's `ServedRecommender` exports untrained models with synthetic vectors in the towers: items around nested
topics of unequal sizes, users near the items that they interacted with. A second process keeps 1, 8 and 32 requests for
the top 100 in flight over loopback. In alternation, a third process calls the same signature without a server, and
computes the minimum with NumPy: one product and one partition for a given user vector.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DIMENSION = 64
K = 100
USERS = 2000
SEEN = 20
IN_FLIGHT = (1, 8, 32)
BATCHES = (1, 8, 32)
CATALOGUES = ("1682", "100000", "100000:ivf")
SIDES = {
    "signature": "the signature, in process",
    "session": "the same through a session, in process",
    "numpy": "NumPy: matmul and argpartition",
}
PLANTED = "planted.npz"
SCHEMA = """
    feature { name: "user_id" type: BYTES }
    feature { name: "item_id" type: BYTES }
    feature { name: "rating" type: FLOAT float_domain { min: 1 max: 5 } }
"""
RECIPE: dict[str, Any] = {
    "columns": {"user_id": "user_id", "item_id": "item_id", "label": "rating"},
    "features": {
        "query": [{"column": "user_id", "kind": "id"}],
        "candidate": [{"column": "item_id", "kind": "id"}],
    },
    # The towers are embeddings only, which hold the synthetic vectors.
    "model": {
        "embedding_dim": DIMENSION,
        "query_tower": {"projection": False},
        "candidate_tower": {"projection": False},
        "retrieval": {"item_bias": False},
    },
    "training": {},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--catalogues", nargs="*", default=CATALOGUES, metavar="ITEMS[:ivf]", help="catalogues to serve"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind, alternating")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of a measurement")
    parser.add_argument("--server-flag", action="append", default=[], help="additional option of the server")
    parser.add_argument("--index-items", type=int, default=1_000_000, help="items of the index; 0 skips it")
    parser.add_argument("--recall", type=float, default=0.95, help="requested and required recall of the index")
    parser.add_argument(
        "--at-least", type=float, default=4.0, help="minimum ratio to brute force; below it the exit code is 1"
    )
    parser.add_argument("--without-uniform", action="store_true", help="skip vectors without clusters")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "ARGUMENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, argument = arguments.one
        ONE[what](argument, arguments)
        return 0

    figures: dict[str, Any] = {"serving": {}, "index": {}}
    for catalogue in arguments.catalogues:
        found = figures["serving"][catalogue] = bench_serving(catalogue, arguments)
        print_serving(catalogue, found, arguments)
    good = True
    if arguments.index_items:
        for kind in ("clustered",) if arguments.without_uniform else ("clustered", "uniform"):
            found = figures["index"][kind] = in_fresh_process("index", kind, arguments)
            print_index(kind, found, arguments)
        best = figures["index"]["clustered"]
        good = best["recall"] >= arguments.recall and min(best["ratio"].values()) >= arguments.at_least
        if not good:
            print(f"\nExpected recall ≥ {arguments.recall:g} at ≥ {arguments.at_least:g} times the throughput.")
    figures["ratios"] = list(ratios(figures, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if good else 1


def ratios(figures: Mapping[str, Any], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Throughput of the server relative to in-process calls, and of the index relative to brute force."""
    for catalogue, found in figures["serving"].items():
        items, _, index = catalogue.partition(":")
        for side in ("signature", "session"):
            pairs = zip(found[f"server_{IN_FLIGHT[-1]}"], found[side], strict=True)
            yield {
                "what": f"{int(items):,} items, {index or 'exact'}: requests a second of the server, {IN_FLIGHT[-1]} "
                f"in flight, of those of {SIDES[side]}",
                "ratio": statistics.median(run["rate"] / other["rate"] for run, other in pairs),
                "at_least": None,
            }
    for kind, found in figures["index"].items():
        for batch, ratio in found["ratio"].items():
            yield {
                "what": f"{arguments.index_items:,} items, {kind}: ivf at a recall of {found['recall']:.3f} against "
                f"exact, {batch} queries a call",
                "ratio": ratio,
                "at_least": arguments.at_least if kind == "clustered" else None,
            }


# --- the server and its baselines -------------------------------------------------------------------------------------


def bench_serving(catalogue: str, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Rounds of all measurements of one catalogue: requests per second, p50 and p99 in milliseconds."""
    kinds = [*SIDES, *(f"server_{count}" for count in IN_FLIGHT)]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder, ExitStack() as running:
        model_dir = Path(folder, "recommender")
        in_fresh_process("export", json.dumps([catalogue, str(model_dir / "1")]), arguments)
        server = [sys.executable, "-m", "serving.server", "--model-dir", str(model_dir), "--port", "0"]
        server += ["--rest-port", "0", "--log-level", "error", *arguments.server_flag]
        _, address = running.enter_context(talking_to(server, Path(folder, "server.log")))
        alone = one("alone", str(model_dir / "1"))
        ask_alone, _ = running.enter_context(talking_to(alone, Path(folder, "alone.log")))
        client = one("client", address["grpc"])
        ask_client, _ = running.enter_context(talking_to(client, Path(folder, "client.log")))
        for number in range(arguments.rounds):
            # Alternate the order: a later one may find a warmer or busier machine.
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                side, _, count = kind.partition("_")
                ask = ask_client if side == "server" else ask_alone
                task = {"in_flight": int(count)} if count else {"side": side}
                found[kind].append(ask({**task, "seconds": arguments.seconds}))
    return found


def print_serving(catalogue: str, found: Mapping[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    items, _, index = catalogue.partition(":")
    print(
        f"\n{int(items):,} items of {DIMENSION} dimensions, index {index or 'exact'}: `recommend`, top {K}, one user a "
        f"request; {arguments.rounds} rounds of {arguments.seconds:g} s, medians\n"
    )
    print(f"{'':42}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'of signature':>14}{'of session':>12}{'of NumPy':>10}")
    for kind, runs in found.items():
        title = SIDES.get(kind) or f"the server, {kind.partition('_')[2]} in flight"
        row = [statistics.median(run[name] for run in runs) for name in ("rate", "p50", "p99")]
        # Ratios within a round, because a busy machine slows all.
        ratios = [
            statistics.median(run["rate"] / other["rate"] for run, other in zip(runs, found[side], strict=True))
            for side in SIDES
        ]
        print(f"{title:42}{row[0]:>12,.0f}{row[1]:>9.2f}{row[2]:>9.2f}", end="")
        print(f"{ratios[0]:>14.2f}{ratios[1]:>12.2f}{ratios[2]:>10.2f}", flush=True)


def alone(version: str, arguments: argparse.Namespace) -> None:
    """Call the signature of the model in the folder `version`, one user after another."""
    start()
    import tensorflow as tf

    with np.load(Path(version).parent / PLANTED) as planted:
        vectors, queries = planted["vectors"], planted["queries"]
    signature = tf.saved_model.load(version).signatures["recommend"]
    defaults = signature.structured_input_signature[1]
    ids = [np.array([user_id(user)], object) for user in range(len(queries))]
    tensors = [tf.constant(each) for each in ids]
    assert set(defaults) == {"user_id"}, f"{sorted(defaults)}: the recipe here makes no other input"
    session, definition = in_session(version, "recommend")
    run = session_call(
        session, [definition.inputs["user_id"].name], [info.name for info in definition.outputs.values()]
    )

    def with_numpy(user: int) -> None:
        scores = vectors @ queries[user]
        best = np.argpartition(-scores, K)[:K]
        best[np.argsort(-scores[best])]

    calls: dict[str, Callable[[int], Any]] = {
        "signature": lambda user: signature(user_id=tensors[user])["item_ids"].numpy(),
        "session": lambda user: run(ids[user]),
        "numpy": with_numpy,
    }

    def measure(task: Mapping[str, Any]) -> dict[str, float]:
        call, took = calls[task["side"]], []
        for user in range(20):
            call(user)
        end = time.perf_counter() + task["seconds"]
        begin = time.perf_counter()
        while (now := time.perf_counter()) < end:
            call(len(took) % len(ids))
            took.append(time.perf_counter() - now)
        return summary(took, time.perf_counter() - begin)

    answer({}, measure)


def client(address: str, arguments: argparse.Namespace) -> None:
    """Keep a number of requests in flight; responses are received but not parsed."""
    sys.path.insert(0, str(ROOT / "serving" / "client"))
    import grpc

    from tandem_client import serving_pb2 as pb

    requests = []
    for user in range(USERS):
        request = pb.PredictRequest()
        request.model_spec.name = "recommender"
        request.model_spec.signature_name = "recommend"
        tensor = request.inputs["user_id"]
        tensor.dtype = pb.DT_STRING
        tensor.tensor_shape.dim.add(size=1)
        tensor.string_val.append(user_id(user))
        requests.append(request.SerializeToString())
    channel = grpc.insecure_channel(address)
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

    def measure(task: Mapping[str, Any]) -> dict[str, float]:
        took: list[float] = []

        def keep_asking(first: int, end: float) -> None:
            for number in range(first, sys.maxsize, task["in_flight"]):
                now = time.perf_counter()
                if now >= end:
                    return
                predict(requests[number % len(requests)], timeout=30)
                took.append(time.perf_counter() - now)

        def all_together(seconds: float) -> float:
            begin = time.perf_counter()
            threads = [
                threading.Thread(target=keep_asking, args=(first, begin + seconds))
                for first in range(task["in_flight"])
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.perf_counter() - begin

        all_together(0.3)
        took.clear()
        return summary(took, all_together(task["seconds"]))

    answer({}, measure)


def summary(took: Sequence[float], seconds: float) -> dict[str, float]:
    p50, p99 = np.percentile(took, [50, 99]) * 1000
    return {"rate": len(took) / seconds, "p50": float(p50), "p99": float(p99)}


# --- the model --------------------------------------------------------------------------------------------------------


class Planted(NamedTuple):
    """Synthetic vectors, similar to trained ones."""

    vectors: np.ndarray
    """float32 [N, D], of the items."""
    queries: np.ndarray
    """float32 [U, D], of the users."""
    seen: np.ndarray
    """int64 [U, SEEN], rows of `vectors`."""


def planted(items: int, users: int, seed: int = 0) -> Planted:
    """Items around nested topics, users near the items that they interacted with.

    The sizes of topics follow a power law, dimensions matter less and less, and lengths differ, as popularities do. A
    user has seen items of one to four topics, and his vector is their sum over the root of their number, with noise.
    """
    random = np.random.default_rng(seed)
    dimensions = (1 / np.sqrt(1 + np.arange(DIMENSION) / 6)).astype(np.float32)

    def around(centres: np.ndarray, spread: float) -> np.ndarray:
        return centres + spread * random.standard_normal(centres.shape, np.float32) * dimensions

    def shares(count: int, power: float) -> np.ndarray:
        unscaled = random.permutation(1 / np.arange(1, count + 1) ** power)
        return unscaled / unscaled.sum()

    coarse, fine = max(2, items // 3000), max(4, items // 150)
    topics = around(np.zeros((coarse, DIMENSION), np.float32), 1.0)
    subtopics = around(topics[random.choice(coarse, fine, p=shares(coarse, 0.7))], 0.7)
    subtopic_shares = shares(fine, 0.6)
    subtopic = np.sort(random.choice(fine, items, p=subtopic_shares))
    vectors = around(subtopics[subtopic], 0.7)
    vectors *= np.exp(0.2 * random.standard_normal((items, 1), np.float32))
    starts = np.searchsorted(subtopic, np.arange(fine + 1))
    there = np.flatnonzero(np.diff(starts))
    there_shares = subtopic_shares[there] / subtopic_shares[there].sum()
    seen = np.empty((users, SEEN), np.int64)
    for user in range(users):
        liked = random.choice(there, random.integers(1, 5), p=there_shares)
        chosen = random.choice(liked, SEEN)
        seen[user] = random.integers(starts[chosen], starts[chosen + 1])
    queries = around(vectors[seen].sum(axis=1) / SEEN**0.5, 0.3)
    return Planted(vectors, queries, seen)


def uniform(items: int, users: int, seed: int = 0) -> Planted:
    """Independent random vectors: the worst case of an index."""
    random = np.random.default_rng(seed)
    vectors, queries = (random.standard_normal((count, DIMENSION), np.float32) for count in (items, users))
    return Planted(vectors, queries, random.integers(0, items, (users, SEEN)))


def user_id(user: int) -> bytes:
    return b"u%07d" % user


def export(what: str, arguments: argparse.Namespace) -> None:
    """Export a SavedModel with the given vectors as the pipeline does."""
    start()
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    from components.trainer.data.histories import Histories
    from components.trainer.data.training_data import TrainingData
    from components.trainer.export import ServedRecommender, save
    from components.trainer.model.recommender import TwoTaskRecommender
    from recipe.trainer import TrainerRecipe

    catalogue, version = json.loads(what)
    count, _, index = catalogue.partition(":")
    items = int(count)
    found = planted(items, USERS)
    recipe = TrainerRecipe.model_validate({**RECIPE, "serving": {"k": K, "index": index or "exact"}})
    transform_output = transformed(items, recipe, Path(version).parent.parent)
    # Ids are zero-padded, so that the vocabulary has the order of the rows.
    users, seen = np.repeat(np.arange(1, USERS + 1), SEEN), found.seen.reshape(-1) + 1
    labels, times = np.full(len(seen), 4, np.float32), np.zeros(len(seen), np.int64)
    user_feature, item_feature = (side[0].name for side in (recipe.features.query, recipe.features.candidate))
    data = TrainingData(
        query={user_feature: users},
        items=seen,
        labels=labels,
        times=times,
        positive=np.ones(len(seen), bool),
        catalogue={item_feature: np.arange(items + 1)},
        display={},
        user_feature=user_feature,
        user_count=USERS,
        histories=Histories.collect(users, seen, times, labels, user_count=USERS, item_count=items),
    )
    model = TwoTaskRecommender(
        recipe.model, recipe.features.query, recipe.features.candidate, data, transform_output, static_shapes=False
    )
    for tower, vectors in ((model.query_tower, found.queries), (model.candidate_tower, found.vectors)):
        (table,) = tower.variables
        table.assign(np.concatenate([np.zeros((1, DIMENSION), np.float32), vectors]))
    schema = text_format.Parse(SCHEMA, schema_pb2.Schema())
    served = ServedRecommender(model, data, transform_output, recipe, schema)
    save(served, version, [user_id(0)], [b"i%08d" % 0])
    np.savez(Path(version).parent / PLANTED, vectors=found.vectors, queries=found.queries)
    print(json.dumps({}))


def transformed(items: int, recipe: Any, folder: Path) -> Any:
    """Transform graph with the vocabularies of all ids."""
    import apache_beam as beam
    import pyarrow as pa
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2
    from tfx_bsl.tfxio import tensor_adapter

    from components.transform.preprocessing import preprocessing_fn

    config = {"features": recipe.features.model_dump_json(), "columns": recipe.columns.model_dump_json()}
    columns = {
        "user_id": [[user_id(row)] if row < USERS else None for row in range(max(items, USERS))],
        "item_id": [[b"i%08d" % row] if row < items else None for row in range(max(items, USERS))],
        "rating": [[4.0]] * max(items, USERS),
    }
    types = {"user_id": pa.binary(), "item_id": pa.binary(), "rating": pa.float32()}
    table = pa.table({name: pa.array(values, pa.list_(types[name])) for name, values in columns.items()})
    representations = {
        name: text_format.Parse(f'varlen_sparse_tensor {{ column_name: "{name}" }}', schema_pb2.TensorRepresentation())
        for name in columns
    }
    adapter = tensor_adapter.TensorAdapterConfig(table.schema, representations)
    with beam.Pipeline("FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        batches = pipeline | beam.Create(table.to_batches(max_chunksize=20_000))
        function = (batches, adapter) | tft_beam.AnalyzeDataset(lambda inputs: preprocessing_fn(inputs, config))
        _ = function | tft_beam.WriteTransformFn(str(folder / "transform"))
    return tft.TFTransformOutput(str(folder / "transform"))


# --- the index --------------------------------------------------------------------------------------------------------


def index(kind: str, arguments: argparse.Namespace) -> None:
    """Recall and milliseconds per query of `ivf` and `exact`, alternating, in sessions like TensorFlow Serving's."""
    start()
    import tensorflow as tf

    from components.trainer.index.exact import ExactIndex
    from components.trainer.index.ivf import IvfIndex
    from components.trainer.index.retrieval_index import RetrievalIndex

    class Searched(tf.Module):
        def __init__(self, searched: RetrievalIndex) -> None:
            super().__init__()
            self.index = searched

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, DIMENSION], tf.float32, name="query"),
                tf.TensorSpec([None, SEEN], tf.int64, name="seen"),
            ]
        )
        def search(self, query: Any, seen: Any) -> dict[str, Any]:
            return self.index.search(query, K, tf.RaggedTensor.from_tensor(seen))._asdict()

    # The first users calibrate the index, the others query it.
    found = {"clustered": planted, "uniform": uniform}[kind](arguments.index_items, USERS)
    known = USERS // 2
    begin = time.perf_counter()
    ivf = IvfIndex.build(
        found.vectors, found.queries[:known], k=K, recall=arguments.recall, excluded=list(found.seen[:known] + 1)
    )
    figures: dict[str, Any] = {"build_seconds": time.perf_counter() - begin, "cells": ivf.cell_count}
    figures |= ivf.calibration._asdict()
    queries, seen = found.queries[known:], found.seen[known:] + 1
    calls: dict[str, Callable[[slice], Any]] = {}
    for name, searched in (("ivf", ivf), ("exact", ExactIndex(found.vectors))):
        with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
            module = Searched(searched)
            tf.saved_model.save(module, folder, signatures={"search": module.search})
            session, definition = in_session(folder, "search")
        call = session_call(
            session,
            [definition.inputs[alias].name for alias in ("query", "seen")],
            [definition.outputs[alias].name for alias in ("items", "scores")],
        )
        calls[name] = lambda rows, call=call: call(queries[rows], seen[rows])
    rows = [slice(begin, begin + 32) for begin in range(0, min(len(queries), 480), 32)]
    items = {name: np.concatenate([call(some)[0] for some in rows]) for name, call in calls.items()}
    both = [len(np.intersect1d(ours, theirs)) for ours, theirs in zip(items["ivf"], items["exact"], strict=True)]
    figures |= {"recall": float(np.mean(both)) / K, "worst_recall": min(both) / K, "milliseconds": {}, "ratio": {}}
    for batch in BATCHES:
        took: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(max(arguments.rounds, 3)):
            for name, call in calls.items() if number % 2 == 0 else reversed(calls.items()):
                times = max(2, (100 if name == "ivf" else 20) // batch)
                starts = (np.arange(times) * batch) % (len(queries) - batch)
                begin = time.perf_counter()
                for row in starts:
                    call(slice(row, row + batch))
                took[name].append((time.perf_counter() - begin) / times / batch * 1000)
        figures["milliseconds"][str(batch)] = {name: statistics.median(each) for name, each in took.items()}
        figures["ratio"][str(batch)] = statistics.median(
            theirs / ours for ours, theirs in zip(took["ivf"], took["exact"], strict=True)
        )
    print(json.dumps(figures))


def print_index(kind: str, found: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    print(
        f"\n{arguments.index_items:,} items of {DIMENSION} dimensions, {kind}: recall@{K} {found['recall']:.3f} (the "
        f"worst query {found['worst_recall']:.2f}); {found['probes']} of {found['cells']} cells with "
        f"{found['scanned']:.1%} of the items; made in {found['build_seconds']:.0f} s\n"
    )
    print(f"{'queries per call':20}{'ivf, ms per query':>18}{'exact':>10}{'times':>10}")
    for batch in BATCHES:
        took = found["milliseconds"][str(batch)]
        print(f"{batch:<20}{took['ivf']:>18.2f}{took['exact']:>10.2f}{found['ratio'][str(batch)]:>10.1f}", flush=True)


# --- processes --------------------------------------------------------------------------------------------------------


def start() -> None:
    """Prepare a process before it imports the project."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(ROOT))
    import components  # noqa: F401  (first, because it decides which Keras TensorFlow imports)


def in_session(folder: str, signature: str) -> tuple[Any, Any]:
    """A session like those of TensorFlow Serving and the embedded server, and the signature's definition."""
    import tensorflow as tf

    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    return session, meta_graph.signature_def[signature]


def session_call(session: Any, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., Any]:
    """A callable of the signature, as in the embedded server."""
    from tensorflow.core.protobuf import config_pb2

    # A private method: the public `session.make_callable` is slower.
    return session._make_callable_from_options(config_pb2.CallableOptions(feed=feeds, fetch=fetches))


def one(what: str, argument: str) -> list[str]:
    return [sys.executable, __file__, "--one", what, argument]


def in_fresh_process(what: str, argument: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = one(what, argument)
    for name in ("rounds", "index_items", "recall"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def talking_to(command: list[str], log: Path) -> Iterator[tuple[Callable[[Mapping[str, Any]], Any], Any]]:
    """A process that maps lines of JSON to lines of JSON, and its first line."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def read() -> Any:
            line = stdout.readline()
            if not line:
                raise SystemExit(f"{' '.join(command)} ended:\n{log.read_text()[-4000:]}")
            return json.loads(line)

        def ask(task: Mapping[str, Any]) -> Any:
            print(json.dumps(task), file=stdin, flush=True)
            return read()

        try:
            yield ask, read()
        finally:
            process.terminate()


def answer(greeting: Mapping[str, Any], measure: Callable[[Mapping[str, Any]], Mapping[str, float]]) -> None:
    print(json.dumps(greeting), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), flush=True)


ONE: dict[str, Callable[[str, argparse.Namespace], None]] = {
    "alone": alone,
    "client": client,
    "export": export,
    "index": index,
}


if __name__ == "__main__":
    sys.exit(main())
