"""Shared fixtures: the real data, and one real run of the whole DAG through the command line."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import pytest
import yaml
from xdist.scheduler import LoadScopeScheduling

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

if TYPE_CHECKING:
    from run_marks import Marks

pytest_plugins = ("orchestrator_summary",)

ROOT = Path(__file__).resolve().parent.parent
SCHEMA_DIR = ROOT / "schemas" / "movielens"
FIRST_RUN = "first_run"
# These share the fixture `first_run`: another process would wait for it, or run in its workdir at the same time.
OF_FIRST_RUN = (
    "tests/end_to_end/test_movielens.py",
    "tests/commands/test_report_page.py",
    "tests/serving/test_pushed_model.py",
    "tests/end_to_end/test_devices.py",
    "tests/docs/test_shell_runs.py",
)


class FixtureScheduling(LoadScopeScheduling):
    """Scheduler of `pytest -n`: tests that share an expensive fixture run one after the other in one process."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid.split("::")[0])


def group(path: str) -> str:
    """The scheduling group of a test file, by its path from the project's folder.

    Files share the workdir of the first run, or the session fixtures of their folder's conftest.py; others are alone.
    """
    if path in OF_FIRST_RUN:
        return FIRST_RUN
    folder = Path(path).parent
    return str(folder if folder.parent.name == "components" or folder.name == "serving" else path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FixtureScheduling:
    return FixtureScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the first run as slow, and start the longest groups first so that both processes end together."""
    for item in items:
        if FIRST_RUN in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    groups = {item: group(item.nodeid.split("::")[0]) for item in items}
    slow = {groups[item] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (groups[item] != FIRST_RUN, groups[item] not in slow))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.stdout)


@pytest.fixture(scope="session")
def tandem() -> Callable[..., Outcome]:
    """Run the `tandem` command as a user does, in a process of its own."""

    def run(*arguments: str | Path) -> Outcome:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "tandem"), *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """A workdir in which a test writes the files and metadata of runs."""
    from run_marks import Marks

    return Marks(tmp_path / "work")


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[dict[str, str]]]:
    """`with serve(folder, *options) as addresses`: `tandem serve` on a folder of versions.

    Yields HOST:PORT of `grpc` and `rest`.
    """

    @contextlib.contextmanager
    def run(folder: Path, *options: str) -> Iterator[dict[str, str]]:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "tandem", "serve", "--model-dir", folder,
             "--port", "0", "--rest-port", "0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0

    return run


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of `pytest -n` share; a fixture that creates something there holds its lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def movielens(shared: Path, tandem: Callable[..., Outcome]) -> Path:
    """Folder with the real MovieLens-100K as CSVs."""
    folder = shared / "data" / "movielens"
    with filelock.FileLock(shared / "movielens.lock"):
        outcome = tandem("data", "movielens", "--out", folder)
    assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, movielens: Path) -> Path:
    """MovieLens with all films and every fifth user."""
    folder = tmp_path_factory.mktemp("sample")
    for name in ("items.csv", "users.csv"):
        shutil.copy(movielens / name, folder)
    with (movielens / "interactions.csv").open(newline="") as source:
        rows = csv.DictReader(source)
        with (folder / "interactions.csv").open("w", newline="") as target:
            writer = csv.DictWriter(target, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["user_id"]) % 5 == 0)
    return folder


@pytest.fixture(scope="session")
def schema_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe with two epochs and gates that such a model passes."""
    folder = tmp_path_factory.mktemp("schemas") / "movielens"
    shutil.copytree(ROOT / "schemas" / "movielens", folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["training"]["epochs"] = 2
    recipe["gates"] = [{"metric": "top_100_accuracy", "at_least": 0.01}, {"metric": "rmse", "at_most": 3.0}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@dataclasses.dataclass(frozen=True)
class PipelineRun:
    """The first run of the shipped recipe in a fresh workdir."""

    outcome: Outcome
    workdir: Path
    data: Path

    @property
    def result(self) -> dict[str, Any]:
        return self.outcome.json

    @property
    def model(self) -> Path:
        return Path(self.result["pushed_model"])

    def again(self, tandem: Callable[..., Outcome], *arguments: str | Path) -> Outcome:
        """Run in the same workdir; later arguments override earlier ones."""
        return tandem(
            "run", SCHEMA_DIR, "--data", self.data, "--workdir", self.workdir, "--json", *arguments
        )  # fmt: skip


@pytest.fixture(scope="session")
def first_run(shared: Path, movielens: Path, tandem: Callable[..., Outcome]) -> PipelineRun:
    """One run of the whole DAG on real data, shared by every test that needs a trained and pushed model."""
    workdir, record = shared / "work" / "movielens", shared / "first_run.json"
    with filelock.FileLock(shared / "first_run.lock"):
        if not record.exists():
            outcome = tandem("run", SCHEMA_DIR, "--data", movielens, "--workdir", workdir, "--json")
            record.write_text(json.dumps(dataclasses.asdict(outcome)))
    outcome = Outcome(**json.loads(record.read_text()))
    assert outcome.code == 0, outcome.stderr
    return PipelineRun(outcome, workdir, movielens)
