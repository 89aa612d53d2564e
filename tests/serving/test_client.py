"""tandem_client against a server: typed results, inputs checked before they are sent, typed errors with a remedy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract_model
import numpy as np
import pytest
import tensorflow as tf
from conftest import Stubs, push
from contract_model import predict_request
from relay import relayed

from serving.server.model_server import ModelServer
from tandem_client import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Recommendation,
    Recommendations,
    Recommender,
    ServerUnavailable,
    TandemClientError,
)


def test_recommend_returns_the_signatures_outputs_as_plain_values(recommender: Recommender, stubs: Stubs) -> None:
    answer = recommender.recommend("1", k=3)
    response = stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
    raw = {name: tf.make_ndarray(tensor)[0] for name, tensor in response.outputs.items()}
    expected = Recommendations(
        user_id="1",
        items=tuple(
            Recommendation(
                item_id=raw["item_ids"][place].decode(),
                score=float(raw["scores"][place]),
                rating=float(raw["ratings"][place]),
                display={"title": raw["title"][place].decode()},
            )
            for place in range(3)
        ),
    )
    assert answer == expected
    assert "é" in answer.items[0].display["title"]
    with pytest.raises(AttributeError):
        answer.items[0].score = 1.0  # type: ignore[misc]


def test_batch_keeps_the_order_of_users(recommender: Recommender) -> None:
    users = ["2", "unseen", "1"]
    assert recommender.recommend_batch(users) == [recommender.recommend(user) for user in users]
    assert len(recommender.recommend_batch(users)[0].items) == 10


def test_k_up_to_the_signatures_length(recommender: Recommender) -> None:
    assert len(recommender.recommend("1", k=contract_model.TOP_K).items) == contract_model.TOP_K


def test_padding_of_short_lists_is_dropped(recommender: Recommender) -> None:
    items = recommender.recommend(contract_model.FEW_LEFT_USER, k=50).items
    assert len(items) == contract_model.FEW_LEFT
    assert all(item.item_id for item in items)


def test_context_reaches_the_model(recommender: Recommender) -> None:
    plain = recommender.recommend_batch(["1", "1"], k=1)
    shifted = recommender.recommend_batch(["1", "1"], k=1, context={"age": [1.0, 2], "timestamp": 10})
    for row, difference in enumerate((11.0, 12.0)):
        assert shifted[row].items[0].score - plain[row].items[0].score == pytest.approx(difference, abs=1e-3)
    occupied = recommender.recommend("1", k=1, context={"occupation": "x" * 7})
    assert occupied.items[0].score > 6000
    numpy_context: Any = {"age": np.array([1, 2], np.float32), "timestamp": np.int64(10)}
    assert recommender.recommend_batch(["1", "1"], k=1, context=numpy_context) == shifted


def test_rate(recommender: Recommender, stubs: Stubs) -> None:
    users, items = ["1", "2", "unseen"], ["i4", "i5", "nothing"]
    ratings = recommender.rate_batch(users, items)
    response = stubs.prediction.Predict(predict_request("rate", user_id=users, item_id=items), timeout=30)
    assert ratings == pytest.approx(tf.make_ndarray(response.outputs["rating"]).tolist())
    assert recommender.rate("1", "i4") == pytest.approx(ratings[0])
    assert recommender.rate("1", "i4", context={"age": 500}) == pytest.approx(ratings[0] + 0.5)


def test_history_of_a_new_user_changes_recommendations(recommender: Recommender, stubs: Stubs) -> None:
    clicks = ["i4", "i5", "i6"]
    answer = recommender.recommend("unseen", k=100, history=clicks)
    response = stubs.prediction.Predict(predict_request("recommend", user_id=["unseen"], history=[clicks]), timeout=30)
    found = [each.item_id for each in answer.items]
    assert found == [each.decode() for each in tf.make_ndarray(response.outputs["item_ids"])[0]]
    assert not set(clicks) & set(found)
    assert found != [each.item_id for each in recommender.recommend("unseen", k=100).items]
    assert recommender.recommend("1", history=clicks) != recommender.recommend("1")
    rated = stubs.prediction.Predict(
        predict_request("rate", user_id=["unseen"], item_id=["i9"], history=[clicks]), timeout=30
    )
    (expected,) = tf.make_ndarray(rated.outputs["rating"]).tolist()
    assert recommender.rate("unseen", "i9", history=clicks) == pytest.approx(expected)
    assert recommender.rate("unseen", "i9") != pytest.approx(expected)


def test_histories_of_any_lengths_each_reach_their_user(recommender: Recommender) -> None:
    users = ["1", "unseen", "unseen", "2"]
    histories = [["i4"], [], ["i9", "i8", "i7"], ["i1", "i2"]]
    together = recommender.recommend_batch(users, k=100, histories=histories)
    alone = [
        recommender.recommend(user, k=100, history=history) for user, history in zip(users, histories, strict=True)
    ]
    for one, other in zip(together, alone, strict=True):
        assert [each.item_id for each in one.items] == [each.item_id for each in other.items]
        assert [each.score for each in one.items] == pytest.approx([each.score for each in other.items], rel=1e-4)
    plain = recommender.recommend("unseen", k=100)
    assert [each.item_id for each in together[1].items] == [each.item_id for each in plain.items]
    items = ["i20", "i21", "i22", "i23"]
    ratings = recommender.rate_batch(users, items, histories=histories)
    assert ratings == pytest.approx(
        [recommender.rate(*each[:2], history=each[2]) for each in zip(users, items, histories, strict=True)]
    )
    assert ratings[0] != pytest.approx(recommender.rate("1", "i20"))


def test_unknown_items_and_padding_have_no_effect(recommender: Recommender) -> None:
    plain = recommender.recommend("unseen")
    for nothing in ([], [""], ["never heard of"], ["", "é"]):
        assert recommender.recommend("unseen", history=nothing) == plain
    some = recommender.recommend("unseen", history=["i4"])
    assert some != plain
    also: Any
    for also in (["", "i4", "never heard of"], ("i4",), np.array(["i4"]), iter(["i4"])):
        assert recommender.recommend("unseen", history=also) == some


def test_empty_batches_answer_empty_lists(recommender: Recommender) -> None:
    assert recommender.recommend_batch([]) == []
    assert recommender.rate_batch([], []) == []
    assert recommender.recommend_batch([], histories=[]) == []
    assert recommender.rate_batch([], [], histories=[]) == []


def test_status_and_signatures(recommender: Recommender) -> None:
    (status,) = recommender.status()
    assert (status.version, status.state, status.error_code) == (1, "AVAILABLE", 0)
    signatures = recommender.signatures()
    assert {"serving_default", "evaluate", "recommend", "rate"} <= set(signatures)
    assert "__saved_model_init_op" not in signatures
    inputs = signatures["recommend"].inputs
    assert {name for name, spec in inputs.items() if not spec.optional} == {"user_id"}
    assert inputs["timestamp"].describe() == "int64 [B]"
    assert inputs["history"].describe() == "string [B, ?]"
    assert signatures["recommend"].outputs["item_ids"].shape == (-1, 100)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.recommend(42), "user_id: expected a str, got int 42"),
        (lambda r: r.recommend(["1"]), "use recommend_batch"),
        (lambda r: r.recommend_batch("12"), "user_ids: expected a sequence of str, got one str; use recommend"),
        (lambda r: r.recommend_batch(["1", 2]), "user_ids: expected str, got int 2 at position 1"),
        (lambda r: r.recommend("1", k=0), "k: expected an int from 1"),
        (lambda r: r.recommend("1", k=2.5), "k: expected an int from 1"),
        (
            lambda r: r.recommend("1", context={"colour": "red"}),
            "signature 'recommend' has no input colour; its inputs are: age",
        ),
        (lambda r: r.recommend("1", context={"user_id": "2"}), "'user_id' is in the context"),
        (
            lambda r: r.recommend("1", context={"age": "old"}),
            "input 'age': expected float, got str 'old' at position 0",
        ),
        (lambda r: r.recommend("1", context={"timestamp": 1.5}), "input 'timestamp': expected int64, got float 1.5"),
        (lambda r: r.recommend("1", context={"age": [1, 2]}), "input 'age': expected 1 values, one per row, got 2"),
        (
            lambda r: r.rate_batch(["1"], ["i1", "i2"]),
            "expected as many item_ids as user_ids, got 1 user_ids and 2 item_ids",
        ),
        (lambda r: r.rate("1", 4), "item_id: expected a str, got int 4"),
        (lambda r: r.recommend_batch(5), "user_ids: expected a sequence of str, got int 5; pass a list"),
        (
            lambda r: r.recommend("1", history="i4"),
            "history: expected a sequence of str, got one str; pass ['i4'] if it",
        ),
        (lambda r: r.recommend("1", history=["i4", 5]), "history: expected str, got int 5 at position 1;"),
        (
            lambda r: r.recommend("1", history={"i4"}),
            "history: expected a sequence of str, got set {'i4'}; pass a list",
        ),
        (
            lambda r: r.rate("1", "i1", history=b"i4"),
            "history: expected a sequence of str, got one bytes; pass [b'i4']",
        ),
        (lambda r: r.rate("1", "i1", history=7), "history: expected a sequence of str, got int 7; pass a list"),
        (
            lambda r: r.recommend_batch(["1", "2"], histories=["i4", "i5"]),
            "histories[0]: expected a sequence of str, got",
        ),
        (
            lambda r: r.recommend_batch(["1", "2"], histories="i4"),
            "histories: expected a sequence of str for each user, got str 'i4'",
        ),
        (
            lambda r: r.recommend_batch(["1", "2"], histories=[["i4"], None]),
            "histories[1]: expected a sequence of str, got NoneType None",
        ),
        (
            lambda r: r.recommend_batch(["1", "2"], histories=[["i4"]]),
            "histories: expected 2, one per user, got 1; pass []",
        ),
        (lambda r: r.recommend_batch([], histories=[["i4"]]), "histories: expected 0, one per user, got 1"),
        (lambda r: r.rate_batch(["1"], ["i1"], histories=[]), "histories: expected 1, one per user, got 0"),
        (lambda r: r.rate_batch(["1"], ["i1"], histories=[[None]]), "histories[0]: expected str, got NoneType None"),
        (lambda r: r.recommend("1", history=["\ud800"]), "input 'history': 'utf-8' codec can't encode"),
        (lambda r: r.recommend("1", context={"history": "i4"}), "'history' is in the context; pass it as its own"),
    ],
)
def test_wrong_inputs_are_named(
    recommender: Recommender, target: str, ask: Callable[[Recommender], Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as failure:
        ask(recommender)
    assert message in str(failure.value)
    assert target in str(failure.value) and "'recommender'" in str(failure.value)
    assert failure.value.code is None, "rejected before it was sent"


def test_unknown_model_and_version(target: str) -> None:
    with (
        Recommender(target, model="nope", timeout=30) as recommender,
        pytest.raises(ModelNotFound, match=r"model 'nope': not served there .*Servable not found") as failure,
    ):
        recommender.recommend("1")
    assert failure.value.code == "NOT_FOUND"
    with (
        Recommender(target, version=77, timeout=30) as recommender,
        pytest.raises(ModelNotFound, match="model 'recommender' version 77"),
    ):
        recommender.rate("1", "i1")
    with Recommender(target, version=1, timeout=30) as recommender:
        assert recommender.recommend("1").items
    with Recommender(target, model="nope", timeout=30) as recommender, pytest.raises(ModelNotFound):
        recommender.status()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_dead_server_is_unavailable_with_a_remedy_after_retries() -> None:
    target = f"127.0.0.1:{_free_port()}"
    with Recommender(target, timeout=30) as recommender:
        started = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"the server does not answer .*start a server there") as failure:
            recommender.recommend("1")
        assert 0.3 < time.monotonic() - started < 15, "retried with backoff, then an error"
    assert failure.value.target == target and failure.value.code == "UNAVAILABLE"
    with Recommender(target, timeout=30, retries=0) as recommender:
        started = time.monotonic()
        with pytest.raises(ServerUnavailable):
            recommender.recommend("1")
        assert time.monotonic() - started < 5


def test_server_that_starts_during_the_retries_is_reached(target: str) -> None:
    port = _free_port()
    with contextlib.ExitStack() as server:
        later = threading.Timer(0.3, lambda: server.enter_context(relayed(target, port=port)))
        later.start()
        with Recommender(f"localhost:{port}", timeout=30) as recommender:
            assert recommender.recommend("1").items
        later.join()


def test_silent_server_is_a_deadline_exceeded() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with Recommender(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5) as recommender:
            started = time.monotonic()
            with pytest.raises((DeadlineExceeded, ServerUnavailable), match=r"127\.0\.0\.1"):
                recommender.recommend("1")
            assert time.monotonic() - started < 3


def test_slow_answer_is_a_deadline_exceeded(target: str) -> None:
    with Recommender(target, timeout=30) as recommender:
        recommender.recommend("1")
        with pytest.raises(DeadlineExceeded, match="pass a longer timeout"):
            recommender.recommend_batch(["1"] * 20_000, timeout=0.02)


def test_closed_client_is_an_error(target: str) -> None:
    recommender = Recommender(target)
    recommender.close()
    with pytest.raises(TandemClientError, match="make a new one"):
        recommender.recommend("1")


@pytest.mark.parametrize(
    "arguments",
    [{"target": "http://127.0.0.1:8501"}, {"timeout": 0}, {"timeout": float("nan")}, {"retries": 9}],
)
def test_invalid_arguments_are_rejected_by_the_constructor(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Recommender(**arguments)


def test_model_without_the_signature(tmp_path: Path, exported: Callable[..., Path]) -> None:
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"double": module.double})
    with ModelServer(tmp_path, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        with (
            Recommender(f"127.0.0.1:{server.port}", timeout=30) as recommender,
            pytest.raises(InvalidRequest, match="has no signature 'recommend'; it has: double; serve a model"),
        ):
            recommender.recommend("1")


def test_model_without_history_is_an_error_until_a_version_with_it_is_served(
    tmp_path: Path, exported: Callable[..., Path], tandem: Callable[..., Any]
) -> None:
    push(exported(history=False), tmp_path, 1)
    message = (
        "version 1 has no input history (string [B, L]), because the model's recipe has no history feature; add "
        "{column: ITEM_ID, kind: history} under features.query"
    )
    with ModelServer(tmp_path, port=0, rest_port=0, poll_interval_s=0.05) as server:
        server.wait_until_available(60)
        target = f"127.0.0.1:{server.port}"
        with Recommender(target, timeout=30) as recommender:
            plain = recommender.recommend("unseen")
            for ask in (
                lambda: recommender.recommend("unseen", history=["i4"]),
                lambda: recommender.recommend("unseen", history=[]),
                lambda: recommender.rate("unseen", "i1", history=["i4"]),
            ):
                with pytest.raises(InvalidRequest) as failure:
                    ask()
                assert message in str(failure.value)
                assert failure.value.code is None, "rejected before it was sent"
            with pytest.raises(InvalidRequest, match="has no input history"):
                recommender.recommend("unseen", context={"history": "i4"})
            outcome = tandem("recommend", "--user", "unseen", "--history", "i4", "--target", target)
            assert outcome.code == 2 and message in outcome.stderr
            outcome = tandem("recommend", "--user", "unseen", "--target", target)
            assert outcome.code == 0, outcome.stderr
            push(exported(), tmp_path, 2)
            deadline = time.monotonic() + 30
            while (2, "AVAILABLE") not in [(each.version, each.state) for each in recommender.status()]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert recommender.recommend("unseen", history=["i4"]) != plain


def test_column_named_history_is_context(tmp_path: Path) -> None:
    module = tf.Module()

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[
            *(tf.TensorSpec([None], tf.string, name) for name in ("user_id", "item_id", "history")),
        ]
    )
    def rate(user_id: tf.Tensor, item_id: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"rating": tf.cast(tf.strings.length(user_id + item_id + history), tf.float32)}

    module.rate = rate
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"rate": rate})
    with ModelServer(tmp_path, port=0, rest_port=0) as server:
        server.wait_until_available(60)
        with Recommender(f"127.0.0.1:{server.port}", timeout=30) as recommender:
            assert recommender.rate("1", "i1", context={"history": "long"}) == 7
            with pytest.raises(InvalidRequest, match="the model's recipe has no history feature"):
                recommender.rate("1", "i1", history=["long"])


def test_command_line_accepts_a_history(recommender: Recommender, target: str, tandem: Callable[..., Any]) -> None:
    given = ("--history", "i4", "--history", "i,5", "--target", target, "--json")
    shown = tandem("recommend", "--user", "new", *given)
    assert shown.code == 0, shown.stderr
    expected = recommender.recommend("new", history=["i4", "i,5"])
    assert [each["item_id"] for each in shown.json["items"]] == [each.item_id for each in expected.items]
    assert expected != recommender.recommend("new")
    rated = tandem("rate", "--user", "new", "--item", "i9", *given)
    assert rated.code == 0, rated.stderr
    assert rated.json["rating"] == pytest.approx(recommender.rate("new", "i9", history=["i4"]))
    assert rated.json["rating"] != pytest.approx(recommender.rate("new", "i9"))
    plain = tandem("recommend", "--user", "new", "--target", target, "--json")
    assert [each["item_id"] for each in plain.json["items"]] == [
        each.item_id for each in recommender.recommend("new").items
    ]


def test_server_error_keeps_its_code(tmp_path: Path, exported: Callable[..., Path]) -> None:
    damaged = shutil.copytree(exported(), tmp_path / "model" / "1")
    (damaged / "saved_model.pb").write_bytes(b"junk")
    with ModelServer(tmp_path / "model", port=0, rest_port=0) as server:
        with Recommender(f"127.0.0.1:{server.port}", timeout=30) as recommender:
            with pytest.raises(ModelNotFound):
                recommender.recommend("1")
            (status,) = recommender.status()
        assert status.state == "END"
        assert status.error_code != 0 and "saved_model.pb" in status.error_message


def test_one_client_serves_many_threads(recommender: Recommender) -> None:
    expected = {user: recommender.recommend(user) for user in ("1", "2", "unseen")}
    wrong: list[str] = []

    def ask(user: str) -> None:
        for _ in range(20):
            if recommender.recommend(user) != expected[user]:
                wrong.append(user)

    threads = [threading.Thread(target=ask, args=(user,)) for user in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_import_is_fast_and_needs_no_tensorflow() -> None:
    program = (
        "import time; started, used = time.perf_counter(), time.process_time(); import tandem_client\n"
        "took, used = time.perf_counter() - started, time.process_time() - used\n"
        "import sys; heavy = sorted(m for m in sys.modules if m.split('.')[0] in "
        "('tensorflow', 'tensorflow_serving', 'numpy', 'serving', 'pipeline', 'components'))\n"
        "print(took, used); print(heavy)"
    )
    # On a busy machine, only the processor time is the import's own.
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    seconds = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        times, heavy = out.splitlines()
        assert heavy == "[]"
        seconds.append(float(times.split()[1 if busy else 0]))
    assert min(seconds) < 0.3, seconds
