"""The section `model`: the two-task model with its towers, its rating head and its retrieval loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from recipe.section import Fraction, Section

DAMPING = 10.0
"""Default shrinkage: number of pseudo-ratings at the prior mean added to each user's and item's mean."""

Activation = Literal["relu", "elu", "selu", "gelu", "swish", "tanh", "sigmoid", "linear"]


class Layers(Section):
    """A stack of layers: DCN cross layers, then dense layers."""

    layers: tuple[PositiveInt, ...] = ()
    """Units of the hidden dense layers."""
    activation: Activation = "relu"
    """Activation function of the hidden dense layers."""
    cross_layers: Annotated[int, Field(ge=0)] = 0
    """Number of cross layers. n of them model feature interactions up to degree n + 1 (DCN v2, Wang et al. 2021,
    doi:10.1145/3442381.3450078)."""
    cross_rank: PositiveInt | None = None
    """Rank of the low-rank factorization of each cross layer's matrix. If not set, the matrix is full."""
    dropout: Fraction = 0.0
    """Dropout rate on each layer's input. Without layers, dropout is applied to the output."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """L2 regularization factor of the kernels of the layers. Embeddings and biases are not included."""


class Tower(Layers):
    """A tower: feature embeddings, combined and passed through layers to one vector."""

    features: tuple[str, ...] | None = None
    """Names of the input features, each `COLUMN_KIND` of the tower's side. If not set, all of them."""
    combine: Literal["concat", "sum"] = "concat"
    """How to combine the embeddings: concatenate or sum. A normalized number is one component of the concatenation; in
    a sum it is multiplied by a learned vector."""
    projection: bool = True
    """Whether to add a linear output layer of the output dimension. Without it, its input must have that dimension."""
    embedding_l2: Annotated[float, Field(ge=0)] = 0.0
    """L2 regularization factor of the embeddings: squares are summed over a row's features and averaged over the
    batch."""


class RatingHead(Layers):
    """The rating head, which predicts the label: global mean + user bias + item bias + the term that `kind` selects."""

    kind: Literal["dot", "mlp"] = "dot"
    """`dot`: inner product of user and item factors. `mlp`: cross layers, `layers` and a linear layer on the
    concatenated vectors of both sides."""
    layers: tuple[PositiveInt, ...] = (256, 128)
    """Units of the hidden layers of `mlp`. An empty list is a single linear layer."""
    dimension: PositiveInt = 32
    """Number of factors of `dot`, and dimension of the embeddings and outputs of the head's own towers."""
    inputs: Literal["shared", "own", "both"] = "shared"
    """Inputs of the head: the retrieval towers' outputs (projected to `dimension` for `dot`), the outputs of the head's
    own towers, or both, which `dot` sums and `mlp` concatenates."""
    query_tower: Tower = Tower(combine="sum", projection=False)
    """The head's own query tower, if `inputs` is `own` or `both`."""
    candidate_tower: Tower = Tower(combine="sum", projection=False)
    """The head's own candidate tower, if `inputs` is `own` or `both`."""
    linear: bool = False
    """Whether to add first-order terms: one weight for each value of every feature of the head's own towers, as in a
    factorization machine (Rendle 2010, doi:10.1109/ICDM.2010.127). Ids have their biases instead."""
    factor_l2: Annotated[float, Field(ge=0)] = 0.0
    """L2 regularization factor of the factors of both sides (`dot`): squares are summed over a row's factors and
    averaged over the batch."""
    biases: bool = True
    """Whether to add the global mean and user and item biases, which are initialized to the damped means of the train
    split."""
    user_damping: Annotated[float, Field(ge=0)] = DAMPING
    """Damping of the initial user biases: number of pseudo-ratings at the prior mean added to each user's mean."""
    item_damping: Annotated[float, Field(ge=0)] = DAMPING
    """Damping of the initial item biases, as `user_damping`."""
    bias_rounds: PositiveInt = 1
    """Number of alternating updates of the initial item and user biases. 1 is the damped means, items first. More
    rounds approach the ridge regression of both, which corrects an item's bias for the biases of its users."""
    bias_l2: Annotated[float, Field(ge=0)] = 0.0
    """L2 regularization factor of the difference of user and item biases from their initial values, averaged over the
    batch."""

    @pydantic.model_validator(mode="after")
    def _options_fit_the_kind(self) -> RatingHead:
        if self.kind == "dot" and self.cross_layers:
            raise ValueError(
                f"cross_layers is {self.cross_layers}, but kind dot has no layers; set kind: mlp, or move cross_layers "
                "to a tower"
            )
        if self.factor_l2 and self.kind == "mlp":
            raise ValueError(
                f"factor_l2 is {self.factor_l2:g}, but kind mlp has no factors; set kind: dot, or remove factor_l2"
            )
        if self.bias_l2 and not self.biases:
            raise ValueError(f"bias_l2 is {self.bias_l2:g}, but biases is false; remove one of them")
        if self.bias_rounds > 1 and not self.biases:
            raise ValueError(f"bias_rounds is {self.bias_rounds}, but biases is false; remove one of them")
        if self.linear and self.inputs == "shared":
            raise ValueError(
                "linear is true, but inputs is shared, so the head has no towers of its own; set inputs: own or "
                "inputs: both, or remove linear"
            )
        return self


