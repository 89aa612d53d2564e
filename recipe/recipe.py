"""`Recipe`, the root model: the dataset, features, model, training, gates and serving of one pipeline.

Every component gets the sections that it reads as JSON, so a change of another section does not invalidate its cache.
"""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import Field

from recipe.columns import IS_POSITIVE, NUMBERS, STRINGS, ColumnType
from recipe.data import Data
from recipe.errors import Contradiction
from recipe.evaluation import ITEM_POPULARITY, READY_SLICES, USER_ACTIVITY, Gate, Slices
from recipe.features import Feature, Features, History, Identifier
from recipe.model import Model
from recipe.orchestration import ComponentName, Resources, check_schedule
from recipe.renamed import with_current_names
from recipe.section import Section
from recipe.serving import HISTORY_INPUT, SIGNATURE_INPUTS, SIGNATURE_OUTPUTS, Serving, can_name_an_input
from recipe.trainer import TrainerRecipe, check_towers
from recipe.training import Training, ValidationSplit
from recipe.tuner import Tuner, TunerRecipe


class Recipe(Section):
    """The configuration of the pipeline for one dataset."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=48)]
    """Name of the pipeline and of the served model."""
    description: str = ""
    """One-line description."""
    data: Data
    features: Features
    model: Model = Model()
    training: Training = Training()
    tuner: Tuner | None = None
    """Hyperparameter search before training. If not set, the Tuner is not part of the pipeline."""
    slices: Slices = Slices()
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
    serving: Serving = Serving()
    resources: dict[ComponentName, Resources] = Field(default_factory=dict)
    """Resources of a component by name, on runners that start one container per component, such as Kubeflow Pipelines.
    If not set, the defaults of the cluster apply."""
    schedule: str | None = None
    """Schedule of the pipeline on Airflow, in UTC: a cron expression with five fields, such as `"30 4 * * *"`, or one
    of `"@hourly"`, `"@daily"`, `"@weekly"`, `"@monthly"`, `"@quarterly"` and `"@yearly"`, in quotes. The environment
    variable `TANDEM_SCHEDULE` overrides it. If not set, runs are triggered manually. Other runners ignore it."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _reads_old_names(cls, values: Any) -> Any:
        return with_current_names(cls, values)

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
                raise Contradiction("gates", f"gates: duplicate {condition} for {metric}{where}; remove one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _slices_are_available(self) -> Recipe:
        parts = self.data.columns
        builtin = {USER_ACTIVITY: self.slices.user_activity, ITEM_POPULARITY: self.slices.item_popularity}
        for index, gate in enumerate(self.gates):
            if gate.slice_key is not None and builtin.get(gate.slice_key[0], True) is None:
                raise Contradiction(
                    f"gates.{index}.slice",
                    f"gates.{index}.slice: {gate.slice_key[0]} is disabled in slices; enable it, or remove the gate",
                )
        many = {parts.user_id: "user", parts.item_id: "item", parts.timestamp: "timestamp", parts.label: "label"}
        for name, key in self._slice_columns():
            if name in builtin:
                raise Contradiction(key, f"{key}: {name!r} is a built-in slice; remove it from the columns")
            if name in many:
                raise Contradiction(
                    key,
                    f"{key}: expected a column with few distinct values, got {name!r}, the {many[name]}; use "
                    f"{USER_ACTIVITY} and {ITEM_POPULARITY} for slices of users and items",
                )
        return self

    def _slice_columns(self) -> list[tuple[str, str]]:
        """The columns of slices, each with its key."""
        listed = [(name, f"slices.columns.{index}") for index, name in enumerate(self.slices.columns)]
        gates = [(gate.slice_key, index) for index, gate in enumerate(self.gates)]
        return listed + [
            (key[0], f"gates.{index}.slice") for key, index in gates if key is not None and key[0] not in READY_SLICES
        ]

    @pydantic.model_validator(mode="after")
    def _features_are_known_at_serving(self) -> Recipe:
        parts = self.data.columns
        forbidden: dict[str, dict[str | None, str]] = {
            "query": {parts.label: "the label", parts.item_id: "the item"},
            "candidate": {parts.label: "the label", parts.user_id: "the user", parts.timestamp: "the time"},
        }
        added = self.data.aggregate.columns if self.data.aggregate is not None else ()
        for outcomes in forbidden.values():
            for column in (*added, IS_POSITIVE):
                outcomes.setdefault(column, "an outcome of the interaction")
        towers: dict[str, tuple[Feature, ...]] = {
            "query": self.features.query, "candidate": self.features.candidate
        }  # fmt: skip
        for tower, features in towers.items():
            for index, feature in enumerate(features):
                if isinstance(feature, History) and feature.column != parts.item_id:
                    raise Contradiction(
                        f"features.{tower}.{index}.column",
                        f"features.{tower}.{index}.column: expected data.columns.item_id, {parts.item_id!r}, for a "
                        f"history, got {feature.column!r}",
                    )
                if feature.column in forbidden[tower] and not isinstance(feature, History):
                    raise Contradiction(
                        f"features.{tower}.{index}",
                        f"features.{tower}.{index}: {feature.column!r} is {forbidden[tower][feature.column]}, which is "
                        f"unknown to the {tower} tower at serving time; remove the feature",
                    )
        return self

    @pydantic.model_validator(mode="after")
    def _timestamps_are_available(self) -> Recipe:
        validation, history = self.training.validation, self.features.history
        latest = validation is not None and validation.kind == "latest"
        earlier = history is not None and history.order == "earlier"
        gru = history is not None and history.pooling == "gru"
        for is_set, key, what in (
            *(
                (getattr(self.training, name) is not None, f"training.{name}", f"training.{name}")
                for name in ("recency_half_life_days", "rating_recency_half_life_days")
            ),
            (latest, "training.validation.kind", "training.validation.kind: latest"),
            (earlier, "features.query", "features.query: order: earlier of the history"),
            (gru, "features.query", "features.query: pooling: gru of the history"),
        ):
            if is_set and self.data.columns.timestamp is None:
                raise Contradiction(
                    key, f"{what} requires data.columns.timestamp, which is not set; set it, or remove the key"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _names_fit_the_signatures(self) -> Recipe:
        sides: tuple[tuple[str, tuple[Feature, ...], str], ...] = (
            ("query", self.features.query, self.data.columns.user_id),
            ("candidate", self.features.candidate, self.data.columns.item_id),
        )
        for side, features, id_column in sides:
            for feature in features:
                # The inputs for the ids and the history have fixed names.
                if feature.column == id_column or isinstance(feature, History):
                    continue
                if side == "query" and feature.column == HISTORY_INPUT and self.features.history is not None:
                    raise Contradiction(
                        "features.query",
                        f"features.query: the column name {feature.column!r} is reserved for the served model's input "
                        "for histories; rename the column with data.sources.*.rename",
                    )
                if not can_name_an_input(feature.column):
                    raise Contradiction(
                        f"features.{side}",
                        f"features.{side}: the column name {feature.column!r} cannot be an input of the served model: "
                        "expected a letter, then letters, digits and underscores, and not a keyword of Python or one "
                        f"of {', '.join(SIGNATURE_INPUTS)}; rename the column with data.sources.*.rename",
                    )
        for feature in self.features.candidate:
            if feature.display and feature.column in SIGNATURE_OUTPUTS:
                raise Contradiction(
                    "features.candidate",
                    f"features.candidate: the column name {feature.column!r} with display: true is reserved for an "
                    "output of the served model; rename the column with data.sources.*.rename",
                )
        return self

    @pydantic.model_validator(mode="after")
    def _rank_by_has_a_trained_task(self) -> Recipe:
        if self.serving.rank_by.rating and not self.model.rating_weight:
            raise Contradiction(
                "serving.rank_by",
                "serving.rank_by: ranks by predicted ratings, but model.rating_weight is 0, so the rating task is not "
                "trained; set rank_by: score, or model.rating_weight above 0",
            )
        return self

    @pydantic.model_validator(mode="after")
    def _features_have_a_source(self) -> Recipe:
        if self.data.negatives is not None and self.data.sources.users is None:
            copied = (self.data.columns.user_id, self.data.columns.timestamp, *self.data.negatives.context)
            for feature in self.features.for_transform().query:
                if feature.column not in copied:
                    raise Contradiction(
                        "data.negatives",
                        f"data.negatives: the query feature {feature.name!r} would be missing in all negatives, which "
                        f"leaks the label; add {feature.column!r} to data.negatives.context",
                    )
        if self.features.candidate and self.data.sources.items is None:
            for feature in self.features.candidate:
                if feature.column != self.data.columns.item_id:
                    raise Contradiction(
                        "features.candidate",
                        f"features.candidate: the feature {feature.name!r} requires data.sources.items, which is not "
                        f"set; set it to a table with the column {feature.column!r}, or remove the feature",
                    )
        for tower, features, id_column in (
            ("query", self.features.query, self.data.columns.user_id),
            ("candidate", self.features.candidate, self.data.columns.item_id),
        ):
            ids = [feature.column for feature in features if isinstance(feature, Identifier)]
            if ids != [id_column]:
                raise Contradiction(
                    f"features.{tower}",
                    f"features.{tower}: expected one feature of kind id, on the column {id_column!r}, got "
                    f"{len(ids)}{f' on {ids}' if ids else ''}; add or remove features of kind id",
                )
        return self

    @pydantic.model_validator(mode="after")
    def _towers_have_features(self) -> Recipe:
        check_towers(self.features, self.model)
        return self

    def for_trainer(self) -> TrainerRecipe:
        """Return the part that the Trainer reads; a change of another key does not invalidate the Trainer's cache."""
        temporal = self.data.split.is_chronological
        features, training = self.features, self.training
        query = tuple(
            feature.model_copy(update={"order": feature.order or ("earlier" if temporal else "any")})
            if isinstance(feature, History)
            else feature
            for feature in features.query
        )
        if training.validation is not None:
            kind = training.validation.kind or ("latest" if temporal else "random")
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
        """Return the part that the Tuner reads; raise ValueError if `tuner` is not set."""
        if self.tuner is None:
            raise ValueError("the recipe has no section `tuner`; add it, or leave the Tuner out of the pipeline")
        validated = self.training.model_copy(update={"validation": self.training.validation or ValidationSplit()})
        parts = self.model_copy(update={"training": validated}).for_trainer()
        return TunerRecipe(**{name: getattr(parts, name) for name in TrainerRecipe.model_fields}, tuner=self.tuner)

    def columns(self) -> list[tuple[str, str, tuple[ColumnType, ...]]]:
        """Return all uses of columns: the name, the key, and the types that the key accepts."""
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
