"""Every shell command of the documentation exists, with its arguments; an unknown one fails.

Commands of `tandem` that take seconds are run by test_shell_runs.py. The others need a cluster, a cloud project, Docker
or an hour; here their arguments are checked against the program's own parser where there is one, else against a table.
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import typer
from command_line import parsed
from markdown_it import MarkdownIt
from shell import PAGES, ROOT, Command, blocks, commands

from commands.cli import app
from pipeline.beam import BeamOptions, BeamRunner
from recipe import load_recipe

BIN = Path(sys.executable).parent
# Set by the reader, or by a program that the page describes.
VARIABLES = {
    "AIRFLOW_HOME": "work/airflow",
    "BUCKET": "example-bucket",
    "IMAGE": "registry.example.com/tandem:0.1.0",
    "PROJECT": "example-project",
    "PWD": ".",
    "REGION": "europe-west4",
    "WORKER_IMAGE": "registry.example.com/tandem-worker:0.1.0",
}
MAKEFILE_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def every_command() -> list[Command]:
    found = []
    for page in PAGES:
        variables = dict(VARIABLES)
        for block in blocks(page):
            found += commands(block, variables)
    return found


EVERY_COMMAND = every_command()
# Folders that `tandem init` on the same page writes.
WRITTEN = {each.words[2] for each in EVERY_COMMAND if each.program == "tandem" and each.words[1] == "init"}


# -- programs of this project -----------------------------------------------------------------------------------------


def check_tandem(command: Command) -> None:
    parameters = parsed([word.replace("VERSION", "1795351898") for word in command.arguments])
    if command.words[1] not in ("run", "check", "compare"):
        return
    schema_dir = Path(parameters["schema_dir"])
    if str(schema_dir) in WRITTEN:
        return
    presets = parameters.get("presets") or [parameters.get("preset")]
    for preset in presets:
        load_recipe(ROOT / schema_dir, parameters.get("overrides") or [], preset)
    if parameters.get("beam_runner"):
        BeamOptions(BeamRunner(parameters["beam_runner"]), tuple(parameters.get("beam_args") or ())).check()


def check_make(command: Command) -> None:
    assert command.arguments and set(command.arguments) <= MAKEFILE_TARGETS


def check_python(command: Command) -> None:
    arguments = command.arguments
    if arguments[0] == "-c":
        compile(arguments[1], str(command), "exec")
    elif arguments[:2] == ["-m", "pytest"]:
        check_pytest(Command(command.page, command.line, ("pytest", *arguments[2:])))
    elif arguments[0] == "-m":
        assert_options_in_help([sys.executable, "-m", arguments[1], *subcommands(arguments[2:])], arguments[2:])
    else:
        assert (ROOT / arguments[0]).is_file()
        if len(arguments) > 1 and arguments[1].startswith("-"):
            assert_options_in_help([sys.executable, str(ROOT / arguments[0])], arguments[1:])


def check_pytest(command: Command) -> None:
    declared = "".join(path.read_text() for path in (ROOT / "tests").rglob("conftest.py"))
    for word in command.arguments:
        if word.startswith("--"):
            assert f'addoption("{word}"' in declared, word
        elif word.startswith("tests"):
            assert (ROOT / word).exists(), word


def check_pip(command: Command) -> None:
    assert command.arguments[0] == "install"
    assert (ROOT / command.arguments[-1] / "pyproject.toml").is_file()


def check_pip_of_airflow(command: Command) -> None:
    assert command.arguments == ["-m", "pip", "install", "--no-deps", "/path/to/tandem"]


# -- programs of the environment --------------------------------------------------------------------------------------


def check_kubectl(command: Command) -> None:
    arguments = command.arguments
    if arguments[0] == "--namespace":
        arguments = arguments[2:]
    depth = 2 if arguments[0] in ("create", "rollout") else 1
    assert_options_in_help([str(BIN / "kubectl"), *arguments[:depth]], arguments, common=("--namespace",))
    for option, value in itertools.pairwise(arguments):
        if option == "-k":
            assert (ROOT / value / "kustomization.yaml").is_file(), value


def check_kfp(command: Command) -> None:
    # tests/deployment/test_deploy_page.py binds the options to kfp's own.
    assert command.arguments[0] == "--endpoint" and command.arguments[2:4] == ["run", "create"]


def check_pre_commit(command: Command) -> None:
    assert command.arguments == ["install"] and (ROOT / ".pre-commit-config.yaml").is_file()


def check_airflow(command: Command) -> None:
    # tests/airflow_runs runs these.
    assert command.words[1:] in {("db", "migrate"), ("dags", "test", "movielens"), ("standalone",)}


# -- programs that are not here ---------------------------------------------------------------------------------------

DOCKER: Mapping[str, set[str]] = {
    "build": {"--platform", "--file", "--tag", "--target"},
    "push": set(),
    "run": {"--rm", "-p", "-v", "-e"},
}
DOCKER_SWITCHES = {"--rm"}
GCLOUD: Mapping[tuple[str, ...], set[str]] = {
    ("storage", "cp"): {"--recursive"},
    ("storage", "ls"): set(),
    ("storage", "buckets", "add-iam-policy-binding"): {"--role", "--member"},
    ("iam", "service-accounts", "create"): {"--project"},
    ("iam", "service-accounts", "add-iam-policy-binding"): {"--role", "--member"},
}
SERVING_FLAGS = {
    "--model_config_file",
    "--model_config_file_poll_wait_seconds",
    "--allow_version_labels_for_unavailable_models",
    "--monitoring_config_file",
}


def check_docker(command: Command) -> None:
    verb, *rest = command.arguments
    options: list[tuple[str, str]] = []
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        assert option in DOCKER[verb], option
        options.append((option, "" if option in DOCKER_SWITCHES else rest.pop(0)))
    if verb == "build":
        assert rest == ["."] and (ROOT / dict(options)["--file"]).is_file()
        return
    image, *arguments = rest
    if verb == "run" and image.startswith("tensorflow/serving"):
        assert image == "tensorflow/serving:2.21.0"
        assert {each.split("=")[0] for each in arguments} <= SERVING_FLAGS
    elif arguments:
        parsed(arguments)
    for option, value in options:
        source = value.split(":")[0]
        if option == "-v" and not source.startswith(("work/", "./contract")):
            assert (ROOT / source).is_dir(), source


def check_gcloud(command: Command) -> None:
    words = [each for each in command.arguments if not each.startswith("-")]
    (known,) = [each for each in GCLOUD if tuple(words[: len(each)]) == each]
    assert {each for each in command.arguments if each.startswith("--")} <= GCLOUD[known]
    if known == ("storage", "cp") and words[2].startswith("kubeflow/"):
        assert (ROOT / words[2]).is_file()


def check_java(command: Command) -> None:
    # make flink-setup collects these jars; tests/flink_cluster starts the class.
    assert command.arguments[:3] == ["-cp", ".flink/jars/*", "org.apache.beam.runners.flink.FlinkJobServerDriver"]


def check_mvn(command: Command) -> None:
    goal, artifact, _ = command.arguments
    assert goal == "dependency:copy" and re.fullmatch(
        r"-Dartifact=org\.apache\.beam:beam-runners-(flink-1\.20|spark-3)-job-server:2\.77\.0", artifact
    )


def check_curl(command: Command) -> None:
    # test_shell_runs.py sends the requests.
    assert command.arguments[-1].startswith("http://127.0.0.1:8501/v1/models/")


# -- programs of the system -------------------------------------------------------------------------------------------


def check_copy(command: Command) -> None:
    source = next(each for each in command.arguments if not each.startswith("-"))
    assert source.startswith(("work/", "/mnt/")) or (ROOT / source).is_file(), source


def check_any(command: Command) -> None:
    """For programs without paths of this repository; test_deploy_page.py runs the line with grep."""


CHECKS: Mapping[str, Callable[[Command], None]] = {
    "tandem": check_tandem,
    "make": check_make,
    "python": check_python,
    "pytest": check_pytest,
    "pip": check_pip,
    "AIRFLOW_PYTHON": check_pip_of_airflow,
    "kubectl": check_kubectl,
    "kfp": check_kfp,
    "pre-commit": check_pre_commit,
    "airflow": check_airflow,
    "docker": check_docker,
    "gcloud": check_gcloud,
    "java": check_java,
    "mvn": check_mvn,
    "curl": check_curl,
    "cp": check_copy,
    "mv": check_copy,
    "mkdir": check_any,
    "grep": check_any,
    "xargs": check_any,
    "export": check_any,
}


def subcommands(arguments: list[str]) -> list[str]:
    """The words before the first option: `build` of `build -t wheel`."""
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:first]


def assert_options_in_help(program: list[str], arguments: list[str], common: tuple[str, ...] = ()) -> None:
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{shlex.join(program)}: {done.stderr}"
    for word in arguments:
        option = word.split("=")[0]
        if option.startswith("-") and option not in common:
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", done.stdout), f"{option} is not in the help"


def check(command: Command) -> None:
    if command.program not in CHECKS:
        pytest.fail(
            f"{command}: expected one of {sorted(CHECKS)}. An indented block is shell: put other text into a fence "
            "with the name of its language. For a new program, add a check to tests/docs/test_shell_commands.py."
        )
    CHECKS[command.program](command)


# -- tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_a_folder_with_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job servers that docs/beam.md gets with Maven."""
    (tmp_path / "jars").mkdir()
    for name in ("flink-1.20", "spark-3"):
        (tmp_path / "jars" / f"beam-runners-{name}-job-server-2.77.0.jar").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder_with_jars")
