"""Exit codes of the commands and of the processes that orchestrators start; 0 is success."""

from __future__ import annotations

FAILED = 1
"""A component or a server failed; a retry may succeed."""
BAD_INPUT = 2
"""The recipe, the data or the arguments are invalid; a retry fails again."""
NOT_BLESSED = 3
"""The pipeline completed, but the model is not blessed and was not pushed."""
