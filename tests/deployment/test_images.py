"""The Dockerfiles without a Docker engine: hadolint, what they copy, how they install, and the commands they run."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import dockerfile
import pytest
from command_line import parsed
from dockerfile import Stage
from rendered import CONFIG_DIR, Manifest, flags, serving, workloads

from commands.subcommands.shared_options import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[2]
KUBEFLOW = ROOT / "kubeflow"
IGNORE = ROOT / ".dockerignore"
TANDEM = KUBEFLOW / "image" / "Dockerfile"
TENSORFLOW_SERVING = KUBEFLOW / "image" / "tensorflow-serving.Dockerfile"
DOCKERFILES = [TANDEM, TENSORFLOW_SERVING]

Hadolint = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.fixture
def tandem() -> dict[str, Stage]:
    return {each.name: each for each in dockerfile.stages(TANDEM.read_text())}


@pytest.fixture
def tensorflow_serving() -> Stage:
    (stage,) = dockerfile.stages(TENSORFLOW_SERVING.read_text())
    return stage


def final_stages(path: Path) -> list[tuple[list[Stage], Stage]]:
    """The stages that are built for use, each with all stages of its file."""
    found = dockerfile.stages(path.read_text())
    bases = {each.base for each in found}
    copied = {
        name for each in found for kind, value in each.instructions for name in re.findall(r"--from=(\S+)", value)
    }
    return [(found, each) for each in found if each.name not in bases | copied]


def test_hadolint_finds_nothing(path: Path, hadolint: Hadolint) -> None:
    found = hadolint(path)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("FROM python:3.11.15-slim-trixie AS base", "FROM python:latest AS base", "DL3007"),
        ("FROM python:3.11.15-slim-trixie AS base", "FROM python AS base", "DL3006"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("WORKDIR /app", "RUN apt-get update && apt-get install -y gcc", "DL3009"),
        ('ENTRYPOINT ["tandem"]', "ENTRYPOINT tandem", "DL3025"),
    ],
)
def test_hadolint_finds_what_is_wrong(before: str, after: str, rule: str, hadolint: Hadolint, tmp_path: Path) -> None:
    text = TANDEM.read_text()
    assert before in text
    changed = tmp_path / "Dockerfile"
    changed.write_text(text.replace(before, after))
    found = hadolint(changed)
    assert found.returncode != 0 and rule in found.stdout


def test_bases_are_releases(path: Path) -> None:
    found = dockerfile.stages(path.read_text())
    for stage in found:
        if stage.base not in {each.name for each in found}:
            assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", stage.base), stage.base


def test_the_base_has_the_python_and_the_glibc_that_the_lock_was_made_for(tandem: dict[str, Stage]) -> None:
    python, release = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-(\w+)", tandem["base"].base).groups()  # type: ignore[union-attr]
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert expected.startswith(f">={python},")
    glibc = {"bookworm": (2, 36), "trixie": (2, 41)}
    assert glibc[release] >= (2, 39), "TFX's wheels are built for glibc 2.39"


def test_no_image_runs_as_root(path: Path) -> None:
    for found, stage in final_stages(path):
        user = dockerfile.inherited(found, stage, "USER")
        # A name would do for Docker, but Kubernetes cannot see that it is not root.
        assert user is not None and re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_images_run_as_the_user_of_the_manifests(path: Path, volume: list[Manifest]) -> None:
    users = {template["spec"]["securityContext"]["runAsUser"] for _, template in workloads(volume)}
    found = {str(dockerfile.inherited(found, stage, "USER")) for found, stage in final_stages(path)}
    assert found == {f"{user}:{user}" for user in users}


def test_what_is_copied_is_in_the_repository_and_in_the_context(path: Path) -> None:
    sources = dockerfile.copied(dockerfile.stages(path.read_text()))
    for source in sources:
        assert (ROOT / source).exists(), source
        assert dockerfile.in_context(IGNORE, source.rstrip("/")), f"{source} is left out by .dockerignore"
    assert len(sources) == len(set(sources)) or "pyproject.toml" in sources


def test_the_context_is_what_is_copied_and_nothing_else() -> None:
    sources = {
        source.rstrip("/") for path in DOCKERFILES for source in dockerfile.copied(dockerfile.stages(path.read_text()))
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for each in filter(None, tracked):
        expected = any(each == source or each.startswith(f"{source}/") for source in sources)
        assert dockerfile.in_context(IGNORE, each) == expected, each
    # What lies in a checkout besides: environments, data, runs, caches, history.
    for each in (".venv/bin/python", ".git/config", "data/u.csv", "work/run", "pipeline/__pycache__/x.pyc"):
        assert not dockerfile.in_context(IGNORE, each)


def test_every_package_is_checked_against_a_hash(tandem: dict[str, Stage]) -> None:
    commands = [
        command
        for stage in tandem.values()
        for name, value in stage.instructions
        if name == "RUN"
        for command in value.split("&&")
        if re.search(r"\bpip install\b", command)
    ]
    from_an_index = [each for each in commands if "requirement" in each]
    assert len(from_an_index) == 2
    assert all("--require-hashes" in each for each in from_an_index)
    assert all("--no-deps" in each for each in commands if "uv pip" in each)
    assert all("--compile-bytecode" in each for each in commands if "uv pip" in each)
    # What is left are our own projects, built by what the lock brought.
    assert [each.split()[-2:] for each in commands if each not in from_an_index] == [[".", "./serving/client"]]
    assert "--no-build-isolation" in commands[-1]


def test_packages_without_wheels_are_the_ones_that_are_named(tandem: dict[str, Stage]) -> None:
    (command,) = [
        value for name, value in tandem["locked"].instructions if "requirements.lock" in value and name == "RUN"
    ]
    names = re.findall(r"--no-binary (\S+)", command)
    lock = (ROOT / "requirements.lock").read_text()
    assert names and all(f"\n{name}==" in lock for name in names)
    assert "--build-constraints requirements.lock" in command, "what builds them is held to the lock as well"


def test_the_folder_is_no_python_package() -> None:
    """It would hide the package `kubeflow` of others from everything that runs in the repository."""
    assert list(KUBEFLOW.rglob("__init__.py")) == []


def test_build_tools_stay_behind(tandem: dict[str, Stage]) -> None:
    for name in ("runtime", "server", "pipeline"):
        commands = [value for kind, value in tandem[name].instructions if kind == "RUN"]
        assert not any(re.search(r"\b(pip|uv|apt-get|apt|curl|wget)\b", each) for each in commands)
        copied = [value for kind, value in tandem[name].instructions if kind == "COPY" and "--from=" in value]
        assert not any("--from=locked" in each for each in copied)
    copied = [value for kind, value in tandem["runtime"].instructions if kind == "COPY" and "--from=" in value]
    # In this order, so that a change of code leaves the large layer of packages as it is.
    assert copied == ["--from=packages /opt/tandem/ /opt/tandem/", "--from=project /opt/project/ /opt/tandem/"]


def test_the_environment_is_what_the_code_needs(tandem: dict[str, Stage]) -> None:
    found = list(tandem.values())
    for name in ("server", "pipeline"):
        environment = dockerfile.environment(found, tandem[name])
        assert environment["TF_USE_LEGACY_KERAS"] == "1"
        assert environment["PATH"].startswith("/opt/tandem/bin:")
    assert list(tandem)[-1] == "pipeline", "without --target, the pipeline's image is built"


def test_entry_points_exist(tandem: dict[str, Stage]) -> None:
    found = list(tandem.values())
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name in ("server", "pipeline"):
        (entry,) = dockerfile.exec_form(dockerfile.inherited(found, tandem[name], "ENTRYPOINT"))
        assert entry in scripts
        arguments = dockerfile.exec_form(dockerfile.inherited(found, tandem[name], "CMD"))
        if arguments != ["--help"]:
            parameters = parsed(arguments)
            assert parameters["model_name"] == DEFAULT_MODEL
            assert parameters["host"] == "0.0.0.0", "on loopback it is not reachable from outside the container"
            exposed = str(tandem[name].last("EXPOSE")).split()
            assert exposed == [str(parameters["port"]), str(parameters["rest_port"])]


def test_tensorflow_serving_is_started_as_in_the_manifests(tensorflow_serving: Stage, volume: list[Manifest]) -> None:
    _, container = serving(volume)
    assert tensorflow_serving.base == container["image"]
    assert dockerfile.exec_form(tensorflow_serving.last("ENTRYPOINT")) == container["command"]
    arguments = dockerfile.exec_form(tensorflow_serving.last("CMD"))
    assert flags({"args": arguments}) == flags(container)
    *files, folder = str(tensorflow_serving.last("COPY")).split()
    assert [Path(each).name for each in files] == ["models.config", "batching.config", "monitoring.config"]
    assert folder == f"{CONFIG_DIR}/"


@contextlib.contextmanager
def model_status(status: int, state: str) -> Iterator[int]:
    """A server that answers as TensorFlow Serving does for the default model; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == f"/v1/models/{DEFAULT_MODEL}"
            self.send_response(status if known else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"model_version_status": [{"version": "1", "state": state}]}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize("name", ["server", "tensorflow-serving"])
@pytest.mark.parametrize(
    ("status", "state", "healthy"), [(200, "AVAILABLE", True), (200, "LOADING", False), (404, "END", False)]
)
def test_health_checks_tell_a_loaded_model_from_any_other(
    name: str, status: int, state: str, healthy: bool, tandem: dict[str, Stage], tensorflow_serving: Stage
) -> None:
    stage = tandem["server"] if name == "server" else tensorflow_serving
    command = dockerfile.healthcheck(stage.last("HEALTHCHECK"))
    command[0] = sys.executable if command[0] == "python" else command[0]
    with model_status(status, state) as port:
        request = [each.replace("8501", str(port)) for each in command]
        done = subprocess.run(request, capture_output=True, timeout=20, check=False)
    assert (done.returncode == 0) == healthy
    gone = subprocess.run(request, capture_output=True, timeout=20, check=False)
    assert gone.returncode == 1, "without a server Docker expects exit code 1"
