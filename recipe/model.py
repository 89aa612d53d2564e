"""The section `model`: the two-task model with its towers, its rating head and its retrieval loss."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.section import Section, Share

DAMPING = 10.0
"""Ratings that say nothing, which a user's or an item's mean counts besides its own, where a recipe does not say."""

Activation = Literal["relu", "elu", "selu", "gelu", "swish", "tanh", "sigmoid", "linear"]


class Layers(Section):
    """Layers one on another: DCN cross layers first, then dense ones."""

    layers: tuple[PositiveInt, ...] = ()
    """Units of the hidden dense layers."""
    activation: Activation = "relu"
    """Of the hidden dense layers."""
    cross_layers: Annotated[int, Field(ge=0)] = 0
    """Layers that multiply their input with the features once more: degree n + 1 interactions after n of them
    (DCN v2, Wang et al. 2021, doi:10.1145/3442381.3450078)."""
    cross_rank: PositiveInt | None = None
    """Width of the low-rank factors of each cross layer's matrix; left out, the matrix is full."""
    dropout: Share = 0.0
    """Part of what enters each layer that training leaves out at random; where there is no layer, of what comes out."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the sum of the squared layer weights in the loss; embeddings and biases are not among them."""


class Tower(Layers):
    """From features to one vector: their embeddings, combined, through layers."""

    features: tuple[str, ...] | None = None
    """Names of the features it looks at, each `COLUMN_KIND` of the tower's side; left out, all of them."""
    combine: Literal["concat", "sum"] = "concat"
    """How the features' embeddings meet: side by side, or added up. A normalised number is one number side by side, and
    in a sum it is multiplied with a learned vector."""
    projection: bool = True
    """A last linear layer to the output's width. Without it, what comes before it must have that width."""
    embedding_l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared embeddings in the loss: summed over a row's features, averaged over the batch's rows."""


class RatingHead(Layers):
    """Predicts the label: global mean + user bias + item bias + what `kind` adds."""

    kind: Literal["dot", "mlp"] = "dot"
    """`dot`: product of a user's and an item's factors; `mlp`: cross layers, `layers` and a linear one over both sides'
    vectors side by side."""
    layers: tuple[PositiveInt, ...] = (256, 128)
    """Units of the hidden layers of `mlp`; none is a single linear layer."""
    dimension: PositiveInt = 32
    """Number of factors of `dot`, and width of the embeddings and vectors of the head's own towers."""
    inputs: Literal["shared", "own", "both"] = "shared"
    """What the head looks at: the retrieval towers' vectors (projected to `dimension` for `dot`), towers of its own, or
    both, which `dot` adds up and `mlp` takes side by side."""
    query_tower: Tower = Tower(combine="sum", projection=False)
    """The head's own query tower, where `inputs` is `own` or `both`."""
    candidate_tower: Tower = Tower(combine="sum", projection=False)
    """The head's own candidate tower, where `inputs` is `own` or `both`."""
    linear: bool = False
    """Whether every feature of the head's own towers counts by itself too, with one more number for each of its values:
    a factorization machine's first-order terms (Rendle 2010, doi:10.1109/ICDM.2010.127). The ids have their biases."""
    factor_l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared factors of both sides in the loss: summed over a row's factors, averaged over the batch's
    rows (`dot`)."""
    biases: bool = True
    """Whether the prediction has the mean and a bias of each user and item, which start at the damped means of train;
    without them it is `kind`'s alone."""
    user_damping: Annotated[float, Field(ge=0)] = DAMPING
    """A user's bias starts as if there were this many more ratings by the user that say nothing."""
    item_damping: Annotated[float, Field(ge=0)] = DAMPING
    """The same for items."""
    bias_rounds: PositiveInt = 1
    """How often items and users take turns in where their biases start: 1 is the damped means, items first; more come
    near the ridge regression of both at once, in which a film that lenient people saw is not taken for good."""
    bias_l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared distances of user and item biases from where they start, averaged over the batch's rows."""

    @pydantic.model_validator(mode="after")
    def _has_what_its_options_are_for(self) -> RatingHead:
        if self.kind == "dot" and self.cross_layers:
            raise ValueError(
                f"cross_layers is {self.cross_layers}, but kind dot has no layers; write kind: mlp, or give the cross "
                "layers to a tower"
            )
        if self.factor_l2 and self.kind == "mlp":
            raise ValueError(
                f"factor_l2 is {self.factor_l2:g}, but kind mlp has no factors; write kind: dot, or drop it"
            )
        if self.bias_l2 and not self.biases:
            raise ValueError(f"bias_l2 is {self.bias_l2:g}, but biases is false; drop one of the two")
        if self.bias_rounds > 1 and not self.biases:
            raise ValueError(f"bias_rounds is {self.bias_rounds}, but biases is false; drop one of the two")
        if self.linear and self.inputs == "shared":
            raise ValueError(
                "linear is true, but the head has no towers of its own whose features could count; write inputs: own "
                "or inputs: both, or drop linear"
            )
        return self


