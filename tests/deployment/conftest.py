"""The manifests as kustomize renders them, with the tools that the lock file brings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "kubeflow" / "manifests"

Manifest = dict[str, Any]


def program(name: str) -> str:
    """A program of the environment, or of the machine; a missing one is a failure: a skipped check shows nothing."""
    found = Path(sys.executable).parent / name
    path = str(found) if found.exists() else shutil.which(name)
    if path is None:
        pytest.fail(f"{name} was not found; it comes with requirements.lock: run `make setup`")
    return path


@pytest.fixture(scope="session")
def hadolint() -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Lints a Dockerfile; every finding counts, whatever its level."""
    path = program("hadolint")

    def lint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
        command = [path, "--no-color", "--failure-threshold", "style", str(dockerfile)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=dockerfile.parent)

    return lint


@pytest.fixture(scope="session")
def kustomize() -> Callable[[Path], list[Manifest]]:
    """Renders a folder as `kubectl apply -k` would."""
    path = program("kubectl")

    def render(folder: Path) -> list[Manifest]:
        done = subprocess.run([path, "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return render


@pytest.fixture(scope="session")
def volume(kustomize: Callable[[Path], list[Manifest]]) -> list[Manifest]:
    return kustomize(MANIFESTS / "overlays" / "volume")


@pytest.fixture(scope="session")
def bucket(kustomize: Callable[[Path], list[Manifest]]) -> list[Manifest]:
    return kustomize(MANIFESTS / "overlays" / "bucket")


@pytest.fixture(scope="session")
def release(kustomize: Callable[[Path], list[Manifest]], volume: list[Manifest]) -> list[Manifest]:
    """The release job among what it needs."""
    return [*volume, *kustomize(MANIFESTS / "release")]


@pytest.fixture(scope="session")
def with_addons(
    kustomize: Callable[[Path], list[Manifest]], tmp_path_factory: pytest.TempPathFactory
) -> list[Manifest]:
    """The overlay `volume` with every add-on, from a folder of a user's own."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "manifests").symlink_to(MANIFESTS)
    components = [f"manifests/addons/{each.name}" for each in sorted((MANIFESTS / "addons").iterdir())]
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": ["manifests/overlays/volume"], "components": components})
    )
    return kustomize(folder)
