"""`python -m serving.server` and `tandem serve` as processes: output, exit codes, signals."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import Stubs, push
from contract_model import predict_request

from serving.config.model_config import Latest, read_model_config_file
from serving.config.server_options import ServerOptions, parse
from serving.server.model_server import ModelServer, ServerStartError

_DEPLOYMENT = Path(__file__).resolve().parents[2] / "kubeflow" / "manifests" / "serving"


def _start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serving.server", *(str(each) for each in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_process_announces_its_ports_serves_and_drains_on_sigterm(
    tmp_path: Path, exported: Callable[..., Path]
) -> None:
    push(exported(), tmp_path, 5)
    process = _start("--model-dir", tmp_path, "--port", "0", "--rest-port", "0", "--model-name", "films")
    try:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert set(line) == {"model", "version", "grpc", "rest"}
        assert (line["model"], line["version"]) == ("films", 5)
        host, _, port = line["rest"].partition(":")
        socket.create_connection((host, int(port)), timeout=30).close()
        stubs = Stubs(line["grpc"])
        assert stubs.prediction.Predict(predict_request("recommend", model="films", user_id=["1"]), timeout=30)
        done: list[int] = []
        failures: list[grpc.RpcError] = []
        rejected = threading.Event()

        def load() -> None:
            request = predict_request("recommend", model="films", user_id=["1"] * 500)
            while not rejected.is_set():
                try:
                    response = stubs.prediction.Predict(request, timeout=30)
                    done.append(response.outputs["scores"].tensor_shape.dim[0].size)
                except grpc.RpcError as error:
                    failures.append(error)
                    rejected.set()

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        rest_of_stdout, log = process.communicate(timeout=60)
        assert process.returncode == 0
        assert rest_of_stdout == "", "one line and nothing else"
        assert "SIGTERM: draining" in log and "unloaded" in log
        assert done and set(done) == {500}
        # New requests are rejected, running ones finish.
        assert all(error.code() is grpc.StatusCode.UNAVAILABLE for error in failures), failures
        stubs.channel.close()
    finally:
        process.kill()
        process.wait()


def test_fail_fast_exits_1_with_one_error_line(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"junk")
    process = _start("--model-dir", tmp_path, "--port", "0", "--rest-port", "0", "--fail-fast")
    out, log = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    (line,) = [line for line in log.splitlines() if line.startswith("serving.server: error: ")]
    assert line == log.splitlines()[-1]
    assert "no version in" in line and "version 1 is END" in line and "saved_model.pb" in line


@pytest.mark.parametrize("api", ["port", "rest-port"])
def test_port_in_use_exits_2_before_tensorflow_is_imported(tmp_path: Path, api: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"port": "0", "rest-port": "0", api: str(taken.getsockname()[1])}
        process = _start("--model-dir", tmp_path, *(text for key in ports for text in (f"--{key}", ports[key])))
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    line = log.splitlines()[-1]
    assert line.startswith("serving.server: error: cannot listen on 127.0.0.1:")
    assert f"select another port with --{api}" in line


def test_two_servers_never_share_a_port(own_server: ModelServer, tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="for gRPC"):
        ModelServer(tmp_path, port=own_server.port, rest_port=0).start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-dir", "/nonexistent/model"], "model folder /nonexistent/model does not exist"),
        (["--model-dir", __file__], "is not a folder"),
        (["--model-dir", os.curdir, "--port", "70000"], "expected a port from 0 to 65535, got '70000'"),
        ([], "expected either --model-dir or --model-config-file"),
        (["--model-dir", os.curdir, "--model-config-file", "x"], "expected either --model-dir or --model-config-file"),
        (["--model-config-file", "/nonexistent.config"], "/nonexistent.config: cannot be read"),
        (["--model-dir", os.curdir, "--ssl-config-file", "/nonexistent.pem"], "/nonexistent.pem: cannot be read"),
        (["--model-dir", os.curdir, "--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["--model-dir", os.curdir, "--tensorflow"], "unknown option --tensorflow; expected one of --allow-version"),
        (["--model-dir", os.curdir, "--enable_batching=perhaps"], "expected true or false, got 'perhaps'"),
    ],
)
def test_wrong_options_exit_2_before_tensorflow_is_imported(arguments: list[str], message: str) -> None:
    started = time.monotonic()
    process = _start(*arguments)
    out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert message in log.splitlines()[-1]
    assert time.monotonic() - started < 3.0


def test_only_loopback_is_bound_by_default(own_server: ModelServer) -> None:
    assert own_server.host == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", own_server.rest_port), timeout=2)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", own_server.port), timeout=2)


def test_tensorflow_servings_flags_are_accepted(tmp_path: Path, exported: Callable[..., Path]) -> None:
    (tmp_path / "films").mkdir()
    push(exported(), tmp_path / "films", 3)
    models = tmp_path / "models.config"
    models.write_text(
        f'model_config_list {{ config {{ name: "films" base_path: "{tmp_path / "films"}" '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 3 } } }'
    )
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 8 }")
    monitoring = tmp_path / "monitoring.config"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    process = _start(
        f"--model_config_file={models}",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        f"--batching_parameters_file={batching}",
        f"--monitoring_config_file={monitoring}",
        "--port=0",
        "--rest_api_port=0",
    )
    try:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert (line["model"], line["version"], line["models"]) == ("films", 3, {"films": 3})
        stubs = Stubs(line["grpc"])
        request = predict_request("recommend", model="films", user_id=["1"])
        request.model_spec.version_label = "stable"
        assert stubs.prediction.Predict(request, timeout=30).model_spec.version.value == 3
        stubs.channel.close()
        with urllib.request.urlopen(f"http://{line['rest']}/metrics", timeout=30) as page:
            text = page.read().decode()
        assert ':tensorflow:serving:request_count{model_name="films",status="OK"} 1' in text
        assert ":tensorflow:serving:batching_session:wrapped_run_count{}" in text
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{line['rest']}/monitoring/prometheus/metrics", timeout=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_larger_messages_than_allowed_are_rejected(tmp_path: Path, exported: Callable[..., Path]) -> None:
    push(exported(), tmp_path, 1)
    with ModelServer(tmp_path, port=0, rest_port=0, options=ServerOptions(max_message_bytes=10_000)) as server:
        server.wait_until_available(60)
        stubs = Stubs(f"127.0.0.1:{server.port}")
        assert stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
        with pytest.raises(grpc.RpcError) as failure:
            stubs.prediction.Predict(predict_request("recommend", user_id=["x" * 20_000]), timeout=30)
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stubs.channel.close()
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/recommender:predict"
        with pytest.raises(urllib.error.HTTPError, match="400") as rejected:
            urllib.request.urlopen(url, data=b" " * 20_000, timeout=30)
        assert "expected a number from 0 to 10000" in json.loads(rejected.value.read())["error"]


def test_monitoring_config_can_turn_the_page_off(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    for text, path in (
        ("", None),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { path: "/metrics" }', None),
    ):
        file.write_text(text)
        assert ServerOptions(monitoring_config_file=file).metrics_path() == path
    assert ServerOptions().metrics_path() == "/monitoring/prometheus/metrics"
    file.write_text('prometheus_config { enable: true path: "metrics" }')
    with pytest.raises(ServerStartError, match="path: expected a leading slash, got 'metrics'"):
        ModelServer(tmp_path, port=0, rest_port=0, options=ServerOptions(monitoring_config_file=file)).start()


def test_deployment_files_are_what_both_servers_read(tmp_path: Path, exported: Callable[..., Path]) -> None:
    (model,) = read_model_config_file(_DEPLOYMENT / "models.config")
    assert (model.name, str(model.base_path), model.policy) == ("recommender", "/models/recommender", Latest(2))
    options = ServerOptions(
        enable_batching=True,
        batching_parameters_file=_DEPLOYMENT / "batching.config",
        monitoring_config_file=_DEPLOYMENT / "monitoring.config",
    )
    push(exported(), tmp_path, 1)
    with ModelServer(tmp_path, port=0, rest_port=0, options=options) as server:
        server.wait_until_available(60)
        stubs = Stubs(f"127.0.0.1:{server.port}")
        assert stubs.prediction.Predict(predict_request("recommend", user_id=["1"]), timeout=30)
        stubs.channel.close()
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics", timeout=30
        ) as page:
            assert ":tensorflow:cc:saved_model:load_attempt_count" in page.read().decode()
    assert not list((_DEPLOYMENT.parent).glob("__init__.py")), "it would hide the package of that name"


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--prot", "1"], 2), (["--port", "70000"], 2), ([], 2)]
)
def test_tandem_serve_has_the_servers_options_without_tensorflow(arguments: list[str], code: int) -> None:
    script = (
        "import sys\nfrom commands.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'tensorflow', 'grpc', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "serve", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    if code:
        assert done.stderr.startswith("usage: tandem serve (--model-dir DIR")
        assert done.stderr.splitlines()[-1].startswith("tandem serve: error: ")
    else:
        flags = {"--" + each.name.replace("_", "-") for each in dataclasses.fields(ServerOptions)}
        flags |= {"--model-dir", "--model", "--host", "--port", "--rest-port", "--drain", "--fail-fast"}
        missing = {flag for flag in flags if flag.removesuffix("-s") not in done.stdout}
        assert not missing
        assert "(default: True)" in done.stdout, "labels of unavailable models are allowed"


def test_switches_are_spelled_in_three_ways() -> None:
    for spelling, value in (
        (["--enable-batching"], True),
        (["--enable_batching=true"], True),
        (["--enable-batching=false"], False),
        (["--no-enable-batching"], False),
        ([], False),
    ):
        assert parse(["--model_base_path=x", *spelling]).enable_batching is value
    allowed = {"allow_version_labels_for_unavailable_models": True}
    options = parse(["--model-dir", "x", "--model", "films"], defaults=allowed)
    assert options.allow_version_labels_for_unavailable_models and options.model_name == "films"
    rejected = ["--model-dir", "x", "--no-allow-version-labels-for-unavailable-models"]
    assert not parse(rejected, defaults=allowed).allow_version_labels_for_unavailable_models


def test_tandem_serve_reads_the_configuration_files(tmp_path: Path, exported: Callable[..., Path]) -> None:
    (tmp_path / "films").mkdir()
    push(exported(), tmp_path / "films", 3)
    models = tmp_path / "models.config"
    models.write_text(
        f'model_config_list {{ config {{ name: "films" base_path: "{tmp_path / "films"}" '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 3 } } }'
    )
    tandem = Path(sys.executable).parent / "tandem"
    files = [
        *("--model-config-file", models, "--enable-batching"),
        *("--batching-parameters-file", _DEPLOYMENT / "batching.config"),
        *("--monitoring-config-file", _DEPLOYMENT / "monitoring.config"),
        *("--max-message-bytes", "100000", "--port", "0", "--rest-port", "0"),
    ]
    process = subprocess.Popen([tandem, "serve", *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = json.loads(process.stdout.readline())
        assert line["models"] == {"films": 3}
        stubs = Stubs(line["grpc"])
        request = predict_request("recommend", model="films", user_id=["1"])
        request.model_spec.version_label = "stable"
        assert stubs.prediction.Predict(request, timeout=30).model_spec.version.value == 3
        stubs.channel.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    rejected = subprocess.run(
        [tandem, "serve", "--model-config-file", models, "--no-allow-version-labels-for-unavailable-models"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rejected.returncode == 2
    assert "is not currently available for inference" in rejected.stderr.splitlines()[-1]
