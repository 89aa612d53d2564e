"""Presets: other models for the same data, named on the command line, and as strictly read as the recipe itself."""

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
    """What loading the preset says after `old` became `new` in it; the folder's name left out."""

    def load(old: str = "", new: str = "", *overrides: str, preset: str = "mine") -> str:
        assert not old or PRESET.count(old) == 1
        (folder / "presets" / "mine.yaml").write_text(PRESET.replace(old, new) if old else PRESET)
        with pytest.raises(RecipeError) as raised:
            load_recipe(folder, overrides, preset)
        return str(raised.value).replace(f"{folder}/", "")

    return load


# --- what a preset replaces -------------------------------------------------------------------------------------------


def test_a_preset_replaces_whole_sections_and_leaves_the_others(folder: Path) -> None:
    recipe, preset = load_recipe(folder), load_recipe(folder, preset="mine")
    assert (preset.description, preset.model.embedding_dim, preset.training.epochs) == ("Something else.", 16, 2)
    # Whole sections: what the recipe says about dropout and batches does not shine through.
    assert recipe.model.rating_head.dropout and not preset.model.rating_head.dropout
    assert preset.training.batch_size != recipe.training.batch_size
    untouched = {"name", "data", "schedule", "features", "gates", "resources", "serving", "slices", "tuner"}
    assert {name for name in Recipe.model_fields if getattr(preset, name) == getattr(recipe, name)} == untouched


def test_set_applies_after_the_preset(folder: Path) -> None:
    recipe = load_recipe(folder, ["model.embedding_dim=24", "training.batch_size=100"], "mine")
    assert (recipe.model.embedding_dim, recipe.training.batch_size, recipe.training.epochs) == (24, 100, 2)


@given(st.lists(st.sampled_from(PRESET_SECTIONS), unique=True, min_size=1))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_preset_of_the_recipes_own_sections_is_the_recipe(folder: Path, sections: list[str]) -> None:
    values = yaml.safe_load((folder / "recipe.yaml").read_text())
    chosen = {name: values[name] for name in sections if name in values}
    (folder / "presets" / "same.yaml").write_text(yaml.safe_dump(chosen) if chosen else "description: x")
    assert not chosen or load_recipe(folder, preset="same") == load_recipe(folder)


# --- what is wrong is told with its place -----------------------------------------------------------------------------


def test_an_unknown_preset_is_told_with_the_closest_one(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"--preset mien: .*presets/mien.yaml does not exist; did you mean 'mine'\? Available"
    ):
        load_recipe(folder, preset="mien")


@pytest.mark.parametrize("name", ["../recipe", "mine.yaml", "", "presets/mine", "*"])
def test_a_preset_is_a_name_and_no_path(folder: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="Available presets: mine"):
        load_recipe(folder, preset=name)


def test_a_folder_without_presets_says_so(folder: Path) -> None:
    shutil.rmtree(folder / "presets")
    assert preset_names(folder) == []
    with pytest.raises(RecipeError, match="The recipe has no presets"):
        load_recipe(folder, preset="mine")


@pytest.mark.parametrize(
    ("old", "new", "said"),
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
def test_a_wrong_preset_is_told_with_its_line(problem: Problem, old: str, new: str, said: str) -> None:
    assert said in problem(old, new)


def test_a_mistake_of_the_recipe_is_told_with_the_recipes_line(problem: Problem, folder: Path) -> None:
    text = (folder / "recipe.yaml").read_text().replace("eval_fraction: 0.2", "eval_fraction: 2")
    (folder / "recipe.yaml").write_text(text)
    line = text[: text.index("eval_fraction")].count("\n") + 1
    assert problem().startswith(f"recipe.yaml:{line}: data.split.eval_fraction: ")


def test_a_set_is_blamed_for_what_it_breaks(problem: Problem) -> None:
    assert problem("", "", "model.embeding_dim=1").startswith("--set model.embeding_dim=1: ")


def test_sections_that_the_preset_replaces_may_be_wrong_in_the_recipe(folder: Path) -> None:
    """They are not looked at, so nothing is said about them with the recipe's line."""
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("embedding_dim: 64", "embedding_dim: none"))
    assert load_recipe(folder, preset="mine").model.embedding_dim == 16
    with pytest.raises(RecipeError, match="embedding_dim"):
        load_recipe(folder)


# --- the shipped ones -------------------------------------------------------------------------------------------------


def test_the_notebooks_and_best_are_there() -> None:
    assert set(SHIPPED) <= set(preset_names(MOVIELENS))


@pytest.mark.parametrize("name", preset_names(MOVIELENS))
def test_a_shipped_preset_shares_the_recipes_data_and_features(name: str) -> None:
    recipe, preset = load_recipe(MOVIELENS), load_recipe(MOVIELENS, preset=name)
    assert (preset.data, preset.features, preset.serving) == (recipe.data, recipe.features, recipe.serving)
    assert preset.description != recipe.description
    assert (MOVIELENS / "presets" / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", preset_names(MOVIELENS))
def test_a_shipped_preset_is_gated_on_what_it_is_trained_on(name: str) -> None:
    recipe, preset = load_recipe(MOVIELENS), load_recipe(MOVIELENS, preset=name)
    trained = {"retrieval"} if preset.model.retrieval_weight else set()
    trained |= {"rating"} if preset.model.rating_weight else set()
    tasks = [("rating" if gate.metric in ("rmse", "mae") else "retrieval", gate) for gate in recipe.gates]
    # The recipe's own gates and no lower ones, or a preset would get past what the recipe stops.
    assert preset.gates == tuple(gate for task, gate in tasks if task in trained)


def test_the_tasks_of_the_notebooks_are_one_key_apart() -> None:
    models = {
        name: load_recipe(MOVIELENS, preset=name).model
        for name in ("tutorial", "joint", "rating_only", "retrieval_only")
    }
    # TFRS adds up the retrieval losses of a batch, here their mean counts: its weight of 1 is that of 8192 rows.
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


def test_check_looks_at_every_preset(folder: Path, data: Path) -> None:
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
def test_an_unknown_preset_is_bad_input(folder: Path, data: Path, command: str) -> None:
    done = tandem(command, folder, "--data", data, "--preset", "main")
    assert done.returncode == 2
    assert "did you mean 'mine'" in done.stderr and "Traceback" not in done.stderr
