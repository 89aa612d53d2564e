"""What the image leaves out: all that only development needs, and nothing that runs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "kubeflow" / "image" / "development_packages.py"
PROJECTS = [ROOT / "pyproject.toml", ROOT / "serving" / "client" / "pyproject.toml"]

# Imports what an image runs, with what it leaves out made impossible to import.
WITHOUT = """
import importlib, pkgutil, sys
from importlib import metadata
from packaging.utils import canonicalize_name

left_out = set(sys.argv[1].split())
hidden = {module for module, owners in metadata.packages_distributions().items()
          if {canonicalize_name(owner) for owner in owners} <= left_out}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ImportError(f"{name} is not in the image")

sys.meta_path.insert(0, Hide())
assert {"pytest", "selenium", "hypothesis"} <= hidden
for package in ("commands", "pipeline", "components", "recipe", "serving", "tandem_client"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        # Airflow's processes have an environment of their own.
        in_airflow = ("pipeline.runners.airflow.dag_factory", "pipeline.runners.airflow.example_dag")
        if not module.name.startswith(("serving.client", *in_airflow)):
            importlib.import_module(module.name)
import kfp
from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor
"""


def left_out(*projects: Path) -> list[str]:
    done = subprocess.run([sys.executable, SCRIPT, *projects], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_only_development_is_left_out() -> None:
    found = left_out(*PROJECTS)
    project = tomllib.loads(PROJECTS[0].read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {canonicalize_name(Requirement(each).name) for each in [*project["dependencies"], *extras["kubeflow"]]}
    assert not needed & set(found)
    assert {"pytest", "mypy", "ruff", "selenium", "hypothesis", "kubernetes-validate", "hatchling", "uv"} <= set(found)
    # What nothing of ours names, but something that runs asks for.
    assert not {"grpcio", "tfx-bsl", "kfp-pipeline-spec", "google-cloud-storage", "setuptools"} & set(found)


def test_an_extra_that_is_asked_for_is_followed(tmp_path: Path) -> None:
    """`apache-beam[gcp]` brings Google's clients, `apache-beam` alone does not."""
    without, with_extra = (tmp_path / name for name in ("without.toml", "with.toml"))
    without.write_text('[project]\ndependencies = ["apache-beam"]\n')
    with_extra.write_text('[project]\ndependencies = ["apache-beam[gcp]"]\n')
    assert "google-cloud-storage" in left_out(without)
    assert "google-cloud-storage" not in left_out(with_extra)


def test_a_package_that_is_needed_and_missing_is_named(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["no-such-package-of-tandem>=1"]\n')
    done = subprocess.run([sys.executable, SCRIPT, project], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no-such-package-of-tandem is required but not installed" in done.stderr


@pytest.mark.slow
def test_what_an_image_runs_can_be_imported_without_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, " ".join(left_out(*PROJECTS))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
