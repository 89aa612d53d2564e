"""The recipe: one validated description of a dataset, its features, the model, the gates and what is served.

`load_recipe` reads `recipe.yaml`, with one of the presets beside it where one is asked for; `load_schema` reads the
curated `schema.pbtxt`. Every component gets the part of the recipe that it needs as JSON. Nothing here imports
TensorFlow's runtime.
"""

from __future__ import annotations

import copy
import datetime
import difflib
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import pydantic
import yaml
from google.protobuf import text_format
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError
from tensorflow_metadata.proto.v0 import schema_pb2

RECIPE_FILE = "recipe.yaml"
SCHEMA_FILE = "schema.pbtxt"
PRESETS_FOLDER = "presets"

# What a preset may replace. The data stays the recipe's, so that presets of one folder can be compared.
PRESET_SECTIONS = ("description", "features", "model", "training", "tuner", "gates")

# The feature types of a schema, by the names that schema.pbtxt uses.
ColumnType = Literal["BYTES", "INT", "FLOAT"]
NUMBERS: tuple[ColumnType, ...] = ("INT", "FLOAT")
STRINGS: tuple[ColumnType, ...] = ("BYTES",)


# What the served model's signatures are asked and answer, besides columns.
SIGNATURE_INPUTS = ("user_id", "item_id", "exclude", "only", "k")
HISTORY_INPUT = "history"
SIGNATURE_OUTPUTS = ("item_ids", "scores", "ratings")

DAMPING = 10.0
"""Ratings that say nothing, which a user's or an item's mean counts besides its own, where a recipe does not say."""


class BadInput(ValueError):
    """What the user gave cannot be used. Its text says where, what was found, what was wanted and what to do."""


class RecipeError(BadInput):
    """The recipe, its schema or an override cannot be used; names the file, line and key."""


Key = tuple[str | int, ...]


class Contradiction(ValueError):
    """Keys of several sections that do not fit together, told at the key that one would change."""

    def __init__(self, key: str | Key, message: str) -> None:
        """Takes the key whose line is named, and the whole message."""
        super().__init__(message)
        self.key = dotted_key(key) if isinstance(key, str) else key


def dotted_key(text: str) -> Key:
    """`gates.0.at_least` as `("gates", 0, "at_least")`."""
    return tuple(int(part) if part.isdecimal() else part for part in text.split("."))


class Section(pydantic.BaseModel):
    """A part of the recipe. Unknown keys are errors, and nothing changes after validation."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=False, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _numbers_are_not_switches(cls, values: Any) -> Any:
        # Not strict, because YAML 1.1 reads 1e-3 as text; but `true` must not pass for 1.
        for name, field in cls.model_fields.items():
            found = values.get(name) if isinstance(values, dict) else None
            if isinstance(found, bool) and field.annotation is not bool:
                raise PydanticCustomError("switch", "a number or text was wanted", {"key": name})
        return values


# --- data -------------------------------------------------------------------------------------------------------------


class Source(Section):
    """One table: its files, and how they are read."""

    files: Annotated[str, Field(min_length=1)]
    """File name or glob below the data folder, e.g. `interactions.csv` or `part-*.csv.gz`."""
    format: Literal["csv", "json"] | None = None
    """How the files are written. Left out, it is `json` for names that end in `.json` or `.json.gz`, else `csv`.
    `json` is an object of records by key, as the Firebase Realtime Database exports it, or an array of records."""
    records: Annotated[str, Field(min_length=1)] | None = None
    """Where the records stand in a JSON file: a key, or a path of keys such as `app/User_Book`. Left out, the whole
    file is the object or array of records."""
    rename: dict[str, str] = {}
    """Columns that have another name in the files than everywhere else: name in the file to name everywhere else."""

    @property
    def file_format(self) -> Literal["csv", "json"]:
        """`format`, by the file's name where it is not given."""
        return self.format or ("json" if self.files.removesuffix(".gz").endswith(".json") else "csv")

    @pydantic.model_validator(mode="after")
    def _reads_one_way(self) -> Source:
        if self.records is not None and self.file_format != "json":
            raise ValueError(
                f"records: {self.records} is for JSON files, and {self.files!r} is read as CSV; "
                "drop records, or add format: json"
            )
        names = list(self.rename.values())
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rename gives two columns the name {name!r}; choose another for one of them")
        return self


class Lookup(Source):
    """A table with one row a key, joined onto another one; a row that finds no key gets missing values."""

    key: str
    """The column that identifies a row; it has the same name (after `rename`) in the table it is joined onto."""
    duplicates: Literal["error", "first", "last"] = "error"
    """What happens to a key that stands in several rows: the run stops, or the first or last row is taken."""


class Interactions(Source):
    """The table of who did what with which item: one row an interaction."""

    lookups: tuple[Lookup, ...] = ()
    """Tables joined onto this one in order, each by a column that is there by then."""


class Entities(Lookup):
    """A table with one row an item, or one row a user."""

    lookups: tuple[Lookup, ...] = ()
    """Tables joined onto this one in order, each by a column that is there by then."""


class Sources(Section):
    """The files a run reads, and how they are joined."""

    interactions: Interactions
    items: Entities | None = None
    """One row an item. Every row joins the catalogue, whether or not anyone touched the item."""
    users: Entities | None = None
    """One row a user."""

    def tables(self) -> dict[str, Source]:
        """The sources in use by name: `interactions`, `interactions.lookups.0`, …, then `items` and `users` so too."""
        named: dict[str, Source] = {}
        for name, source in (("interactions", self.interactions), ("items", self.items), ("users", self.users)):
            if source is not None:
                named[name] = source
                named.update({f"{name}.lookups.{index}": lookup for index, lookup in enumerate(source.lookups)})
        return named


class Columns(Section):
    """Which columns of the joined table play which part."""

    user_id: str
    """Who did it; ids are text, so leading zeros survive."""
    item_id: str
    """With which item; text as well."""
    label: str
    """How much the user liked the item; what the rating head predicts. A column of the files, the count or a sum of
    `aggregate`, or the name of the constant `label`."""
    timestamp: str | None = None
    """When it happened, written as `timestamp_format` says."""


class ConstantLabel(Section):
    """A label for data that only says what happened: every interaction has the same one."""

    constant: float
    """The value of `columns.label` for every interaction."""


class Aggregate(Section):
    """New columns that sum up all rows of one user and item."""

    count: Annotated[str, Field(min_length=1)] | None = None
    """Name of the column that says how many rows there were."""
    sum: dict[str, str] = {}
    """Columns to add up: name of the column to name of the sum. Missing values are left out of the sum."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The new columns."""
        return (*((self.count,) if self.count else ()), *self.sum.values())

    @pydantic.model_validator(mode="after")
    def _makes_columns(self) -> Aggregate:
        if not self.columns:
            raise ValueError("aggregate makes no column; give count or sum")
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise ValueError(f"aggregate makes the column {name!r} twice; choose another name for one of them")
        for name in self.sum:
            if name in self.columns:
                raise ValueError(f"aggregate.sum reads and makes the column {name!r}; give the sum a name of its own")
        return self


IS_POSITIVE = "is_positive"
"""The feature that says which examples are interactions (1) and which are sampled negatives (0)."""


class Negatives(Section):
    """Examples of what did not happen: items that the user has no interaction with, in train or eval.

    They are drawn uniformly from the catalogue, and lie in the split of the interaction they belong to.
    """

    per_positive: PositiveInt
    """Negatives for every interaction; fewer for a user who has touched nearly everything."""
    label: float = 0
    """The value of `columns.label` for negatives."""
    context: tuple[str, ...] = ()
    """Columns of the interaction that belong to the question and not to its answer (channel, device, city), besides
    the user's columns and the timestamp: negatives copy them. Other columns of the interaction are missing there."""
    seed: int = 0
    """Another seed draws other items."""


