"""Loading of a recipe: `recipe.yaml`, the sections of a preset, and the overrides of `--set`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from recipe.errors import Contradiction, DeprecatedKey, RecipeError, did_you_mean
from recipe.files import PRESETS_FOLDER, RECIPE_FILE, SCHEMA_FILE
from recipe.keys import Key, assign, dotted, dotted_key
from recipe.messages import key_of, shown, where, wording
from recipe.recipe import Recipe
from recipe.renamed import current_key, current_values
from recipe.search import search_problems

PRESET_SECTIONS = ("description", "features", "model", "training", "tuner", "gates")
"""Sections that a preset can replace. `data` is not one of them, so that presets of a folder can be compared."""


def load_recipe(schema_dir: Path, overrides: Sequence[str] = (), preset: str | None = None) -> Recipe:
    """Read and validate `recipe.yaml` of `schema_dir`.

    Example:
        load_recipe(Path("schemas/movielens"), ["training.epochs=3"], preset="tutorial")

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`.
        overrides: `key=value` pairs such as `model.embedding_dim=64` or `gates.0.at_least=0.3`; values are YAML.
        preset: Name of a file in `presets`, without `.yaml`. Its sections replace those of the recipe.

    Raises:
        RecipeError: A file is missing or not YAML, a key is unknown or missing, or a value is invalid.

    Warns:
        DeprecatedKey: A key has an old name.
    """
    path = schema_dir / RECIPE_FILE
    if not path.is_file():
        raise RecipeError(
            f"{path}: the file does not exist. Expected a schema folder with {RECIPE_FILE} and {SCHEMA_FILE}; "
            "`tandem init` writes both."
        )
    values, places = _read_yaml(path)
    if preset is not None:
        replaced, replaced_places = _read_preset(schema_dir, preset)
        values |= replaced
        places = {key: place for key, place in places.items() if not key or key[0] not in replaced}
        places |= {key: place for key, place in replaced_places.items() if key}
        places[()] += f" with {_preset_path(schema_dir, preset)}"
    values, deprecated = _with_current_names(values, places)
    overridden: dict[Key, str] = {}
    for override in overrides:
        key, more = _override(values, override)
        overridden[key] = override
        deprecated += more
    for message in deprecated:
        warnings.warn(DeprecatedKey(message), stacklevel=2)
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
    """Return the names of the presets of a schema folder in alphabetical order.

    Example:
        preset_names(Path("schemas/movielens"))  # ["best", "best_by_time", "dcn", ...]
    """
    return sorted(path.stem for path in (schema_dir / PRESETS_FOLDER).glob("*.yaml"))


def _preset_path(schema_dir: Path, name: str) -> Path:
    return schema_dir / PRESETS_FOLDER / f"{name}.yaml"


def _read_preset(schema_dir: Path, name: str) -> tuple[dict[str, Any], dict[Key, str]]:
    """The sections of a preset, and file and line of each key."""
    known = preset_names(schema_dir)
    if name not in known:
        path, close = _preset_path(schema_dir, name), did_you_mean(name, known) or "."
        remedy = f"Available presets: {', '.join(known)}." if known else "The recipe has no presets; remove --preset."
        raise RecipeError(f"--preset {name}: {path} does not exist{close} {remedy}")
    values, places = _read_yaml(_preset_path(schema_dir, name))
    problems = []
    for key in values:
        if key in PRESET_SECTIONS:
            continue
        if key in Recipe.model_fields:
            message = f"expected one of {', '.join(PRESET_SECTIONS)} in a preset; move this section to {RECIPE_FILE}"
        else:
            message = f"unknown key{did_you_mean(key, PRESET_SECTIONS)}"
        problems.append(f"{places[(key,)]}: {key}: {message}")
    if problems:
        raise RecipeError("\n".join(problems))
    return values, places


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """The mapping in a YAML file, and file and line of each key."""
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
        raise RecipeError(f"{path}: expected a mapping of keys, got {shown(values) if node else 'an empty file'}")
    return values, {key: f"{path}:{line}" for key, line in lines.items()}


def _lines(node: yaml.Node, key: Key = ()) -> dict[Key, int]:
    """The line (from 1) of each key of a YAML document; a duplicate key is an error."""
    found = {key: node.start_mark.line + 1}
    children: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(name.value), child, name) for name, child in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, child, child) for index, child in enumerate(node.value)]
    for name, child, place in children:
        here = (*key, name)
        if isinstance(node, yaml.MappingNode) and not place.tag.endswith((":str", ":merge")):
            raise yaml.MarkedYAMLError(
                problem=f"expected a string as key, got {place.value!r}", problem_mark=place.start_mark
            )
        if here in found:
            raise yaml.MarkedYAMLError(
                problem=f"duplicate key {dotted(here)}, first on line {found[here]}; remove one of them",
                problem_mark=place.start_mark,
            )
        found.update(_lines(child, here))
        found[here] = place.start_mark.line + 1
    return found


def _with_current_names(values: dict[str, Any], places: dict[Key, str]) -> tuple[dict[str, Any], list[str]]:
    """The values with current names of all keys, which are added to `places`, and a warning for each old name."""
    try:
        values, renamed = current_values(Recipe, values)
    except Contradiction as error:
        raise RecipeError(f"{where(places, {}, key_of(error))}: {error}") from None
    warned = [f"{where(places, {}, each.old)}: {each}" for each in renamed]
    # Nested sections first: the key of an inner one has the old name of the outer one.
    for each in reversed(renamed):
        depth = len(each.old)
        places |= {(*each.new, *key[depth:]): place for key, place in places.items() if key[:depth] == each.old}
    return values, warned


def _override(values: dict[str, Any], override: str) -> tuple[Key, list[str]]:
    """Apply one `key=value` to the values of a recipe in place; return the key, and a warning for each old name."""
    name, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]\w*(\.\w+)*", name):
        raise RecipeError(f"--set {override}: expected key=value, such as --set model.embedding_dim=32")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from error
    key = current_key(Recipe, dotted_key(name))
    try:
        value, renamed = current_values(Recipe, value, key)
        assign(values, key, value)
    except (KeyError, Contradiction) as error:
        raise RecipeError(f"--set {override}: {error.args[0]}") from None
    warned = [f"{name} is deprecated; rename it to {dotted(key)}"] if dotted(key) != name else []
    return key, [f"--set {override}: {message}" for message in [*warned, *map(str, renamed)]]
