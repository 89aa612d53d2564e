"""The section `serving`: the exported model's signatures, its index, and the conditions of a push."""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.errors import did_you_mean
from recipe.section import Section

# What the served model's signatures are asked and answer, besides columns.
SIGNATURE_INPUTS = ("user_id", "item_id", "exclude", "only", "k")

HISTORY_INPUT = "history"

SIGNATURE_OUTPUTS = ("item_ids", "scores", "ratings")


def can_name_an_input(column: str) -> bool:
    """Whether a column can be an input of the served model's signatures under its own name."""
    is_word = re.fullmatch(r"[A-Za-z]\w*", column, re.ASCII) is not None and not keyword.iskeyword(column)
    return is_word and column not in SIGNATURE_INPUTS


class RankBy(Section):
    """What items are ordered by: weights of the score and of the predicted rating, of which one may be 0.

    Both are standardised first, over the items that one request retrieved: less their mean, over their standard
    deviation. `score` and `rating` alone stand for that one's weight 1.
    """

    score: Annotated[float, Field(ge=0)]
    """Weight of the retrieval score."""
    rating: Annotated[float, Field(ge=0)]
    """Weight of the predicted rating."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_alone(cls, values: Any) -> Any:
        if not isinstance(values, str):
            return values
        if values not in cls.model_fields:
            raise ValueError(
                "score, rating, or a weight for each, such as {score: 0.7, rating: 0.3}, was "
                f"wanted{did_you_mean(values, cls.model_fields)}"
            )
        return {name: float(name == values) for name in cls.model_fields}

    @pydantic.model_validator(mode="after")
    def _orders_something(self) -> RankBy:
        if not self.score and not self.rating:
            raise ValueError("both weights are 0, which puts items into no order; give one of them a weight")
        return self


class Index(Section):
    """How retrieval finds items. `exact` and `ivf` alone stand for that kind with its defaults.

    `ivf` is an inverted file: the items are in cells, of which a request looks into the nearest ones, as many as reach
    the recall on users of train. The Trainer measures that when it exports; where it takes a quarter of the items or
    more, it says so and exports the model with `exact`. The Evaluator's figures are those of the index.
    """

    kind: Literal["exact", "ivf"]
    """What it looks at: every item, or those of some cells."""
    cells: Literal["auto"] | PositiveInt = "auto"
    """How many cells `ivf` has; `auto` is 4 times the square root of the number of items."""
    recall: Annotated[float, Field(gt=0, le=1)] = 0.98
    """The part of the items of `exact` that `ivf` is to find, of the first `serving.k` and on average."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, values: Any) -> Any:
        if not isinstance(values, str):
            return values
        kinds = get_args(cls.model_fields["kind"].annotation)
        if values not in kinds:
            raise ValueError(
                "exact, ivf, or ivf with settings, such as {kind: ivf, recall: 0.99}, was "
                f"wanted{did_you_mean(values, kinds)}"
            )
        return {"kind": values}

    @pydantic.model_validator(mode="after")
    def _settings_are_of_ivf(self) -> Index:
        for name, field in type(self).model_fields.items():
            # A recipe that was written out and is read again has the defaults.
            if self.kind == "exact" and name != "kind" and getattr(self, name) != field.default:
                raise ValueError(f"{name} is {getattr(self, name)}, and exact has no {name}. Leave it out, or say ivf")
        return self


class WaitFor(Section):
    """A server that a run waits for after its push, until it answers with the new version."""

    target: Annotated[str, Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")]
    """`HOST:PORT` of the gRPC API of TensorFlow Serving or the embedded server. `tandem run --wait-for` sets it."""
    model: Annotated[str, Field(min_length=1)] = "recommender"
    """Name that the server knows the model by."""
    timeout_s: PositiveFloat = 300.0
    """Seconds after which the run fails. The version stays pushed."""


class Serving(Section):
    """What the exported model answers, and what is asked of it before and after a push.

    The signatures are in [serving.md](serving.md), the way to a server in [release.md](release.md).
    """

    k: Annotated[int, Field(ge=1, le=1000)] = 100
    """Items a call returns; clients may show fewer."""
    exclude_seen: bool = True
    """Leave out items the user interacted with in train."""
    rank_by: RankBy = RankBy(score=1, rating=0)
    """The order of the `k` items with the highest scores: by `score`, as they were retrieved, which is the default, by
    predicted `rating`, or by a weighted sum of both, such as `{score: 0.7, rating: 0.3}`."""
    index: Index = Index(kind="exact")
    """How the items with the highest scores are found: `exact`, which is the default, compares every request with every
    item; `ivf` with the items of the nearest cells, which pays from some hundred thousand items on."""
    max_p99_ms: PositiveFloat | None = None
    """The longest that 99 of 100 calls of `recommend` may take on the machine that runs the InfraValidator, in
    milliseconds; a slower model is not pushed. Left out, the time is measured and not judged."""
    keep_versions: PositiveInt = 5
    """Versions that stay in the serving folder after a push: the newest ones, and besides them every one that a label
    of `models.config` points to."""
    wait_for: WaitFor | None = None
    """A server to wait for after a push; left out, a run ends with the push."""

    def for_export(self) -> Serving:
        """Without what the exported model does not depend on."""
        released = ("max_p99_ms", "keep_versions", "wait_for")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in released})
