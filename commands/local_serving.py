"""Serves a push destination for the duration of a block, for `tandem demo` and notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from components.infra_validator.server_process import serving
from tandem_client import Recommender


@contextlib.contextmanager
def serve_locally(model_dir: Path, model: str = "recommender") -> Iterator[Recommender]:
    """Start the embedded server on free loopback ports and yield a client; the server stops with the block.

        with serve_locally(Path("work/movielens/serving/movielens")) as client:
            items = client.recommend("42", k=10).items

    Args:
        model_dir: Push destination: the folder with the numbered versions.
        model: Name of the model on the server.

    Yields:
        A client that is connected to the server.

    Raises:
        ServerFailed: The model cannot be loaded.
    """
    with serving(model_dir, model) as target, Recommender(target, model=model) as client:
        yield client
