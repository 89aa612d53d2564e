"""The `tandem` command. Each command imports what it needs when it is called, so that `tandem --help` is instant."""

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
    help="Interaction CSVs in, a gated and served two-task recommender out.",
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

data_app = typer.Typer(help="Get or make sample data.", no_args_is_help=True)
data_app.command()(datasets.movielens)
data_app.command()(datasets.synthetic)
app.add_typer(data_app, name="data")

compile_app = typer.Typer(help="Write the pipeline down for another orchestrator.", no_args_is_help=True)
compile_app.command()(compiling.kubeflow)
app.add_typer(compile_app, name="compile")

export_app = typer.Typer(help="Write a pushed model in another form.", no_args_is_help=True)
export_app.command()(pushed_models.tflite)
app.add_typer(export_app, name="export")


def main() -> None:
    """Entry point: errors end with one message and an exit code, never with a traceback."""
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
        # Otherwise Python goes through all of TensorFlow's objects once more at its end, which takes four seconds.
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
    """Exit code and text of an error that a user can do something about; None for a bug of ours."""
    from components.infra_validator.server_process import ServerFailed
    from pipeline.runners.local import ComponentFailure
    from recipe import BadInput
    from tandem_client import InvalidRequest, TandemClientError

    if isinstance(error, BadInput | InvalidRequest):
        return BAD_INPUT, str(error)
    if isinstance(error, TandemClientError | ComponentFailure | ServerFailed):
        return FAILED, str(error)
    return None, ""
