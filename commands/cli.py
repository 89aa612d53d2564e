"""The `tandem` command. Each subcommand imports its implementation when it is called, which keeps `--help` fast."""

from __future__ import annotations

import gc
import json
import sys
import warnings
from typing import Any

import typer

from commands.subcommands import compiling, datasets, demo, past_runs, pipelines, pushed_models, queries, serve
from pipeline.exit_codes import BAD_INPUT, FAILED

app = typer.Typer(
    name="tandem",
    help="Train, evaluate, push and serve a two-task recommender from CSVs of interactions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    *(datasets.init, pipelines.check, pipelines.run, pipelines.compare),
    *(past_runs.runs, past_runs.gates, past_runs.report, past_runs.diff),
    serve.serve,
    *(pushed_models.promote, pushed_models.rollback, pushed_models.batch),
    *(queries.recommend, queries.rate, queries.similar),
    demo.demo,
):
    app.command(context_settings=serve.CONTEXT_SETTINGS if command is serve.serve else None)(command)

data_app = typer.Typer(help="Download or generate sample data.", no_args_is_help=True)
data_app.command()(datasets.movielens)
data_app.command()(datasets.synthetic)
app.add_typer(data_app, name="data")

compile_app = typer.Typer(help="Compile the pipeline for another orchestrator.", no_args_is_help=True)
compile_app.command()(compiling.kubeflow)
app.add_typer(compile_app, name="compile")

export_app = typer.Typer(help="Export a pushed model to another format.", no_args_is_help=True)
export_app.command()(pushed_models.tflite)
app.add_typer(export_app, name="export")


def main() -> None:
    """Run the command line; an expected error ends in one message and an exit code, without a traceback."""
    _show_warnings()
    try:
        app()
    except Exception as error:
        code, message = _explain(error)
        if code is None:
            raise
        if "--json" in sys.argv:
            print(json.dumps({"error": message, "exit_code": code}))
        print(f"tandem: {message}", file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        # Without it, the garbage collector visits all of TensorFlow's objects at exit, which takes four seconds.
        gc.freeze()


def _show_warnings() -> None:
    """Print each warning of our own packages as one line on stderr, deprecated recipe keys included."""
    standard = warnings.showwarning
    # Python repeats a warning after any change of its filters, which imports make.
    printed: set[str] = set()
    own = ("commands", "pipeline", "components", "recipe", "serving")
    warnings.filterwarnings("default", module=rf"({'|'.join(own)})\.")

    def show(message: Warning | str, category: type[Warning], *location: Any, **where: Any) -> None:
        if category.__module__.partition(".")[0] not in own:
            standard(message, category, *location, **where)
        elif str(message) not in printed:
            printed.add(str(message))
            print(f"tandem: warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def _explain(error: Exception) -> tuple[int | None, str]:
    """Return the exit code and message of an error that the user can fix; None and no message for a bug."""
    from components.infra_validator.server_process import ServerFailed
    from pipeline.runners.local import ComponentFailure
    from recipe import BadInput
    from tandem_client import InvalidRequest, TandemClientError

    if isinstance(error, BadInput | InvalidRequest):
        return BAD_INPUT, str(error)
    if isinstance(error, TandemClientError | ComponentFailure | ServerFailed):
        return FAILED, str(error)
    return None, ""
