"""Dotted keys: parsing and assignment, and the keys and types that a recipe has at a key.

The root model is an argument of every function, so this module imports no section of the recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from recipe.section import Section

Key = tuple[str | int, ...]

DottedKey = Annotated[str, "dotted key"]
"""Type of a string that is a dotted key of the root model."""


def dotted_key(text: str) -> Key:
    """Parse a dotted key.

    Example:
        dotted_key("gates.0.at_least")  # ("gates", 0, "at_least")
    """
    return tuple(int(part) if part.isdecimal() else part for part in text.split("."))


def dotted(key: Key) -> str:
    """Return the dotted form of a key, the inverse of `dotted_key`."""
    return ".".join(map(str, key))


def assign(values: dict[str, Any], key: Key, value: Any) -> None:
    """Set a key in place, and add missing sections above it; raise KeyError if a value is not a section or a list."""
    place: Any = values
    for depth, part in enumerate(key):
        above = dotted(key[:depth])
        if isinstance(place, list) and (not isinstance(part, int) or part >= len(place)):
            raise KeyError(f"{above}: expected an index from 0 to {len(place) - 1}, got {part!r}")
        if not isinstance(place, dict | list):
            raise KeyError(f"{above} is a value, so it has no key {part!r}")
        holder: Any = place
        if depth == len(key) - 1:
            holder[part] = value
        else:
            place = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]


def takes_fractions(root: type[Section], key: str) -> bool:
    """Return whether the dotted `key` of `root` accepts a number that is not an integer."""
    return _takes_fractions(annotation_at(root, dotted_key(key)))


def _takes_fractions(annotation: Any) -> bool:
    return annotation is float or any(_takes_fractions(inner) for inner in get_args(annotation))


def annotation_at(root: type[Section], location: Key) -> Any:
    """Return the type annotation that `root` has at `location`."""
    annotation: Any = root
    for part in location:
        annotation = _descend(annotation, part)
    return annotation


def kinds(annotation: Any) -> list[str]:
    """Return the values of `kind` in a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(get_args(annotation.model_fields["kind"].annotation))
    return [kind for choice in get_args(annotation) for kind in kinds(choice)]


def known_keys(root: type[Section], location: Key) -> set[str]:
    """Return the valid keys in the section of the unknown key at `location`."""
    return _fields(annotation_at(root, location[:-1]))


def _fields(annotation: Any) -> set[str]:
    """The keys of a section or an optional section."""
    if isinstance(annotation, type):
        return set(annotation.model_fields) if issubclass(annotation, Section) else set()
    return {name for choice in get_args(annotation) for name in _fields(choice)}


def _descend(annotation: Any, part: str | int) -> Any:
    """The annotation at `part` of a section, list or tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Section) and part in annotation.model_fields:
        return annotation.model_fields[str(part)].annotation
    for choice in get_args(annotation):
        found = _descend_choice(choice, part)
        if found is not None:
            return found
    return annotation


def _descend_choice(choice: Any, part: str | int) -> Any:
    if isinstance(part, int):
        return choice
    if isinstance(choice, type) and issubclass(choice, Section):
        kind = choice.model_fields.get("kind")
        if kind is not None and part in get_args(kind.annotation):
            return choice
        return _descend(choice, part) if part in choice.model_fields else None
    for inner in get_args(choice):
        found = _descend_choice(inner, part)
        if found is not None:
            return found
    return None
