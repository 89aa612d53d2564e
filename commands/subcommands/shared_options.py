"""Arguments and options that several subcommands share, with their help texts and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.beam import BeamRunner

DEFAULT_MODEL = "recommender"
DEFAULT_TARGET = "127.0.0.1:8500"
DEFAULT_TIMEOUT_S = 5.0

# --- pipeline ---------------------------------------------------------------------------------------------------------

SchemaDir = Annotated[
    Path, typer.Argument(help="Folder with recipe.yaml and schema.pbtxt, for example schemas/movielens.")
]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder with the CSVs. \\[default: data/NAME]")]
WorkDir = Annotated[
    Path | None, typer.Option("--workdir", help="Folder for artifacts, ML Metadata and logs. \\[default: work/NAME]")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe key, for example model.embedding_dim=32. Repeatable."),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Preset to apply to the recipe: SCHEMA_DIR/presets/NAME.yaml.")
]
BeamEngine = Annotated[
    BeamRunner, typer.Option("--beam-runner", help="Beam runner; docs/beam.md lists the requirements of each.")
]
BeamArgs = Annotated[
    list[str] | None,
    typer.Option("--beam-arg", help="Additional Beam option, for example --beam-arg=--parallelism=4. Repeatable."),
]

# --- runs -------------------------------------------------------------------------------------------------------------

RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Run id or its prefix, `latest`, or `previous` (the run before the latest)."),
]
RunsDir = Annotated[Path, typer.Option("--workdir", help="Work folder of the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

# --- requests to a server ---------------------------------------------------------------------------------------------

Target = Annotated[str, typer.Option("--target", help="HOST:PORT of the gRPC server.")]
VersionLabel = Annotated[
    str | None,
    typer.Option("--label", help="Version label to request, for example canary. \\[default: the latest]"),
]
ModelName = Annotated[str, typer.Option("--model", help="Name of the model on the server.")]
History = Annotated[
    list[str] | None,
    typer.Option("--history", help="Item id to add to the user's stored history (fold-in). Repeatable."),
]
Excluded = Annotated[list[str] | None, typer.Option("--exclude", help="Item id to exclude. Repeatable.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="Item id to allow; only allowed items are recommended. Repeatable.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline of the request in seconds.")]
UseTls = Annotated[bool, typer.Option("--tls", help="Use TLS with the system's root certificates.")]
_PEM_FILE: dict[str, Any] = {"exists": True, "dir_okay": False, "readable": True, "metavar": "FILE"}
TlsRoot = Annotated[
    Path | None,
    typer.Option("--tls-root", help="Use TLS with the root certificates in this PEM file.", **_PEM_FILE),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM file with the client certificate, for mutual TLS.", **_PEM_FILE)
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM file with the client certificate's private key.", **_PEM_FILE)
]
