"""Writes `recipe.yaml` and `schema.pbtxt` from what was found in the data, with the reasons as comments."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from google.protobuf import text_encoding

from commands.init.feature_inference import BUCKETS
from commands.init.inspection import (
    MOST_BAD_ROWS,
    ColumnRoles,
    InitError,
    Inspection,
    InteractionsTable,
    SideTable,
    inspect_data,
)
from components.example_gen.resolve import check_features, resolve_sources
from recipe import load_recipe, load_schema
from recipe.columns import IS_POSITIVE, ColumnType
from recipe.evaluation import METRICS
from recipe.files import RECIPE_FILE, SCHEMA_FILE

NEGATIVES = 4
"""Sampled negatives for each interaction of implicit data."""
MANY_INTERACTIONS = 20_000
"""From here on the model gets the width that did well on MovieLens."""

_LAST_SECOND = 4_102_444_800  # The start of 2100.
_WIDTH = 120


@dataclasses.dataclass(frozen=True)
class InitResult:
    """What was written.

    Attributes:
        data: The folder to give to `tandem run --data`.
        summary: What was found, one line each.
    """

    data: Path
    summary: tuple[str, ...]


def init_recipe(schema_dir: Path, data: Path, roles: ColumnRoles) -> InitResult:
    """Writes `recipe.yaml` and `schema.pbtxt`.

    Args:
        schema_dir: Folder to write; made if needed. Neither file may be there.
        data: Folder with CSVs, or the CSV of the interactions; items and users are looked for beside it.
        roles: Which columns play which part.

    Raises:
        BadInput: Names the file, line and column, what was found, what was wanted and what to do; nothing is written.
    """
    _check_free(schema_dir)
    found = inspect_data(data, roles)
    schema_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tandem-init-", dir=schema_dir.absolute().parent) as temporary:
        folder = Path(temporary)
        (folder / RECIPE_FILE).write_text(recipe_text(_name(schema_dir), found), encoding="utf-8")
        (folder / SCHEMA_FILE).write_text(schema_text(found), encoding="utf-8")
        # What is written must pass what a run checks first.
        recipe = load_recipe(folder)
        sources = resolve_sources(found.folder, recipe.data, load_schema(folder, recipe))
        check_features(recipe.features, recipe.data.columns, sources)
        _publish(folder, schema_dir)
    return InitResult(found.folder, tuple(_summary(found)))


# --- recipe.yaml ------------------------------------------------------------------------------------------------------


def recipe_text(name: str, found: Inspection) -> str:
    """`recipe.yaml`, with the reasons as comments."""
    parts = (_head(name, found), _sources(found), _data(found), _features(found), _model(found), _gates(found))
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(name: str, found: Inspection) -> Iterator[str]:
    flags = " ".join(f"{flag} {column}" for flag, column in found.roles.flags().items())
    yield from _note(f"Written by `tandem init` from {found.interactions.file} ({flags}).", 0)
    yield from _note(
        "What was inferred stands above each key, with the reason; change what is wrong. Every key: docs/recipe.md.", 0
    )
    for note in found.notes:
        yield from _note(note, 0)
    yield f"name: {_scalar(name)}"
    yield ""


def _sources(found: Inspection) -> Iterator[str]:
    interactions = found.interactions
    yield "data:"
    yield "  sources:"
    yield from _note(
        f"{interactions.rows:,} interactions of {len(interactions.users):,} users with {len(interactions.items):,} "
        "items.", 4
    )  # fmt: skip
    yield f"    interactions: {{files: {_pattern(interactions.file)}}}"
    for table in found.side_tables():
        known = interactions.items if table.table == "items" else interactions.users
        yield from _note(
            f"{table.rows:,} rows, one a {table.key!r}; {len(known & table.keys):,} of them in the interactions.",
            4,
        )
        rename = ", ".join(f"{_scalar(old)}: {_scalar(new)}" for old, new in table.rename.items())
        if rename:
            yield from _note(
                "Names that another table has too, or that the served model could not use, are changed.", 4
            )
            rename = f", rename: {{{rename}}}"
        yield f"    {table.table}: {{files: {_pattern(table.file)}, key: {_scalar(table.key)}{rename}}}"
    if found.items is None:
        yield from _note("No CSV with one row for each item was found; the catalogue is what the interactions name.", 4)
    if found.users is None:
        yield from _note("No CSV with one row for each user was found.", 4)


def _data(found: Inspection) -> Iterator[str]:
    interactions, roles = found.interactions, found.roles
    yield from _note("Ids are text, whatever they look like, so that leading zeros survive.", 2)
    columns = {"user_id": roles.user, "item_id": roles.item, "label": found.label, "timestamp": roles.timestamp}
    named = ", ".join(f"{part}: {_scalar(column)}" for part, column in columns.items() if column is not None)
    yield f"  columns: {{{named}}}"
    if interactions.time_format is not None:
        yield from _note(_time_note(found), 2)
        yield f"  timestamp_format: {interactions.time_format}"
    if found.implicit:
        yield from _implicit_label(found)
    yield from _duplicates(interactions.repeated)
    yield from _split(interactions)
    if interactions.bad:
        yield from _note(
            f"{interactions.bad:,} rows cannot be used, the first: {interactions.first_bad}. Such rows are put aside, "
            "with file, line and reason, as long as they are few; 0 would stop the run at them.", 2
        )  # fmt: skip
        yield f"  max_bad_rows: {MOST_BAD_ROWS}"
    else:
        yield from _note("A row that cannot be read stops the run; 0.01 would put up to a hundredth of them aside.", 2)
        yield "  max_bad_rows: 0"
    others = [name for name in interactions.header.names if name and name not in roles.flags().values()]
    if others:
        yield from _note(
            f"Not read: {', '.join(others)}. What is known before the user chooses (device, channel) can become a "
            "query feature; what is known only afterwards must not.", 2
        )  # fmt: skip
    yield ""


def _time_note(found: Inspection) -> str:
    first, last = (np.datetime64(second, "s") for second in found.interactions.times)
    wording = {
        "seconds": "Whole numbers, taken for seconds since 1970",
        "milliseconds": "Numbers too large for seconds since 1970, so milliseconds",
        "iso": "Dates in ISO 8601; UTC where no zone is given",
    }
    return f"{wording[str(found.interactions.time_format)]}: from {first} to {last}."


def _implicit_label(found: Inspection) -> Iterator[str]:
    if found.roles.rating is not None:
        low = found.interactions.ratings.low
        yield from _note(f"Every {found.roles.rating!r} is {low:g}, which says nothing, so it is not the label.", 2)
    yield from _note(
        "Without ratings, every interaction has the label 1, and sampled items that the user did not touch have 0. "
        f"They teach the rating head only; retrieval learns from interactions. {NEGATIVES} for each is a start: "
        "more make training longer and predictions smaller.", 2
    )  # fmt: skip
    yield "  label: {constant: 1}"
    yield f"  negatives: {{per_positive: {NEGATIVES}, label: 0, seed: 0}}"


def _duplicates(repeated: int) -> Iterator[str]:
    if repeated:
        yield from _note(
            f"{repeated:,} rows repeat a user and an item. The latest one counts, so that no pair is in train and eval "
            "alike; `aggregate` adds them up instead, `keep` makes each an example.", 2
        )  # fmt: skip
        yield "  duplicates: last"
    else:
        yield from _note("No user has two rows with the same item; should that change, `last` and `aggregate` help.", 2)
        yield "  duplicates: keep"


def _split(interactions: InteractionsTable) -> Iterator[str]:
    if interactions.time_passes:
        yield from _note(
            "There are timestamps, so the model is trained on the past and measured on the latest fifth, as it will be "
            "used. `random` gives better numbers, because the model then knows what came after.", 2
        )  # fmt: skip
        yield "  split: {kind: time, eval_fraction: 0.2}"
    else:
        why = "All timestamps are equal" if interactions.time_format else "There are no timestamps"
        yield from _note(f"{why}, so a fifth of the rows is put aside at random, always the same ones.", 2)
        yield "  split: {kind: random, eval_fraction: 0.2, seed: 0}"


def _features(found: Inspection) -> Iterator[str]:
    yield "features:"
    yield "  query:"
    yield f"    - {{column: {_scalar(found.roles.user)}, kind: id}}"
    if found.users is not None:
        yield from _side_table_features(found.users, display=False)
    if found.interactions.time_passes:
        yield from _note("The time is no feature: every eval row is later than anything that train knows.", 4)
    yield "  candidate:"
    yield f"    - {{column: {_scalar(found.roles.item)}, kind: id}}"
    if found.items is not None:
        yield from _side_table_features(found.items, display=True)
    yield ""


def _side_table_features(table: SideTable, display: bool) -> Iterator[str]:
    """The features of a table; with `display`, the column that people know an item by is shown with it."""
    used = [feature for feature in table.features if feature.kind is not None]
    titles = [feature.column for feature in used if feature.is_title]
    titles += [feature.column for feature in used if feature.kind == "text"]
    for feature in used:
        options = f"column: {_scalar(table.name(feature))}, kind: {feature.kind}"
        if feature.kind == "buckets":
            options += f", buckets: {BUCKETS}"
        if feature.kind == "multi_value":
            options += f", separator: {json.dumps(feature.separator)}"
        if display and feature.column in titles[:1]:
            options += ", display: true"
        yield from _note(f"{feature.why}", 4)
        yield f"    - {{{options}}}"
    for feature in table.features:
        if feature.kind is None:
            yield from _note(f"Left out: {feature.column!r}, {feature.why}.", 4)


def _model(found: Inspection) -> Iterator[str]:
    rows = found.interactions.rows
    examples = rows * (1 + NEGATIVES if found.implicit else 1)
    batch_size = 2 ** min(max(round(math.log2(examples / 40)), 5), 12)
    wide = rows >= MANY_INTERACTIONS
    yield from _note("What did well on MovieLens, narrower for fewer than 20,000 interactions.", 0)
    yield "model:"
    yield f"  embedding_dim: {64 if wide else 32}"
    yield "  query_tower: {dropout: 0.3}"
    yield "  candidate_tower: {dropout: 0.3}"
    yield f"  rating_head: {{kind: dot, dimension: {32 if wide else 16}, dropout: 0.3}}"
    yield ""
    yield from _note(f"About {math.ceil(0.8 * examples / batch_size):,} steps an epoch.", 0)
    yield "training:"
    yield f"  epochs: {min(max(2_000_000 // examples, 3), 15)}"
    yield f"  batch_size: {batch_size}"
    yield "  optimizer: {kind: adam, learning_rate: 0.002}"
    yield ""


def gate_k(catalogue: int) -> int:
    """The largest k of the metrics with which a hit is no matter of course: at most a fifth of the catalogue."""
    known = sorted(int(metric.split("_")[1]) for metric in METRICS if metric.startswith("top_"))
    return max([k for k in known if 5 * k <= catalogue], default=known[0])


def _gates(found: Inspection) -> Iterator[str]:
    catalogue = found.catalogue
    k = gate_k(catalogue)
    chance = math.floor(10_000 * k / catalogue) / 10_000
    if found.implicit:
        deviation = math.sqrt(NEGATIVES) / (1 + NEGATIVES)
        why = f"of {NEGATIVES} zeros for each one"
    else:
        deviation, why = found.interactions.ratings.deviation, "of the ratings"
    yield from _note(
        f"A model that fails a gate is not pushed. Below these lines a model knows nothing: guessing {k} of "
        f"{catalogue:,} items hits {chance:g} of the time, and always answering the mean label has an rmse of "
        f"{deviation:.4g}, the standard deviation {why}. Raise them to what your first run reaches; may_drop and "
        "may_rise hold later models against the last one pushed.", 0
    )  # fmt: skip
    yield "gates:"
    yield f"  - {{metric: top_{k}_accuracy, at_least: {chance:g}, may_drop: 0.02}}"
    yield f"  - {{metric: rmse, at_most: {math.ceil(deviation * 1000) / 1000:g}, may_rise: 0.02}}"
    yield ""
    yield from _note("What a user has had is not recommended again; write false if people come back to things.", 0)
    yield f"serving: {{k: {min(100, catalogue)}, exclude_seen: true}}"


def _note(text: str, indent: int) -> list[str]:
    """A comment, wrapped; nothing in `text` can end it, whatever a file or a column is called."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    start = f"{' ' * indent}# "
    return textwrap.wrap(
        printable, _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def _scalar(text: str) -> str:
    """A string as YAML, quoted only where it would be read as something else."""
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII) and yaml.safe_load(text) == text:
        return text
    return json.dumps(text, ensure_ascii=False)


