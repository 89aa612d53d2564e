"""Dotted keys: how they are written and assigned, and which keys and types a recipe has.

The root model is an argument everywhere, so that no section of the recipe is imported here.
"""

from __future__ import annotations

from typing import Any, get_args

from recipe.section import Section

Key = tuple[str | int, ...]


def dotted_key(text: str) -> Key:
    """`gates.0.at_least` as `("gates", 0, "at_least")`."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split("."))


def assign(values: dict[str, Any], key: Key, value: Any) -> None:
    """Sets a key in place, with the sections above it where they are missing; KeyError says what is in the way."""
    place: Any = values
    for depth, part in enumerate(key):
        above = ".".join(map(str, key[:depth]))
        if isinstance(place, list) and (not isinstance(part, int) or part >= len(place)):
            raise KeyError(
                f"{above} is a list of {len(place)}; an index from 0 to {len(place) - 1} was wanted, not {part!r}"
            )
        if not isinstance(place, dict | list):
            raise KeyError(f"{above} is a value and has no keys")
        holder: Any = place
        if depth == len(key) - 1:
            holder[part] = value
        else:
            place = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]


def _takes_fractions(annotation: Any) -> bool:
    return annotation is float or any(_takes_fractions(inner) for inner in get_args(annotation))


def takes_fractions(root: type[Section], key: str) -> bool:
    """Whether the dotted `key` of `root` may hold a number with a fraction."""
    return _takes_fractions(annotation_at(root, dotted_key(key)))


def annotation_at(root: type[Section], location: Key) -> Any:
    """The type that `root` has at `location`."""
    annotation: Any = root
    for part in location:
        annotation = _descend(annotation, part)
    return annotation


def kinds(annotation: Any) -> list[str]:
    """The values `kind` may have in a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(get_args(annotation.model_fields["kind"].annotation))
    return [kind for choice in get_args(annotation) for kind in kinds(choice)]


def known_keys(root: type[Section], location: Key) -> set[str]:
    """The keys that may stand where the unknown key at `location` stands."""
    return _fields(annotation_at(root, location[:-1]))


def _fields(annotation: Any) -> set[str]:
    """The keys of a section, given or optional."""
    if isinstance(annotation, type):
        return set(annotation.model_fields) if issubclass(annotation, Section) else set()
    return {name for choice in get_args(annotation) for name in _fields(choice)}


def _descend(annotation: Any, part: str | int) -> Any:
    """The type found under `part` of a section, list or tagged union."""
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
