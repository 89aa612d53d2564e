"""One Spark for all tests of this folder, and its own word, at the end, on what ran there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

from spark_cluster import SPARK_HOME, SparkCluster

RECORD = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[SparkCluster]:
    """A Spark with two workers."""
    assert (SPARK_HOME / "RELEASE").exists(), "there is no .spark; run these tests with `make test-spark`"
    with SparkCluster(tmp_path_factory.mktemp("spark") / "cluster") as running:
        yield running
        states = running.completed()
        pytestconfig.stash[RECORD] = [f"{states.get(app.name, '?')} {app}" for app in running.applications()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(RECORD, []):
        terminalreporter.section("jobs, as Spark's master and event logs have them")
        for line in config.stash[RECORD]:
            terminalreporter.line(line)
