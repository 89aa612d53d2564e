"""One Flink for all tests of this folder, and its own word, at the end, on what ran there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

from flink_cluster import FLINK_HOME, FlinkCluster

RECORD = pytest.StashKey[list[str]]()
JOB_STATE = re.compile(r".*Job .* switched from state .*|.*Disassociated.*|.*task manager .* is no longer reachable.*")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[FlinkCluster]:
    """A Flink with two task managers."""
    assert FLINK_HOME.exists(), "there is no .flink; run these tests with `make test-flink`"
    with FlinkCluster(tmp_path_factory.mktemp("flink") / "cluster") as running:
        yield running
        jobs = [str(job) for job in running.jobs()]
        pytestconfig.stash[RECORD] = [*jobs, "", *filter(JOB_STATE.fullmatch, running.log_of("manager").splitlines())]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(RECORD, []):
        terminalreporter.section("jobs, as Flink's REST API and its job manager's log have them")
        for line in config.stash[RECORD]:
            terminalreporter.line(line)
