"""Several models from TensorFlow Serving's model config file: version policies, labels, polling, reload requests."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Stubs, push
from contract_model import predict_request
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.config.errors import ConfigFileError
from serving.config.model_config import Every, Latest, ModelSettings, Specific, read_model_config_file
from serving.config.server_options import ServerOptions
from serving.server.model_server import ModelServer, ServerStartError

_POLL_S = 0.05
_AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
_END = get_model_status_pb2.ModelVersionStatus.END


def _model(name: str, base_path: Path, policy: str = "", **labels: int) -> str:
    assigned = " ".join(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items())
    return (
        f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow"\n'
        + (f"model_version_policy {{ {policy} }}\n" if policy else "")
        + f"{assigned} }}\n"
    )


def _config(*models: str) -> str:
    return f"model_config_list {{ {''.join(models)} }}\n"


@pytest.fixture
def folders(tmp_path: Path, exported: Callable[..., Path]) -> dict[str, Path]:
    """films has versions 1 and 2, books version 5; the scores identify the version."""
    made = {name: tmp_path / name for name in ("films", "books")}
    for folder in made.values():
        folder.mkdir()
    push(exported(marker=1e5), made["films"], 1)
    push(exported(marker=2e5), made["films"], 2)
    push(exported(marker=5e5), made["books"], 5)
    return made


class _Live:
    def __init__(self, file: Path, config: str, *, wait: bool = True, **options: Any) -> None:
        self.file = file
        file.write_text(config)
        self.server = ModelServer(
            port=0,
            rest_port=0,
            poll_interval_s=_POLL_S,
            options=ServerOptions(model_config_file=file, model_config_file_poll_wait_s=_POLL_S, **options),
        )
        self.server.start()
        if wait:
            self.server.wait_until_available(60)
        self.stubs = Stubs(f"127.0.0.1:{self.server.port}")

    def write(self, config: str) -> None:
        """Replace the file by a rename, as an editor or a ConfigMap does."""
        scratch = self.file.with_suffix(".new")
        scratch.write_text(config)
        scratch.rename(self.file)

    def answering(self, model: str, version: int | None = None, label: str | None = None) -> int:
        """Return the version that answered, by its scores, which must be the version in the response."""
        request = predict_request("recommend", model=model, version=version, user_id=["1"])
        if label is not None:
            request.model_spec.version_label = label
        response = self.stubs.prediction.Predict(request, timeout=30)
        marked = round(response.outputs["scores"].float_val[0] / 1e5)
        assert response.model_spec.version.value == marked
        return marked

    def rejection(
        self, model: str, version: int | None = None, label: str | None = None
    ) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as failure:
            self.answering(model, version, label)
        return failure.value.code(), failure.value.details()

    def states(self, model: str) -> dict[int, int]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        response = self.stubs.model.GetModelStatus(request, timeout=30)
        return {each.version: each.state for each in response.model_version_status}

    def reload(self, config: str, *metrics: str) -> model_management_pb2.ReloadConfigResponse:
        message = text_format.Parse(config, model_server_config_pb2.ModelServerConfig())
        request = model_management_pb2.ReloadConfigRequest(config=message, metric_names=metrics)
        return self.stubs.model.HandleReloadConfigRequest(request, timeout=60)

    def reload_refusal(self, config: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as failure:
            self.reload(config)
        return failure.value.code(), failure.value.details()


def _eventually(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., _Live]]:
    started: list[_Live] = []

    def start(config: str, **options: Any) -> _Live:
        started.append(_Live(tmp_path / "models.config", config, **options))
        return started[-1]

    yield start
    for live in started:
        live.stubs.channel.close()
        live.server.stop()


# -- the file ---------------------------------------------------------------------------------------------------------


def test_policies_and_labels_are_read(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(
        _config(
            _model("a", Path("/models/a")),
            _model("b", Path("/models/b"), "latest { num_versions: 3 }", stable=4, canary=5),
            _model("c", Path("/models/c"), "all {}"),
            _model("d", Path("/models/d"), "specific { versions: 7 versions: 9 }"),
        )
    )
    assert read_model_config_file(file) == [
        ModelSettings("a", Path("/models/a"), Latest(1), {}),
        ModelSettings("b", Path("/models/b"), Latest(3), {"stable": 4, "canary": 5}),
        ModelSettings("c", Path("/models/c"), Every(), {}),
        ModelSettings("d", Path("/models/d"), Specific(frozenset({7, 9})), {}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {\n  config { nam: 'a' }\n}", r"models.config:2: .*\"nam\".*fields are model_config_list"),
        ("", "expected model_config_list { config"),
        (_config(_model("a", Path("/a")), _model("a", Path("/b"))), "Illegal to list model a multiple times in config"),
        (_config(_model("a", Path("models/a"))), r"to have an absolute path or URI; got base_path\(\)=models/a"),
        (_config(_model("a", Path("/a"))).replace("tensorflow", "scikit"), "requests unsupported platform scikit"),
        ('model_config_list { config { name: "a" base_path: "/a" } }', 'write model_platform: "tensorflow"'),
        (_config(_model("a", Path("/a"), "specific {}")), "specific version policy without versions"),
    ],
)
def test_rejected_files_are_reported_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(ConfigFileError, match=message) as failure:
        read_model_config_file(file)
    assert str(file) in str(failure.value)
    with pytest.raises(ServerStartError, match=message):
        ModelServer(port=0, rest_port=0, options=ServerOptions(model_config_file=file)).start()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"nowhere\.config: cannot be read: .*No such file"):
        read_model_config_file(tmp_path / "nowhere.config")


# -- models and policies ----------------------------------------------------------------------------------------------


def test_several_models_each_with_its_policy(folders: dict[str, Path], serve: Callable[..., _Live]) -> None:
    live = serve(_config(_model("films", folders["films"], "all {}"), _model("books", folders["books"])))
    assert live.server.available_versions() == {"films": 2, "books": 5}
    assert (live.answering("films"), live.answering("films", 1), live.answering("films", 2)) == (2, 1, 2)
    assert live.answering("books") == 5
    code, message = live.rejection("books", 4)
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.startswith("Servable not found for request: Specific(books, 4)")
    assert live.rejection("recommender")[1].endswith("Models served here: books, films.")


def test_latest_n_serves_n_versions_that_load(
    folders: dict[str, Path], serve: Callable[..., _Live], exported: Callable[..., Path]
) -> None:
    live = serve(_config(_model("films", folders["films"], "latest { num_versions: 2 }")))
    assert live.states("films") == {1: _AVAILABLE, 2: _AVAILABLE}
    (folders["films"] / "3").mkdir()
    (folders["films"] / "3" / "saved_model.pb").write_bytes(b"junk")
    _eventually(lambda: live.states("films") == {1: _AVAILABLE, 2: _AVAILABLE, 3: _END})
    push(exported(marker=4e5), folders["films"], 4)
    _eventually(lambda: live.states("films") == {1: _END, 2: _AVAILABLE, 3: _END, 4: _AVAILABLE})
    assert (live.answering("films"), live.answering("films", 2)) == (4, 2)


def test_specific_serves_the_listed_versions_only(
    folders: dict[str, Path], serve: Callable[..., _Live], exported: Callable[..., Path]
) -> None:
    live = serve(_config(_model("films", folders["films"], "specific { versions: 1 versions: 9 }")))
    time.sleep(4 * _POLL_S)
    assert live.states("films") == {1: _AVAILABLE}
    assert live.answering("films") == 1
    push(exported(marker=9e5), folders["films"], 9)
    _eventually(lambda: live.states("films") == {1: _AVAILABLE, 9: _AVAILABLE})


def test_version_removed_from_disk_is_unloaded_with_policy_all(
    folders: dict[str, Path], serve: Callable[..., _Live]
) -> None:
    live = serve(_config(_model("films", folders["films"], "all {}")))
    shutil.rmtree(folders["films"] / "1")
    _eventually(lambda: live.states("films") == {1: _END, 2: _AVAILABLE})


def test_model_without_a_version_does_not_block_the_others(
    tmp_path: Path, folders: dict[str, Path], serve: Callable[..., _Live], exported: Callable[..., Path]
) -> None:
    config = _config(_model("books", folders["books"]), _model("later", tmp_path / "later"))
    live = serve(config, wait=False)
    _eventually(lambda: live.server.available_versions() == {"books": 5, "later": None})
    assert live.answering("books") == 5
    assert live.rejection("later")[0] is grpc.StatusCode.NOT_FOUND
    with pytest.raises(TimeoutError, match="no version of model later is available"):
        live.server.wait_until_available(0.1)
    (tmp_path / "later").mkdir()
    push(exported(marker=1e5), tmp_path / "later", 1)
    assert live.server.wait_until_available(30) == 5
    assert live.answering("later") == 1


# -- labels -----------------------------------------------------------------------------------------------------------


def _rest(live: _Live, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(f"127.0.0.1:{live.server.rest_port}", timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_labels_select_versions_on_grpc_and_rest(folders: dict[str, Path], serve: Callable[..., _Live]) -> None:
    both = _model("films", folders["films"], "all {}")
    live = serve(_config(both))
    assert live.rejection("films", label="stable") == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Unrecognized servable version label: stable. Labels of model films: none",
    )
    live.write(_config(_model("films", folders["films"], "all {}", stable=1, canary=2)))
    _eventually(lambda: _rest(live, "GET", "/v1/models/films/labels/canary/metadata")[0] == 200)
    assert (live.answering("films", label="stable"), live.answering("films", label="canary")) == (1, 2)
    row = {"user_id": "1", "occupation": "", "timestamp": 0, "age": 0.0, "history": [""]}
    body = {"signature_name": "recommend", "instances": [row]}
    for label, version in (("stable", 1), ("canary", 2)):
        status, answer = _rest(live, "POST", f"/v1/models/films/labels/{label}:predict", body)
        assert (status, round(answer["predictions"][0]["scores"][0] / 1e5)) == (200, version)
        _, metadata = _rest(live, "GET", f"/v1/models/films/labels/{label}/metadata")
        assert metadata["model_spec"]["version"] == str(version)
    assert _rest(live, "POST", "/v1/models/films/labels/beta:predict", body)[0] == 400
    # The label moves, in one step, for the next request.
    live.write(_config(_model("films", folders["films"], "all {}", stable=2)))
    _eventually(lambda: live.answering("films", label="stable") == 2)
    assert live.rejection("films", label="canary")[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_label_on_a_version_that_is_not_available_is_rejected(
    folders: dict[str, Path], serve: Callable[..., _Live]
) -> None:
    live = serve(_config(_model("films", folders["films"])))
    expected = (
        "Request to assign label to version 1 of model films, which is not currently available for inference. Label "
        "stable; available versions: 2."
    )
    code, message = live.reload_refusal(_config(_model("films", folders["films"], "all {}", stable=1)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION and message.startswith(expected)
    assert live.states("films") == {2: _AVAILABLE}, "nothing of a rejected configuration is applied"
    with pytest.raises(ServerStartError, match="--allow-version-labels-for-unavailable-models"):
        serve(_config(_model("films", folders["films"], stable=2)))


def test_new_label_but_no_moved_one_may_point_to_an_unavailable_version(
    folders: dict[str, Path], serve: Callable[..., _Live], exported: Callable[..., Path]
) -> None:
    def config(**labels: int) -> str:
        return _config(_model("films", folders["films"], "all {}", **labels))

    live = serve(config(stable=2, canary=3), allow_version_labels_for_unavailable_models=True)
    assert live.answering("films", label="stable") == 2
    assert live.rejection("films", label="canary")[0] is grpc.StatusCode.NOT_FOUND
    code, _ = live.reload_refusal(config(stable=3, canary=3))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert live.answering("films", label="stable") == 2
    push(exported(marker=3e5), folders["films"], 3)
    _eventually(lambda: 3 in live.states("films") and live.states("films")[3] == _AVAILABLE)
    assert live.answering("films", label="canary") == 3
    live.reload(config(stable=3))
    assert live.answering("films", label="stable") == 3


# -- reload -----------------------------------------------------------------------------------------------------------


def test_file_that_changes_adds_and_removes_models(
    folders: dict[str, Path], serve: Callable[..., _Live], caplog: pytest.LogCaptureFixture
) -> None:
    live = serve(_config(_model("films", folders["films"])))
    live.write(
        _config(_model("films", folders["films"], "latest { num_versions: 2 }"), _model("books", folders["books"]))
    )
    _eventually(lambda: live.server.available_versions() == {"films": 2, "books": 5})
    _eventually(lambda: live.states("films") == {1: _AVAILABLE, 2: _AVAILABLE})
    live.write(_config(_model("books", folders["books"])))
    _eventually(lambda: live.server.available_versions() == {"books": 5})
    assert live.rejection("films")[0] is grpc.StatusCode.NOT_FOUND
    _eventually(lambda: live.states("films") == {1: _END, 2: _END})
    live.write("nonsense")
    _eventually(lambda: any("was not applied" in record.message for record in caplog.records))
    assert live.answering("books") == 5
    time.sleep(4 * _POLL_S)
    assert sum("was not applied" in record.message for record in caplog.records) == 1, "logged once, not at each poll"


def test_label_in_the_file_is_applied_after_its_version_has_loaded(
    folders: dict[str, Path],
    serve: Callable[..., _Live],
    exported: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    live = serve(_config(_model("films", folders["films"], "all {}")))
    live.write(_config(_model("films", folders["films"], "all {}", canary=3)))
    _eventually(lambda: any("was not applied" in record.message for record in caplog.records))
    assert live.rejection("films", label="canary")[0] is grpc.StatusCode.INVALID_ARGUMENT
    push(exported(marker=3e5), folders["films"], 3)
    _eventually(lambda: _rest(live, "GET", "/v1/models/films/labels/canary/metadata")[0] == 200)
    assert live.answering("films", label="canary") == 3


def test_reload_request_waits_for_the_new_models_and_reports_metrics(
    folders: dict[str, Path], serve: Callable[..., _Live]
) -> None:
    live = serve(_config(_model("films", folders["films"])))
    loads = "/tensorflow/cc/saved_model/load_latency"
    response = live.reload(
        _config(_model("films", folders["films"]), _model("books", folders["books"])), loads, "/no/such/metric"
    )
    assert (response.status.error_code, response.status.error_message) == (0, "")
    assert live.answering("books") == 5, "the response came after the model had loaded"
    assert {each.name: each.int64_value_increase for each in response.metric} == {loads: 0, "/no/such/metric": 0}
    live.reload(_config(_model("books", folders["books"])))
    assert live.rejection("films")[0] is grpc.StatusCode.NOT_FOUND


def test_reload_request_names_the_new_model_that_did_not_load(
    tmp_path: Path, folders: dict[str, Path], serve: Callable[..., _Live]
) -> None:
    live = serve(_config(_model("films", folders["films"])))
    (tmp_path / "bad" / "7").mkdir(parents=True)
    (tmp_path / "bad" / "7" / "saved_model.pb").write_bytes(b"junk")
    code, message = live.reload_refusal(_config(_model("films", folders["films"]), _model("bad", tmp_path / "bad")))
    assert code is grpc.StatusCode.UNKNOWN
    assert message.startswith("1 model(s) did not become available: {{name: bad version: 7 due to error: ")
    assert live.answering("films") == 2
    code, message = live.reload_refusal(_config(_model("films", folders["films"]), _model("films", folders["films"])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == "Illegal to list model films multiple times in config list"
