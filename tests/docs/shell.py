"""The shell commands of the documentation: what indented blocks and fences of `bash` contain."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / "benchmarks" / "README.md", ROOT / "serving" / "client" / "README.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
)
SHELLS = ("bash", "sh", "shell", "console")

_SUBSTITUTION = re.compile(r"\$\(realpath (?:-m )?([^)]*)\)")
_VARIABLE = re.compile(r"\$\{?(\w+)(?:%/\*)?\}?")
_ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)
_SEPARATORS = ("&&", "&", "|", ";", "||")
_KEYWORDS = ("for", "do", "done")


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block that contains shell commands."""

    page: str
    line: int
    """Line of the page, from 1."""
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """One simple command, with variables expanded where their value is known."""

    page: str
    line: int
    """Line of its block."""
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    @property
    def program(self) -> str:
        """Name of the program, without its folder."""
        return self.words[0].removeprefix(".venv/bin/")

    @property
    def arguments(self) -> list[str]:
        return list(self.words[1:])


def blocks(page: Path) -> Iterator[Block]:
    """The shell blocks of a page. Every other block has to be a fence with the name of its language."""
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    for token in MarkdownIt().parse(page.read_text()):
        language = token.info.strip()
        if token.type == "code_block" or (token.type == "fence" and (not language or language in SHELLS)):
            assert token.map is not None
            yield Block(name, token.map[0] + 1, token.content)


def statements(text: str) -> Iterator[str]:
    """Logical lines: continued with a backslash, in an open quote, or each one inside of a loop."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # an open quote
            pending += "\n"
            continue
        if words:
            yield pending
        pending = ""
    assert not pending, f"an open quote or a trailing backslash: {pending!r}"


def commands(block: Block, variables: dict[str, str]) -> Iterator[Command]:
    """The simple commands of a block; `variables` is extended by what the block exports."""
    for statement in statements(block.text):
        for words in _simple_commands(_SUBSTITUTION.sub(r"\1", statement)):
            if words[0] == "for":
                variables[words[1]] = words[3]
                continue
            assigned = _assignments(words[1:] if words[0] == "export" else words)
            for name, value in assigned.items():
                variables[name] = _expanded(value, variables)
            rest = words if words[0] == "export" else words[len(assigned) :]
            if rest:
                yield Command(block.page, block.line, tuple(_expanded(word, variables) for word in rest))


def _simple_commands(statement: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(statement, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in _SEPARATORS:
            if words and words[0] in ("do", "done"):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(word)


def _assignments(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        match = _ASSIGNMENT.fullmatch(word)
        if match is None:
            break
        found[match[1]] = match[2]
    return found


def _expanded(word: str, variables: dict[str, str]) -> str:
    """The word with the variables that are known; others stay as they are, such as `$1` of a program's own syntax."""
    return _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), word)
