"""The model card of a run as Markdown: intended use, data, metrics, limits, and how to get the model again.

After Mitchell et al. 2019, "Model Cards for Model Reporting", doi:10.1145/3287560.3287596.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from commands.report.gather import Facts, best_and_worst
from commands.report.words import VERDICTS, baseline_words, metric_words, value

_SPLITS = {
    "random": "Examples of the eval split are drawn at random, so train holds interactions that are later than they "
    "are: what is measured here flatters the model compared with what it will meet after today.",
    "by_user": "The eval split is made of users who are not in train, so the figures are about strangers.",
    "time": "The eval split is the latest part of the interactions, as when the model is used from tomorrow on.",
    "leave_last_n": "The eval split is each user's latest interactions, so the figures are about users who are known.",
}


def model_card(facts: Facts) -> str:
    """The card, in Markdown with tables."""
    return "\n".join(_lines(facts)).rstrip() + "\n"


def _lines(facts: Facts) -> Iterator[str]:
    run, recipe = facts.run, facts.run.recipe
    yield f"# Model card: {_escaped(run.recipe_name or run.run_id)}"
    yield ""
    if recipe.get("description"):
        yield f"{_escaped(str(recipe['description']))}"
        yield ""
    yield from _table(("", ""), [
        ("Run", f"`{run.run_id}`, {run.started:%d %B %Y}"),
        ("Outcome", VERDICTS[run.status]),
        ("Pushed version", f"`{run.pushed_version}`" if run.pushed_version else "none"),
        ("Kind of model", _kind(recipe)),
        ("Made with", _versions(facts)),
    ])  # fmt: skip
    if "model" not in facts.outputs.get("Trainer", {}):
        yield "**The run made no model**; what follows is what it was meant to be."
        yield ""
    yield "## Intended use"
    yield ""
    columns = _mapping(recipe, "data", "columns")
    asked = [one for one in ("query", "candidate") if _mapping(recipe, "features").get(one)]
    seen = ", without those that the user has in train" if _mapping(recipe, "serving").get("exclude_seen", True) else ""
    yield (
        "To recommend items to people by what they and others did before, and to predict "
        f"`{columns.get('label', 'the label')}`. Called with a user id, it returns the items with the best scores and "
        f"their predicted ratings{seen}."
    )
    yield ""
    for side in asked:
        names = ", ".join(f"`{feature['column']}` ({feature['kind']})" for feature in recipe["features"][side])
        yield f"- It looks at these columns of the {'user and the moment' if side == 'query' else 'item'}: {names}."
    yield "- Not intended for decisions about people, such as credit, work or health."
    yield ""
    yield "## Data"
    yield ""
    rows = run.rows
    if rows:
        shown = {
            "read": "rows read",
            "train": "train examples",
            "eval": "eval examples",
            "catalogue": "items in the catalogue",
            "rejected": "rows rejected",
            "merged": "rows merged with another",
            "negatives": "sampled negatives",
        }
        yield from _table(("rows", "count"), [(name, f"{rows[key]:,}") for key, name in shown.items() if key in rows])
    if facts.period is not None:
        first, last = (datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in facts.period)
        yield f"Train is from {first:%d %B %Y} to {last:%d %B %Y}."
        yield ""
    split = _mapping(recipe, "data", "split").get("kind")
    if split in _SPLITS:
        yield _SPLITS[split]
        yield ""
    yield "## Metrics"
    yield ""
    if facts.metrics:
        yield f"Of the exported model, on {facts.verdict.examples if facts.verdict else 0:,} eval examples."
        yield ""
        yield from _table(
            ("metric", "model", "baseline", "last blessed"),
            [
                (
                    metric_words(row.name).label,
                    value(row.name, row.model),
                    value(row.name, row.baseline),
                    value(row.name, row.last_blessed),
                )
                for row in facts.metrics
            ],
        )
        yield (
            "Top-k accuracy is how often the item that a user chose is among the first k recommended; for unseen, what "
            "the user knows from train is left out."
        )
        yield ""
        for row in facts.metrics:
            if metric_words(row.name).meaning and not row.name.startswith("top_"):
                yield f"- {metric_words(row.name).label}: {metric_words(row.name).meaning}."
        yield ""
        if any(row.baseline is not None for row in facts.metrics):
            yield (
                f"The baselines are {baseline_words('rmse')} for ratings, and {baseline_words('top_100_accuracy')} for "
                "recommendations, from the same train split."
            )
            yield ""
        ends = best_and_worst(facts)
        if ends is not None:
            yield f"It does best on {ends[0]} and worst on {ends[1]}."
            yield ""
    else:
        yield "None: the run did not get to its verdict."
        yield ""
    yield "## Limits"
    yield ""
    for limit in _limits(facts):
        yield f"- {limit}"
    yield ""
    yield "## How to get it again"
    yield ""
    if facts.asked:
        yield "```"
        yield command(facts.asked)
        yield "```"
        yield ""
    yield (
        f"The recipe as it was used, every default included, is `runs/{run.run_id}/recipe.json` in the work folder. "
        f"The split and the training are seeded ({_seeds(recipe)}); on another machine floating-point sums may differ "
        "in the last digits."
    )


def command(asked: Mapping[str, Any]) -> str:
    """The command that asked for a run."""
    words = ["tandem", "run", str(asked.get("schema_dir", ""))]
    words += ["--preset", str(asked["preset"])] if asked.get("preset") else []
    for override in asked.get("overrides", ()):
        words += ["--set", str(override)]
    return shlex.join(words)


def _kind(recipe: Mapping[str, Any]) -> str:
    model = _mapping(recipe, "model")
    retrieval, rating = model.get("retrieval_weight", 1), model.get("rating_weight", 1)
    tasks = "retrieval and rating" if retrieval and rating else "retrieval only" if retrieval else "rating only"
    return f"two-tower recommender ({tasks}), embeddings of {model.get('embedding_dim', '?')} numbers"


def _versions(facts: Facts) -> str:
    model = facts.outputs.get("Trainer", {}).get("model")
    version = model.properties.get("tfx_version") if model is not None else None
    return f"Tandem on TFX {version}" if version else "Tandem"


def _limits(facts: Facts) -> Iterator[str]:
    verdict = facts.verdict
    yield "It knows the items of its catalogue only; a new item needs a new run before it can be recommended."
    yield "Users whom it does not know get what the average user gets, unless the request brings a history."
    failures = verdict.failures() if verdict is not None else ()
    for bound in failures:
        yield f"It missed a gate: {_escaped(str(bound))}."
    metrics = verdict.metrics if verdict is not None else {}
    if "coverage_10" in metrics:
        yield f"Only {value('coverage_10', metrics['coverage_10'])} of the catalogue is ever among anyone's first ten."
    if metrics.get("popularity_bias_10", 0) > 0:
        yield (
            "It recommends what is popular more than people choose it (popularity bias "
            f"{value('popularity_bias_10', metrics['popularity_bias_10'])})."
        )
    worse = [
        row for row in facts.metrics
        if row.baseline is not None
        and (row.model < row.baseline) == metric_words(row.name).higher_is_better
        and row.model != row.baseline
    ]  # fmt: skip
    if worse:
        yield f"The baseline is better in {', '.join(metric_words(row.name).label for row in worse)}."
    yield "It learned from what people were shown and chose, and repeats what is lopsided in that."


def _seeds(recipe: Mapping[str, Any]) -> str:
    seeds = {
        "split": _mapping(recipe, "data", "split").get("seed"),
        "training": _mapping(recipe, "training").get("seed"),
    }
    return ", ".join(f"{name} {seed}" for name, seed in seeds.items() if seed is not None) or "see there"


def _mapping(recipe: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    found: Any = recipe
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join("---" for _ in header) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _escaped(text: str) -> str:
    """User text as Markdown that shows it as it is."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|" else sign for sign in text)
