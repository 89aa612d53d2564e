"""`Recipe`, the root: one validated description of a dataset, its features, the model, the gates and the serving.

Every component gets the part of the recipe that it needs as JSON, so that changing another part does not invalidate
its cache.
"""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import Field

from recipe.columns import IS_POSITIVE, NUMBERS, STRINGS, ColumnType
from recipe.data import Data
from recipe.errors import Contradiction
from recipe.evaluation import ITEM_POPULARITY, READY_SLICES, USER_ACTIVITY, Gate, Slices
from recipe.features import Feature, Features, History, Identifier
from recipe.model import Model
from recipe.orchestration import ComponentName, Resources, check_schedule
from recipe.section import Section
from recipe.serving import HISTORY_INPUT, SIGNATURE_INPUTS, SIGNATURE_OUTPUTS, Serving, can_name_an_input
from recipe.trainer import TrainerRecipe, check_towers
from recipe.training import Training, Validation
from recipe.tuner import Tuner, TunerRecipe


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
    resources: dict[ComponentName, Resources] = Field(default_factory=dict)
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
        return None if found is None else check_schedule(found)

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
        check_towers(self.features, self.model)
        return self

    def for_trainer(self) -> TrainerRecipe:
        """The part that decides what is trained and exported; changing anything else does not train again."""
        in_time = self.data.split.is_chronological
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