def _pattern(file: str) -> str:
    """A file's name as a pattern that matches this file only."""
    return _scalar(glob.escape(file))


# --- schema.pbtxt -----------------------------------------------------------------------------------------------------


def schema_text(found: Inspection) -> str:
    """`schema.pbtxt`."""
    roles, interactions = found.roles, found.interactions
    lines = [
        *_note(
            "Written by `tandem init`; what ExampleValidator holds new data against. A domain that is too narrow stops "
            "a run and names the value: widen it here if the value is right. A column added to the recipe is added "
            "here too.", 0
        ),
        *_feature(roles.user, "BYTES", required=True),
        *_feature(roles.item, "BYTES", required=True),
    ]  # fmt: skip
    if found.implicit:
        zero_to_one = "float_domain { min: 0.0 max: 1.0 }"
        why = "1 for interactions, 0 for sampled negatives; predictions are clipped to this range."
        lines += _feature(found.label, "FLOAT", required=True, domain=zero_to_one, why=why)
        why = "Written beside the label: 1 for interactions, 0 for sampled negatives."
        lines += _feature(IS_POSITIVE, "FLOAT", required=True, domain=zero_to_one, why=why)
    else:
        domain = f"float_domain {{ min: {interactions.ratings.low!r} max: {interactions.ratings.high!r} }}"
        why = (
            "The smallest and the largest rating found. Others are bad rows, and predictions are clipped to this range."
        )
        lines += _feature(found.label, "FLOAT", required=True, domain=domain, why=why)
    if roles.timestamp is not None:
        domain = (
            f"int_domain {{ min: {min(0, interactions.times[0])} max: {max(_LAST_SECOND, interactions.times[1])} }}"
        )
        why = "In seconds, whatever the file has; 1970 to 2100."
        lines += _feature(roles.timestamp, "INT", required=True, domain=domain, why=why)
    for table in found.side_tables():
        for feature in table.features:
            if feature.kind is not None:
                lines += _feature(table.name(feature), feature.type)
    return "\n".join(lines) + "\n"


