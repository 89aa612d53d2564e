"""Local runner: one run of the DAG in this process, for `tandem run` and the Python API.

TFX's LocalDagRunner does not report progress by component, so `pipeline.runners.launch` runs the components.
"""

from __future__ import annotations

import contextlib
import gc
import logging as python_logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from components.example_gen.resolve import check_features, resolve_sources
from pipeline.beam import DIRECT, BeamOptions
from pipeline.console import CACHED, Progress, output_to_file, progress_console
from pipeline.oracle_metrics import oracle_metrics
from pipeline.result import ComponentTime, RunRequest, RunResult, result_of
from pipeline.workdir import (
    ARTIFACTS_FOLDER,
    ERROR_FILE,
    LOG_FILE,
    METADATA_FILE,
    REQUEST_FILE,
    RESOLVED_RECIPE_FILE,
    RESULT_FILE,
    RUNS_FOLDER,
    check_folder,
    new_folder,
    only_run_in,
    push_destination,
    run_folder,
    write_whole,
)
from recipe import BadInput, Recipe, load_recipe, load_schema

if TYPE_CHECKING:
    from pipeline.runners.launch import ComponentError


class ComponentFailure(Exception):
    """A component failed, and not because of invalid input. The message has the component, the error and the log."""


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
    """Run the whole DAG, with progress on stderr.

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`.
        data: Folder with the CSVs.
        workdir: Folder for artifacts, ML Metadata and logs, shared by its runs; made if it does not exist.
        overrides: `key=value` overrides of the recipe and its preset.
        preset: Name of a preset of `schema_dir`.
        serving_dir: Push destination. Default: `serving/NAME` in `workdir`.
        beam: Beam's runner and options; they are not part of the cache key.

    Raises:
        BadInput: The recipe, the schema, the data or Beam's options are invalid; nothing was pushed.
        ComponentFailure: A component failed; nothing was pushed.

    Example:
        result = run_recipe(Path("schemas/movielens"), Path("data/movielens"), Path("work/movielens"))
        print(result.blessed, result.metrics["rmse"], result.pushed_model)
    """
    recipe = load_recipe(schema_dir, overrides, preset)
    schema = load_schema(schema_dir, recipe)
    sources = resolve_sources(data, recipe.data, schema)
    check_features(recipe.features, recipe.data.columns, sources)
    beam.check()
    workdir, serving_dir = workdir.absolute(), (serving_dir or push_destination(workdir, recipe.name)).absolute()
    for flag, place in (("--workdir", workdir), ("--serving-dir", serving_dir)):
        check_folder(flag, place)
    with only_run_in(workdir):
        folder = new_folder(workdir / RUNS_FOLDER)
        request = RunRequest(schema_dir=str(schema_dir), preset=preset, overrides=tuple(overrides))
        (folder / REQUEST_FILE).write_text(request.model_dump_json(indent=1))
        (folder / RESOLVED_RECIPE_FILE).write_text(recipe.model_dump_json(indent=1))
        with _error_kept(folder / ERROR_FILE), output_to_file(folder / LOG_FILE) as terminal:
            beam_args = beam.pipeline_args(sources.interactions.bytes)
            seconds, components = _run(
                recipe, schema, folder.name, data.absolute(), workdir, serving_dir, beam_args, terminal
            )  # fmt: skip
        best = oracle_metrics(data, recipe.data.split.model_dump())
        result = result_of(workdir, folder.name, recipe.name, preset, seconds, components, best)
        write_whole(folder / RESULT_FILE, result.model_dump_json(indent=1))
    return result


def _run(
    recipe: Recipe,
    schema: Any,
    run_id: str,
    data: Path,
    workdir: Path,
    serving_dir: Path,
    beam_args: Sequence[str],
    terminal: Any,
) -> tuple[float, tuple[ComponentTime, ...]]:
    console = progress_console(terminal)
    start = time.monotonic()
    with start_tfx(console):
        from tfx.orchestration import metadata

        from pipeline.dag import compile_dag, create_pipeline
        from pipeline.runners import launch

        dag = create_pipeline(
            recipe,
            schema,
            data_root=str(data),
            pipeline_root=str(workdir / ARTIFACTS_FOLDER),
            serving_dir=str(serving_dir),
            metadata=metadata.sqlite_metadata_connection_config(str(workdir / METADATA_FILE)),
            beam_pipeline_args=beam_args,
        )
        progress = Progress(console, len(dag.components))
        try:
            components = launch.run(
                compile_dag(dag),
                run_id,
                started=progress.start,
                finished=lambda run: progress.done(run.name, run.seconds, CACHED if run.cached else ""),
            )
        except launch.ComponentError as error:
            progress.failed(error.component, error.seconds)
            raise explained(error, run_folder(workdir, run_id) / LOG_FILE) from error
    return time.monotonic() - start, tuple(
        ComponentTime(name=run.name, seconds=round(run.seconds, 2), cached=run.cached) for run in components
    )


@contextlib.contextmanager
def start_tfx(console: Console) -> Iterator[None]:
    """Import TensorFlow and TFX, and let them log inside the block."""
    with Progress(console, 0).step("starting TensorFlow and TFX"), _never_garbage():
        from absl import logging

        import pipeline.dag
        import pipeline.runners.launch  # noqa: F401

    # The only handler: libraries have installed others, which would write every line twice.
    python_logging.root.handlers = [logging.get_absl_handler()]
    logging.get_absl_handler().python_handler.stream = sys.stderr
    logging.set_verbosity(logging.INFO)
    try:
        yield
    finally:
        # Later output goes to the terminal.
        logging.set_verbosity(logging.WARNING)


@contextlib.contextmanager
def _never_garbage() -> Iterator[None]:
    """Exclude the objects that are made inside the block from garbage collection.

    Imports make a million objects, which the collector would visit repeatedly during the import and in every component.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def explained(error: ComponentError, log: Path) -> BadInput | ComponentFailure:
    """Return the error of a failed component for the user: invalid input, or the cause with the path of the log."""
    from absl import logging

    cause = error.__cause__
    logging.error("%s failed", error.component, exc_info=cause)
    if isinstance(cause, BadInput):
        return type(cause)(f"{error.component}: {cause}")
    return ComponentFailure(
        f"{error.component} failed: {type(cause).__name__}: {_first_line(cause)}\n"
        f"Full traceback: {log}. Fix the cause and rerun; completed components are cached."
    )


@contextlib.contextmanager
def _error_kept(path: Path) -> Iterator[None]:
    """Write the reason of a failure into the run's folder, for `tandem runs` and the report."""
    try:
        yield
    except KeyboardInterrupt:
        path.write_text("Stopped with Ctrl-C.")
        raise
    except Exception as error:
        path.write_text(str(error) or type(error).__name__)
        raise


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
