"""Presets: sections that replace those of the recipe, validated as strictly as the recipe."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe import Recipe, RecipeError, load_recipe, preset_names
from recipe.loading import PRESET_SECTIONS

ROOT = Path(__file__).resolve().parents[2]
MOVIELENS = ROOT / "schemas" / "movielens"
TANDEM = Path(sys.executable).parent / "tandem"

SHIPPED = (
    "best", "dcn", "deep", "dot_ranking", "enriched_ranking", "joint", "one_layer_ranking", "rating_only",
    "retrieval_only", "tutorial",
)  # fmt: skip

PRESET = """\
# A comment.
description: Something else.
model:
  embedding_dim: 16
  query_tower: {features: [user_id_id], projection: false}
training:
  epochs: 2
"""

Problem = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The MovieLens folder with one preset, `mine`."""
    shutil.copytree(MOVIELENS, tmp_path / "schema", ignore=shutil.ignore_patterns("presets"))
    (tmp_path / "schema" / "presets").mkdir()
    (tmp_path / "schema" / "presets" / "mine.yaml").write_text(PRESET)
    return tmp_path / "schema"


@pytest.fixture
def problem(folder: Path) -> Problem:
    """The error of a preset in which `old` is replaced by `new`, without the folder's path."""

    def load(old: str = "", new: str = "", *overrides: str, preset: str = "mine") -> str:
        assert not old or PRESET.count(old) == 1
        (folder / "presets" / "mine.yaml").write_text(PRESET.replace(old, new) if old else PRESET)
        with pytest.raises(RecipeError) as raised:
            load_recipe(folder, overrides, preset)
        return str(raised.value).replace(f"{folder}/", "")

    return load


# --- replaced sections ------------------------------------------------------------------------------------------------


def test_preset_replaces_whole_sections_and_no_others(folder: Path) -> None:
    recipe, preset = load_recipe(folder), load_recipe(folder, preset="mine")
    assert (preset.description, preset.model.embedding_dim, preset.training.epochs) == ("Something else.", 16, 2)
    # Whole sections: dropout and batch size of the recipe are not used.
    assert recipe.model.rating_head.dropout and not preset.model.rating_head.dropout
    assert preset.training.batch_size != recipe.training.batch_size
    untouched = {"name", "data", "schedule", "features", "gates", "resources", "serving", "slices", "tuner"}
    assert {name for name in Recipe.model_fields if getattr(preset, name) == getattr(recipe, name)} == untouched


def test_overrides_apply_after_the_preset(folder: Path) -> None:
    recipe = load_recipe(folder, ["model.embedding_dim=24", "training.batch_size=100"], "mine")
    assert (recipe.model.embedding_dim, recipe.training.batch_size, recipe.training.epochs) == (24, 100, 2)


@given(st.lists(st.sampled_from(PRESET_SECTIONS), unique=True, min_size=1))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_preset_with_the_recipes_own_sections_equals_the_recipe(folder: Path, sections: list[str]) -> None:
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    chosen = {name: values[name] for name in sections if name in values}
    (folder / "presets" / "same.yaml").write_text(yaml.safe_dump(chosen) if chosen else "description: x")
    assert not chosen or load_recipe(folder, preset="same") == load_recipe(folder)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_unknown_preset_names_the_closest_one(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"--preset mien: .*presets/mien.yaml does not exist; did you mean 'mine'\? Available"
    ):
        load_recipe(folder, preset="mien")


@pytest.mark.parametrize("name", ["../recipe", "mine.yaml", "", "presets/mine", "*"])
def test_preset_must_be_a_name_not_a_path(folder: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="Available presets: mine"):
        load_recipe(folder, preset=name)


def test_preset_in_a_folder_without_presets_is_an_error(folder: Path) -> None:
    shutil.rmtree(folder / "presets")
    assert preset_names(folder) == []
    with pytest.raises(RecipeError, match="The recipe has no presets"):
        load_recipe(folder, preset="mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("embedding_dim: 16", "embeding_dim: 16",
         "presets/mine.yaml:4: model.embeding_dim: unknown key; did you mean 'embedding_dim'?"),
        ("embedding_dim: 16", "embedding_dim: wide", "presets/mine.yaml:4: model.embedding_dim: "),
        ("model:", "modle:", "presets/mine.yaml:3: modle: unknown key; did you mean 'model'?"),
        ("training:\n", "name: other\ntraining:\n",
         "presets/mine.yaml:6: name: expected one of description, features, model, training, tuner, gates in a preset"),
        ("training:\n", "data: {}\ntraining:\n", "in a preset; move this section to recipe.yaml"),
        ("user_id_id", "user_id",
         "presets/mine.yaml:5: model.query_tower.features: expected features of features.query (age_buckets, "),
        ("projection: false", "projection: false, layers: [8]",
         "presets/mine.yaml:5: model.query_tower: expected an output of dimension 16, got 8; set projection: true"),
        ("epochs: 2", "epochs: 2\n  epochs: 3",
         "presets/mine.yaml:8: not valid YAML: duplicate key training.epochs, first on line 7"),
        ("epochs: 2", "epochs: [2", "presets/mine.yaml:8: not valid YAML"),
        (PRESET, "- model\n", "presets/mine.yaml: expected a mapping of keys, got a list"),
        (PRESET, "", "presets/mine.yaml: expected a mapping of keys, got an empty file"),
        ("training:\n  epochs: 2\n", "gates:\n  - {metric: rmse, at_most: 1}\n  - {metric: rmse, at_most: 2}\n",
         "presets/mine.yaml:6: gates: duplicate at_most for rmse; remove one of them"),
    ],
)  # fmt: skip
def test_invalid_preset_names_its_line(problem: Problem, old: str, new: str, message: str) -> None:
    assert message in problem(old, new)


