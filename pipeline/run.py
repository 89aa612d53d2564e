"""One run of the DAG on this machine: from a recipe and a data folder to a verdict and a pushed model."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging as python_logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
from rich.console import Console

from components.evaluator.verdict import VERDICT_FILE, Verdict
from components.example_gen.check import check_sources, interactions_bytes
from pipeline.beam import DIRECT, BeamOptions
from pipeline.console import CACHED, Progress, output_to_file
from pipeline.lineage import Lineage, StoredArtifact
from pipeline.recipe import BadInput, Recipe, load_recipe, load_schema
from pipeline.workdir import (
    ASKED_FILE,
    ERROR_FILE,
    LOCK_FILE,
    LOG_FILE,
    METADATA_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    new_folder,
    run_folder,
    write_whole,
)

if TYPE_CHECKING:
    from pipeline.runners.local import ComponentError


class ComponentFailure(Exception):
    """A component failed for a reason that is not the user's input; names the component, the error and the log."""


class ComponentTime(pydantic.BaseModel):
    """How long a component took in one run."""

    name: str
    seconds: float
    cached: bool


class Asked(pydantic.BaseModel):
    """What a run was asked for; its folder keeps it as `asked.json`, beside `recipe.json`, which is what came of it."""

    schema_dir: str
    preset: str | None
    overrides: tuple[str, ...]


class ServedLatency(pydantic.BaseModel):
    """What one caller of `recommend` waits for an answer of the embedded server, in milliseconds."""

    p50_ms: float
    p99_ms: float


class RunResult(pydantic.BaseModel):
    """What came of a run; `tandem run --json` prints it, and the run's folder keeps it."""

    run_id: str
    recipe: str
    """Name of the recipe."""
    preset: str | None = None
    """Name of the preset that stood in for sections of the recipe; None where there was none."""
    seconds: float
    components: tuple[ComponentTime, ...]
    rows: dict[str, int]
    """Rows read, rejected and merged with another, sampled negatives, and the rows of each split."""
    hyperparameters: dict[str, Any] | None = None
    """What the Tuner found and the Trainer took, by dotted key; None where nothing was searched."""
    metrics: dict[str, float]
    verdict: Verdict
    latency: ServedLatency | None = None
    """What the InfraValidator measured; None where it turned the model down before."""
    not_servable: str | None
    """Why the InfraValidator turned the model down; None where it did not."""
    blessed: bool
    """Whether the model passed every gate and can be served."""
    pushed_model: str | None
    """Path of the pushed version; None where nothing was pushed."""
    log: str


def run_recipe(
    schema_dir: Path,
    data: Path,
    workdir: Path,
    *,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    serving_dir: Path | None = None,
    beam: BeamOptions = DIRECT,
) -> RunResult:
    """Runs the whole DAG with progress on the terminal's standard error.

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`.
        data: Folder with the CSVs.
        workdir: Folder for artifacts, ML Metadata and logs; made if needed, shared by all runs on it.
        overrides: `key=value` changes to the recipe and its preset.
        preset: Name of a preset of `schema_dir`.
        serving_dir: Folder that TensorFlow Serving watches; by default `serving/NAME` in `workdir`.
        beam: Where Beam's part is computed. No result depends on it, nor whether one comes from the cache.

    Raises:
        BadInput: The recipe, the schema, the data or Beam's options cannot be used; nothing was pushed.
        ComponentFailure: A component failed; nothing was pushed.
    """
    recipe = load_recipe(schema_dir, overrides, preset)
    schema = load_schema(schema_dir, recipe)
    check_sources(data, recipe.data, schema, recipe.features)
    beam.check()
    workdir, serving_dir = workdir.absolute(), (serving_dir or workdir / "serving" / recipe.name).absolute()
    for flag, place in (("--workdir", workdir), ("--serving-dir", serving_dir)):
        check_folder(flag, place)
    with only_run_in(workdir):
        folder = new_folder(workdir / RUNS_FOLDER)
        asked = Asked(schema_dir=str(schema_dir), preset=preset, overrides=tuple(overrides))
        (folder / ASKED_FILE).write_text(asked.model_dump_json(indent=1))
        (folder / RECIPE_FILE).write_text(recipe.model_dump_json(indent=1))
        with _error_kept(folder / ERROR_FILE), output_to_file(folder / LOG_FILE) as terminal:
            seconds, components = _run(
                recipe, schema, folder.name, data.absolute(), workdir, serving_dir, beam, terminal
            )  # fmt: skip
        result = result_of(workdir, folder.name, recipe.name, preset, seconds, components)
        write_whole(folder / RESULT_FILE, result.model_dump_json(indent=1))
    return result


