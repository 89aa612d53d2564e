"""The client's connections, TLS, labels, retries, deadlines, and batches larger than one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import recommender_model
import trustme
from conftest import push
from hypothesis import given, settings
from hypothesis import strategies as st
from relay import Relay, Seen, relayed
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving.server.model_server import ModelServer
from tandem_client import (
    AsyncRecommender,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Recommendations,
    Recommender,
    ServerUnavailable,
    TandemClientError,
    Tls,
)


@pytest.fixture
def relay(all_signatures: str) -> Iterator[Relay]:
    with relayed(all_signatures) as made:
        yield made


def _both(ask: Callable[[Any], Any], target: str, **arguments: Any) -> Iterator[Callable[[], Any]]:
    """Return a function that makes the call with either client."""

    def plainly() -> Any:
        with Recommender(target, **{"timeout": 30, **arguments}) as client:
            return ask(client)

    def awaited() -> Any:
        async def call() -> Any:
            async with AsyncRecommender(target, **{"timeout": 30, **arguments}) as client:
                answer: Awaitable[Any] = ask(client)
                return await answer

        return asyncio.run(call())

    yield from (plainly, awaited)


# --- connection -------------------------------------------------------------------------------------------------------


def test_one_connection_and_one_metadata_request_for_all_calls(relay: Relay) -> None:
    with Recommender(relay.target, timeout=30) as client:
        for number in range(5):
            client.recommend(str(number))
            client.rate(str(number), "i1")
            client.similar("i1")
        client.status()
    assert len({each.peer for each in relay.calls}) == 1
    assert [each.method.rpartition("/")[2] for each in relay.calls].count("GetModelMetadata") == 1
    with Recommender(relay.target, timeout=30) as other:
        other.status()
    assert len({each.peer for each in relay.calls}) == 2


def test_server_receives_the_deadline(relay: Relay) -> None:
    with Recommender(relay.target, timeout=20) as client:
        client.recommend("1")
        client.recommend("1", timeout=7)
    first, last = relay.calls[0].seconds_left, relay.calls[-1].seconds_left
    assert 15 < first < 20.5 and 4 < last < 7.5


def test_the_timeout_is_for_all_calls_together(relay: Relay) -> None:
    def slowly(seen: Seen, _: grpc.ServicerContext) -> bytes:
        time.sleep(0.3)
        return seen.request

    relay.before = slowly
    for ask in _both(lambda r: r.recommend_batch(["1"] * 20, timeout=1.0), relay.target, rows_per_call=1):
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="pass a longer timeout"):
            ask()
        assert time.monotonic() - started < 5
    with pytest.raises(ValueError, match="timeout: expected seconds above 0, got 0"):
        Recommender(relay.target).recommend("1", timeout=0)


# --- retries ----------------------------------------------------------------------------------------------------------


def _failing(times: int, code: grpc.StatusCode) -> Callable[[Seen, grpc.ServicerContext], bytes]:
    left = [times]

    def fail(seen: Seen, context: grpc.ServicerContext) -> bytes:
        if seen.method.endswith("/Predict") and left[0]:
            left[0] -= 1
            context.abort(code, "a bad day")
        return seen.request

    return fail


def test_only_unavailable_is_retried(relay: Relay) -> None:
    for ask in _both(lambda r: r.recommend("1"), relay.target):
        relay.calls.clear()
        relay.before = _failing(2, grpc.StatusCode.UNAVAILABLE)
        assert ask().items
        assert len(relay.predicts) == 3
    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED):
        for ask in _both(lambda r: r.recommend("1"), relay.target):
            relay.calls.clear()
            relay.before = _failing(1, code)
            with pytest.raises(TandemClientError, match="a bad day") as failure:
                ask()
            assert failure.value.code == code.name
            assert isinstance(failure.value.__cause__, grpc.RpcError)
            assert len(relay.predicts) == 1
    for ask in _both(lambda r: r.recommend("1"), relay.target, retries=0):
        relay.before = _failing(1, grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(ServerUnavailable):
            ask()


# --- labels -----------------------------------------------------------------------------------------------------------


def _labelled(labels: dict[str, int]) -> Callable[[Seen, grpc.ServicerContext], bytes]:
    """Behave as TensorFlow Serving with `version_labels` in its model config."""

    def resolve(seen: Seen, context: grpc.ServicerContext) -> bytes:
        kinds: dict[str, Any] = {
            "Predict": predict_pb2.PredictRequest,
            "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
            "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
        }
        request = kinds[seen.method.rpartition("/")[2]].FromString(seen.request)
        spec = request.model_spec
        if spec.WhichOneof("version_choice") == "version_label":
            if spec.version_label not in labels:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}"
                )
            spec.version.value = labels[spec.version_label]
        data: bytes = request.SerializeToString()
        return data

    return resolve


def test_server_resolves_the_label(all_signatures: str) -> None:
    with relayed(all_signatures) as relay:
        relay.before = _labelled({"canary": 1, "stable": 1})
        for ask in _both(lambda r: r.recommend("1"), relay.target, label="canary"):
            relay.calls.clear()
            assert ask().items
            assert [each.model_spec.version_label for each in relay.predicts] == ["canary"]
        for ask in _both(lambda r: r.status(), relay.target, label="stable"):
            assert [each.version for each in ask()] == [1]
        relay.calls.clear()
        for ask in _both(lambda r: r.recommend_batch(["1"] * 4), relay.target, label="canary", rows_per_call=2):
            assert len(ask()) == 4
        first, second = relay.predicts[:2]
        assert first.model_spec.version_label == "canary"
        assert second.model_spec.version.value == 1, "the rest of the batch is for the version that answered first"


def test_unassigned_label_is_model_not_found(all_signatures: str) -> None:
    for ask in _both(lambda r: r.recommend("1"), all_signatures, label="canary"):
        with pytest.raises(
            ModelNotFound, match=r"model 'recommender' label 'canary': not served there .*label: canary"
        ):
            ask()
    with pytest.raises(ValueError, match="expected a version or a label, got version 3 and label 'canary'"):
        Recommender(all_signatures, version=3, label="canary")


# --- batches larger than one request ----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["1", "2", "unseen"]), st.integers(0, 3)), max_size=9),
    rows_per_call=st.integers(1, 4),
)
def test_parts_of_a_batch_give_the_result_of_the_whole(
    all_signatures: str, rows: list[tuple[str, int]], rows_per_call: int
) -> None:
    users = [user for user, _ in rows]
    arguments: dict[str, Any] = {
        "histories": [[f"i{number}"] * number for _, number in rows],
        "exclude": [[f"i{number + 10}"] for _, number in rows],
        "only": [f"i{number}" for number in range(30)],
        "context": {"age": [float(number) for _, number in rows]},
        "k": 20,
    }

    def shape(answers: list[Recommendations]) -> list[tuple[str, list[str]]]:
        return [(each.user_id, [item.item_id for item in each.items]) for each in answers]

    with Recommender(all_signatures, timeout=30) as client, relayed(all_signatures) as relay:
        expected = shape(client.recommend_batch(users, **arguments))
        with Recommender(relay.target, timeout=30, rows_per_call=rows_per_call) as parted:
            assert shape(parted.recommend_batch(users, **arguments)) == expected
        sizes = [each.inputs["user_id"].tensor_shape.dim[0].size for each in relay.predicts]
        assert sum(sizes) == len(users) and max(sizes, default=0) <= rows_per_call
        assert len(sizes) == -(-len(users) // rows_per_call)


def test_request_above_the_message_limit_is_halved(relay: Relay) -> None:
    # The relay has gRPC's default limit of 4 MiB.
    histories = [["i1", "x" * 100_000], *([["i2", "y" * 200_000]] * 59)]
    with Recommender(relay.target, timeout=60) as client:
        answers = client.recommend_batch(["unseen"] * 60, histories=histories)
        assert len(answers) == 60 and len(relay.predicts) > 2
        assert all(each.ByteSize() <= 4 << 20 for each in relay.predicts)
        alone = client.recommend("unseen", history=["i1"])
        assert [each.item_id for each in answers[0].items] == [each.item_id for each in alone.items]
        relay.calls.clear()
        in_common = [f"i{number}" + "x" * 1000 for number in range(3500)]
        client.recommend_batch(["1"] * 60, only=["i1", *in_common], histories=[["i2", "y" * 15_000]] * 60)
        assert [each.inputs["user_id"].tensor_shape.dim[0].size for each in relay.predicts] == [30, 30]
        with pytest.raises(TandemClientError, match="the request exceeds the server's resources"):
            client.recommend_batch(["1"] * 60, only=["i1", *in_common, *in_common])
        with pytest.raises(TandemClientError, match="the request exceeds the server's resources") as failure:
            client.recommend("unseen", history=["z" * (5 << 20)])
        assert failure.value.code == "RESOURCE_EXHAUSTED" and "rows_per_call" in str(failure.value)


def test_nothing_is_sent_if_any_row_is_invalid(relay: Relay) -> None:
    with Recommender(relay.target, timeout=30, rows_per_call=2) as client:
        with pytest.raises(InvalidRequest, match="input 'age': expected float, got str 'old'"):
            client.recommend_batch(["1"] * 9, context={"age": [1.0] * 8 + ["old"]})
        assert not relay.predicts
    with pytest.raises(ValueError, match="rows_per_call: expected an int above 0, got 0"):
        Recommender(relay.target, rows_per_call=0)


def test_batch_is_answered_by_one_version_while_another_is_loaded(tmp_path: Path) -> None:
    first, second = (recommender_model.export(tmp_path / f"of {n}", marker=100.0 * n) for n in range(2))
    base = tmp_path / "model"
    base.mkdir()
    push(first, base, 1)
    with ModelServer(base, port=0, rest_port=0, poll_interval_s=0.05) as server:
        server.wait_until_available(60)
        with relayed(f"127.0.0.1:{server.port}") as relay, Recommender(relay.target, timeout=60) as direct:

            def replace(seen: Seen, _: grpc.ServicerContext) -> bytes:
                """Unload the version that answered the first part of a batch."""
                if seen.method.endswith("/Predict") and len(relay.predicts) == 2:
                    push(second, base, 2)
                    while ("2", "AVAILABLE") not in [(str(e.version), e.state) for e in versions()] or any(
                        e.version == 1 and e.state != "END" for e in versions()
                    ):
                        time.sleep(0.02)
                return seen.request

            def versions() -> list[Any]:
                with Recommender(f"127.0.0.1:{server.port}", timeout=30) as onlooker:
                    return onlooker.status()

            relay.before = replace
            with Recommender(relay.target, timeout=60, rows_per_call=2) as client:
                answers = client.recommend_batch(["1"] * 6, k=1)
            assert [each.model_spec.version.value for each in relay.predicts] == [0, 1, 0, 2, 2]
            assert {each.items[0].score > 50 for each in answers} == {True}
            assert len(answers) == 6 and direct.recommend("1", k=1).items == answers[0].items


def test_requested_version_is_not_exchanged(relay: Relay) -> None:
    gone = [False]

    def unload(seen: Seen, context: grpc.ServicerContext) -> bytes:
        if seen.method.endswith("/Predict"):
            if gone[0]:
                context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(recommender, 1)")
            gone[0] = True
        return seen.request

    relay.before = unload
    with Recommender(relay.target, version=1, timeout=30, rows_per_call=1) as client, pytest.raises(ModelNotFound):
        client.recommend_batch(["1", "2"])
    assert len(relay.predicts) == 2


# --- TLS --------------------------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority with a server certificate and a client certificate."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self.root = self.authority.cert_pem.bytes()
        self.server = self.authority.issue_cert("localhost")
        self.client = self.authority.issue_cert("service@example.org")

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        chain = b"".join(each.bytes() for each in self.server.cert_chain_pems)
        pair = (self.server.private_key_pem.bytes(), chain)
        return grpc.ssl_server_credentials([pair], self.root if mutual else None, mutual)

    def client_tls(self) -> Tls:
        chain = b"".join(each.bytes() for each in self.client.cert_chain_pems)
        return Tls(self.root, self.client.private_key_pem.bytes(), chain)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(scope="module")
def encrypted(all_signatures: str, certificates: Certificates) -> Iterator[Relay]:
    with relayed(all_signatures, certificates.credentials(mutual=False)) as relay:
        yield relay


@pytest.fixture(scope="module")
def mutual(all_signatures: str, certificates: Certificates) -> Iterator[Relay]:
    with relayed(all_signatures, certificates.credentials(mutual=True)) as relay:
        yield relay


def test_tls_with_a_private_authority(encrypted: Relay, certificates: Certificates, all_signatures: str) -> None:
    for ask in _both(lambda r: r.recommend("1"), encrypted.target, tls=Tls(certificates.root)):
        with Recommender(all_signatures, timeout=30) as plain:
            assert ask() == plain.recommend("1")


@pytest.mark.parametrize(
    ("tls", "remedy"),
    [
        (True, "compare the root certificates"),
        (Tls(trustme.CA().cert_pem.bytes()), "compare the root certificates"),
        (False, "pass tls if the server uses TLS"),
    ],
    ids=["public authorities", "another authority", "in the clear"],
)
def test_untrusted_server_gets_no_request(encrypted: Relay, tls: bool | Tls, remedy: str) -> None:
    encrypted.calls.clear()
    for ask in _both(lambda r: r.recommend("1"), encrypted.target, tls=tls, retries=0, timeout=10):
        with pytest.raises((ServerUnavailable, DeadlineExceeded), match=remedy):
            ask()
    assert not encrypted.calls


def test_server_name_must_match_the_certificate(encrypted: Relay, certificates: Certificates) -> None:
    address = f"127.0.0.1:{encrypted.port}"
    for ask in _both(lambda r: r.status(), address, tls=Tls(certificates.root), retries=0, timeout=10):
        with pytest.raises(ServerUnavailable, match="server's name"):
            ask()
    for ask in _both(lambda r: r.status(), address, tls=Tls(certificates.root, server_name="localhost")):
        assert ask()


def test_mutual_tls(mutual: Relay, certificates: Certificates) -> None:
    for ask in _both(lambda r: r.recommend("1"), mutual.target, tls=certificates.client_tls()):
        assert ask().items
    other = Certificates()
    own = other.client_tls()
    for tls in (Tls(certificates.root), Tls(certificates.root, own.private_key, own.certificate_chain)):
        for ask in _both(lambda r: r.recommend("1"), mutual.target, tls=tls, retries=0, timeout=10):
            with pytest.raises(ServerUnavailable):
                ask()


def test_tls_from_files(mutual: Relay, certificates: Certificates, tmp_path: Path) -> None:
    expected = certificates.client_tls()
    for name in ("root_certificates", "private_key", "certificate_chain"):
        (tmp_path / name).write_bytes(getattr(expected, name))
    tls = Tls.from_files(
        root_certificates=tmp_path / "root_certificates",
        private_key=str(tmp_path / "private_key"),
        certificate_chain=tmp_path / "certificate_chain",
    )
    assert tls == expected
    assert "PRIVATE KEY" not in repr(tls)
    with Recommender(mutual.target, tls=tls, timeout=30) as client:
        assert client.status()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tls.from_files(root_certificates=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"private_key": b"key"}, "private_key without certificate_chain"),
        ({"certificate_chain": b"chain"}, "certificate_chain without private_key"),
        ({"root_certificates": "-----BEGIN"}, "root_certificates: expected the bytes of a PEM file, got str"),
    ],
)
def test_incomplete_client_certificate_and_text_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tls(**arguments)
    with pytest.raises(ValueError, match="tls: expected True, False or"):
        Recommender(tls="yes")  # type: ignore[arg-type]
