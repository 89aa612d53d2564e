"""Commands about what was pushed: `promote`, `rollback`, `batch`, `export tflite`."""

from __future__ import annotations

import json
import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.subcommands.shared_options import DEFAULT_MODEL, AsJson, BeamArgs, BeamEngine, ModelName
from pipeline.beam import BeamOptions, BeamRunner

if TYPE_CHECKING:
    from commands.release import Released

ModelDir = Annotated[Path, typer.Option(help="Folder with numbered versions, as the Pusher writes them.")]


class ReleaseLabel(StrEnum):
    """The labels that a version can be promoted to."""

    CANARY = "canary"
    STABLE = "stable"


def promote(
    model_dir: ModelDir,
    label: Annotated[ReleaseLabel, typer.Option(help="The label that clients ask for.")],
    version: Annotated[int | None, typer.Option(help="Version to point it at. [default: the newest]")] = None,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Point a label at a version, in the models.config beside MODEL_DIR that servers follow."""
    _no_greeting()
    from commands.release import promote as point

    _print_released(point(model_dir, label.value, version, model), as_json)


def rollback(
    model_dir: ModelDir,
    to: Annotated[int | None, typer.Option(help="Version to go back to. [default: the one before]")] = None,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Go back to an older version: move `stable` in models.config, or without labels make it the newest again."""
    _no_greeting()
    from commands.release import rollback as go_back

    _print_released(go_back(model_dir, to, model), as_json)


def _print_released(released: Released, as_json: bool) -> None:
    if as_json:
        fields = {"label": released.label, "version": released.version, "before": released.before}
        config = None if released.config is None else str(released.config)
        print(json.dumps({**fields, "copy_of": released.copy_of, "config": config}))
    elif released.label is not None:
        before = "" if released.before is None else f" (it was at {released.before})"
        print(f"{released.config}: {released.label} is version {released.version}{before}")
    else:
        print(
            f"Version {released.copy_of} is the newest again, as version {released.version} "
            f"(version {released.before} was the newest)"
        )


class Format(StrEnum):
    """How recommendations are written."""

    PARQUET = "parquet"
    CSV = "csv"


def batch(
    model_dir: ModelDir,
    users: Annotated[Path, typer.Option(help="CSV of the users; its columns go to the model that takes them.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards. A job that was stopped goes on from them.")],
    k: Annotated[int, typer.Option(min=1, help="Items a user.")] = 100,
    version: Annotated[int | None, typer.Option(help="Version to ask. [default: the newest]")] = None,
    user_column: Annotated[str, typer.Option(help="Column of the user ids.")] = "user_id",
    format: Annotated[Format, typer.Option(help="How the shards are written.")] = Format.PARQUET,
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    as_json: AsJson = False,
) -> None:
    """Recommend to every user of a file, without a server."""
    _no_greeting()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from commands.batch_inference import REJECTED_FILE, run_batch

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("shards", total=None)
        result = run_batch(
            model_dir,
            users,
            out,
            version=version,
            k=k,
            user_column=user_column,
            format=format.value,
            beam=BeamOptions(beam_runner, tuple(beam_args or ())),
            progress=lambda done, shards: bar.update(task, completed=done, total=shards),
        )
    if as_json:
        numbers = {"users": result.users, "rows": result.rows, "rejected": len(result.rejected)}
        shards = {"shards": len(result.shards), "computed": result.computed}
        print(json.dumps({"model": str(result.model), **numbers, **shards, "out": str(out)}))
        return
    kept = len(result.shards) - result.computed
    print(
        f"{out}: {result.rows:,} recommendations for {result.users:,} users in {len(result.shards)} shards"
        + (f", {kept} of them from before" if kept else "")
        + f", by {result.model}"
    )
    if result.ignored_columns:
        print(f"The model does not take the columns {', '.join(result.ignored_columns)}.")
    for row in result.rejected[:5]:
        print(f"{row.file}:{row.line}: {row.reason}")
    if result.rejected:
        print(f"{len(result.rejected):,} rows were left out; {out / REJECTED_FILE} has them all.")


def tflite(
    model: Annotated[Path, typer.Option(help="Folder of a SavedModel, such as a pushed version.")],
    out: Annotated[Path, typer.Option(help="Folder to write top_k.tflite and rating.tflite to.")],
    k: Annotated[int, typer.Option(min=1, help="Items a list has.")] = 10,
) -> None:
    """Write the model for phones: everybody's list, and a rating for any user and item."""
    _no_greeting()
    from commands.tflite import export_tflite

    for file in export_tflite(model, out, k):
        asked, answered = (", ".join(names) for names in (file.inputs, file.outputs))
        print(
            f"{file.path}: {file.bytes / 1e6:.2f} MB, {file.p50_us:.0f} µs a call on this machine; "
            f"{asked} in, {answered} out"
        )


def _no_greeting() -> None:
    # TensorFlow greets with a page of CPU features, and tells people to load models by other functions.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)
