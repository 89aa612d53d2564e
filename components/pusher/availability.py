"""Waits until a server reports a pushed version as AVAILABLE."""

from __future__ import annotations

import time

from absl import logging

import tandem_client

POLL_S = 0.5
_CALL_TIMEOUT_S = 5.0


class NotAvailable(Exception):
    """The server did not load the new version, or not in time; the message has the states that it reported."""


def wait_until_available(target: str, model: str, version: int, timeout_s: float) -> float:
    """Poll the version's state until it is AVAILABLE.

    Args:
        target: HOST:PORT of the server's gRPC API.
        model: Name of the model on the server.
        version: The version to wait for.
        timeout_s: Timeout in seconds.

    Returns:
        Seconds waited.

    Raises:
        NotAvailable: The server cannot load the version, or the version is not AVAILABLE in time.
    """
    start = time.monotonic()
    last = "no response"
    while True:
        try:
            with tandem_client.Recommender(target, model=model, timeout=min(_CALL_TIMEOUT_S, timeout_s)) as client:
                statuses = {status.version: status for status in client.status()}
        except tandem_client.TandemClientError as error:
            last = f"request failed: {error}"
        else:
            found = statuses.get(version)
            if found is not None and found.state == "AVAILABLE":
                waited = time.monotonic() - start
                logging.info("%s serves version %d of model %s after %.1f s.", target, version, model, waited)
                return waited
            if found is not None and found.error_code:
                raise NotAvailable(
                    f"{target} cannot load version {version} of model {model!r}: {found.error_message}. The version "
                    "stays pushed; `tandem rollback` publishes the previous version again"
                )
            states = ", ".join(f"{number} {status.state}" for number, status in sorted(statuses.items()))
            last = f"versions of the server: {states}" if states else "the server has no versions"
        if time.monotonic() - start > timeout_s:
            raise NotAvailable(
                f"{target} does not serve version {version} of model {model!r} after {timeout_s:g} s; {last}. The "
                "version stays pushed. Check that this server watches the push destination (serving.wait_for)"
            )
        time.sleep(POLL_S)
