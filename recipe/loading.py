"""Reads a recipe: `recipe.yaml`, the sections of a preset, and the overrides of `--set`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from recipe.errors import RecipeError, did_you_mean
from recipe.files import PRESETS_FOLDER, RECIPE_FILE, SCHEMA_FILE
from recipe.keys import Key, assign, dotted_key
from recipe.messages import where, wording
from recipe.recipe import Recipe
from recipe.search import search_problems

# What a preset may replace. The data stays the recipe's, so that presets of one folder can be compared.
PRESET_SECTIONS = ("description", "features", "model", "training", "tuner", "gates")


def load_recipe(schema_dir: Path, overrides: Sequence[str] = (), preset: str | None = None) -> Recipe:
    """Reads and checks `recipe.yaml` of `schema_dir`.

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`.
        overrides: `key=value` pairs such as `model.embedding_dim=64` or `gates.0.at_least=0.3`; values are YAML.
        preset: Name of a file in `presets`, without `.yaml`: its sections stand in place of the recipe's.

    Raises:
        RecipeError: A file is missing or not YAML, a key is unknown or missing, or a value is wrong.
    """
    path = schema_dir / RECIPE_FILE
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no recipe. A schema folder holds {RECIPE_FILE} and {SCHEMA_FILE}; "
            "see schemas/movielens for one."
        )
    values, places = _read_yaml(path)
    if preset is not None:
        replaced, replaced_places = _read_preset(schema_dir, preset)
        values |= replaced
        places = {key: place for key, place in places.items() if not key or key[0] not in replaced}
        places |= {key: place for key, place in replaced_places.items() if key}
        places[()] += f" with {_preset_path(schema_dir, preset)}"
    overridden: dict[Key, str] = {}
    for override in overrides:
        key = _override(values, override)
        overridden[key] = override
    try:
        recipe = Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        found = [wording(Recipe, entry, values) for entry in error.errors()]
    else:
        found = search_problems(recipe)
    if found:
        raise RecipeError("\n".join(f"{where(places, overridden, key)}: {message}" for key, message in found))
    return recipe


def preset_names(schema_dir: Path) -> Sequence[str]:
    """The presets of a schema folder, in alphabetical order; there may be none."""
    return sorted(path.stem for path in (schema_dir / PRESETS_FOLDER).glob("*.yaml"))


def _preset_path(schema_dir: Path, name: str) -> Path:
    return schema_dir / PRESETS_FOLDER / f"{name}.yaml"


def _read_preset(schema_dir: Path, name: str) -> tuple[dict[str, Any], dict[Key, str]]:
    """The sections of a preset, and where each key stands."""
    known = preset_names(schema_dir)
    if name not in known:
        there = f"Presets there: {', '.join(known)}" if known else "There is no preset there"
        raise RecipeError(
            f"--preset {name}: {schema_dir / PRESETS_FOLDER} holds no {name}.yaml{did_you_mean(name, known) or '.'} "
            f"{there}."
        )
    values, places = _read_yaml(_preset_path(schema_dir, name))
    problems = []
    for key in values:
        if key in PRESET_SECTIONS:
            continue
        if key in Recipe.model_fields:
            told = f"a preset replaces {', '.join(PRESET_SECTIONS)}; write this section into {RECIPE_FILE}"
        else:
            told = f"unknown key{did_you_mean(key, PRESET_SECTIONS)}"
        problems.append(f"{places[(key,)]}: {key}: {told}")
    if problems:
        raise RecipeError("\n".join(problems))
    return values, places


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """A mapping of keys, and where in the file each of them stands."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text)
        values = yaml.safe_load(text)
        lines = _lines(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML raises a plain ValueError for dates that do not exist.
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict) or node is None:
        raise RecipeError(f"{path}: holds {type(values).__name__}, a mapping of keys was wanted")
    return values, {key: f"{path}:{line}" for key, line in lines.items()}


def _lines(node: yaml.Node, key: Key = ()) -> dict[Key, int]:
    """The line (from 1) on which each key of a YAML document stands; a key that stands twice is an error."""
    found = {key: node.start_mark.line + 1}
    children: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(name.value), child, name) for name, child in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, child, child) for index, child in enumerate(node.value)]
    for name, child, place in children:
        here = (*key, name)
        if isinstance(node, yaml.MappingNode) and not place.tag.endswith((":str", ":merge")):
            raise yaml.MarkedYAMLError(problem=f"the key {place.value!r} is not text", problem_mark=place.start_mark)
        if here in found:
            raise yaml.MarkedYAMLError(
                problem=f"the key {'.'.join(map(str, here))} stands here and on line {found[here]}; keep one of them",
                problem_mark=place.start_mark,
            )
        found.update(_lines(child, here))
        found[here] = place.start_mark.line + 1
    return found


def _override(values: dict[str, Any], override: str) -> Key:
    """Applies one `key=value` to the recipe's values in place and returns the key."""
    dotted, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]\w*(\.\w+)*", dotted):
        raise RecipeError(f"--set {override}: key=value was wanted, for example --set model.embedding_dim=32")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from error
    key = dotted_key(dotted)
    try:
        assign(values, key, value)
    except KeyError as error:
        raise RecipeError(f"--set {override}: {error.args[0]}") from None
    return key
