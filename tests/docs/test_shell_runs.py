"""The commands of `tandem` in the documentation that take seconds are run, and so are requests over REST.

They run in a folder like a checkout after `make demo`: the shipped recipes, the data, and a copy of the workdir of the
session's first run, with a second version, a second run and a server. What takes minutes (`run`, `compare`, `demo`) and
what does not end (`serve`) is not run; test_shell_commands.py checks the arguments of those.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shell import ROOT, Command
from test_shell_commands import EVERY_COMMAND
from typer.testing import CliRunner

from commands.cli import app
from commands.run_summary import print_run_summary
from pipeline.result import RunResult

NOT_RUN = ("run", "compare", "demo", "serve")
TOO_LARGE = ("data", "synthetic")
ITS_OWN_DATA = {"schemas/mine": "data/mine", "schemas/shop": "data/shop"}
PLACEHOLDERS = {"DIR": "data/mine", "USER_COLUMN": "user", "ITEM_COLUMN": "item", "STARS": "stars", "WHEN": "at"}

# Each one once.
RUN = [
    each
    for place, each in enumerate(EVERY_COMMAND)
    if each.program == "tandem" and each.words[1] not in NOT_RUN and each.words[1:3] != TOO_LARGE
    if each.arguments not in [earlier.arguments for earlier in EVERY_COMMAND[:place]]
]
REQUESTS = [each for each in EVERY_COMMAND if each.program == "curl"]
TRANSCRIPTS = ("README.md", "docs/getting-started.md")
FOLDERS_OF_VERSIONS = [each for each in EVERY_COMMAND if "--model-dir" in each.words]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, first_run: Any) -> Path:
    """A folder like a checkout after `make demo`."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "schemas").mkdir()
    for each in (ROOT / "schemas").iterdir():
        (folder / "schemas" / each.name).symlink_to(each)
    workdir = folder / "work" / "movielens"
    workdir.mkdir(parents=True)
    for name in ("runs", "serving"):
        shutil.copytree(first_run.workdir / name, workdir / name)
    shutil.copy(first_run.workdir / "metadata.sqlite", workdir)
    # What a second `make demo` with another recipe leaves: an earlier run and an earlier version.
    latest = max((workdir / "runs").iterdir())
    shutil.copytree(latest, workdir / "runs" / "20200101-000000")
    version = max((workdir / "serving" / "movielens").iterdir())
    shutil.copytree(version, version.with_name(str(int(version.name) - 1)))
    (folder / "data").mkdir()
    (folder / "data" / "movielens").symlink_to(first_run.data)
    _write_ratings(folder / "data" / "mine", ("user", "item", "stars", "at"))
    _write_ratings(folder / "data" / "shop", ("customer", "sku", "stars", "bought_at"))
    return folder


def _write_ratings(folder: Path, columns: tuple[str, ...]) -> None:
    folder.mkdir()
    with (folder / "ratings.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows((f"u{n % 40}", f"i{n % 23}", 1 + n % 5, 1_700_000_000 + 60 * n) for n in range(400))


@pytest.fixture(scope="module")
def addresses(checkout: Path, serve: Callable[..., Any]) -> Iterator[dict[str, str]]:
    """gRPC and REST of a server that is started as README.md does."""
    with serve(checkout / "work" / "movielens" / "serving" / "movielens") as found:
        yield found


@pytest.fixture
def there(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout)
    return checkout


def arguments(command: Command, checkout: Path, addresses: dict[str, str]) -> list[str]:
    """The command's arguments with names for the placeholders, and the server's own port."""
    version = max(each.name for each in (checkout / "work" / "movielens" / "serving" / "movielens").iterdir())
    words = [PLACEHOLDERS.get(word, word.replace("VERSION", version)) for word in command.arguments]
    if words[0] in ("recommend", "rate", "similar"):
        words = [addresses["grpc"] if word == "127.0.0.1:8500" else word for word in words]
        if "--target" not in words:
            words += ["--target", addresses["grpc"]]
    if words[0] == "check" and words[1] not in ITS_OWN_DATA and "--data" not in words:
        words += ["--data", f"data/{Path(words[1]).name}"]
    return words


@pytest.mark.parametrize("command", RUN, ids=str)
def test_command_runs(command: Command, there: Path, addresses: dict[str, str]) -> None:
    words = arguments(command, there, addresses)
    if words[0] == "init":
        shutil.rmtree(words[1], ignore_errors=True)
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.strip()


@pytest.mark.parametrize("command", REQUESTS, ids=str)
def test_request_over_rest_is_answered(command: Command, addresses: dict[str, str]) -> None:
    *options, url = command.arguments
    body = options[options.index("-d") + 1].encode() if "-d" in options else None
    with urllib.request.urlopen(url.replace("127.0.0.1:8501", addresses["rest"]), body, timeout=60) as response:
        answer = json.load(response)
    assert "model_version_status" in answer if body is None else 1 <= answer["outputs"][0] <= 5


@pytest.mark.parametrize("command", FOLDERS_OF_VERSIONS, ids=str)
def test_folder_has_versions(command: Command, there: Path) -> None:
    folder = there / command.words[command.words.index("--model-dir") + 1]
    assert any(each.name.isdecimal() for each in folder.iterdir())


def test_docker_mounts_folders_with_versions(there: Path) -> None:
    mounted = [
        word.split(":")[0]
        for command in EVERY_COMMAND
        if command.program == "docker"
        for word in command.words
        if word.endswith(":/models/recommender:ro") and word.startswith("work/")
    ]
    assert len(mounted) >= 2
    for folder in mounted:
        assert any(each.name.isdecimal() for each in (there / folder).iterdir()), folder


def test_transcripts_have_the_lines_of_a_run(first_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = (first_run.workdir / "runs").glob(f"{first_run.result['run_id']}/result.json")
    print_run_summary(RunResult.model_validate_json(result.read_text()))
    printed = {shape(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("Blessed")}
    pages = {name: {shape(line) for line in (ROOT / name).read_text().splitlines()} for name in TRANSCRIPTS}
    assert printed - pages["docs/getting-started.md"] == set()
    assert len(printed & pages["README.md"]) > 5


def shape(line: str) -> str:
    """The line with 0 for every number and one space for several."""
    return re.sub(r"\d[\d.,]*", "0", " ".join(line.split()))


def test_options_of_beam_are_listed() -> None:
    (command,) = [each for each in EVERY_COMMAND if each.arguments[:1] == ["-c"]]
    done = subprocess.run([sys.executable, *command.arguments], capture_output=True, text=True, check=True)
    assert {"runner", "direct_running_mode"} <= set(done.stdout.split())
