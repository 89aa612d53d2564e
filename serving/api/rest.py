"""TensorFlow Serving's REST API over a ServerCore, on the standard library's threading HTTP server.

The same port has the Prometheus page.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import socketserver
import ssl
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc

from serving.api.status import ServingError, invalid_argument
from serving.config.server_options import PROMETHEUS_PATH

# `core` and `json_tensor` import TensorFlow. The port is bound before, so that a port in use is reported immediately.
if TYPE_CHECKING:
    from tensorflow_serving.apis import model_pb2

    from serving.api.core import ServerCore

_API_PATH = re.compile(r"/v1/.*", re.IGNORECASE)
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION_PATH = re.compile(
    rf"/v1/models/(?P<model>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.IGNORECASE
)
_MODEL_PATH = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_VERSION}(?:/(?P<metadata>metadata))?", re.IGNORECASE)
_MAX_BODY_BYTES = 1 << 30
_ENTRYPOINT = "REST"
_JSON = "application/json"
_HANDSHAKE_TIMEOUT_S = 10.0
_IDLE_TIMEOUT_S = 75.0  # closes idle kept-alive connections, so that their threads end
_logger = logging.getLogger(__name__)


class RestServer:
    """HTTP server that binds when it is made and answers after `start`; earlier requests wait in the socket's queue."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        metrics_path: str | None = PROMETHEUS_PATH,
        max_body_bytes: int | None = None,
    ) -> None:
        """Bind the port.

        Args:
            host: the address to bind.
            port: 0 selects a free one.
            tls: HTTPS with this context; None for HTTP.
            metrics_path: path of the Prometheus page; None for no page.
            max_body_bytes: larger request bodies are rejected; None for 1 GiB.

        Raises:
            OSError: the port is in use, or the host is not an address of this machine.
        """
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._http = _HttpServer((host, port), _Handler, family)
        self._http.tls = tls
        self._http.metrics_path = metrics_path
        self._http.max_body_bytes = max_body_bytes or _MAX_BODY_BYTES
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The bound port; for 0, the one that the system selected."""
        return int(self._http.server_address[1])

    def start(self, core: ServerCore) -> None:
        """Answer requests from `core`, in threads of its own."""
        self._http.core = core
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, name="rest", daemon=True
        )
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Close the port; running requests get up to `grace` seconds to finish."""
        if self._thread is not None:
            self._http.shutdown()
        self._http.server_close()
        self._http.in_flight.wait_until_none(grace)


class _InFlight:
    """Number of running requests, for which `stop` waits."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def wait_until_none(self, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, timeout)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # would wait for idle kept-alive connections; `stop` waits for running requests instead
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler], family: socket.AddressFamily) -> None:
        self.address_family = family
        self.core: ServerCore | None = None
        self.in_flight = _InFlight()
        self.stopping = False
        self.tls: ssl.SSLContext | None = None
        self.metrics_path: str | None = None
        self.max_body_bytes = _MAX_BODY_BYTES
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake in the connection's thread, so that a slow one blocks no other connection."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_HANDSHAKE_TIMEOUT_S)
        # SSLSocket takes over the socket; this closes it, the server closes the original one.
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's looks up the host in DNS, which can take seconds
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def shutdown(self) -> None:
        self.stopping = True
        super().shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.debug("connection from %s ended in an error", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "tandem"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for headers and body
    timeout = _IDLE_TIMEOUT_S
    server: _HttpServer

    def _respond(self) -> None:
        with self.server.in_flight:
            started = time.perf_counter()
            self._model = self._method = ""
            code, status, body, kind = self._answer()
            elapsed = time.perf_counter() - started
            # Counted before the response is sent, so that its client finds it counted.
            if code is not None and self.server.core is not None:
                self.server.core.metrics.record_request(self._model, self._method, _ENTRYPOINT, code, elapsed)
            self.send_response(status)
            if body:
                self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if self.server.stopping or self.close_connection:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()
            _logger.debug("%s %s %d %.4f s", self.command, self.path, status, elapsed)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = _respond  # noqa: N815 - named by the standard library

    def _answer(self) -> tuple[grpc.StatusCode | None, int, bytes, str]:
        """Return status code (None if it is no API request), HTTP status, body and content type."""
        try:
            body = self._body()
            path = urllib.parse.urlsplit(self.path).path
            core = self.server.core
            assert core is not None, "start() sets the core before it answers"
            if path == self.server.metrics_path:
                return None, 200, core.metrics.page().encode(), "text/plain"
            if not _API_PATH.fullmatch(path):
                return None, 404, b"", _JSON
            return grpc.StatusCode.OK, 200, self._process(core, path, body), _JSON
        except ServingError as error:
            return error.code, error.http_status, _error_json(error.message), _JSON
        except Exception as error:
            _logger.exception("%s %s failed unexpectedly", self.command, self.path)
            return grpc.StatusCode.INTERNAL, 500, _error_json(f"{type(error).__name__}: {error}"), _JSON

    def _process(self, core: ServerCore, path: str, body: bytes) -> bytes:
        pattern = {"POST": _PREDICTION_PATH, "GET": _MODEL_PATH}.get(self.command)
        match = pattern.fullmatch(path) if pattern is not None else None
        if match is None:
            raise invalid_argument(f"Malformed request: {self.command} {path}")
        self._model = urllib.parse.unquote(match["model"] or "")
        if self.command == "POST":
            self._method = match["method"].lower()
            return _METHODS[self._method](core, match, body)
        if not match["model"]:
            raise invalid_argument("Missing model name in request.")
        return _metadata(core, match) if match["metadata"] else _status(core, match)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunked_body()
        text = self.headers.get("Content-Length", "0")
        if not text.isascii() or not text.isdigit() or int(text) > self.server.max_body_bytes:
            self.close_connection = True  # the start of the next request is unknown
            raise invalid_argument(
                f"Content-Length: expected a number from 0 to {self.server.max_body_bytes}, got {text}"
            )
        return self._read_exactly(int(text))

    def _chunked_body(self) -> bytes:
        chunks: list[bytes] = []
        total = 0
        while True:
            line = self.rfile.readline(1024)
            try:
                size = int(line.split(b";")[0].strip(), 16)
            except ValueError:
                size = -1
            total += size
            if size < 0 or total > self.server.max_body_bytes:
                self.close_connection = True
                raise invalid_argument(
                    f"Malformed chunked request body, or a body above {self.server.max_body_bytes} bytes"
                )
            if size == 0:
                while self.rfile.readline(65536).strip():
                    pass  # trailers
                return b"".join(chunks)
            chunks.append(self._read_exactly(size))
            self.rfile.readline(1024)

    def _read_exactly(self, size: int) -> bytes:
        body = self.rfile.read(size)
        if len(body) != size:
            self.close_connection = True
            raise invalid_argument(f"Request body: expected {size} bytes, got {len(body)}")
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send errors of the HTTP parser in the API's error format."""
        body = _error_json(explain or message or "Malformed request")
        self.close_connection = True
        self.request_version = "HTTP/1.1"  # a malformed request line counts as HTTP/0.9, which has no status line
        self.send_response(code)
        self.send_header("Content-Type", _JSON)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # requests are logged in _respond, at debug level