class RetrievalLoss(Section):
    """Softmax cross-entropy of the positive item against other items."""

    candidates: Literal["batch", "catalogue"] = "batch"
    """Negatives of the softmax: the other items of the batch (`tfrs.tasks.Retrieval`), or the whole catalogue. The full
    softmax is exact, and also faster if the catalogue is not much larger than a batch. logQ correction and accidental
    hits apply to `batch` only."""
    log_q_correction: bool = True
    """Whether to apply logQ correction: subtracts the log of an item's sampling probability, from both the batch and
    the uniform negatives (Yi et al. 2019, doi:10.1145/3298689.3346996)."""
    remove_accidental_hits: bool = True
    """Whether to mask negatives that are the same item as the row's positive."""
    uniform_negatives: Annotated[int, Field(ge=0)] = 0
    """Number of negatives sampled uniformly from the catalogue for each batch: mixed negative sampling (Yang et al.
    2020, doi:10.1145/3366424.3386195)."""
    hard_negatives: PositiveInt | None = None
    """Number of hard negatives: only the negatives with the highest scores of each row are used. If not set, all
    are."""
    item_bias: bool = True
    """Whether to add an item bias, initialized to the log of the item's frequency in the train split. It is added after
    division by the temperature."""
    normalize: bool = False
    """Whether to L2-normalize both towers' outputs before the inner product. The rating head uses them unnormalized."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature: divides the inner products. With `normalize`, use about 0.05."""

    @pydantic.model_validator(mode="after")
    def _uniform_negatives_are_new(self) -> RetrievalLoss:
        if self.candidates == "catalogue" and self.uniform_negatives:
            raise ValueError(
                f"uniform_negatives is {self.uniform_negatives}, but with candidates: catalogue all items are "
                "negatives already; remove uniform_negatives, or set candidates: batch"
            )
        return self


class Model(Section):
    """The two-task model: query tower and candidate tower with an inner product for retrieval, and a rating head."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"stranger_dropout": "cold_start_dropout"}

    embedding_dim: PositiveInt = 64
    """Dimension of the embeddings."""
    embedding_stddev: PositiveFloat = 0.05
    """Standard deviation of the initial embeddings."""
    output_dim: PositiveInt | None = None
    """Output dimension of the retrieval towers. If not set, `embedding_dim`."""
    query_tower: Tower = Tower()
    candidate_tower: Tower = Tower()
    rating_head: RatingHead = RatingHead()
    retrieval: RetrievalLoss = RetrievalLoss()
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """Weighting of the two losses: fixed weights, or weights that are learned with the uncertainty of each task,
    starting at the fixed ones (Kendall et al. 2018, arXiv:1705.07115). Regularization terms are not weighted."""
    retrieval_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retrieval loss. 0 disables the task."""
    rating_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the rating loss. 0 disables the task."""
    id_dropout: Fraction = 0.1
    """Probability of replacing an id with the OOV index during training, so that the OOV embedding is trained for new
    users and new items."""
    cold_start_dropout: Fraction = 0.0
    """Probability of removing a user's id, history and bias together during training, which simulates a new user."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """L2 regularization factor of the outputs of the retrieval towers: squares are summed over a row's components and
    averaged over the batch."""

    @property
    def vector_dim(self) -> int:
        """Output dimension of the retrieval towers."""
        return self.output_dim or self.embedding_dim

    @pydantic.model_validator(mode="after")
    def _has_a_task(self) -> Model:
        if self.retrieval_weight == 0 and self.rating_weight == 0:
            raise ValueError("retrieval_weight and rating_weight are both 0; set at least one of them above 0")
        return self
