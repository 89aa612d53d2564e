"""`python -m serving.server`: the model server without the `tandem` command."""

from __future__ import annotations

from serving.server.model_server import run

if __name__ == "__main__":
    run()
