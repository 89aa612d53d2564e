"""Renamed keys: old names stay readable everywhere a recipe is read, with a warning that names the new one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from recipe import Recipe, RecipeError, load_recipe
from recipe.errors import Contradiction, DeprecatedKey
from recipe.keys import DottedKey, dotted_key
from recipe.reference import page, sections
from recipe.renamed import current_key, current_values
from recipe.section import Section
from recipe.trainer import TrainerRecipe

MOVIELENS = Path(__file__).resolve().parents[2] / "schemas" / "movielens"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the recipe of MovieLens with changes of its text, and optionally a preset `mine`."""
    folder = tmp_path / "schema"
    shutil.copytree(MOVIELENS, folder, ignore=shutil.ignore_patterns("presets"))

    def written(old: str = "", new: str = "", preset: str = "") -> Path:
        text = (MOVIELENS / "recipe.yaml").read_text()
        assert not old or text.count(old) == 1
        (folder / "recipe.yaml").write_text(text.replace(old, new) if old else text)
        (folder / "presets").mkdir(exist_ok=True)
        (folder / "presets" / "mine.yaml").write_text(preset or "description: unused\n")
        return folder

    return written


def load(folder: Path, overrides: Sequence[str] = (), preset: str | None = None) -> tuple[Recipe, list[str]]:
    """The recipe and the deprecation warnings, without the folder's path."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recipe = load_recipe(folder, overrides, preset)
    assert {each.category for each in caught} <= {DeprecatedKey}
    assert {each.filename for each in caught} <= {__file__}
    return recipe, [str(each.message).replace(f"{folder}/", "") for each in caught]


# --- in files ---------------------------------------------------------------------------------------------------------


def test_old_name_in_recipe_is_read_with_a_warning_that_names_file_line_and_new_name(write: Write) -> None:
    folder = write("  id_dropout: 0\n", "  id_dropout: 0\n  stranger_dropout: 0.25\n")
    recipe, found = load(folder)
    line = (folder / "recipe.yaml").read_text().split("stranger_dropout")[0].count("\n") + 1
    assert recipe.model.cold_start_dropout == 0.25
    assert found == [f"recipe.yaml:{line}: model.stranger_dropout is deprecated; rename it to model.cold_start_dropout"]


def test_old_names_of_nested_sections_are_read_in_presets(write: Write) -> None:
    folder = write(
        preset="training:\n  optimizer:\n    lookahead: {steps: 4, slow_step: 0.3}\nmodel: {stranger_dropout: 0.5}\n"
    )
    recipe, found = load(folder, preset="mine")
    lookahead = recipe.training.optimizer.lookahead
    assert lookahead is not None and (lookahead.sync_period, lookahead.slow_step_size) == (4, 0.3)
    assert recipe.model.cold_start_dropout == 0.5
    assert sorted(found) == [
        "presets/mine.yaml:3: training.optimizer.lookahead.slow_step is deprecated; "
        "rename it to training.optimizer.lookahead.slow_step_size",
        "presets/mine.yaml:3: training.optimizer.lookahead.steps is deprecated; "
        "rename it to training.optimizer.lookahead.sync_period",
        "presets/mine.yaml:4: model.stranger_dropout is deprecated; rename it to model.cold_start_dropout",
    ]
    # `training.steps` is a key of its own, and was not renamed.
    assert load(folder, ["training.steps=9"])[0].training.steps == 9


def test_old_names_in_tuner_search_are_read(write: Write) -> None:
    folder = write(preset="tuner:\n  search:\n    model.stranger_dropout: {low: 0, high: 0.9}\n")
    recipe, found = load(folder, preset="mine")
    assert recipe.tuner is not None and list(recipe.tuner.search) == ["model.cold_start_dropout"]
    assert found == [
        "presets/mine.yaml:3: tuner.search.model.stranger_dropout is deprecated; "
        "rename it to tuner.search.model.cold_start_dropout"
    ]


def test_invalid_value_under_an_old_name_has_the_line_of_the_old_name(write: Write) -> None:
    folder = write("  id_dropout: 0\n", "  id_dropout: 0\n  stranger_dropout: 2\n")
    with pytest.raises(RecipeError) as raised, pytest.warns(DeprecatedKey) as warned:
        load_recipe(folder)
    place = str(warned[0].message).partition(": ")[0]
    assert str(raised.value) == f"{place}: model.cold_start_dropout: expected a number < 1, got 2"


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("model:\n  cold_start_dropout: 0.1\n  stranger_dropout: 0.1\n",
         "mine.yaml:3: model.stranger_dropout is an old name of model.cold_start_dropout; remove one of them"),
        ("tuner:\n  search:\n    model.cold_start_dropout: {low: 0, high: 0.9}\n"
         "    model.stranger_dropout: {low: 0, high: 0.9}\n",
         "mine.yaml:4: tuner.search.model.stranger_dropout is an old name of tuner.search.model.cold_start_dropout"),
    ],
)  # fmt: skip
def test_both_names_are_an_error(write: Write, preset: str, expected: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(preset=preset), preset="mine")
    assert expected in str(raised.value)


def test_recipe_without_old_names_has_no_warnings(write: Write) -> None:
    assert load(write())[1] == []


# --- in overrides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_file", ["cold_start_dropout", "stranger_dropout"])
@pytest.mark.parametrize("in_override", ["cold_start_dropout", "stranger_dropout"])
def test_override_replaces_the_file_under_either_name(write: Write, in_file: str, in_override: str) -> None:
    folder = write("  id_dropout: 0\n", f"  id_dropout: 0\n  {in_file}: 0.25\n")
    recipe, found = load(folder, [f"model.{in_override}=0.75"])
    assert recipe.model.cold_start_dropout == 0.75
    assert len(found) == [in_file, in_override].count("stranger_dropout")
    if in_override == "stranger_dropout":
        assert found[-1] == (
            "--set model.stranger_dropout=0.75: model.stranger_dropout is deprecated; "
            "rename it to model.cold_start_dropout"
        )


def test_old_names_in_the_value_of_an_override_are_read(write: Write) -> None:
    recipe, found = load(write(), ["training.optimizer.lookahead={steps: 3}", "model={stranger_dropout: 0.1}"])
    lookahead = recipe.training.optimizer.lookahead
    assert lookahead is not None and lookahead.sync_period == 3
    assert recipe.model.cold_start_dropout == 0.1
    assert [message.partition(" is deprecated")[0] for message in found] == [
        "--set training.optimizer.lookahead={steps: 3}: training.optimizer.lookahead.steps",
        "--set model={stranger_dropout: 0.1}: model.stranger_dropout",
    ]


def test_both_names_in_an_override_are_an_error(write: Write) -> None:
    override = "model={stranger_dropout: 0.1, cold_start_dropout: 0.1}"
    with pytest.raises(RecipeError) as raised:
        load_recipe(write(), [override])
    assert str(raised.value).startswith(f"--set {override}: model.stranger_dropout is an old name")


# --- in what earlier versions wrote -----------------------------------------------------------------------------------


def renamed_back(values: Any) -> Any:
    """Values as an earlier version wrote them."""
    if isinstance(values, dict):
        return {
            {"cold_start_dropout": "stranger_dropout"}.get(name, name): renamed_back(value)
            for name, value in values.items()
        }
    return [renamed_back(value) for value in values] if isinstance(values, list) else values


@pytest.mark.parametrize("part", ["recipe", "trainer"])
def test_json_of_an_earlier_version_is_read(write: Write, part: str) -> None:
    recipe = load(write(), ["model.cold_start_dropout=0.4"])[0]
    model: Recipe | TrainerRecipe = recipe if part == "recipe" else recipe.for_trainer()
    with pytest.warns(DeprecatedKey, match=r"^model.stranger_dropout is deprecated; rename it to"):
        assert type(model).model_validate(renamed_back(model.model_dump(mode="json"))) == model


def test_json_with_both_names_is_an_error(write: Write) -> None:
    values = load(write())[0].model_dump(mode="json")
    values["model"]["stranger_dropout"] = 0.1
    with pytest.raises(ValidationError, match=r"is an old name of model\.cold_start_dropout"):
        Recipe.model_validate(values)


def test_hyperparameters_under_an_old_name_replace_the_recipes_values(write: Write) -> None:
    trainer = load(write())[0].for_trainer()
    assert trainer.with_values({"model.stranger_dropout": 0.3}).model.cold_start_dropout == 0.3


# --- the mechanism ----------------------------------------------------------------------------------------------------


class Plain(Section):
    kind: Literal["plain"]
    old: int = 0


class Leaf(Section):
    renamed_keys: ClassVar = {"old": "new", "older": "new"}
    kind: Literal["leaf"] = "leaf"
    new: int = 0


class Branch(Section):
    renamed_keys: ClassVar = {"leafs": "leaves"}
    leaves: tuple[Leaf | Plain, ...] = ()
    named: dict[str, Leaf] = Field(default_factory=dict)
    inner: Branch | None = None


class Tree(Section):
    renamed_keys: ClassVar = {"limb": "branch"}
    branch: Branch | None = None
    search: dict[DottedKey, int] = Field(default_factory=dict)


@st.composite
def branches(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    leaf = st.fixed_dictionaries({"kind": st.just("leaf")}, optional={"new": st.integers(0, 9)})
    found: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "leaves": st.lists(st.one_of(leaf, st.just({"kind": "plain", "old": 3})), max_size=2),
                # A name that is the old name of a key is no old name where the keys are free.
                "named": st.dictionaries(st.sampled_from(["old", "limb", "a"]), leaf, max_size=2),
            },
        )
    )
    if depth and draw(st.booleans()):
        found["inner"] = draw(branches(depth - 1))
    return found


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    keys = st.sampled_from(["branch.leaves.0.new", "branch.inner.leaves.1.new", "branch.named.old.new"])
    return {"branch": draw(branches()), "search": draw(st.dictionaries(keys, st.integers(), max_size=2))}


def with_old_names(draw: st.DrawFn, values: Any, names: dict[str, list[str]]) -> Any:
    """The values with some keys under an old name."""
    if isinstance(values, list):
        return [with_old_names(draw, value, names) for value in values]
    if not isinstance(values, dict):
        return values
    found = {}
    for name, value in values.items():
        if name == "search":
            found[name] = {
                # `old` is a key of Plain, which a dotted key alone does not rule out.
                ".".join(
                    draw(st.sampled_from(names.get(part, [part])).filter("old".__ne__)) for part in key.split(".")
                ): count
                for key, count in value.items()
            }
        elif name == "named":
            found[name] = {key: with_old_names(draw, inner, names) for key, inner in value.items()}
        else:
            found[draw(st.sampled_from(names.get(name, [name])))] = with_old_names(draw, value, names)
    return found


NAMES = {"new": ["new", "old", "older"], "leaves": ["leaves", "leafs"], "branch": ["branch", "limb"]}


@given(st.data(), trees())
def test_old_names_at_any_depth_are_the_current_ones(data: st.DataObject, values: dict[str, Any]) -> None:
    written = with_old_names(data.draw, values, NAMES)
    found, renamed = current_values(Tree, written)
    assert found == values
    Tree.model_validate(found)
    assert bool(renamed) == (written != values)
    for each in renamed:
        at(written, each.old)
        at(values, each.new)
    # What has current names stays as it is.
    assert current_values(Tree, values) == (values, [])


def at(values: Any, key: Sequence[str | int]) -> Any:
    for part in key:
        values = values[part]
    return values


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("limb.leafs.0.older", "branch.leaves.0.new"),
        ("limb.named.old.old", "branch.named.old.new"),
        ("branch.inner.inner.leafs", "branch.inner.inner.leaves"),
        ("branch.unknown.old", "branch.unknown.old"),
        ("unknown", "unknown"),
        # Plain has a key of this name.
        ("branch.leaves.0.old", "branch.leaves.0.old"),
    ],
)
def test_dotted_keys_have_their_current_names(old: str, new: str) -> None:
    assert current_key(Tree, dotted_key(old)) == dotted_key(new)


@pytest.mark.parametrize(
    "values",
    [
        {"limb": {}, "branch": {}},
        {"branch": {"leaves": [{"kind": "leaf", "old": 1, "new": 1}]}},
        {"branch": {"named": {"a": {"old": 1, "older": 1}}}},
        {"search": {"limb.leafs": 1, "branch.leafs": 1}},
        {"search": {"limb.leafs": 1, "branch.leaves": 1}},
    ],
)
def test_two_names_of_one_key_are_a_contradiction(values: dict[str, Any]) -> None:
    with pytest.raises(Contradiction, match="remove one of them"):
        current_values(Tree, values)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["limb", "branch", "leafs", "leaves", "search", "kind", "x"]),
                                      inner, max_size=3)))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_values_are_returned_or_rejected(values: Any) -> None:
    """Values that are not valid are left to the validation."""
    try:
        current_values(Tree, values)
    except Contradiction:
        return


def test_every_renamed_key_leads_to_a_key_and_is_in_the_reference() -> None:
    text = page()
    for section in (documented.section for documented in sections()):
        for old, new in section.renamed_keys.items():
            assert new in section.model_fields and old not in section.model_fields, (section, old)
            assert f"`{old}`" in text


def test_shipped_recipes_and_presets_have_no_old_names() -> None:
    for path in MOVIELENS.parent.glob("**/*.yaml"):
        values = yaml.safe_load(path.read_text())
        assert current_values(Recipe, values)[1] == [], path
