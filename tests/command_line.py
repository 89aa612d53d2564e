"""Parse the arguments of a `tandem` call as the command line does, without running it."""

from __future__ import annotations

from typing import Any

import typer

from commands.cli import app
from serving.config import server_options


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The values of a command's options; empty for `--help`.

    Raises:
        LookupError: The command does not exist.
        typer.TyperException: The command does not have an option, or a value is invalid.
        SystemExit: The same for `serve`, which has a parser of its own.
    """
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        if name not in command.commands:
            raise LookupError(f"expected one of {sorted(command.commands)}, got {name!r}")
        command = command.commands[name]
    if arguments == ["--help"]:
        return {}
    if command.name == "serve":
        return vars(server_options.parse(arguments))
    parameters: dict[str, Any] = command.make_context(command.name, list(arguments)).params
    return parameters
