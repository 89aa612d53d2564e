"""The wording of validation errors: location (file and line, or `--set`), key, value found, expected value, remedy.

The root model is an argument of every function, so this module imports no section of the recipe.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

from recipe.errors import Contradiction, did_you_mean
from recipe.keys import Key, annotation_at, dotted, dotted_key, kinds, known_keys
from recipe.section import Section

_EXPECTED = {
    "model_type": "a mapping", "model_attributes_type": "a mapping", "dict_type": "a mapping",
    "tuple_type": "a list",
    "int_type": "an integer", "int_parsing": "an integer", "int_from_float": "an integer",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "string_type": "a string",
    "string_pattern_mismatch": "a string that matches {pattern}",
    "greater_than": "a number > {gt:g}", "greater_than_equal": "a number ≥ {ge:g}",
    "less_than": "a number < {lt:g}", "less_than_equal": "a number ≤ {le:g}",
    "literal_error": "{expected}",
}  # fmt: skip
"""Expected values by the type of pydantic's error."""


def wording(root: type[Section], entry: Any, values: Any) -> tuple[Key, str]:
    """Return the key of a validation error and its message: the key, the value found and the expected value.

    Args:
        root: The model that was validated.
        entry: An entry of `pydantic.ValidationError.errors()`.
        values: The values that were validated.
    """
    location, kind, found, context = entry["loc"], entry["type"], entry["input"], entry.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Contradiction):
        return key_of(cause), str(cause)
    key = _without_tags(location, values)
    if kind == "union_tag_not_found":
        close = difflib.get_close_matches("kind", map(str, found), n=1, cutoff=0.5) if isinstance(found, dict) else []
        key = (*key, *close)
        message = "unknown key; did you mean 'kind'?" if close else "the required key 'kind' is missing"
        message += f"; expected one of {', '.join(kinds(annotation_at(root, location)))}"
    elif kind == "union_tag_invalid":
        choices = kinds(annotation_at(root, location))
        key, found = (*key, "kind"), found["kind"]
        message = f"expected one of {', '.join(choices)}, got {shown(found)}{did_you_mean(str(found), choices)}"
    elif kind == "extra_forbidden":
        message = f"unknown key{did_you_mean(str(key[-1]), known_keys(root, location))}"
    elif kind == "missing":
        message = "required key is missing"
    elif kind == "value_error":
        message = str(cause)
    elif kind == "boolean":
        key = (*key, context["key"])
        message = f"{entry['msg']}, got {shown(found[context['key']])}"
    elif kind in ("too_short", "string_too_short", "too_long", "string_too_long"):
        message = _length(kind, context, found)
    else:
        expected = _EXPECTED[kind].format_map(context) if kind in _EXPECTED else str(entry["msg"])
        choices = re.findall(r"'([^']*)'", expected) if kind == "literal_error" else []
        message = f"expected {expected}, got {shown(found)}{did_you_mean(str(found), choices)}"
    return key, f"{dotted(key)}: {message}" if key else message


def key_of(error: Contradiction) -> Key:
    """Return the key at which a contradiction is reported."""
    return dotted_key(error.key) if isinstance(error.key, str) else error.key


def _length(kind: str, context: Any, found: Any) -> str:
    bound, limit = ("at least", context["min_length"]) if "short" in kind else ("at most", context["max_length"])
    one, many = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
    got = shown(found) if isinstance(found, str) else len(found)
    return f"expected {bound} {limit} {one if limit == 1 else many}, got {got}"


def shown(value: Any) -> str:
    """Return a value as in YAML, and the type of a mapping or list."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | Section):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value)


def _without_tags(location: Key, values: Any) -> Key:
    """The key as in the recipe: pydantic adds the `kind` or the type of a union's choice as one more level."""
    key: Key = ()
    place: Any = values
    for depth, part in enumerate(location):
        if isinstance(place, dict) and place.get("kind") == part and depth + 1 < len(location):
            continue
        is_scalar = place is not None and not isinstance(place, dict | list)
        if is_scalar:
            break
        key = (*key, part)
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            place = None
    return key


def where(places: dict[Key, str], overridden: dict[Key, str], key: Key) -> str:
    """Return the location of a key: its `--set`, or its line in a file with each `--set` of a key below it.

    Args:
        places: File and line by key.
        overridden: Text of the overrides by key.
        key: The key to locate. If it has no line, the closest section above it is located.
    """
    for depth in range(len(key), 0, -1):
        if key[:depth] in overridden:
            return f"--set {overridden[key[:depth]]}"
    below = [f"--set {text}" for other, text in overridden.items() if other[: len(key)] == key]
    if key not in places and below:
        return below[0]
    at = key
    while at and at not in places:
        at = at[:-1]
    return " with ".join([places[at], *below])
