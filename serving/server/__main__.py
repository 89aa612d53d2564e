"""`python -m serving.server`: the model server without the `tandem` command."""

from __future__ import annotations

import sys

from serving.config.server_options import parse
from serving.server.model_server import run

if __name__ == "__main__":
    run(parse(sys.argv[1:]))