def _feature(
    name: str, kind: ColumnType, required: bool = False, domain: str | None = None, why: str | None = None
) -> Iterator[str]:
    plain = (c if c.isprintable() and c not in '"\\' else text_encoding.CEscape(c.encode(), False) for c in name)
    yield "feature {"
    yield f'  name: "{"".join(plain)}"'
    yield f"  type: {kind}"
    yield "  value_count { min: 1 max: 1 }"
    yield "  presence { min_fraction: 1.0 min_count: 1 }" if required else "  presence { min_count: 1 }"
    if why:
        yield from _note(why, 2)
    if domain:
        yield f"  {domain}"
    yield "}"


# --- the folder -------------------------------------------------------------------------------------------------------


def _name(schema_dir: Path) -> str:
    """A recipe's name from its folder's."""
    name = re.sub(r"[^a-z0-9_-]+", "-", schema_dir.resolve().name.lower()).strip("-_")
    return (name if re.match(r"[a-z]", name) else f"recipe-{name}".strip("-"))[:48]


def _check_free(schema_dir: Path) -> None:
    if schema_dir.exists() and not schema_dir.is_dir():
        raise InitError(f"{schema_dir}: is a file; a folder was wanted. Name another one.")
    for file in (RECIPE_FILE, SCHEMA_FILE):
        if (schema_dir / file).exists():
            raise InitError(
                f"{schema_dir / file}: is there already, and nothing is overwritten. Name another folder, or take "
                f"{RECIPE_FILE} and {SCHEMA_FILE} away first."
            )


