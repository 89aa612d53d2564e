"""The section `serving`: the outputs of the exported model, its index, and the conditions of a push."""

from __future__ import annotations

import keyword
import re
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.errors import did_you_mean
from recipe.section import Section

SIGNATURE_INPUTS = ("user_id", "item_id", "exclude", "only", "k")
"""Inputs of the served model's signatures, besides columns."""

HISTORY_INPUT = "history"

SIGNATURE_OUTPUTS = ("item_ids", "scores", "ratings")
"""Outputs of the served model's signatures, besides columns."""


def can_name_an_input(column: str) -> bool:
    """Return whether a column can be an input of the served model's signatures under its own name."""
    is_identifier = re.fullmatch(r"[A-Za-z]\w*", column, re.ASCII) is not None and not keyword.iskeyword(column)
    return is_identifier and column not in SIGNATURE_INPUTS


class RankBy(Section):
    """Weights of the retrieval score and the predicted rating in the ranking of the retrieved items.

    Both are standardized over the items that a request retrieves: minus the mean, divided by the standard deviation.
    `score` is short for the weights 1 and 0, `rating` for 0 and 1.
    """

    score: Annotated[float, Field(ge=0)]
    """Weight of the retrieval score."""
    rating: Annotated[float, Field(ge=0)]
    """Weight of the predicted rating."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accepts_a_name(cls, values: Any) -> Any:
        if not isinstance(values, str):
            return values
        if values not in cls.model_fields:
            raise ValueError(
                "expected score, rating or weights such as {score: 0.7, rating: 0.3}, "
                f"got {values!r}{did_you_mean(values, cls.model_fields)}"
            )
        return {name: float(name == values) for name in cls.model_fields}

    @pydantic.model_validator(mode="after")
    def _has_a_weight(self) -> RankBy:
        if not self.score and not self.rating:
            raise ValueError("score and rating are both 0; set at least one of them above 0")
        return self


class Index(Section):
    """The index that retrieves the items with the highest scores. `exact` and `ivf` are short for the kind's defaults.

    `ivf` is an inverted file: items are partitioned into cells, and a query probes the nearest cells, as many as reach
    `recall` on users of the train split. The Trainer measures this at export. If the probed cells have a quarter of the
    items or more, it logs a warning and exports `exact`. The Evaluator measures the model with its index.
    """

    kind: Literal["exact", "ivf"]
    """Type of the index: `exact` scores all items (brute force), `ivf` the items of some cells (approximate)."""
    cells: Literal["auto"] | PositiveInt = "auto"
    """Number of cells of `ivf`. `auto` is 4 times the square root of the number of items."""
    recall: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Minimum mean recall of `ivf`: fraction of the exact index's top `serving.k` items that it finds."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accepts_a_kind(cls, values: Any) -> Any:
        if not isinstance(values, str):
            return values
        kinds = get_args(cls.model_fields["kind"].annotation)
        if values not in kinds:
            raise ValueError(
                "expected exact, ivf or a mapping such as {kind: ivf, recall: 0.99}, "
                f"got {values!r}{did_you_mean(values, kinds)}"
            )
        return {"kind": values}

    @pydantic.model_validator(mode="after")
    def _options_are_of_ivf(self) -> Index:
        for name, field in type(self).model_fields.items():
            # A recipe that was serialized and is read again has the defaults.
            if self.kind == "exact" and name != "kind" and getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but kind exact has no {name}; remove it, or set kind: ivf"
                )
        return self


class WaitFor(Section):
    """A server that a run waits for after the push, until it has loaded the new version."""

    target: Annotated[str, Field(pattern=r"^[^\s/]+:[0-9]{1,5}$")]
    """`HOST:PORT` of the gRPC API of TensorFlow Serving or the embedded server. `tandem run --wait-for` sets it."""
    model: Annotated[str, Field(min_length=1)] = "recommender"
    """Name of the model on the server."""
    timeout_s: PositiveFloat = 300.0
    """Timeout in seconds, after which the run fails. The version stays pushed."""


class Serving(Section):
    """Options of the exported model and of the push.

    [serving.md](serving.md) describes the signatures, [release.md](release.md) the release to a server.
    """

    k: Annotated[int, Field(ge=1, le=1000)] = 100
    """Number of items that a request returns. Clients can request fewer."""
    exclude_seen: bool = True
    """Whether to exclude items that the user interacted with in the train split."""
    rank_by: RankBy = RankBy(score=1, rating=0)
    """Order of the `k` items with the highest scores: by `score` (default), by predicted `rating`, or by a weighted sum
    of both, such as `{score: 0.7, rating: 0.3}`."""
    index: Index = Index(kind="exact")
    """Index that retrieves the items: `exact` (default) scores all items for every query; `ivf` scores the items of the
    nearest cells, which is faster for catalogues of several hundred thousand items or more."""
    max_p99_ms: PositiveFloat | None = None
    """Maximum p99 latency of `recommend` in milliseconds, measured by InfraValidator. A slower model is not blessed. If
    not set, the latency is measured without a threshold."""
    keep_versions: PositiveInt = 5
    """Number of latest versions to keep in the push destination. Versions with a label in `models.config` are kept as
    well."""
    wait_for: WaitFor | None = None
    """Server to wait for after the push. If not set, the run ends with the push."""

    def for_export(self) -> Serving:
        """Return the section without the options that the exported model does not depend on."""
        released = ("max_p99_ms", "keep_versions", "wait_for")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in released})
