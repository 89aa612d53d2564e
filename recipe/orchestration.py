"""The sections `resources` and `schedule`: what clusters and orchestrators need to know."""

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


class Resources(Section):
    """What one component asks a cluster for. A container that needs more memory than this is stopped."""

    cpu: PositiveFloat | None = None
    """Processors, or parts of one."""
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti|M|G|T)$")] | None = None
    """As Kubernetes writes it: `16Gi` is 16 × 2³⁰ bytes, `16G` is 16 × 10⁹."""
    gpu: Annotated[int, Field(ge=0)] = 0
    """GPUs."""
    gpu_type: Annotated[str, Field(min_length=1)] = "nvidia.com/gpu"
    """What the cluster calls them: a resource of Kubernetes, or an accelerator of Vertex AI such as
    `NVIDIA_TESLA_T4`."""


SCHEDULES = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
"""Words for common cron expressions."""

CRON_FIELD = r"([-0-9*/,#?L]|[A-Za-z]{3}\b)+"


def check_schedule(found: str) -> str:
    """Returns `found`; raises ValueError unless it looks like a cron expression or is one of SCHEDULES."""
    # Airflow, which knows what each field may be, checks the rest.
    if found in SCHEDULES or re.fullmatch(rf"{CRON_FIELD}( +{CRON_FIELD}){{4}}", found):
        return found
    close = did_you_mean(found, SCHEDULES) if found.startswith("@") else ""
    raise ValueError(
        "a cron expression of five fields (minute, hour, day of the month, month, day of the week), such as "
        f"'30 4 * * *', or one of {', '.join(SCHEDULES)} was wanted{close}"
    )
