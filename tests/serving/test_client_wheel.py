"""The client's wheel in an environment with grpcio and protobuf alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

CLIENT = Path(__file__).resolve().parents[2] / "serving" / "client"
PROGRAM = """
import asyncio, importlib.metadata, json, sys
from tandem_client import AsyncRecommender, Recommender

target = sys.argv[1]
with Recommender(target, timeout=30) as client:
    answers = {
        "recommend": [each.item_id for each in client.recommend("1", k=3).items],
        "filtered": [each.item_id for each in client.recommend("1", k=20, exclude=["i1"]).items],
        "similar": [each.item_id for each in client.similar("i1").items],
        "found": [each.item_id for each in client.find("batman").items],
        "vector": client.embed_query("1").vector,
    }

async def ask():
    async with AsyncRecommender(target, timeout=30) as client:
        return [each.item_id for each in (await client.recommend("1", k=3)).items]

answers["asyncio"] = asyncio.run(ask())
answers["distributions"] = sorted(each.metadata["Name"] for each in importlib.metadata.distributions())
answers["numpy"] = "numpy" in sys.modules
print(json.dumps(answers))
"""


def _needed(name: str) -> dict[str, importlib.metadata.Distribution]:
    """Return a distribution of this environment and those that it requires, without extras."""
    found = {name: importlib.metadata.distribution(name)}
    for requirement in found[name].requires or ():
        if "extra ==" not in requirement:
            found |= _needed(re.match(r"[\w.-]+", requirement)[0].lower())  # type: ignore[index]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    source = shutil.copytree(CLIENT, tmp_path_factory.mktemp("source") / "client")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("tandem_client-*.whl")
    return built


def test_wheel_is_typed_small_and_has_the_readme(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(each).decode() for each in names if each.endswith("METADATA")]
    assert "tandem_client/py.typed" in names and "tandem_client/serving_pb2.py" in names
    assert all(each.startswith("tandem_client") for each in names)
    assert wheel.stat().st_size < 100_000
    required = sorted(re.findall(r"(?m)^Requires-Dist: ([\w-]+)", metadata))
    assert required == ["grpcio", "protobuf"]
    assert "from tandem_client import Recommender" in metadata, "the readme is the long description"


def test_client_works_with_grpcio_and_protobuf_alone(wheel: Path, all_signatures: str, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home, with_pip=True, symlinks=True)
    python = home / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "UV_"))}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [python, *map(str, arguments)], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = ("-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "--no-deps", wheel)
    site = Path(run("-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())
    # Without an index: the wheel's requirements are copied from this environment.
    for distribution in (_needed("grpcio") | _needed("protobuf")).values():
        for file in distribution.files or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), site / file)
    run(*pip, "check")
    answers = json.loads(run("-c", PROGRAM, all_signatures))
    installers = {"pip", "setuptools"}
    installed = set(answers.pop("distributions")) - installers
    assert installed == {"grpcio", "protobuf", "tandem-client", "typing_extensions"}
    assert not answers.pop("numpy")
    assert answers["asyncio"] == answers["recommend"] == answers["filtered"][:3]
    assert len(answers["filtered"]) == 20 and "i1" not in answers["filtered"]
    assert len(answers["similar"]) == 10 and answers["found"] == ["i0", "i1", "i2"] and len(answers["vector"]) == 5
