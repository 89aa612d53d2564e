"""The wording of validation errors: the file and line or the `--set`, the key, what was found and what was expected.

The root model is an argument everywhere, so that no section of the recipe is imported here.
"""

from __future__ import annotations

import difflib
from typing import Any

from recipe.errors import Contradiction, did_you_mean
from recipe.keys import Key, annotation_at, dotted_key, kinds, known_keys
from recipe.section import Section


def wording(root: type[Section], entry: Any, values: Any) -> tuple[Key, str]:
    """The key of a validation error of `root`, and the message: the key, what was found and what was wanted there."""
    location, kind, found = entry["loc"], entry["type"], entry["input"]
    cause = entry.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        return dotted_key(cause.key) if isinstance(cause.key, str) else cause.key, str(cause)
    key = _without_tags(location, values)
    message = str(entry["msg"]).removeprefix("Value error, ")
    if kind == "union_tag_not_found":
        close = difflib.get_close_matches("kind", map(str, found), n=1, cutoff=0.5) if isinstance(found, dict) else []
        key = (*key, *close)
        message = "unknown key; did you mean 'kind'?" if close else "the key 'kind' is missing"
        message += f"; it is one of {', '.join(kinds(annotation_at(root, location)))}"
    elif kind == "union_tag_invalid":
        key, found, choices = (*key, "kind"), found["kind"], kinds(annotation_at(root, location))
        message = f"one of {', '.join(choices)} was wanted{did_you_mean(str(found), choices)}"
    elif kind == "extra_forbidden":
        message = f"unknown key{did_you_mean(str(key[-1]), known_keys(root, location))}"
    elif kind == "missing":
        message = "this key is missing; it has no default"
    elif kind == "switch":
        key, found = (*key, entry["ctx"]["key"]), found[entry["ctx"]["key"]]
    elif kind in _WANTED:
        message = f"{_WANTED[kind]} was wanted"
    shown = isinstance(found, dict | Section) or kind in ("extra_forbidden", "missing", "union_tag_not_found")
    message += "" if shown else f" (found {found!r})"
    return key, ": ".join(part for part in (".".join(map(str, key)), message) if part)


# What pydantic calls by Python's names.
_WANTED = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "tuple_type": "a list",
    "too_short": "a list of at least one",
}


def _without_tags(location: Key, values: Any) -> Key:
    """The key as the recipe writes it: pydantic adds the `kind` of a feature or a split as one more level."""
    key: Key = ()
    place = values
    for depth, part in enumerate(location):
        if isinstance(place, dict) and place.get("kind") == part and depth + 1 < len(location):
            continue
        key = (*key, part)
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            place = None
    return key


def where(places: dict[Key, str], overridden: dict[Key, str], key: Key) -> str:
    """The `--set` that gave `key`, or its line in its file with each `--set` that changed something below it."""
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
