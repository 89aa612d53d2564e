"""The sections `resources` and `schedule`, which cluster runners and Airflow read."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from recipe.errors import did_you_mean
from recipe.section import Section

ComponentName = Literal[
    "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Tuner", "Trainer",
    "ModelResolver", "Evaluator", "InfraValidator", "Pusher",
]  # fmt: skip

SCHEDULES = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
"""Presets for common cron expressions."""

CRON_FIELD = r"([-0-9*/,#?L]|[A-Za-z]{3}\b)+"


class Resources(Section):
    """Resource requests and limits of one component's container. A container that exceeds its memory is stopped."""

    cpu: PositiveFloat | None = None
    """Number of CPUs, which can be fractional."""
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")] | None = None
    """Memory in the notation of Kubernetes: `16Gi` is 16 × 2³⁰ bytes, `16G` is 16 × 10⁹."""
    gpu: Annotated[int, Field(ge=0)] = 0
    """Number of GPUs."""
    gpu_type: Annotated[str, Field(min_length=1)] = "nvidia.com/gpu"
    """Type of the GPUs: a resource name of Kubernetes, or an accelerator of Vertex AI such as `NVIDIA_TESLA_T4`."""


def check_schedule(found: str) -> str:
    """Return `found`; raise ValueError unless it has the form of a cron expression or is one of SCHEDULES."""
    # Airflow checks the values of the fields.
    if found in SCHEDULES or re.fullmatch(rf"{CRON_FIELD}( +{CRON_FIELD}){{4}}", found):
        return found
    close = did_you_mean(found, SCHEDULES) if found.startswith("@") else ""
    raise ValueError(
        "expected a cron expression with five fields (minute, hour, day of the month, month, day of the week), such as "
        f"'30 4 * * *', or one of {', '.join(SCHEDULES)}, got {found!r}{close}"
    )
