"""What several commands share: their arguments, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.beam import BeamRunner

DEFAULT_MODEL = "recommender"
DEFAULT_TARGET = "127.0.0.1:8500"
DEFAULT_TIMEOUT_S = 5.0

SchemaDir = Annotated[Path, typer.Argument(help="Folder with recipe.yaml and schema.pbtxt, such as schemas/movielens.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder with the CSVs. [default: data/NAME]")]
WorkDir = Annotated[
    Path | None, typer.Option("--workdir", help="Folder for artifacts, metadata and logs. [default: work/NAME]")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key of the recipe, e.g. model.embedding_dim=32. Repeatable.")
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="Use SCHEMA_DIR/presets/NAME.yaml in place of the recipe's own sections.")
]
BeamEngine = Annotated[
    BeamRunner, typer.Option("--beam-runner", help="Engine for what runs on Beam; docs/beam.md says what each needs.")
]
BeamArgs = Annotated[
    list[str] | None,
    typer.Option("--beam-arg", help="Any other option of Beam, e.g. --beam-arg=--parallelism=4. Repeatable."),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of a run or its beginning, `latest`, or `previous`: the one before it.")
]
RunsDir = Annotated[Path, typer.Option("--workdir", help="Folder of the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Target = Annotated[str, typer.Option("--target", help="HOST:PORT of the gRPC server.")]
VersionLabel = Annotated[
    str | None, typer.Option("--label", help="Ask the version that the server has under this label, such as canary.")
]
ModelName = Annotated[str, typer.Option("--model", help="Name the server knows the model by.")]
History = Annotated[
    list[str] | None,
    typer.Option("--history", help="Id of an item the user touched, on top of what the model remembers. Repeatable."),
]
Excluded = Annotated[list[str] | None, typer.Option("--exclude", help="Id of an item to leave out. Repeatable.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Id of an item to choose from. Repeatable.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that the answer may take.")]
UseTls = Annotated[bool, typer.Option("--tls", help="Use TLS, with the public certificate authorities.")]
_PEM_FILE: dict[str, Any] = {"exists": True, "dir_okay": False, "readable": True, "metavar": "FILE"}
TlsRoot = Annotated[
    Path | None,
    typer.Option("--tls-root", help="Use TLS, with the certificate authorities in this PEM file.", **_PEM_FILE),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="PEM file with your certificate, for mutual TLS.", **_PEM_FILE)
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM file with its private key.", **_PEM_FILE)]
