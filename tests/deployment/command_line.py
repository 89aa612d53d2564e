"""The arguments of a `tandem` call, read by the command line itself; nothing is run."""

from __future__ import annotations

from typing import Any

import typer

from commands.cli import app


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What a command would be called with; empty for `--help`.

    Raises:
        LookupError: There is no such command.
        typer.TyperException: The command does not take an option, or a value.
    """
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        if name not in command.commands:
            raise LookupError(f"{name!r} is no command of tandem; there are {sorted(command.commands)}")
        command = command.commands[name]
    if arguments == ["--help"]:
        return {}
    parameters: dict[str, Any] = command.make_context(command.name, list(arguments)).params
    return parameters