class RandomSplit(Section):
    """Rows go to `eval` by a seeded hash of their content: stable when rows are added or reordered."""

    kind: Literal["random"] = "random"
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of the rows that is `eval`."""
    seed: int = 0
    """Another seed gives an independent split."""


class ByUserSplit(Section):
    """Users go to `eval` with all their rows, by a seeded hash of their id: measures how strangers are served."""

    kind: Literal["by_user"]
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of the users that is `eval`."""
    seed: int = 0
    """Another seed gives an independent split."""


class TimeSplit(Section):
    """The latest fraction of the interactions is `eval`; no train row is later than an eval row."""

    kind: Literal["time"]
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The part of the rows that is `eval`, as nearly as rows of the same second allow."""


class LeaveLastNSplit(Section):
    """The latest rows of each user are `eval`; users with no more than that stay in train.

    Equal rows count as one and stay together; of rows of the same second the later one in the files is the later one.
    """

    kind: Literal["leave_last_n"]
    n: PositiveInt = 1
    """Rows of each user that are `eval`."""


Split = Annotated[RandomSplit | ByUserSplit | TimeSplit | LeaveLastNSplit, Field(discriminator="kind")]


class Data(Section):
    """Everything that decides which examples there are; what InteractionExampleGen gets."""

    sources: Sources
    columns: Columns
    timestamp_format: str = "seconds"
    """How `columns.timestamp` is written: `seconds` or `milliseconds` since 1970, `iso` (2024-05-31,
    2024-05-31T10:00:00Z, 2024-05-31 10:00:00+02:00), or a pattern of Python's strptime such as `%d/%m/%Y %H:%M`.
    Where no zone is given it is UTC. The feature is always whole seconds since 1970."""
    label: ConstantLabel | None = None
    """Given where no column of the files is the label; `columns.label` then names a new column."""
    duplicates: Literal["keep", "last", "aggregate"] = "keep"
    """What happens to several rows of one user and item: all are examples, the latest is, or they become one example
    with the columns of `aggregate`. The latest is the one with the latest timestamp, or the last in the files."""
    aggregate: Aggregate | None = None
    """What `duplicates: aggregate` adds up; every other column is the latest row's."""
    negatives: Negatives | None = None
    """Sampled examples of what did not happen, for data without bad labels."""
    split: Split = RandomSplit()
    """Which examples are `train` and which are `eval`."""
    max_bad_rows: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of a table's rows that may be rejected; more than that stops the run."""

    @pydantic.model_validator(mode="after")
    def _keys_are_those_of_the_columns(self) -> Data:
        items = self.sources.items
        if items is not None and items.key != self.columns.item_id:
            raise ValueError(
                f"sources.items.key is {items.key!r}, columns.item_id is {self.columns.item_id!r}; "
                "they must be the same"
            )
        users = self.sources.users
        if self.negatives is not None and users is not None and users.key != self.columns.user_id:
            raise ValueError(
                f"sources.users.key is {users.key!r}, columns.user_id is {self.columns.user_id!r}; with negatives they "
                "must be the same, because a sampled interaction has a user and no other column of the real one"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _has_the_time_it_needs(self) -> Data:
        if self.columns.timestamp is None:
            if isinstance(self.split, TimeSplit | LeaveLastNSplit):
                way = {"time": "by time", "leave_last_n": "by each user's last rows"}[self.split.kind]
                raise ValueError(
                    f"the split is {way}, but columns.timestamp is not given; name the column or split randomly"
                )
            if self.timestamp_format != "seconds":
                raise ValueError(
                    f"timestamp_format is {self.timestamp_format!r}, but columns.timestamp is not given; "
                    "name the column or drop the format"
                )
        known = ("seconds", "milliseconds", "iso")
        if self.timestamp_format not in known:
            close = did_you_mean(self.timestamp_format, known)
            if "%" not in self.timestamp_format:
                raise ValueError(
                    f"timestamp_format is {self.timestamp_format!r}; seconds, milliseconds, iso or a strptime pattern "
                    f"such as %Y-%m-%d was wanted{close}"
                )
            _check_pattern(self.timestamp_format)
        return self

    @pydantic.model_validator(mode="after")
    def _duplicates_and_aggregate_agree(self) -> Data:
        if self.aggregate is not None and self.duplicates != "aggregate":
            raise ValueError(
                f"aggregate is given, but duplicates is {self.duplicates}; "
                "write duplicates: aggregate, or drop aggregate"
            )
        if self.duplicates == "aggregate" and self.aggregate is None:
            raise ValueError(
                "duplicates is aggregate, but data.aggregate does not say what to add up; "
                "give aggregate: {count: NAME}, or write duplicates: last"
            )
        parts = self.columns
        named = {parts.user_id: "user_id", parts.item_id: "item_id", parts.timestamp: "timestamp"}
        for name in self.aggregate.columns if self.aggregate is not None else ():
            if name in named:
                raise ValueError(
                    f"aggregate makes the column {name!r}, which is columns.{named[name]}; choose another name"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_label(self) -> Data:
        if self.label is not None and self.aggregate is not None and self.columns.label in self.aggregate.columns:
            raise ValueError(
                f"columns.label is {self.columns.label!r}, which aggregate makes, and label gives it a constant; "
                "drop label, or choose another name for one of them"
            )
        parts = self.columns
        if self.label is not None and parts.label in (parts.user_id, parts.item_id, parts.timestamp):
            raise ValueError(f"label makes the column {parts.label!r}, which plays another part; choose another name")
        if self.label is not None and self.negatives is not None and self.negatives.label == self.label.constant:
            raise ValueError(
                f"label.constant and negatives.label are both {self.negatives.label:g}, so every example would have "
                "the same label; choose another value for one of them"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _negatives_keep_the_answer_out(self) -> Data:
        if self.negatives is not None:
            parts = self.columns
            made = self.aggregate.columns if self.aggregate is not None else ()
            if IS_POSITIVE in (parts.user_id, parts.item_id, parts.label, parts.timestamp, *made):
                raise ValueError(
                    f"{IS_POSITIVE!r} is the name of the feature that tells interactions from negatives; "
                    "give the column another name"
                )
            for name in self.negatives.context:
                if name in (parts.item_id, parts.label, *made):
                    raise ValueError(
                        f"negatives.context lists {name!r}, which is the interaction's answer; drop it, because "
                        "copying it would give a negative what only the interaction has"
                    )
        return self


def _check_pattern(pattern: str) -> None:
    """Raises if strptime does not understand `pattern`, or if it leaves the day open."""
    utc = datetime.UTC
    moments = [
        datetime.datetime(2001, 2, 3, 16, 5, 6, tzinfo=utc),
        datetime.datetime(2002, 11, 24, 7, 8, 9, tzinfo=utc),
    ]
    try:
        found = [datetime.datetime.strptime(moment.strftime(pattern), pattern) for moment in moments]
    except ValueError as error:
        raise ValueError(f"timestamp_format is {pattern!r}, no pattern of strptime: {error}") from None
    if [moment.date() for moment in found] != [moment.date() for moment in moments]:
        raise ValueError(
            f"timestamp_format is {pattern!r}, which does not say which day it is; year, month and day were wanted, "
            "for example %Y-%m-%d"
        )


# --- features ---------------------------------------------------------------------------------------------------------


class Feature(Section):
    """One column as one tower sees it. `kind` says how Transform turns it into numbers."""

    column: str
    """Name of the column, after `rename`; its type in schema.pbtxt must fit the kind."""
    display: bool = False
    """Returned with recommended item ids (candidate features only)."""

    @property
    def name(self) -> str:
        """Name of the transformed feature."""
        return f"{self.column}_{getattr(self, 'kind')}"  # noqa: B009  (declared by every subclass)


class Identifier(Feature):
    """An id, looked up in the vocabulary of all ids seen; unseen ids share one out-of-vocabulary row."""

    kind: Literal["id"]
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Categorical(Feature):
    """A string with few values, looked up in a vocabulary."""

    kind: Literal["categorical"]
    min_count: PositiveInt = 1
    """Values that stand in fewer rows of train and catalogue count as unknown."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Text(Feature):
    """Words, lower-cased and split on everything but letters and digits; their embeddings are averaged."""

    kind: Literal["text"]
    vocabulary_size: PositiveInt = 10_000
    """The most frequent words that get an embedding of their own."""
    min_count: PositiveInt = 2
    """Words that come up less often in train and catalogue count as unknown."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class MultiValue(Feature):
    """Several values in one string; their embeddings are averaged."""

    kind: Literal["multi_value"]
    separator: Annotated[str, Field(min_length=1, max_length=1)] = "|"
    """Stands between two values; spaces around a value do not count."""
    min_count: PositiveInt = 1
    """Values that come up less often in train and catalogue count as unknown."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


class Buckets(Feature):
    """A number cut into intervals, each with an embedding."""

    kind: Literal["buckets"]
    buckets: Annotated[int, Field(ge=2)]
    """How many intervals."""
    boundaries: Literal["uniform", "quantile"] = "quantile"
    """Intervals of equal width between the smallest and the largest value, or of equal count."""
    types: ClassVar[tuple[ColumnType, ...]] = NUMBERS


class Normalized(Feature):
    """A number as z-score: mean 0 and standard deviation 1 over train."""

    kind: Literal["normalized"]
    types: ClassVar[tuple[ColumnType, ...]] = NUMBERS


class History(Feature):
    """The items that the user has interactions with in train (query features only); `column` is the item's id.

    While training, a row's own item is left out. The served model remembers every known user's history, and a request
    may bring another one, so that a stranger's first clicks count at once. Sampled negatives are nobody's history.
    """

    kind: Literal["history"]
    pooling: Literal["sum_sqrt", "mean", "attention", "gru"] = "sum_sqrt"
    """How the items' embeddings become one vector: their sum over the square root of their number, their mean, a
    softmax-weighted mean with a learned query, or the last state of a recurrent network over them in order of time."""
    max_length: PositiveInt = 1000
    """The latest items that count. `attention` and `gru` cost memory for each of them: 50 is much there."""
    labels: bool = False
    """Items count for what the user thought of them too: a second embedding of each item, weighted with how far its
    label lies from what user and item means let expect (Koren 2010, doi:10.1145/1644873.1644874)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of a history's items that training leaves out at random."""
    order: Literal["any", "earlier"] | None = None
    """Which other interactions of the user a training row sees: `any`, or only those that are `earlier` than it. Left
    out, it is `earlier` where the split is by time or by each user's last rows, because no request sees the future."""
    types: ClassVar[tuple[ColumnType, ...]] = STRINGS


AnyFeature = Annotated[
    Identifier | Categorical | Text | MultiValue | Buckets | Normalized | History,
    Field(discriminator="kind"),
]


class Features(Section):
    """What each tower looks at."""

    query: Annotated[tuple[AnyFeature, ...], Field(min_length=1)]
    """Who asks and when: columns of the interactions and users."""
    candidate: Annotated[tuple[AnyFeature, ...], Field(min_length=1)]
    """What is recommended: columns of the items."""

    @property
    def history(self) -> History | None:
        """The history feature, if there is one."""
        return next((feature for feature in self.query if isinstance(feature, History)), None)

    def for_transform(self) -> Features:
        """Without the history, which is no column but made of other interactions by the Trainer."""
        return self.model_copy(update={"query": tuple(f for f in self.query if not isinstance(f, History))})

    @pydantic.model_validator(mode="after")
    def _names_are_unique(self) -> Features:
        if any(isinstance(feature, History) for feature in self.candidate):
            raise ValueError("a history is the user's; list it under features.query")
        names = [feature.name for feature in (*self.query, *self.candidate)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the feature {name!r} is listed twice; keep one of them")
        for feature in self.query:
            if feature.display:
                raise ValueError(f"display: true on the query feature {feature.name!r}; only items are displayed")
        return self


# --- model ------------------------------------------------------------------------------------------------------------


Share = Annotated[float, Field(ge=0, lt=1)]
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


class Lookahead(Section):
    """Slow weights that follow the optimizer's fast ones (Zhang et al. 2019, arXiv:1907.08610)."""

    steps: PositiveInt = 6
    """Steps of the fast weights between two of the slow ones."""
    slow_step: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How far the slow weights go towards the fast ones."""


class Optimizer(Section):
    """How gradients change the weights."""

    kind: Literal["adagrad", "adam", "adamw", "radam"] = "adam"
    """Adagrad, Adam, Adam with decoupled weight decay, or rectified Adam (Liu et al. 2020, arXiv:1908.03265); radam
    with `lookahead` is known as Ranger."""
    learning_rate: PositiveFloat = 1e-3
    """Size of a step, after the warm-up and before the decay."""
    rating_learning_rate: PositiveFloat | None = None
    """Another one for the weights that only the rating head has: its biases, layers and own towers."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Part of every weight that a step takes off, times the learning rate (`adamw` and `radam`)."""
    warm_up: Share = 0.0
    """Part of the steps in which the learning rate climbs from 0, linearly."""
    decay: Literal["none", "cosine"] = "none"
    """What becomes of the learning rate after the warm-up: it stays, or falls to 0 along a cosine."""
    clip_norm: PositiveFloat | None = None
    """The largest norm of all gradients together, both tasks' and all embeddings'; larger ones are scaled down."""
    ema: Share | None = None
    """Part of the averaged weights that a step keeps; what is exported, and measured on the validation slice, is the
    average. It is corrected for its start, so the initial weights are no part of it, however short the training. Left
    out, the weights are the last ones, or Lookahead's slow ones."""
    lookahead: Lookahead | None = None
    """Left out, the optimizer's own steps are the weights."""

    @pydantic.model_validator(mode="after")
    def _decays_what_it_can(self) -> Optimizer:
        if self.weight_decay and self.kind not in ("adamw", "radam"):
            raise ValueError(
                f"weight_decay is {self.weight_decay:g}, which {self.kind} knows nothing of; use adamw or radam, or "
                "embedding_l2 and l2 of the towers"
            )
        return self


class Validation(Section):
    """A slice of train that is kept from training, to see when to stop. The eval split is never looked at."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The part of train."""
    max_rows: PositiveInt = 100_000
    """At most as many interactions: each is ranked among all items after every epoch, and more tell little more."""
    kind: Literal["random", "latest"] | None = None
    """Which rows: any, or the latest ones. Left out, `latest` where the split is by time or each user's last rows."""
    seed: int = 0
    """Another seed keeps other rows."""


class EarlyStopping(Section):
    """Training ends when the validation slice says so, and goes back to the best epoch's weights."""

    metric: Literal["top_100_accuracy", "rmse"]
    """What is best, measured on the validation slice after every epoch."""
    patience: PositiveInt = 3
    """Epochs without a better value after which training ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Less than this does not count as better."""


class Training(Section):
    """How long and in which steps the model is fitted."""

    epochs: PositiveInt = 10
    """How often training goes through all interactions, at most."""
    steps: PositiveInt | None = None
    """Batches instead of epochs: training ends after as many, in the middle of an epoch if need be, and `epochs` does
    not count."""
    batch_size: PositiveInt = 4096
    """Interactions a step; the retrieval task takes its negatives from among them."""
    optimizer: Optimizer = Optimizer()
    recency_half_life_days: PositiveFloat | None = None
    """Interactions weigh half as much for retrieval when they are this much older than the latest of train."""
    rating_recency_half_life_days: PositiveFloat | None = None
    """The same for ratings: fashions fade sooner than opinions."""
    validation: Validation | None = None
    """Left out, all of train is trained on, and the curves have no accuracy and no RMSE."""
    early_stopping: EarlyStopping | None = None
    """Needs `validation`."""
    mixed_precision: bool = False
    """Computes in 16 bits where that is safe: float16 on GPUs, bfloat16 elsewhere."""
    xla: bool = False
    """Compiles a step with XLA, once for full batches and once for the last one of an epoch: worth its start-up time in
    long runs on a GPU. Without, a batch's copies of an item are scored once, which is faster on CPUs."""
    seed: int = 0
    """Of the initial weights, the order of the interactions and dropout."""

    @pydantic.model_validator(mode="after")
    def _stops_by_what_it_measures(self) -> Training:
        if self.early_stopping is not None and self.validation is None:
            raise ValueError("early_stopping is given without validation; give validation: {fraction: 0.05}")
        return self


# --- tuner ------------------------------------------------------------------------------------------------------------


class Search(Section):
    """The values of one key that the Tuner tries: `choices`, or what lies between `low` and `high`."""

    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None
    """Values as the key takes them: numbers, words, lists, or whole sections."""
    low: float | None = None
    """The smallest number."""
    high: float | None = None
    """The largest number."""
    step: PositiveFloat | None = None
    """The distance from one number to the next, from `low` on; with `scale: log` the factor. Left out, any number."""
    scale: Literal["linear", "log"] = "linear"
    """`log` tries as many numbers from 0.001 to 0.01 as from 0.01 to 0.1."""

    @pydantic.model_validator(mode="after")
    def _is_choices_or_a_range(self) -> Search:
        bounds = (self.low, self.high)
        if self.choices is not None:
            if any(bound is not None for bound in (*bounds, self.step)) or self.scale != "linear":
                raise ValueError("choices stands beside a range; keep one of them")
            return self
        if self.low is None or self.high is None:
            raise ValueError("either choices, or low and high were wanted")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be less")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, which has no logarithm; give a low above 0")
        if self.scale == "log" and self.step is not None and self.step <= 1:
            raise ValueError(f"step is {self.step:g}; with scale: log it is a factor, so more than 1 was wanted")
        return self

    def ends(self, fractions: bool) -> tuple[float, float]:
        """Both ends of the range: whole numbers unless the key takes `fractions`."""
        if self.low is None or self.high is None:
            raise ValueError("choices have no ends")
        return (self.low, self.high) if fractions else (int(self.low), int(self.high))


class Objective(Section):
    """What makes a trial good, measured on the validation slice: accuracy times its weight minus RMSE times its own."""

    top_100_accuracy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of top-100 accuracy."""
    rmse: Annotated[float, Field(ge=0)] = 0.0
    """Weight of RMSE."""

    @pydantic.model_validator(mode="after")
    def _measures_something(self) -> Objective:
        if not self.top_100_accuracy and not self.rmse:
            raise ValueError("no metric has a weight; give top_100_accuracy or rmse one above 0")
        return self


class Tuner(Section):
    """A search for better values of some keys, before the Trainer, which then trains with the best ones.

    Trials train on train without the validation slice (`training.validation`, or its defaults) and are measured on
    the slice. The eval split is never looked at.
    """

    search: Annotated[dict[str, Search], Field(min_length=1)]
    """What is tried: dotted keys of `model` and `training`, such as `training.optimizer.learning_rate`."""
    objective: Objective = Objective(top_100_accuracy=1, rmse=1)
    """What makes a trial good; left out, both metrics have the weight 1."""
    algorithm: Literal["random", "bayesian", "hyperband"] = "random"
    """How KerasTuner chooses the next trial: at random, by a Gaussian process over the trials so far, or at random with
    most trials stopped early (Li et al. 2018, jmlr.org/papers/v18/16-558.html)."""
    trials: PositiveInt | None = None
    """How many trials; left out, 10. How many `hyperband` runs follows from `epochs`."""
    epochs: PositiveInt | None = None
    """Epochs of a trial, at most; left out, those of `training`."""
    seed: int = 0
    """Another seed tries other values; the trials' own seed is that of `training`."""

    @pydantic.model_validator(mode="after")
    def _counts_trials_once(self) -> Tuner:
        if self.algorithm == "hyperband" and self.trials is not None:
            raise ValueError(f"trials is {self.trials}, but hyperband's number of trials follows from epochs; drop it")
        return self


# --- gates and serving ------------------------------------------------------------------------------------------------

# What the Evaluator measures on the eval split, and whether more of it is better; components/evaluator/metrics.py says
# what each one is.
METRICS: dict[str, Literal["higher", "lower"]] = {
    "top_1_accuracy": "higher",
    "top_5_accuracy": "higher",
    "top_10_accuracy": "higher",
    "top_50_accuracy": "higher",
    "top_100_accuracy": "higher",
    "top_1_accuracy_unseen": "higher",
    "top_5_accuracy_unseen": "higher",
    "top_10_accuracy_unseen": "higher",
    "top_50_accuracy_unseen": "higher",
    "top_100_accuracy_unseen": "higher",
    "ndcg_10": "higher",
    "recall_10": "higher",
    "mrr": "higher",
    "coverage_10": "higher",
    "popularity_bias_10": "lower",
    "rmse": "lower",
    "mae": "lower",
}

RATING_METRICS = ("rmse", "mae")
"""Those of the rating task, whose baseline is the damped user and item means; the others' is the most popular items."""

CONDITIONS = ("at_least", "at_most", "may_drop", "may_rise", "beats_baseline_by")
"""The bounds that a gate may have."""

USER_ACTIVITY = "user_activity"
ITEM_POPULARITY = "item_popularity"

# The slices that every dataset has, from the least known to the best.
READY_SLICES: dict[str, tuple[str, ...]] = {
    USER_ACTIVITY: ("new", "light", "heavy"),
    ITEM_POPULARITY: ("cold", "tail", "torso", "head"),
}


class UserActivity(Section):
    """Eval examples by how many interactions their user has in train.

    `new`: none; `light`: fewer than most; `heavy`: the others.
    """

    heavy: Share = 0.5
    """Heavy users have more interactions than this part of train's users."""


class ItemPopularity(Section):
    """Eval examples by how many interactions their item has in train.

    `cold`: none; `tail`, `torso` and `head`: few, more and most.
    """

    torso: Share = 0.5
    """Items above the tail have more interactions than this part of train's items."""
    head: Share = 0.8
    """Items of the head have more interactions than this part of train's items."""

    @pydantic.model_validator(mode="after")
    def _is_in_order(self) -> ItemPopularity:
        if self.torso > self.head:
            raise ValueError(f"torso is {self.torso:g} and head {self.head:g}; the torso begins below the head")
        return self


class Slices(Section):
    """Parts of the eval split that are measured on their own, besides the whole of it."""

    columns: tuple[str, ...] = ()
    """Columns, of text or whole numbers, with few different values; each value is a slice. Examples without a value
    are in none. The columns of the gates' slices are measured too, whether or not they are listed here."""
    user_activity: UserActivity | None = UserActivity()
    """Left out, it is on; `null` switches it off."""
    item_popularity: ItemPopularity | None = ItemPopularity()
    """Left out, it is on; `null` switches it off."""


def _is_a_value(value: Any) -> Any:
    # YAML 1.1 reads `no` and `off` as false, which pydantic would take for 0.
    if isinstance(value, bool):
        raise ValueError(f"the value was read as {str(value).lower()}; put it in quotes")
    return value


class Gate(Section):
    """A condition on one metric, on the whole eval split or on a slice. A model that fails any gate is not pushed."""

    metric: str
    """What is measured on the eval split: one of `METRICS`."""
    slice: dict[str, Annotated[str | int, pydantic.BeforeValidator(_is_a_value)]] | None = None
    """Which part of the eval split is measured, as `{user_activity: new}` or `{COLUMN: VALUE}`; left out, all of it.
    A gate whose slice has no examples fails."""
    at_least: float | None = None
    """The smallest value that passes."""
    at_most: float | None = None
    """The largest value that passes."""
    may_drop: Annotated[float, Field(ge=0)] | None = None
    """How far the metric may fall below the last blessed model's."""
    may_rise: Annotated[float, Field(ge=0)] | None = None
    """How far the metric may climb above the last blessed model's."""
    beats_baseline_by: Annotated[float, Field(ge=0)] | None = None
    """How much better than the baseline the metric must be, at least; 0 is as good. For `rmse` and `mae` the baseline
    predicts damped user and item means, for the others it recommends the most popular items."""

    @property
    def conditions(self) -> dict[str, float]:
        """The bounds that are given, by key."""
        given = {name: getattr(self, name) for name in CONDITIONS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def slice_key(self) -> tuple[str, str] | None:
        """Name and value of the slice; None for the whole eval split."""
        return None if self.slice is None else next((name, str(value)) for name, value in self.slice.items())

    @pydantic.model_validator(mode="after")
    def _is_a_condition(self) -> Gate:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}{did_you_mean(self.metric, METRICS)}")
        if not self.conditions:
            raise ValueError(f"the gate has no bound; give {', '.join(CONDITIONS[:-1])} or {CONDITIONS[-1]}")
        wrong = "may_rise" if METRICS[self.metric] == "higher" else "may_drop"
        if getattr(self, wrong) is not None:
            right = "may_drop" if wrong == "may_rise" else "may_rise"
            raise ValueError(f"{wrong} makes no sense for {self.metric}, where {METRICS[self.metric]} is better; "
                             f"use {right}")  # fmt: skip
        return self

    @pydantic.model_validator(mode="after")
    def _has_one_slice(self) -> Gate:
        if self.slice is not None and len(self.slice) != 1:
            raise ValueError(
                f"slice has {len(self.slice)} entries; one was wanted, such as slice: {{{USER_ACTIVITY}: new}}"
            )
        if self.slice_key is not None:
            name, value = self.slice_key
            known = READY_SLICES.get(name)
            if known is not None and value not in known:
                raise ValueError(
                    f"the slice {name} has no part {value!r}{did_you_mean(value, known)}; it has {', '.join(known)}"
                )
        return self


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

ComponentName = Literal[
    "InteractionExampleGen", "StatisticsGen", "ImportSchemaGen", "ExampleValidator", "Transform", "Tuner", "Trainer",
    "ModelResolver", "Evaluator", "InfraValidator", "Pusher",
]  # fmt: skip


class Recipe(Section):
    """Everything about one dataset, its model and its gates."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=48)]
    """Name of the pipeline and of the served model."""
    description: str = ""
    """One line for people."""
    data: Data
    features: Features
    model: Model = Model()
    training: Training = Training()
    tuner: Tuner | None = None
    """A search for better values of some keys before training; left out, nothing is searched."""
    slices: Slices = Slices()
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
    serving: Serving = Serving()
    resources: dict[ComponentName, Resources] = {}
    """What a component asks for where it runs in a container of its own, as on Kubeflow Pipelines; others get what the
    cluster gives."""
    schedule: str | None = None
    """When Airflow runs the pipeline by itself, in UTC: a cron expression of five fields, such as `"30 4 * * *"`, or
    one of `"@hourly"`, `"@daily"`, `"@weekly"`, `"@monthly"`, `"@quarterly"` and `"@yearly"`, in quotes.
    `TANDEM_SCHEDULE` says otherwise for one Airflow. Left out, it runs only when somebody asks. The other runners have
    no clock."""

    @pydantic.field_validator("schedule")
    @classmethod
    def _is_a_schedule(cls, found: str | None) -> str | None:
        # Airflow, which knows what each field may be, checks the rest.
        if found is None or found in SCHEDULES or re.fullmatch(rf"{CRON_FIELD}( +{CRON_FIELD}){{4}}", found):
            return found
        close = did_you_mean(found, SCHEDULES) if found.startswith("@") else ""
        raise ValueError(
            "a cron expression of five fields (minute, hour, day of the month, month, day of the week), such as "
            f"'30 4 * * *', or one of {', '.join(SCHEDULES)} was wanted{close}"
        )

    @pydantic.model_validator(mode="after")
    def _gates_differ(self) -> Recipe:
        found = [(gate.metric, gate.slice_key, condition) for gate in self.gates for condition in gate.conditions]
        for metric, key, condition in found:
            if found.count((metric, key, condition)) > 1:
                where = f" where {key[0]} is {key[1]}" if key else ""
                raise Contradiction("gates", f"{metric}{where} has two gates with {condition}; keep one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _slices_can_be_made(self) -> Recipe:
        parts = self.data.columns
        ready = {USER_ACTIVITY: self.slices.user_activity, ITEM_POPULARITY: self.slices.item_popularity}
        for index, gate in enumerate(self.gates):
            if gate.slice_key is not None and ready.get(gate.slice_key[0], True) is None:
                raise Contradiction(
                    f"gates.{index}.slice",
                    f"gates.{index} is for a slice of {gate.slice_key[0]}, which slices switches off; "
                    "take one of the two out",
                )
        many = {parts.user_id: "user", parts.item_id: "item", parts.timestamp: "moment", parts.label: "label"}
        for name, key in self._slice_columns():
            if name in ready:
                raise Contradiction(key, f"{key}: {name!r} is a slice that every dataset has; drop it here")
            if name in many:
                raise Contradiction(
                    key,
                    f"{key}: a slice for each {many[name]} would be too many; slices are for columns with few values, "
                    f"and {USER_ACTIVITY} and {ITEM_POPULARITY} sum up users and items",
                )
        return self

    def _slice_columns(self) -> list[tuple[str, str]]:
        """Columns that slices look at, each with the key that names it."""
        listed = [(name, f"slices.columns.{index}") for index, name in enumerate(self.slices.columns)]
        gates = [(gate.slice_key, index) for index, gate in enumerate(self.gates)]
        return listed + [
            (key[0], f"gates.{index}.slice") for key, index in gates if key is not None and key[0] not in READY_SLICES
        ]

    @pydantic.model_validator(mode="after")
    def _features_are_known_when_asked(self) -> Recipe:
        parts = self.data.columns
        forbidden: dict[str, dict[str | None, str]] = {
            "query": {parts.label: "the label", parts.item_id: "the item"},
            "candidate": {parts.label: "the label", parts.user_id: "the user", parts.timestamp: "the time"},
        }
        made = self.data.aggregate.columns if self.data.aggregate is not None else ()
        for answers in forbidden.values():
            for column in (*made, IS_POSITIVE):
                answers.setdefault(column, "a summary of what happened")
        towers: dict[str, tuple[Feature, ...]] = {
            "query": self.features.query, "candidate": self.features.candidate
        }  # fmt: skip
        for tower, features in towers.items():
            for index, feature in enumerate(features):
                if isinstance(feature, History) and feature.column != parts.item_id:
                    raise ValueError(
                        f"features.{tower}.{index} is a history of {feature.column!r}; a history is one of items, so "
                        f"its column is data.columns.item_id, {parts.item_id!r}"
                    )
                if feature.column in forbidden[tower] and not isinstance(feature, History):
                    raise ValueError(
                        f"features.{tower}.{index} looks at {feature.column!r}, {forbidden[tower][feature.column]}, "
                        f"which the {tower} tower cannot know when it is asked; drop the feature"
                    )
        return self

    @pydantic.model_validator(mode="after")
    def _what_needs_times_has_them(self) -> Recipe:
        validation, history = self.training.validation, self.features.history
        latest = validation is not None and validation.kind == "latest"
        earlier = history is not None and history.order == "earlier"
        gru = history is not None and history.pooling == "gru"
        for asked, key, what in (
            *(
                (getattr(self.training, name) is not None, f"training.{name}", f"training.{name}")
                for name in ("recency_half_life_days", "rating_recency_half_life_days")
            ),
            (latest, "training.validation.kind", "training.validation.kind: latest"),
            (earlier, "features.query", "a history with order: earlier"),
            (gru, "features.query", "a history with pooling: gru"),
        ):
            if asked and self.data.columns.timestamp is None:
                raise Contradiction(
                    key, f"{what} needs times, but data.columns.timestamp is not given; name the column"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _names_fit_the_signatures(self) -> Recipe:
        sides: tuple[tuple[str, tuple[Feature, ...], str], ...] = (
            ("query", self.features.query, self.data.columns.user_id),
            ("item", self.features.candidate, self.data.columns.item_id),
        )
        for side, features, id_column in sides:
            for feature in features:
                # Ids are always called user_id and item_id there, whatever their columns are called, and the history
                # history.
                if feature.column == id_column or isinstance(feature, History):
                    continue
                if side == "query" and feature.column == HISTORY_INPUT and self.features.history is not None:
                    raise ValueError(
                        f"the query column {feature.column!r} has the name of the served model's input for histories; "
                        "give it another name under rename"
                    )
                if not can_name_an_input(feature.column):
                    raise ValueError(
                        f"the {side} column {feature.column!r} cannot name an input of the served model: a letter and "
                        "then letters, digits and underscores were wanted, and neither a word of Python's nor "
                        f"{' or '.join(SIGNATURE_INPUTS)}; give it another name under rename"
                    )
        for feature in self.features.candidate:
            if feature.display and feature.column in SIGNATURE_OUTPUTS:
                raise ValueError(
                    f"display: true on the column {feature.column!r}, which is what the served model calls an answer "
                    "of its own; rename the column"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _items_are_ordered_by_what_is_trained(self) -> Recipe:
        if self.serving.rank_by.rating and not self.model.rating_weight:
            raise Contradiction(
                "serving.rank_by",
                "serving.rank_by orders items by predicted ratings, and model.rating_weight is 0, so that nothing "
                "learns to predict them; choose rank_by: score, or give the ratings a weight",
            )
        return self

    @pydantic.model_validator(mode="after")
    def _features_have_a_source(self) -> Recipe:
        if self.data.negatives is not None and self.data.sources.users is None:
            asked = (self.data.columns.user_id, self.data.columns.timestamp, *self.data.negatives.context)
            for feature in self.features.for_transform().query:
                if feature.column not in asked:
                    raise ValueError(
                        f"the query feature {feature.name!r} would be missing on every negative, which gives the "
                        f"answer away; add {feature.column!r} to data.negatives.context"
                    )
        if self.features.candidate and self.data.sources.items is None:
            for feature in self.features.candidate:
                if feature.column != self.data.columns.item_id:
                    raise ValueError(
                        f"the candidate feature {feature.name!r} needs the column {feature.column!r} of an items "
                        "table; name the table under data.sources.items or drop the feature"
                    )
        for tower, features, id_column in (
            ("query", self.features.query, self.data.columns.user_id),
            ("candidate", self.features.candidate, self.data.columns.item_id),
        ):
            ids = [feature.column for feature in features if isinstance(feature, Identifier)]
            if ids != [id_column]:
                raise ValueError(
                    f"features.{tower} has ids {ids}; it needs exactly one feature of kind id, "
                    f"on the column {id_column!r}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _towers_look_at_features(self) -> Recipe:
        _check_towers(self.features, self.model)
        return self

    @pydantic.model_validator(mode="after")
    def _tuner_searches_what_there_is(self) -> Recipe:
        if self.tuner is not None:
            _check_search(self, self.tuner)
        return self

    def for_trainer(self) -> TrainerRecipe:
        """The part that decides what is trained and exported; changing anything else does not train again."""
        in_time = isinstance(self.data.split, TimeSplit | LeaveLastNSplit)
        features, training = self.features, self.training
        query = tuple(
            feature.model_copy(update={"order": feature.order or ("earlier" if in_time else "any")})
            if isinstance(feature, History)
            else feature
            for feature in features.query
        )
        if training.validation is not None:
            kind = training.validation.kind or ("latest" if in_time else "random")
            validation = training.validation.model_copy(update={"kind": kind})
            training = training.model_copy(update={"validation": validation})
        return TrainerRecipe(
            columns=self.data.columns,
            features=features.model_copy(update={"query": query}),
            model=self.model,
            training=training,
            serving=self.serving.for_export(),
            negatives=self.data.negatives,
        )

    def for_tuner(self) -> TunerRecipe:
        """The part that decides what is tried and which trial is best; there must be a `tuner`."""
        if self.tuner is None:
            raise ValueError("the recipe has no section `tuner`, so there is nothing to search")
        validated = self.training.model_copy(update={"validation": self.training.validation or Validation()})
        parts = self.model_copy(update={"training": validated}).for_trainer()
        return TunerRecipe(**{name: getattr(parts, name) for name in TrainerRecipe.model_fields}, tuner=self.tuner)

    def columns(self) -> list[tuple[str, str, tuple[ColumnType, ...]]]:
        """Every use of a column: its name, the key that names it, and the types it may have there."""
        parts = self.data.columns
        used: list[tuple[str, str, tuple[ColumnType, ...]]] = [
            (parts.user_id, "data.columns.user_id", STRINGS),
            (parts.item_id, "data.columns.item_id", STRINGS),
            (parts.label, "data.columns.label", NUMBERS),
        ]
        if parts.timestamp is not None:
            used.append((parts.timestamp, "data.columns.timestamp", ("INT",)))
        if self.data.aggregate is not None:
            if self.data.aggregate.count:
                used.append((self.data.aggregate.count, "data.aggregate.count", NUMBERS))
            used += [
                (name, f"data.aggregate.sum.{column}", NUMBERS) for column, name in self.data.aggregate.sum.items()
            ]
        if self.data.negatives is not None:
            used.append((IS_POSITIVE, "data.negatives", ("FLOAT",)))
        used += [(name, key, (*STRINGS, "INT")) for name, key in self._slice_columns()]
        for tower, features in (("query", self.features.query), ("candidate", self.features.candidate)):
            for index, feature in enumerate(features):
                used.append((feature.column, f"features.{tower}.{index}.column", feature.types))
        return used


class TrainerRecipe(Section):
    """What the Trainer gets; see `Recipe.for_trainer`."""

    columns: Columns
    features: Features
    model: Model
    training: Training
    serving: Serving
    negatives: Negatives | None = None
    """Given where the examples hold sampled negatives, which the feature `IS_POSITIVE` tells from interactions."""

    @pydantic.model_validator(mode="after")
    def _towers_look_at_features(self) -> TrainerRecipe:
        _check_towers(self.features, self.model)
        return self

    def with_values(self, found: Mapping[str, Any]) -> TrainerRecipe:
        """This recipe with other values.

        Args:
            found: Values by dotted key of `model` or `training`, such as `model.embedding_dim`.

        Raises:
            RecipeError: The values contradict each other or the rest.
        """
        values = self.model_dump(mode="json", exclude_none=True)
        for key, value in found.items():
            _assign(values, dotted_key(key), value)
        try:
            return type(self).model_validate(values)
        except pydantic.ValidationError as error:
            told = [": ".join(part for part in _wording(entry, values)[1:] if part) for entry in error.errors()]
            raise RecipeError(f"{dict(found)}: {'; '.join(told)}") from None


class TunerRecipe(TrainerRecipe):
    """What the Tuner gets; see `Recipe.for_tuner`."""

    tuner: Tuner


def _check_towers(features: Features, model: Model) -> None:
    """Raises where a tower looks at what is not there, or its vectors have another width than what they meet."""
    head = model.rating_head
    towers = [
        ("model.query_tower", model.query_tower, "query", model.embedding_dim, model.vector_dim),
        ("model.candidate_tower", model.candidate_tower, "candidate", model.embedding_dim, model.vector_dim),
    ]
    if head.inputs != "shared":
        for side in ("query", "candidate"):
            tower = getattr(head, f"{side}_tower")
            towers.append((f"model.rating_head.{side}_tower", tower, side, head.dimension, head.dimension))
    for key, tower, side, embedding_dim, wanted in towers:
        known = {feature.name: feature for feature in getattr(features, side)}
        for name in tower.features or ():
            if name not in known:
                raise Contradiction(
                    f"{key}.features",
                    f"{key}.features: no feature {name!r} under features.{side}{did_you_mean(name, known) or '.'} "
                    f"Features there: {', '.join(sorted(known))}",
                )
        chosen = [known[name] for name in tower.features] if tower.features is not None else [*known.values()]
        if not chosen:
            raise Contradiction(
                f"{key}.features", f"{key}.features is empty; name at least one feature, or leave the key out"
            )
        widths = [1 if isinstance(feature, Normalized) else embedding_dim for feature in chosen]
        width = tower.layers[-1] if tower.layers else embedding_dim if tower.combine == "sum" else sum(widths)
        if not tower.projection and width != wanted:
            raise Contradiction(
                key,
                f"{key}: its vectors have {width} numbers and {wanted} are wanted; write projection: true, or "
                "change the layers or features",
            )


def _check_search(recipe: Recipe, tuner: Tuner) -> None:
    """Raises where the Tuner would try a key that does not exist, or a value that the key cannot have.

    Each value is tried with the recipe's own values of the other keys; combinations are the Tuner's affair.
    """
    weights = {"top_100_accuracy": recipe.model.retrieval_weight, "rmse": recipe.model.rating_weight}
    for metric, weight in weights.items():
        if getattr(tuner.objective, metric) and not weight:
            task = "retrieval" if metric == "top_100_accuracy" else "rating"
            raise Contradiction(
                f"tuner.objective.{metric}",
                f"tuner.objective.{metric}: model.{task}_weight is 0, so nothing is trained that it would measure; "
                "drop the key, or give the task a weight",
            )
    base = recipe.model_dump(mode="json", exclude_none=True, exclude={"tuner"})
    for key, search in tuner.search.items():
        problem = _search_problem(base, key, search)
        if problem:
            # The search's keys have dots themselves.
            raise Contradiction(("tuner", "search", key), f"tuner.search.{key}: {problem}")


def _search_problem(base: Mapping[str, Any], key: str, search: Search) -> str:
    """Why `key` cannot be searched in a recipe with the values `base`; empty where it can."""
    parts = dotted_key(key)
    if parts[0] not in ("model", "training") or len(parts) < 2:
        close = did_you_mean(str(parts[0]), ("model", "training"))
        return f"a key of model or training was wanted, such as model.embedding_dim{close}"
    if parts[:2] in (("training", "epochs"), ("training", "steps"), ("training", "validation")):
        return "how long a trial lasts and what measures it is the same for all trials; see tuner.epochs"
    fractions = takes_fractions(key)
    for name in () if fractions or search.choices is not None else ("low", "high", "step"):
        bound = getattr(search, name)
        if bound is not None and bound != int(bound):
            return f"{name}: a whole number was wanted (found {bound!r})"
    for value in search.choices if search.choices is not None else search.ends(fractions):
        values: dict[str, Any] = copy.deepcopy(dict(base))
        try:
            _assign(values, parts, value)
            Recipe.model_validate(values)
        except KeyError as error:
            return str(error.args[0])
        except pydantic.ValidationError as error:
            return f"{value!r}: {': '.join(part for part in _wording(error.errors()[0], values)[1:] if part)}"
    return ""


def takes_fractions(key: str) -> bool:
    """Whether the recipe's dotted `key` may hold a number with a fraction."""
    return _takes_fractions(_annotation(dotted_key(key)))


def _takes_fractions(annotation: Any) -> bool:
    return annotation is float or any(_takes_fractions(inner) for inner in get_args(annotation))


# --- reading ----------------------------------------------------------------------------------------------------------


def load_recipe(schema_dir: Path, overrides: Sequence[str] = (), preset: str | None = None) -> Recipe:
    """Reads and checks `recipe.yaml` of `schema_dir`.

    Args:
        schema_dir: Folder with `recipe.yaml` and `schema.pbtxt`.
        overrides: `key=value` pairs such as `model.embedding_dim=64` or `gates.0.at_least=0.3`; values are YAML.
        preset: Name of a file in `presets`, without `.yaml`: its sections stand in place of the recipe's.

    Raises:
        RecipeError: A file is missing or not YAML, a key is unknown or missing, or a value is wrong.
    """
    path = schema_dir / RECIPE_FILE
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no recipe. A schema folder holds {RECIPE_FILE} and {SCHEMA_FILE}; "
            "see schemas/movielens for one."
        )
    values, places = _read_yaml(path)
    if preset is not None:
        replaced, replaced_places = _read_preset(schema_dir, preset)
        values |= replaced
        places = {key: place for key, place in places.items() if not key or key[0] not in replaced}
        places |= {key: place for key, place in replaced_places.items() if key}
        places[()] += f" with {_preset_path(schema_dir, preset)}"
    overridden = {}
    for override in overrides:
        key = _override(values, override)
        overridden[key] = override
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        problems = [_problem(places, overridden, values, entry) for entry in error.errors()]
        raise RecipeError("\n".join(problems)) from None


def preset_names(schema_dir: Path) -> Sequence[str]:
    """The presets of a schema folder, in alphabetical order; there may be none."""
    return sorted(path.stem for path in (schema_dir / PRESETS_FOLDER).glob("*.yaml"))


def _preset_path(schema_dir: Path, name: str) -> Path:
    return schema_dir / PRESETS_FOLDER / f"{name}.yaml"


def _read_preset(schema_dir: Path, name: str) -> tuple[dict[str, Any], dict[Key, str]]:
    """The sections of a preset, and where each key stands."""
    known = preset_names(schema_dir)
    if name not in known:
        there = f"Presets there: {', '.join(known)}" if known else "There is no preset there"
        raise RecipeError(
            f"--preset {name}: {schema_dir / PRESETS_FOLDER} holds no {name}.yaml{did_you_mean(name, known) or '.'} "
            f"{there}."
        )
    values, places = _read_yaml(_preset_path(schema_dir, name))
    problems = []
    for key in values:
        if key in PRESET_SECTIONS:
            continue
        if key in Recipe.model_fields:
            told = f"a preset replaces {', '.join(PRESET_SECTIONS)}; write this section into {RECIPE_FILE}"
        else:
            told = f"unknown key{did_you_mean(key, PRESET_SECTIONS)}"
        problems.append(f"{places[(key,)]}: {key}: {told}")
    if problems:
        raise RecipeError("\n".join(problems))
    return values, places


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """A mapping of keys, and where in the file each of them stands."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text)
        values = yaml.safe_load(text)
        lines = _lines(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # PyYAML raises a plain ValueError for dates that do not exist.
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict) or node is None:
        raise RecipeError(f"{path}: holds {type(values).__name__}, a mapping of keys was wanted")
    return values, {key: f"{path}:{line}" for key, line in lines.items()}


def load_schema(schema_dir: Path, recipe: Recipe) -> schema_pb2.Schema:
    """Reads the curated `schema.pbtxt` of `schema_dir` and checks that it has every column of `recipe`.

    Raises:
        RecipeError: The schema is missing or not a schema, or a column is missing in it or has a type its use forbids.
    """
    path = schema_dir / SCHEMA_FILE
    if not path.is_file():
        raise RecipeError(
            f"{path}: there is no schema. It lists the type and the domain of every column, as TFDV does."
        )
    try:
        schema = text_format.Parse(path.read_text(encoding="utf-8"), schema_pb2.Schema())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a TensorFlow Metadata schema: {error}") from error
    types = column_types(schema)
    problems = []
    for column, key, allowed in recipe.columns():
        if column not in types and column == IS_POSITIVE:
            problems.append(
                f"{path}: data.negatives needs the feature {IS_POSITIVE!r} in the schema, which tells interactions "
                f'from sampled negatives. Add `feature {{ name: "{IS_POSITIVE}" type: FLOAT }}`.'
            )
        elif column not in types:
            problems.append(
                f"{schema_dir / RECIPE_FILE}: {key}: no column {column!r} in {SCHEMA_FILE}"
                f"{did_you_mean(column, types) or '.'} Columns there: {', '.join(sorted(types))}."
            )
        elif types[column] not in allowed:
            problems.append(
                f"{path}: the column {column!r} is {types[column]}, but {key} needs {' or '.join(allowed)}. "
                f"Change the type, or what the recipe does with the column."
            )
    given = [("data.label.constant", recipe.data.label.constant)] if recipe.data.label is not None else []
    given += [("data.negatives.label", recipe.data.negatives.label)] if recipe.data.negatives is not None else []
    for key, value in given:
        wanted = _label_bounds(schema, recipe.data.columns.label, value)
        if wanted:
            problems.append(
                f"{schema_dir / RECIPE_FILE}: {key} is {value:g}, but {SCHEMA_FILE} says that "
                f"{recipe.data.columns.label!r} is {wanted}. Change one of the two."
            )
    if problems:
        raise RecipeError("\n".join(problems))
    return schema


def _label_bounds(schema: schema_pb2.Schema, label: str, value: float) -> str:
    """What the schema wants the label to be where `value` is not that; empty where it is."""
    for feature in schema.feature:
        if feature.name == label:
            if feature.type == schema_pb2.INT and value != int(value):
                return "a whole number"
            kind = feature.WhichOneof("domain_info")
            domain = getattr(feature, kind) if kind in ("int_domain", "float_domain") else None
            if domain is not None and domain.HasField("min") and value < domain.min:
                return f"at least {domain.min:g}"
            if domain is not None and domain.HasField("max") and value > domain.max:
                return f"at most {domain.max:g}"
    return ""


def column_types(schema: schema_pb2.Schema) -> dict[str, ColumnType]:
    """The type of every feature of `schema`."""
    return {feature.name: schema_pb2.FeatureType.Name(feature.type) for feature in schema.feature}


def _lines(node: yaml.Node, key: Key = ()) -> dict[Key, int]:
    """The line (from 1) on which each key of a YAML document stands; a key that stands twice is an error."""
    found = {key: node.start_mark.line + 1}
    children: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(name.value), child, name) for name, child in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, child, child) for index, child in enumerate(node.value)]
    for name, child, place in children:
        here = (*key, name)
        if isinstance(node, yaml.MappingNode) and not place.tag.endswith((":str", ":merge")):
            raise yaml.MarkedYAMLError(problem=f"the key {place.value!r} is not text", problem_mark=place.start_mark)
        if here in found:
            raise yaml.MarkedYAMLError(
                problem=f"the key {'.'.join(map(str, here))} stands here and on line {found[here]}; keep one of them",
                problem_mark=place.start_mark,
            )
        found.update(_lines(child, here))
        found[here] = place.start_mark.line + 1
    return found


def _override(values: dict[str, Any], override: str) -> Key:
    """Applies one `key=value` to the recipe's values in place and returns the key."""
    dotted, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]\w*(\.\w+)*", dotted):
        raise RecipeError(f"--set {override}: key=value was wanted, for example --set model.embedding_dim=32")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--set {override}: the value is not valid YAML: {error}") from error
    key = dotted_key(dotted)
    try:
        _assign(values, key, value)
    except KeyError as error:
        raise RecipeError(f"--set {override}: {error.args[0]}") from None
    return key


def _assign(values: dict[str, Any], key: Key, value: Any) -> None:
    """Sets a key in place, with the sections above it where they are missing; KeyError says what is in the way."""
    place: Any = values
    for depth, part in enumerate(key):
        above = ".".join(map(str, key[:depth]))
        if isinstance(place, list) and (not isinstance(part, int) or part >= len(place)):
            raise KeyError(
                f"{above} is a list of {len(place)}; an index from 0 to {len(place) - 1} was wanted, not {part!r}"
            )
        if not isinstance(place, dict | list):
            raise KeyError(f"{above} is a value and has no keys")
        holder: Any = place
        if depth == len(key) - 1:
            holder[part] = value
        else:
            place = holder.setdefault(part, {}) if isinstance(holder, dict) else holder[part]


def _problem(places: dict[Key, str], overridden: dict[Key, str], values: Any, entry: Any) -> str:
    """One validation error in words: where, what was found, what was wanted."""
    key, *told = _wording(entry, values)
    return ": ".join([_where(places, overridden, key), *(part for part in told if part)])


def _wording(entry: Any, values: Any) -> tuple[Key, str, str]:
    """The key of a validation error, the key as the message names it, and what was found and wanted there."""
    location, kind, found = entry["loc"], entry["type"], entry["input"]
    cause = entry.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        return cause.key, "", str(cause)
    key = _without_tags(location, values)
    message = str(entry["msg"]).removeprefix("Value error, ")
    if kind == "union_tag_not_found":
        close = difflib.get_close_matches("kind", map(str, found), n=1, cutoff=0.5) if isinstance(found, dict) else []
        key = (*key, *close)
        message = "unknown key; did you mean 'kind'?" if close else "the key 'kind' is missing"
        message += f"; it is one of {', '.join(_kinds(_annotation(location)))}"
    elif kind == "union_tag_invalid":
        key, found, choices = (*key, "kind"), found["kind"], _kinds(_annotation(location))
        message = f"one of {', '.join(choices)} was wanted{did_you_mean(str(found), choices)}"
    elif kind == "extra_forbidden":
        message = f"unknown key{did_you_mean(str(key[-1]), _known_keys(location))}"
    elif kind == "missing":
        message = "this key is missing; it has no default"
    elif kind == "switch":
        key, found = (*key, entry["ctx"]["key"]), found[entry["ctx"]["key"]]
    elif kind in _WANTED:
        message = f"{_WANTED[kind]} was wanted"
    shown = isinstance(found, dict | Section) or kind in ("extra_forbidden", "missing", "union_tag_not_found")
    return key, ".".join(map(str, key)), message + ("" if shown else f" (found {found!r})")


# What pydantic calls by Python's names.
_WANTED = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "tuple_type": "a list",
    "too_short": "a list of at least one",
}