class RetrievalLoss(Section):
    """Softmax over the true item and other items."""

    candidates: Literal["batch", "catalogue"] = "batch"
    """The other items: those of the batch (`tfrs.tasks.Retrieval`), or the whole catalogue, which is exact, and
    cheaper as well where the catalogue is not much larger than a batch. Correction and accidental hits are matters of a
    batch only."""
    log_q_correction: bool = True
    """Subtracts the log of how often an item comes up as a candidate (Yi et al. 2019, doi:10.1145/3298689.3346996),
    from the batch's rows and the uniform draws together."""
    remove_accidental_hits: bool = True
    """A copy of the true item elsewhere among the candidates does not count as a negative."""
    uniform_negatives: Annotated[int, Field(ge=0)] = 0
    """Items drawn uniformly from the catalogue for each batch, besides those of the batch: mixed negative sampling
    (Yang et al. 2020, doi:10.1145/3366424.3386195)."""
    hard_negatives: PositiveInt | None = None
    """Only this many negatives of each row count, those with the highest scores; left out, all of them."""
    item_bias: bool = True
    """A bias of each item that starts at the log of its share of train. It is added after the temperature."""
    normalize: bool = False
    """Both towers' vectors get length 1 before they meet; the rating head looks at them as they were."""
    temperature: PositiveFloat = 1.0
    """Divides the products of the vectors; normalised ones want about 0.05."""

    @pydantic.model_validator(mode="after")
    def _draws_what_is_not_there(self) -> RetrievalLoss:
        if self.candidates == "catalogue" and self.uniform_negatives:
            raise ValueError(
                f"uniform_negatives is {self.uniform_negatives}, but with candidates: catalogue every item is a "
                "candidate already; drop uniform_negatives, or write candidates: batch"
            )
        return self


class Model(Section):
    """The two-task model: a query tower and a candidate tower that meet in a dot product, and a rating head."""

    embedding_dim: PositiveInt = 64
    """Width of every embedding."""
    embedding_stddev: PositiveFloat = 0.05
    """Standard deviation of the random numbers that embeddings start with."""
    output_dim: PositiveInt | None = None
    """Width of the retrieval towers' output vectors; left out, that of the embeddings."""
    query_tower: Tower = Tower()
    candidate_tower: Tower = Tower()
    rating_head: RatingHead = RatingHead()
    retrieval: RetrievalLoss = RetrievalLoss()
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Whether the tasks' weights stay as they are, or start there and are learned with the noise of each task
    (Kendall et al. 2018, arXiv:1705.07115). The penalties (`l2` and the like) are not weighted."""
    retrieval_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retrieval task's loss; 0 leaves the task out."""
    rating_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the rating task's loss; 0 leaves the task out."""
    id_dropout: Share = 0.1
    """How often training hides an id from a tower, so that unknown users and items get an average answer."""
    stranger_dropout: Share = 0.0
    """How often training hides all that tells the user from a stranger, at once: id, history and bias."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared outputs of the retrieval towers in the loss: summed over a row's numbers, averaged over the
    batch's rows."""

    @property
    def vector_dim(self) -> int:
        """Width of the retrieval towers' output vectors."""
        return self.output_dim or self.embedding_dim

    @pydantic.model_validator(mode="after")
    def _has_a_task(self) -> Model:
        if self.retrieval_weight == 0 and self.rating_weight == 0:
            raise ValueError("retrieval_weight and rating_weight are both 0; give at least one task a weight above 0")
        return self
