"""The section `data.split`: which examples are `train` and which are `eval`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from recipe.section import Section


class SplitSection(Section):
    """What the sections of all kinds have in common."""

    is_chronological: ClassVar[bool] = False
    """Whether each user's eval rows are later than the user's train rows, which needs `data.columns.timestamp`."""


class RandomSplit(SplitSection):
    """Rows go to `eval` by a seeded hash of their content: stable when rows are added or reordered."""

    kind: Literal["random"] = "random"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of the rows that is `eval`."""
    seed: int = 0
    """Another seed gives an independent split."""


class ByUserSplit(SplitSection):
    """Users go to `eval` with all their rows, by a seeded hash of their id: measures how strangers are served."""

    kind: Literal["by_user"]
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of the users that is `eval`."""
    seed: int = 0
    """Another seed gives an independent split."""


class TimeSplit(SplitSection):
    """The latest fraction of the interactions is `eval`; no train row is later than an eval row."""

    is_chronological: ClassVar[bool] = True
    kind: Literal["time"]
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of the rows that is `eval`, as nearly as rows of the same second allow."""


class LeaveLastNSplit(SplitSection):
    """The latest rows of each user are `eval`; users with no more than that stay in train.

    Equal rows count as one and stay together; of rows of the same second the later one in the files is the later one.
    """

    is_chronological: ClassVar[bool] = True
    kind: Literal["leave_last_n"]
    n: PositiveInt = 1
    """Rows of each user that are `eval`."""


Split = Annotated[RandomSplit | ByUserSplit | TimeSplit | LeaveLastNSplit, Field(discriminator="kind")]
