"""`tandem serve`: the embedded server. Its options are those of `serving.config.server_options`."""

from __future__ import annotations

import typer

# The server's own parser reads all arguments, `--help` included.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def serve(context: typer.Context) -> None:
    """Serve pushed models with TensorFlow Serving's gRPC and REST API until Ctrl-C."""
    from serving.config.server_options import parse

    # At the start no version is available, so a model config file with labels needs this.
    defaults = {"allow_version_labels_for_unavailable_models": True}
    options = parse(context.args, program="tandem serve", defaults=defaults)

    from serving.server.model_server import run

    run(options)
