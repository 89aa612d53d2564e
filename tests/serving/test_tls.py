"""TLS and mutual TLS from TensorFlow Serving's SSL config file, on gRPC and on REST."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from conftest import Stubs, push
from contract_model import predict_request
from google.protobuf import text_format

from serving.config.errors import ConfigFileError
from serving.config.server_config_pb2 import SSLConfig
from serving.config.server_options import ServerOptions
from serving.config.ssl_config import Tls
from serving.server.model_server import ModelServer, ServerStartError


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _pem(certificate: trustme.LeafCert) -> str:
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems).decode()


def _write(path: Path, **fields: object) -> Path:
    message = SSLConfig()
    for name, value in fields.items():
        setattr(message, name, value)
    path.write_text(text_format.MessageToString(message))
    return path


@pytest.fixture(scope="module", params=[False, True], ids=["tls", "mutual tls"])
def server(
    request: pytest.FixtureRequest,
    authority: trustme.CA,
    exported: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("tls")
    (folder / "model").mkdir()
    push(exported(), folder / "model", 1)
    own = authority.issue_cert("localhost", "127.0.0.1")
    file = _write(
        folder / "ssl.config",
        server_key=own.private_key_pem.bytes().decode(),
        server_cert=_pem(own),
        custom_ca=authority.cert_pem.bytes().decode() if request.param else "",
        client_verify=request.param,
    )
    with ModelServer(folder / "model", port=0, rest_port=0, options=ServerOptions(ssl_config_file=file)) as made:
        made.wait_until_available(60)
        yield made


def _is_mutual(server: ModelServer) -> bool:
    tls = server.options.tls()
    return tls is not None and tls.client_verify


def _grpc(server: ModelServer, authority: trustme.CA, client: trustme.LeafCert | None) -> int:
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        *((client.private_key_pem.bytes(), _pem(client).encode()) if client is not None else ()),
    )
    stubs = Stubs(f"localhost:{server.port}", credentials)
    try:
        response = stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=20)
    finally:
        stubs.channel.close()
    return int(response.model_spec.version.value)


def _rest(server: ModelServer, authority: trustme.CA, client: trustme.LeafCert | None) -> int:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.configure_cert(context)
    connection = http.client.HTTPSConnection("localhost", server.rest_port, timeout=20, context=context)
    connection.request("GET", "/v1/models/recommender")
    response = connection.getresponse()
    first = response.read()
    connection.request("GET", "/v1/models/recommender")
    assert connection.getresponse().read() == first, "the connection serves a second request"
    connection.close()
    return response.status


def test_clients_that_trust_the_authority_are_answered(server: ModelServer, authority: trustme.CA) -> None:
    client = authority.issue_cert("client") if _is_mutual(server) else None
    assert _grpc(server, authority, client) == 1
    assert _rest(server, authority, client) == 200


def test_mutual_tls_rejects_clients_without_a_valid_certificate(server: ModelServer, authority: trustme.CA) -> None:
    other = trustme.CA().issue_cert("client")
    for client in (None, other):
        if not _is_mutual(server):
            assert _rest(server, authority, client) == 200
            continue
        with pytest.raises(grpc.RpcError) as failure:
            _grpc(server, authority, client)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            _rest(server, authority, client)


def test_clients_that_do_not_trust_the_authority_reject_the_server(server: ModelServer) -> None:
    other = trustme.CA()
    with pytest.raises(grpc.RpcError) as failure:
        _grpc(server, other, None)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(ssl.SSLCertVerificationError):
        _rest(server, other, None)


def test_unencrypted_requests_are_not_answered(server: ModelServer, authority: trustme.CA) -> None:
    stubs = Stubs(f"localhost:{server.port}")
    with pytest.raises(grpc.RpcError):
        stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=5)
    stubs.channel.close()
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.request("GET", "/v1/models/recommender")
        connection.getresponse()


def test_connection_without_handshake_blocks_no_other(server: ModelServer, authority: trustme.CA) -> None:
    with socket.create_connection(("localhost", server.rest_port)):
        client = authority.issue_cert("client") if _is_mutual(server) else None
        assert _rest(server, authority, client) == 200


def test_wrong_ssl_config_files_are_rejected(tmp_path: Path, authority: trustme.CA) -> None:
    one, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    key, certificate = one.private_key_pem.bytes().decode(), _pem(one)
    cases = [
        ({"server_cert": certificate}, "server_key is missing"),
        ({"server_key": key}, "server_cert is missing"),
        ({"server_key": key, "server_cert": _pem(other)}, "expected PEM texts that match in server_key"),
        ({"server_key": "no key", "server_cert": certificate}, "expected PEM texts that match in server_key"),
        (
            {"server_key": key, "server_cert": certificate, "custom_ca": "none"},
            "expected PEM texts that match in server_key",
        ),
        ({"server_key": key, "server_cert": certificate, "client_verify": True}, "client_verify without custom_ca"),
    ]
    for fields, message in cases:
        file = _write(tmp_path / "ssl.config", **fields)
        with pytest.raises(ConfigFileError, match=message) as failure:
            Tls.read(file)
        assert str(file) in str(failure.value) and "PRIVATE KEY" not in str(failure.value)
    with pytest.raises(ServerStartError, match="client_verify without custom_ca"):
        ModelServer(tmp_path, port=0, rest_port=0, options=ServerOptions(ssl_config_file=file)).start()
