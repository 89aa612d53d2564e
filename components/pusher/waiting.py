"""Waits until a server answers with a version that was just pushed."""

from __future__ import annotations

import time

from absl import logging

import tandem_client

POLL_S = 0.5
_CALL_TIMEOUT_S = 5.0


class NotServed(Exception):
    """The server did not take the new version, or not in time; the text says what it reported."""


def wait_until_served(target: str, model: str, version: int, timeout_s: float) -> float:
    """Asks a server for the version's state until it is AVAILABLE.

    Args:
        target: HOST:PORT of the server's gRPC API.
        model: Name that the server knows the model by.
        version: The version to wait for.
        timeout_s: Seconds to wait at most.

    Returns:
        Seconds waited.

    Raises:
        NotServed: The server could not load the version, or it is not available in time.
    """
    start = time.monotonic()
    last = "it has not answered"
    while True:
        try:
            with tandem_client.Recommender(target, model=model, timeout=min(_CALL_TIMEOUT_S, timeout_s)) as client:
                statuses = {status.version: status for status in client.status()}
        except tandem_client.TandemClientError as error:
            last = f"asking failed: {error}"
        else:
            found = statuses.get(version)
            if found is not None and found.state == "AVAILABLE":
                waited = time.monotonic() - start
                logging.info("%s serves version %d of %s after %.1f s.", target, version, model, waited)
                return waited
            if found is not None and found.error_code:
                raise NotServed(
                    f"{target} could not load version {version} of model {model!r}: {found.error_message}. The version "
                    "stays pushed; `tandem rollback` makes an older one the newest"
                )
            states = ", ".join(f"{number} {status.state}" for number, status in sorted(statuses.items()))
            last = f"it reports version {states}" if states else "it reports no version"
        if time.monotonic() - start > timeout_s:
            raise NotServed(
                f"{target} does not serve version {version} of model {model!r} after {timeout_s:g} s; {last}. The "
                "version stays pushed. Is this the server that watches this folder? (recipe key serving.wait_for)"
            )
        time.sleep(POLL_S)
