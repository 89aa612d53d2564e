"""Cache keys follow the code that a component runs, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.code_version import PACKAGES, ROOT, code_version, imported_modules
from pipeline.dag import CODE

TRAINS = {"Tuner", "Trainer"}

Edit = Callable[[str, str, str], set[str]]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code that a test may edit."""
    folder = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def edit(sources: Path) -> Edit:
    """Replaces a text in a file; returns the components whose code version changes."""

    def versions() -> dict[str, str]:
        return {name: code_version(*modules, root=sources) for name, modules in CODE.items()}

    def run(file: str, old: str, new: str) -> set[str]:
        path, before = sources / file, versions()
        original = path.read_text()
        assert old in original
        path.write_text(original.replace(old, new, 1))
        try:
            after = versions()
        finally:
            path.write_text(original)
        assert versions() == before
        return {name for name in before if before[name] != after[name]}

    return run


def test_a_docstring_of_gate_does_not_train_again(edit: Edit) -> None:
    assert edit("recipe/evaluation.py", "class Gate(", "# Another comment.\nclass Gate(") == {"Evaluator"}


@pytest.mark.parametrize(
    ("file", "components"),
    [
        ("components/example_gen/splitters.py", {"InteractionExampleGen"}),
        ("components/schema_gen/executor.py", {"ImportSchemaGen"}),
        ("components/example_validator/anomalies.py", {"ExampleValidator"}),
        ("components/transform/preprocessing.py", {"Transform", *TRAINS}),
        ("components/tuner/search_space.py", {"Tuner"}),
        ("components/trainer/model/towers.py", TRAINS),
        ("components/trainer/export/ranking.py", TRAINS),
        ("components/evaluator/slices.py", {"Evaluator"}),
        ("components/infra_validator/latency.py", {"InfraValidator"}),
        ("components/pusher/push_destination.py", {"ModelResolver", "Evaluator"}),
        ("components/evaluator/component.py", set()),
        ("components/pusher/executor.py", set()),
        ("recipe/splits.py", {"InteractionExampleGen"}),
        ("recipe/model.py", TRAINS),
        ("recipe/tuner.py", {"Tuner"}),
        ("recipe/recipe.py", set()),
        ("recipe/orchestration.py", set()),
        ("recipe/reference.py", set()),
        ("serving/client/tandem_client/protocol.py", set()),
    ],
)
def test_an_edit_reaches_the_components_that_run_the_module(edit: Edit, file: str, components: set[str]) -> None:
    assert edit(file, '"""', '"""Edited. ') == components


def test_a_change_of_the_server_reaches_the_infra_validator_alone(edit: Edit) -> None:
    for file in ("serving/server/model_server.py", "serving/server/versions.py", "serving/api/core.py"):
        assert edit(file, '"""', '"""Edited. ') == {"InfraValidator"}


def test_every_import_is_followed_wherever_it_stands(tmp_path: Path) -> None:
    package = tmp_path / "components"
    package.mkdir()
    names = ("top", "alias", "inside", "member", "branch", "annotation", "unused")
    for name in names:
        (package / f"{name}.py").write_text("thing = 1\n")
    (package / "__init__.py").write_text("import components.unused\n")
    (package / "start.py").write_text(
        "import os\n"
        "import components.top\n"
        "from components import alias as other\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from components.annotation import thing\n"
        "else:\n    from components.branch import thing\n"
        "def work():\n    from components.inside import thing\n    import components.member as member\n"
    )
    found = imported_modules("components.start", root=tmp_path)
    assert set(found) == {f"components.{name}" for name in ("start", "top", "alias", "inside", "member", "branch")}


def test_a_module_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"components\.nothing"):
        code_version("components.nothing", root=tmp_path)


def test_the_modules_of_every_component_exist() -> None:
    assert all(code_version(*modules) for modules in CODE.values())
