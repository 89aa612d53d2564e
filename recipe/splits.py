"""The section `data.split`: the assignment of examples to the `train` and `eval` splits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from recipe.section import Section


class SplitSection(Section):
    """Base class of all kinds of splits."""

    is_chronological: ClassVar[bool] = False
    """Whether each user's eval rows are later than the user's train rows, which requires `data.columns.timestamp`."""


class RandomSplit(SplitSection):
    """Random split of rows by a seeded hash of their content. It is stable when rows are added or reordered."""

    kind: Literal["random"] = "random"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the rows in the eval split."""
    seed: int = 0
    """Random seed."""


class ByUserSplit(SplitSection):
    """Random split of users, with all their rows, by a seeded hash of their id. All users of the eval split are new."""

    kind: Literal["by_user"]
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the users in the eval split."""
    seed: int = 0
    """Random seed."""


class TimeSplit(SplitSection):
    """Temporal split: the latest interactions are the eval split. No train row is later than an eval row."""

    is_chronological: ClassVar[bool] = True
    kind: Literal["time"]
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the rows in the eval split. Rows of the same second stay together, so it is approximate."""


class LeaveLastNSplit(SplitSection):
    """Leave-last-n-out split: the latest rows of each user are the eval split.

    Users with `n` rows or fewer are in the train split only. Identical rows count as one and stay together. Rows of the
    same second are ordered by their position in the files.
    """

    is_chronological: ClassVar[bool] = True
    kind: Literal["leave_last_n"]
    n: PositiveInt = 1
    """Number of rows of each user in the eval split."""


Split = Annotated[RandomSplit | ByUserSplit | TimeSplit | LeaveLastNSplit, Field(discriminator="kind")]