@pytest.mark.parametrize("command", EVERY_COMMAND, ids=str)
def test_command_exists(command: Command) -> None:
    check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_shell(page: Path) -> None:
    for block in blocks(page):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.page}:{block.line}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_exist(page: Path) -> None:
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        for child in token.children or ():
            words = child.content.removeprefix(".venv/bin/").split() if child.type == "code_inline" else []
            if words[:1] == ["make"] and len(words) > 1:
                assert set(words[1:]) <= MAKEFILE_TARGETS, child.content
            if words[:1] == ["tandem"] and len(words) > 1:
                assert_tandem_has(words[1:], child.content)


def assert_tandem_has(words: list[str], text: str) -> None:
    """The command exists, and its options; values may be missing or placeholders."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0].isupper():
            return
        assert words[0] in command.commands, text
        command, words = command.commands[words[0]], words[1:]
    if command.name == "serve":
        return
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    assert {each.split("=")[0] for each in words if each.startswith("--")} <= known, text


def test_every_command_of_tandem_is_on_the_page() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        for path in [f"{name} {each}" for each in command.commands] if hasattr(command, "commands") else [name]:
            assert f"`tandem {path}" in page, path


@pytest.mark.parametrize(
    "line",
    [
        "frobnicate --all",
        "make everything",
        "tandem server",
        "tandem run schemas/movielens --set model.embeding_dim=3",
        "tandem check schemas/gone",
        "tandem serve --model-folder x",
        "python benchmarks/scaling.py --columns 3",
        "pytest tests/serving --target-of 1",
        "docker run --privileged tensorflow/serving:2.21.0",
        "kubectl apply -k kubeflow/gone",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
        check(Command("page.md", 1, tuple(shlex.split(line))))
