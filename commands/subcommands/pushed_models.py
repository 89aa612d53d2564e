"""Subcommands about pushed versions: `promote`, `rollback`, `batch` and `export tflite`."""

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

ModelDir = Annotated[Path, typer.Option(help="Push destination: the folder with the numbered versions.")]


class ReleaseLabel(StrEnum):
    """Version labels of `tandem promote`."""

    CANARY = "canary"
    STABLE = "stable"


def promote(
    model_dir: ModelDir,
    label: Annotated[ReleaseLabel, typer.Option(help="Version label to move.")],
    version: Annotated[int | None, typer.Option(help="Version for the label. \\[default: the latest]")] = None,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Assign a version label to a version, in the models.config next to MODEL_DIR that servers reload."""
    _quiet_tensorflow()
    from commands.release import promote as point

    _print_released(point(model_dir, label.value, version, model), as_json)


def rollback(
    model_dir: ModelDir,
    to: Annotated[int | None, typer.Option(help="Version to roll back to. \\[default: the previous one]")] = None,
    model: ModelName = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Roll back to an earlier version: move the label `stable`, or without labels push that version again."""
    _quiet_tensorflow()
    from commands.release import rollback as go_back

    _print_released(go_back(model_dir, to, model), as_json)


def _print_released(released: Released, as_json: bool) -> None:
    if as_json:
        fields = {"label": released.label, "version": released.version, "before": released.before}
        config = None if released.config is None else str(released.config)
        print(json.dumps({**fields, "copy_of": released.copy_of, "config": config}))
    elif released.label is not None:
        before = "" if released.before is None else f" (was {released.before})"
        print(f"{released.config}: label {released.label} is version {released.version}{before}")
    else:
        print(
            f"Pushed version {released.copy_of} again as version {released.version} "
            f"(latest version before: {released.before})"
        )


class Format(StrEnum):
    """File formats of `tandem batch`."""

    PARQUET = "parquet"
    CSV = "csv"


def batch(
    model_dir: ModelDir,
    users: Annotated[
        Path, typer.Option(help="CSV of the users; columns that are inputs of the model are sent with the user id.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the shards. An interrupted job resumes from the finished shards.")
    ],
    k: Annotated[int, typer.Option(min=1, help="Number of items per user.")] = 100,
    version: Annotated[int | None, typer.Option(help="Version to load. \\[default: the latest]")] = None,
    user_column: Annotated[str, typer.Option(help="Column with the user ids.")] = "user_id",
    format: Annotated[Format, typer.Option(help="File format of the shards.")] = Format.PARQUET,
    beam_runner: BeamEngine = BeamRunner.DIRECT,
    beam_args: BeamArgs = None,
    as_json: AsJson = False,
) -> None:
    """Compute recommendations for all users of a CSV without a server (batch inference)."""
    _quiet_tensorflow()
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
        + (f" ({kept} from an earlier job)" if kept else "")
        + f", model {result.model}"
    )
    if result.ignored_columns:
        print(f"Ignored columns, which are not inputs of the model: {', '.join(result.ignored_columns)}")
    for row in result.rejected[:5]:
        print(f"{row.file}:{row.line}: {row.reason}")
    if result.rejected:
        print(f"Rejected {len(result.rejected):,} rows. All of them: {out / REJECTED_FILE}")


def tflite(
    model: Annotated[Path, typer.Option(help="Folder of a SavedModel, for example a pushed version.")],
    out: Annotated[Path, typer.Option(help="Folder for top_k.tflite and rating.tflite.")],
    k: Annotated[int, typer.Option(min=1, help="Number of items per user.")] = 10,
) -> None:
    """Export to TensorFlow Lite: the top k of each user, and the predicted rating of a user and an item."""
    _quiet_tensorflow()
    from commands.tflite import export_tflite

    for file in export_tflite(model, out, k):
        inputs, outputs = (", ".join(names) for names in (file.inputs, file.outputs))
        print(
            f"{file.path}: {file.bytes / 1e6:.2f} MB, p50 {file.p50_us:.0f} µs on this machine; "
            f"inputs: {inputs}; outputs: {outputs}"
        )


def _quiet_tensorflow() -> None:
    """Silence TensorFlow's log of CPU features and its warnings about deprecated loading functions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").addFilter(lambda record: record.levelno >= logging.ERROR)