def _predict(core: ServerCore, match: re.Match[str], body: bytes) -> bytes:
    from tensorflow_serving.apis import predict_pb2

    from serving.api import json_tensor

    request = predict_pb2.PredictRequest()
    _fill_model_spec(match, request.model_spec)
    spec = request.model_spec
    layout = json_tensor.fill_predict_request(body, request, lambda name: core.signature_def(spec, name))
    return json_tensor.predict_response_json(core.predict(request), layout)


def _classify(core: ServerCore, match: re.Match[str], body: bytes) -> bytes:
    from tensorflow_serving.apis import classification_pb2

    request = classification_pb2.ClassificationRequest()
    _fill_spec_of_examples(match, body, request.model_spec)
    core.classify(request)


def _regress(core: ServerCore, match: re.Match[str], body: bytes) -> bytes:
    from tensorflow_serving.apis import regression_pb2

    request = regression_pb2.RegressionRequest()
    _fill_spec_of_examples(match, body, request.model_spec)
    core.regress(request)


def _fill_spec_of_examples(match: re.Match[str], body: bytes, spec: model_pb2.ModelSpec) -> None:
    """Read the signature's name, which is all that rejecting `:classify` and `:regress` needs."""
    from serving.api import json_tensor

    _fill_model_spec(match, spec)
    json_tensor.fill_signature_name(json_tensor.parse(body), spec)


_METHODS = {"predict": _predict, "classify": _classify, "regress": _regress}


def _status(core: ServerCore, match: re.Match[str]) -> bytes:
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    _fill_model_spec(match, request.model_spec)
    response = core.get_model_status(request)
    return json_format.MessageToJson(response, always_print_fields_with_no_presence=True, indent=1).encode()


def _metadata(core: ServerCore, match: re.Match[str]) -> bytes:
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    _fill_model_spec(match, request.model_spec)
    response = core.get_model_metadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    # Not the response as a whole: TensorFlow Serving omits the Any wrapper's @type.
    document = {
        "model_spec": json_format.MessageToDict(
            response.model_spec, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
        ),
        "metadata": {
            "signature_def": json_format.MessageToDict(
                signatures, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
            )
        },
    }
    return json.dumps(document, indent=1).encode()


def _fill_model_spec(match: re.Match[str], spec: model_pb2.ModelSpec) -> None:
    spec.name = urllib.parse.unquote(match["model"])
    if match["version"]:
        number = int(match["version"]) if len(match["version"]) < 20 else 1 << 63
        if number >= 1 << 63:
            raise invalid_argument(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = number
    elif match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])


def _error_json(message: str) -> bytes:
    return json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "replace")