def _publish(folder: Path, schema_dir: Path) -> None:
    """Puts both files where they belong, or neither."""
    if not schema_dir.exists():
        whole = folder / "whole"
        whole.mkdir()
        for file in (SCHEMA_FILE, RECIPE_FILE):
            os.replace(folder / file, whole / file)
        os.rename(whole, schema_dir)
        return
    linked: list[Path] = []
    try:
        for file in (SCHEMA_FILE, RECIPE_FILE):
            # A link, unlike a rename, does not take the place of what somebody else wrote meanwhile.
            os.link(folder / file, schema_dir / file)
            linked.append(schema_dir / file)
    except FileExistsError:
        for path in linked:
            path.unlink()
        _check_free(schema_dir)
        raise


def _summary(found: Inspection) -> Iterator[str]:
    interactions = found.interactions
    yield (
        f"{interactions.file}: {interactions.rows:,} interactions of {len(interactions.users):,} users with "
        f"{found.catalogue:,} items"
    )
    if found.implicit:
        yield f"no ratings: label 1, and {NEGATIVES} sampled negatives for each interaction"
    else:
        ratings = interactions.ratings
        yield f"ratings from {ratings.low:g} to {ratings.high:g}, standard deviation {ratings.deviation:.3f}"
    if interactions.time_passes:
        yield f"timestamps ({interactions.time_format}): split by time"
    else:
        yield f"{'one timestamp' if interactions.time_format else 'no timestamps'}: random split"
    for table in found.side_tables():
        used = sum(feature.kind is not None for feature in table.features)
        yield f"{table.file}: the {table.table}; {used} of {len(table.features)} other columns are features"
    yield from found.notes
