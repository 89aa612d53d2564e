"""pytest plugin, loaded by conftest.py: reports on which orchestrators the whole DAG ran.

`--orchestrators local,kubeflow`, which the Makefile sets, names the required ones: a skipped test of theirs fails, and
so does a session in which none of their tests ran.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROPERTY = "orchestrators"
NAMES = {"local": "local", "airflow": "Airflow", "kubeflow": "Kubeflow"}
TARGETS = {"local": "make tests-all", "airflow": "make test-airflow", "kubeflow": "make tests-all"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--orchestrators", type=_names, default=(), metavar="NAME,…",
        help=f"orchestrators that the whole DAG must run on, of {', '.join(NAMES)}: a skipped test of theirs fails",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "orchestrator(name, …): tests a run of the whole DAG on these orchestrators")
    config.pluginmanager.register(Orchestrators(config.getoption("--orchestrators")), "orchestrators")


class Orchestrators:
    """Count of the tests of whole-DAG runs, by orchestrator and outcome."""

    def __init__(self, required: tuple[str, ...]) -> None:
        self._required = required
        self._outcomes: dict[str, Counter[str]] = {name: Counter() for name in NAMES}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        report: pytest.TestReport = yield
        names = [name for mark in item.iter_markers("orchestrator") for name in mark.args]
        if names and report.skipped and set(names) & set(self._required):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, but --orchestrators requires it\n{report.longrepr}"
        # The properties are what pytest-xdist sends along with a report.
        report.user_properties.append((PROPERTY, names))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for name in dict(report.user_properties).get(PROPERTY, ()):
                self._outcomes[name][report.outcome] += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        # A worker of pytest-xdist has seen its own part only.
        if self._missing() and not hasattr(session.config, "workerinput") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not any(self._outcomes.values()) and not self._required:
            return
        terminalreporter.section("orchestrators that ran the whole DAG")
        for name, title in NAMES.items():
            line = f"{title:<9} {_version(name):<14} {self._said_of(name)}"
            bad = name in self._missing() or self._outcomes[name]["failed"]
            terminalreporter.write_line(line, red=bool(bad))

    def _said_of(self, name: str) -> str:
        found = self._outcomes[name]
        if found:
            return ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items(), reverse=True))
        if name in self._missing():
            return "DID NOT RUN, but --orchestrators requires it"
        return f"not in this session; `{TARGETS[name]}` runs it"

    def _missing(self) -> set[str]:
        ran = {name for name, found in self._outcomes.items() if found["passed"] + found["failed"]}
        return set(self._required) - ran


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    return names


def _version(name: str) -> str:
    package = {"local": "tfx", "airflow": "apache-airflow", "kubeflow": "kfp"}[name]
    # Airflow has an environment of its own.
    places = {"path": [str(path) for path in ROOT.glob(".venv-airflow/lib/python*/site-packages")]}
    found = metadata.distributions(name=package, **(places if name == "airflow" else {}))
    return next((f"{package.removeprefix('apache-')} {one.version}" for one in found), "")
