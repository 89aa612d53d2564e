"""How commands end besides 0, for people and for orchestrators."""

from __future__ import annotations

FAILED = 1
BAD_INPUT = 2
NOT_BLESSED = 3