def test_error_in_the_recipe_names_the_recipes_line(problem: Problem, folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text().replace("eval_fraction: 0.2", "eval_fraction: 2")
    (folder / "recipe.yaml").write_text(text)
    line = text[: text.index("eval_fraction")].count("\n") + 1
    assert problem().startswith(f"recipe.yaml:{line}: data.split.eval_fraction: ")


def test_error_of_an_override_names_the_override(problem: Problem) -> None:
    assert problem("", "", "model.embeding_dim=1").startswith("--set model.embeding_dim=1: ")


def test_replaced_sections_of_the_recipe_are_not_validated(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("embedding_dim: 64", "embedding_dim: none"))
    assert load_recipe(folder, preset="mine").model.embedding_dim == 16
    with pytest.raises(RecipeError, match="embedding_dim"):
        load_recipe(folder)


# --- shipped presets --------------------------------------------------------------------------------------------------


def test_presets_of_the_notebooks_and_best_are_shipped() -> None:
    assert set(SHIPPED) <= set(preset_names(MOVIELENS))


@pytest.mark.parametrize("name", preset_names(MOVIELENS))
def test_shipped_preset_shares_data_and_features_of_the_recipe(name: str) -> None:
    recipe, preset = load_recipe(MOVIELENS), load_recipe(MOVIELENS, preset=name)
    assert (preset.data, preset.features, preset.serving) == (recipe.data, recipe.features, recipe.serving)
    assert preset.description != recipe.description
    assert (MOVIELENS / "presets" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", preset_names(MOVIELENS))
def test_shipped_preset_has_gates_on_its_trained_tasks(name: str) -> None:
    recipe, preset = load_recipe(MOVIELENS), load_recipe(MOVIELENS, preset=name)
    trained = {"retrieval"} if preset.model.retrieval_weight else set()
    trained |= {"rating"} if preset.model.rating_weight else set()
    tasks = [("rating" if gate.metric in ("rmse", "mae") else "retrieval", gate) for gate in recipe.gates]
    # The same thresholds as the recipe: a preset must not pass gates that the recipe fails.
    assert preset.gates == tuple(gate for task, gate in tasks if task in trained)


def test_presets_of_the_notebooks_differ_in_task_weights_only() -> None:
    models = {
        name: load_recipe(MOVIELENS, preset=name).model
        for name in ("tutorial", "joint", "rating_only", "retrieval_only")
    }
    # TFRS sums the retrieval losses of a batch of 8192 rows, Tandem averages them: 8192 is a weight of 1 in TFRS.
    weights = {name: (model.rating_weight, model.retrieval_weight / 8192) for name, model in models.items()}
    assert weights == {
        "tutorial": (1, 1), "joint": (0.5, 0.5), "rating_only": (1, 0), "retrieval_only": (0, 1),
    }  # fmt: skip
    assert load_recipe(MOVIELENS, preset="tutorial").training.batch_size == 8192
    alike = [model.model_copy(update={"rating_weight": 1.0, "retrieval_weight": 1.0}) for model in models.values()]
    assert all(model == alike[0] for model in alike)


# --- the command line -------------------------------------------------------------------------------------------------


def tandem(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TANDEM), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """CSVs with the columns of MovieLens."""
    (tmp_path / "data").mkdir()
    for name, text in {
        "interactions": "user_id,item_id,rating,timestamp\n1,1,3,881250949\n2,2,4,891717742\n",
        "items": "item_id,title,year,genres\n1,Toy Story,1995,Animation\n2,GoldenEye,1995,Action|Thriller\n",
        "users": "user_id,age,gender,occupation\n1,24,M,technician\n2,53,F,other\n",
    }.items():
        (tmp_path / "data" / f"{name}.csv").write_text(text)
    return tmp_path / "data"


def test_check_validates_every_preset(folder: Path, data: Path) -> None:
    done = tandem("check", folder, "--data", data)
    assert done.returncode == 0, done.stderr
    assert "presets mine" in done.stdout
    (folder / "presets" / "other.yaml").write_text("model: {embedding_dim: none}\n")
    (folder / "presets" / "third.yaml").write_text("modle: {}\n")
    done = tandem("check", folder, "--data", data)
    assert done.returncode == 2
    assert "other.yaml:1: model.embedding_dim" in done.stderr and "third.yaml:1: modle" in done.stderr
    assert tandem("check", folder, "--data", data, "--preset", "mine").returncode == 0


@pytest.mark.parametrize("command", ["run", "check"])
def test_unknown_preset_exits_with_code_2(folder: Path, data: Path, command: str) -> None:
    done = tandem(command, folder, "--data", data, "--preset", "main")
    assert done.returncode == 2
    assert "did you mean 'mine'" in done.stderr and "Traceback" not in done.stderr