def _run(
    recipe: Recipe,
    schema: Any,
    run_id: str,
    data: Path,
    workdir: Path,
    serving_dir: Path,
    beam: BeamOptions,
    terminal: Any,
) -> tuple[float, tuple[ComponentTime, ...]]:
    console = Console(file=terminal)
    start = time.monotonic()
    with start_tfx(console):
        from tfx import v1 as tfx

        from pipeline.dag import create_pipeline
        from pipeline.runners import local

        dag = create_pipeline(
            recipe,
            schema,
            data_root=str(data),
            pipeline_root=str(workdir / "artifacts"),
            serving_dir=str(serving_dir),
            metadata=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(workdir / METADATA_FILE)),
            beam_pipeline_args=beam.pipeline_args(interactions_bytes(data, recipe.data)),
        )
        progress = Progress(console, len(dag.components))
        try:
            components = local.run(
                dag,
                run_id,
                started=progress.start,
                finished=lambda run: progress.done(run.name, run.seconds, CACHED if run.cached else ""),
            )
        except local.ComponentError as error:
            progress.failed(error.component, error.seconds)
            raise explained(error, run_folder(workdir, run_id) / LOG_FILE) from error
    return time.monotonic() - start, tuple(
        ComponentTime(name=run.name, seconds=round(run.seconds, 2), cached=run.cached) for run in components
    )


@contextlib.contextmanager
def start_tfx(console: Console) -> Iterator[None]:
    """Imports TensorFlow and TFX, and lets them log while the DAG runs."""
    with Progress(console, 0).step("starting TensorFlow and TFX"):
        from absl import logging

        import pipeline.runners.local  # noqa: F401

    # The only handler: others that libraries have installed meanwhile would write every line twice.
    python_logging.root.handlers = [logging.get_absl_handler()]
    logging.set_verbosity(logging.INFO)
    try:
        yield
    finally:
        # What comes after the run is for people, not for the log.
        logging.set_verbosity(logging.WARNING)


def explained(error: ComponentError, log: Path) -> BadInput | ComponentFailure:
    """What a person is told when a component failed: how to mend the input, or where the whole story stands."""
    from absl import logging

    cause = error.__cause__
    logging.error("%s failed", error.component, exc_info=cause)
    if isinstance(cause, BadInput):
        return type(cause)(f"{error.component}: {cause}")
    return ComponentFailure(
        f"{error.component} failed: {type(cause).__name__}: {_first_line(cause)}\n"
        f"The whole story is at the end of {log}. Components before it are cached: mend the cause and type the same "
        "command again, and the run goes on from there."
    )


def result_of(
    workdir: Path, run_id: str, recipe: str, preset: str | None, seconds: float, components: Sequence[ComponentTime]
) -> RunResult:
    """What came of a run whose components are all done, as ML Metadata has it.

    Args:
        workdir: The run's work folder.
        run_id: The run's name there.
        recipe: The recipe's name.
        preset: The preset's name.
        seconds: What the whole run took.
        components: What its components took, in order.
    """
    lineage = Lineage(workdir)
    outputs = {step.component: lineage.outputs(step) for step in lineage.steps(run_id)}
    examples, pushed = outputs["InteractionExampleGen"]["examples"], outputs["Pusher"]["pushed_model"].properties
    infra = outputs["InfraValidator"]["blessing"].properties
    verdict = Verdict.model_validate_json(Path(outputs["Evaluator"]["evaluation"].uri, VERDICT_FILE).read_text())
    servable = infra.get("blessed") == 1
    counts = ("read", "rejected", "merged", "negatives", "train", "eval", "catalogue")
    return RunResult(
        run_id=run_id,
        recipe=recipe,
        preset=preset,
        seconds=round(seconds, 2),
        components=tuple(components),
        rows={name: examples.properties.get(f"rows_{name}", 0) for name in counts},
        hyperparameters=_found(outputs["Tuner"]["best_hyperparameters"]) if "Tuner" in outputs else None,
        metrics=verdict.metrics,
        verdict=verdict,
        latency=_latency(infra),
        not_servable=None if servable else str(infra.get("reason", "")),
        blessed=verdict.blessed and servable,
        pushed_model=str(pushed["pushed_destination"]) if pushed.get("pushed") == 1 else None,
        log=str(run_folder(workdir, run_id) / LOG_FILE),
    )


def _latency(infra_blessing: Mapping[str, Any]) -> ServedLatency | None:
    from components.infra_validator.latency import P50_PROPERTY, P99_PROPERTY

    if P99_PROPERTY not in infra_blessing:
        return None
    p50, p99 = (infra_blessing[name] for name in (P50_PROPERTY, P99_PROPERTY))
    return ServedLatency(p50_ms=round(p50, 3), p99_ms=round(p99, 3))


def _found(best: StoredArtifact) -> dict[str, Any]:
    """The values that the Tuner found best."""
    from components.tuner.hyperparameters import found_values

    (file,) = Path(best.uri).iterdir()
    return found_values(json.loads(file.read_text()))


def check_folder(flag: str, place: Path) -> None:
    """Refuses a folder that is not one, or cannot be made or written."""
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "cannot be written" if there.is_dir() else "is not a folder"
        raise BadInput(f"{flag} {place}: {there} {found}. Name a folder that can be made and written.")


@contextlib.contextmanager
def _error_kept(path: Path) -> Iterator[None]:
    """Leaves the reason why a run failed for its report."""
    try:
        yield
    except KeyboardInterrupt:
        path.write_text("The run was stopped by hand (Ctrl-C).")
        raise
    except Exception as error:
        path.write_text(str(error) or type(error).__name__)
        raise


@contextlib.contextmanager
def only_run_in(workdir: Path, *, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Two runs at once would take each other's models for the last blessed one.

    The tasks of one run of an orchestrator, which may be at work side by side, hold a lock of the kind `LOCK_SH`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{workdir}: another run is at work here. Wait for it, or give --workdir another folder."
            ) from None
        yield


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
