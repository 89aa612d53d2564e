"""The files that a repository is expected to have: license, hooks, workflows, templates."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LICENSE = ROOT / "LICENSE"
PROJECTS = (ROOT, ROOT / "serving" / "client")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"


def read(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict), path
    return values


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_license_is_declared_and_present(project: Path) -> None:
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert (declared["license"], declared["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert (project / "LICENSE").read_bytes() == LICENSE.read_bytes()


def test_license_is_the_whole_of_apache_2() -> None:
    text = LICENSE.read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert [number for number in range(1, 10) if f"\n   {number}. " not in text] == []


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_wheel_contains_the_license(project: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(build, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(name) == LICENSE.read_bytes()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_calls_existing_make_targets(path: Path) -> None:
    steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands and all("uses" in step for step in steps if "run" not in step)
    targets = [command.removeprefix("make ") for command in commands if command.startswith("make ")]
    assert targets and set(targets) <= makefile_targets()


def test_ci_checks_lint_types_and_tests() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert {"lint", "types", "tests"} <= set(jobs)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_issue_form_is_complete(path: Path) -> None:
    form = read(path)
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers)


def test_hooks_are_local_tools_of_the_environment() -> None:
    (repository,) = read(HOOKS)["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system" and program.startswith(".venv/bin/")
        assert (Path(sys.executable).parent / Path(program).name).exists(), f"{program} is not a development dependency"