def _without_tags(location: Key, values: Any) -> Key:
    """The key as the recipe writes it: pydantic adds the `kind` of a feature or a split as one more level."""
    key: Key = ()
    place = values
    for depth, part in enumerate(location):
        if isinstance(place, dict) and place.get("kind") == part and depth + 1 < len(location):
            continue
        key = (*key, part)
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            place = None
    return key


def _where(places: dict[Key, str], overridden: dict[Key, str], key: Key) -> str:
    """The `--set` that gave `key`, or its line in its file with each `--set` that changed something below it."""
    for depth in range(len(key), 0, -1):
        if key[:depth] in overridden:
            return f"--set {overridden[key[:depth]]}"
    below = [f"--set {text}" for other, text in overridden.items() if other[: len(key)] == key]
    if key not in places and below:
        return below[0]
    at = key
    while at and at not in places:
        at = at[:-1]
    return " with ".join([places[at], *below])


def _annotation(location: Key) -> Any:
    """The type that the recipe has at `location`."""
    annotation: Any = Recipe
    for part in location:
        annotation = _descend(annotation, part)
    return annotation


def _kinds(annotation: Any) -> list[str]:
    """The values `kind` may have in a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(get_args(annotation.model_fields["kind"].annotation))
    return [kind for choice in get_args(annotation) for kind in _kinds(choice)]


def _known_keys(location: Sequence[str | int]) -> set[str]:
    """The keys that may stand where the unknown key at `location` stands."""
    return _fields(_annotation(tuple(location[:-1])))


def _fields(annotation: Any) -> set[str]:
    """The keys of a section, given or optional."""
    if isinstance(annotation, type):
        return set(annotation.model_fields) if issubclass(annotation, Section) else set()
    return {name for choice in get_args(annotation) for name in _fields(choice)}


def _descend(annotation: Any, part: str | int) -> Any:
    """The type found under `part` of a section, list or tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, Section) and part in annotation.model_fields:
        return annotation.model_fields[str(part)].annotation
    for choice in get_args(annotation):
        found = _descend_choice(choice, part)
        if found is not None:
            return found
    return annotation


def _descend_choice(choice: Any, part: str | int) -> Any:
    if isinstance(part, int):
        return choice
    if isinstance(choice, type) and issubclass(choice, Section):
        kind = choice.model_fields.get("kind")
        if kind is not None and part in get_args(kind.annotation):
            return choice
        return _descend(choice, part) if part in choice.model_fields else None
    for inner in get_args(choice):
        found = _descend_choice(inner, part)
        if found is not None:
            return found
    return None


def can_name_an_input(column: str) -> bool:
    """Whether a column can be an input of the served model's signatures under its own name."""
    is_word = re.fullmatch(r"[A-Za-z]\w*", column, re.ASCII) is not None and not keyword.iskeyword(column)
    return is_word and column not in SIGNATURE_INPUTS


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word, empty where none is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
