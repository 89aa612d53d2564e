"""Dockerfiles and the build context as the tests need them: instructions by stage, and what .dockerignore leaves."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile.

    Attributes:
        name: after AS; empty without.
        base: image, or stage.
        instructions: name in capitals and the rest, continuation lines joined.
    """

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str | None:
        found = [value for name, value in self.instructions if name == instruction]
        return found[-1] if found else None


def stages(text: str) -> list[Stage]:
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            base, _, alias = value.partition(" AS ")
            found.append(Stage(alias, base, ()))
        elif name:
            found[-1] = dataclasses.replace(found[-1], instructions=(*found[-1].instructions, (name, value.strip())))
    return found


def inherited(all_stages: list[Stage], stage: Stage, instruction: str) -> str | None:
    """An instruction's last value, from the stage or the ones that it is built from."""
    value = stage.last(instruction)
    if value is not None:
        return value
    base = next((each for each in all_stages if each.name == stage.base), None)
    return None if base is None else inherited(all_stages, base, instruction)


def environment(all_stages: list[Stage], stage: Stage) -> dict[str, str]:
    """What ENV sets, in the stage and the ones that it is built from."""
    base = next((each for each in all_stages if each.name == stage.base), None)
    found = {} if base is None else environment(all_stages, base)
    for name, value in stage.instructions:
        if name == "ENV":
            found |= dict(pair.split("=", 1) for pair in value.split())
    return found


def exec_form(value: str | None) -> list[str]:
    """A command in exec form. Raises ValueError for the shell form, which gets no signals."""
    parsed = json.loads(value or "[]")
    if not isinstance(parsed, list):
        raise ValueError(f"{value!r} is not in exec form")
    return [str(each) for each in parsed]


def healthcheck(value: str | None) -> list[str]:
    """The command of a HEALTHCHECK."""
    return exec_form((value or "").partition("CMD ")[2])


def copied(all_stages: list[Stage]) -> list[str]:
    """What is copied from the build context."""
    found: list[str] = []
    for stage in all_stages:
        for name, value in stage.instructions:
            if name in ("COPY", "ADD") and "--from=" not in value:
                *sources, _ = (each for each in value.split() if not each.startswith("--"))
                found += sources
    return found


def in_context(ignore_file: Path, path: str) -> bool:
    """Whether a path is sent to the builder: the last pattern decides that matches it or a folder above it."""
    sent = True
    above = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
    for line in ignore_file.read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(expression, each) for each in above):
            sent = line.strip().startswith("!")
    return sent
