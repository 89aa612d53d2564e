"""The end of a test session says which orchestrators ran, and what the Makefile demands cannot be left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
Session = Callable[..., tuple[int, dict[str, str]]]
BOTH_WAYS = pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "two processes"])

SUITE = """
import pytest

@pytest.mark.orchestrator("local")
def test_local():
    pass

@pytest.mark.orchestrator("local", "kubeflow")
@pytest.mark.parametrize("number", [1, 2])
def test_both(number):
    pass

@pytest.mark.orchestrator("kubeflow")
def test_kubeflow():
    KUBEFLOW

def test_another():
    pass
"""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Runs pytest on `SUITE`; gives its exit code and what it says of each orchestrator."""

    def run(*arguments: str, kubeflow: str = "pass") -> tuple[int, dict[str, str]]:
        (tmp_path / "test_suite.py").write_text(SUITE.replace("KUBEFLOW", kubeflow))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "orchestrator_summary", "-p", "xdist", *arguments, "."],
            cwd=tmp_path,
            # Without the plugins of everything that is installed it starts in half a second.
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        _, _, section = done.stdout.partition("orchestrators that ran the whole DAG")
        lines = [line.split(maxsplit=1) for line in section.splitlines()[1:]]
        return done.returncode, {line[0]: line[1] for line in lines if line and line[0][0] not in "=0123456789"}

    return run


@BOTH_WAYS
def test_it_says_what_ran_and_where_the_rest_runs(session: Session, processes: tuple[str, ...]) -> None:
    code, said = session("--orchestrators", "local,kubeflow", *processes)
    assert code == 0
    assert list(said) == ["local", "Airflow", "Kubeflow"]
    assert said["local"].startswith("tfx 1.21") and said["local"].endswith(" 3 passed")
    assert said["Airflow"].endswith("not in this session; `make test-airflow` runs it")
    assert said["Kubeflow"].startswith("kfp 2.") and said["Kubeflow"].endswith(" 3 passed")


@BOTH_WAYS
def test_a_skip_is_a_failure_where_the_orchestrator_must_run(session: Session, processes: tuple[str, ...]) -> None:
    code, said = session("--orchestrators", "local,kubeflow", *processes, kubeflow="pytest.skip('no cluster')")
    assert code == 1
    assert said["Kubeflow"].endswith(" 2 passed, 1 failed")
    code, said = session(*processes, kubeflow="pytest.skip('no cluster')")
    assert code == 0
    assert said["Kubeflow"].endswith(" 1 skipped, 2 passed")


@BOTH_WAYS
def test_a_session_that_leaves_one_out_fails(session: Session, processes: tuple[str, ...]) -> None:
    code, said = session("--orchestrators", "local,airflow", *processes)
    assert code == 1
    assert said["Airflow"].endswith("DID NOT RUN, but --orchestrators requires it")


def test_a_session_without_runs_says_nothing(session: Session) -> None:
    assert session("-k", "another") == (0, {})


def test_an_unknown_orchestrator_is_refused(session: Session) -> None:
    code, _ = session("--orchestrators", "local,nowhere")
    assert code == 4
