"""Renamed keys: the old names in `Section.renamed_keys` stay readable as deprecated aliases.

`load_recipe` renames the keys of files and overrides and warns with file and line. The root models rename the keys of
JSON that an earlier version wrote. The root model is an argument, so this module imports no section of the recipe.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from recipe.errors import Contradiction, DeprecatedKey
from recipe.keys import DottedKey, Key, dotted, dotted_key
from recipe.section import Section


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A key with an old name, and the same key with its current name."""

    old: Key
    new: Key

    def __str__(self) -> str:
        return f"{dotted(self.old)} is deprecated; rename it to {dotted(self.new)}"


def current_values(root: type[Section], values: Any, at: Key = ()) -> tuple[Any, list[Renamed]]:
    """Return values with the current names of all keys, and the keys that had an old name.

    Example:
        current_values(Recipe, {"model": {"stranger_dropout": 0.1}})  # {"model": {"cold_start_dropout": 0.1}}, [...]

    Args:
        root: The root model.
        values: Its values, or those of one of its sections, as read from YAML or JSON.
        at: Key of that section, with current names.

    Raises:
        Contradiction: A key is set under both names.
    """
    annotation: Any = root
    for part in at:
        _, annotation = _step(annotation, part)
    walk = _Walk(root, [])
    return walk.renamed(annotation, values, at, at), walk.found


def current_key(root: type[Section], key: Key) -> Key:
    """Return a key of `root` with the current names of all its parts."""
    annotation: Any = root
    found: Key = ()
    for part in key:
        name, annotation = _step(annotation, part)
        found = (*found, name)
    return found


def with_current_names(root: type[Section], values: Any) -> Any:
    """Return the values of `root` with the current names of all keys, and issue a warning for each old name."""
    values, renamed = current_values(root, values)
    for each in renamed:
        warnings.warn(DeprecatedKey(str(each)), stacklevel=2)
    return values


@dataclasses.dataclass
class _Walk:
    root: type[Section]
    found: list[Renamed]

    def renamed(self, annotation: Any, values: Any, old: Key, new: Key) -> Any:
        """The values with current names; `old` and `new` are their key with the names found and with current names."""
        if isinstance(values, list):
            return [self.renamed(_entry(annotation), value, (*old, i), (*new, i)) for i, value in enumerate(values)]
        if not isinstance(values, dict):
            return values
        result = {}
        for name, value in values.items():
            if _is_keyed_by_dotted_keys(annotation) and isinstance(name, str):
                current, inner = dotted(current_key(self.root, dotted_key(name))), _entry(annotation)
            else:
                current, inner = _step(annotation, name, values.get("kind"))
            if current != name:
                renamed = Renamed((*old, name), (*new, current))
                if current in values or current in result:
                    raise Contradiction(
                        renamed.old,
                        f"{dotted(renamed.old)} is an old name of {dotted(renamed.new)}; remove one of them",
                    )
                self.found.append(renamed)
            result[current] = self.renamed(inner, value, (*old, name), (*new, current))
        return result


def _step(annotation: Any, part: Any, kind: Any = None) -> tuple[Any, Any]:
    """The current name of `part` in a section, mapping or list, and its annotation. `kind` is that of the section."""
    sections = list(_sections(annotation))
    if not sections:
        return part, _entry(annotation)
    tagged = [each for each in sections if "kind" in each.model_fields]
    sections = [each for each in tagged if kind in get_args(each.model_fields["kind"].annotation)] or sections
    if not any(part in each.model_fields for each in sections):
        part = next((each.renamed_keys[part] for each in sections if part in each.renamed_keys), part)
    fields = [each.model_fields[part] for each in sections if part in each.model_fields]
    return part, fields[0].annotation if fields else None


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a value of this type can be."""
    if isinstance(annotation, type):
        if issubclass(annotation, Section):
            yield annotation
    elif get_origin(annotation) not in (dict, tuple):
        for choice in get_args(annotation):
            yield from _sections(choice)


def _entry(annotation: Any) -> Any:
    """The annotation of the values of a mapping or list."""
    if get_origin(annotation) in (dict, tuple):
        return get_args(annotation)[1 if get_origin(annotation) is dict else 0]
    return next((found for choice in get_args(annotation) if (found := _entry(choice)) is not None), None)


def _is_keyed_by_dotted_keys(annotation: Any) -> bool:
    return get_origin(annotation) is dict and get_args(annotation)[0] == DottedKey
