"""Writes the model card of a run as Markdown: intended use, data, metrics, limitations and reproduction.

After Mitchell et al. 2019, "Model Cards for Model Reporting", doi:10.1145/3287560.3287596.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from commands.report.gather import Facts, best_and_worst
from commands.report.words import STATUSES, baseline_words, metric_words, value

EVAL_SPLITS = {
    "random": "The eval split is a random sample, so the train split contains later interactions (temporal leakage): "
    "expect lower metrics in production.",
    "by_user": "The eval split consists of users who are not in the train split: the metrics are for new users.",
    "time": "The eval split is the latest part of the interactions: an evaluation without temporal leakage.",
    "leave_last_n": "The eval split is each user's latest interactions: the metrics are for users of the train split.",
}
"""What metrics on the eval split mean, by `data.split.kind`."""


def model_card(facts: Facts) -> str:
    """Return the model card as Markdown with tables."""
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
        ("Status", STATUSES[run.status]),
        ("Pushed version", f"`{run.pushed_version}`" if run.pushed_version else "none"),
        ("Model", _kind(recipe)),
        ("Software", _versions(facts)),
    ])  # fmt: skip
    if "model" not in facts.outputs.get("Trainer", {}):
        yield "**The run has not trained a model.** The following describes its recipe."
        yield ""
    yield "## Intended use"
    yield ""
    columns = _mapping(recipe, "data", "columns")
    sides = [one for one in ("query", "candidate") if _mapping(recipe, "features").get(one)]
    seen = (
        ", without the user's items of the train split" if _mapping(recipe, "serving").get("exclude_seen", True) else ""
    )
    yield (
        f"Recommends items to users based on past interactions, and predicts `{columns.get('label', 'the label')}`. "
        f"For a user id it returns the items with the highest scores, with their predicted ratings{seen}."
    )
    yield ""
    for side in sides:
        names = ", ".join(f"`{feature['column']}` ({feature['kind']})" for feature in recipe["features"][side])
        yield f"- Features of the {side} tower: {names}."
    yield "- Not intended for decisions about persons, such as credit, employment or health."
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
        yield f"The train split is from {first:%d %B %Y} to {last:%d %B %Y}."
        yield ""
    split = _mapping(recipe, "data", "split").get("kind")
    if split in EVAL_SPLITS:
        yield EVAL_SPLITS[split]
        yield ""
    yield "## Metrics"
    yield ""
    if facts.metrics:
        yield f"Metrics of the exported model on {facts.verdict.examples if facts.verdict else 0:,} eval examples."
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
            "Top-k accuracy is the fraction of examples whose item is among the k highest-scored items of the "
            "catalogue; `unseen` ignores the user's items of the train split."
        )
        yield ""
        for row in facts.metrics:
            if metric_words(row.name).meaning and not row.name.startswith("top_"):
                yield f"- {metric_words(row.name).label}: {metric_words(row.name).meaning}."
        yield ""
        if any(row.baseline is not None for row in facts.metrics):
            yield (
                f"Baselines, from the same train split: {baseline_words('rmse')} for rating metrics, "
                f"{baseline_words('top_100_accuracy')} for ranking metrics."
            )
            yield ""
        ends = best_and_worst(facts)
        if ends is not None:
            yield f"Best slice: {ends[0]}. Worst slice: {ends[1]}."
            yield ""
    else:
        yield "Not available: the run did not complete evaluation."
        yield ""
    yield "## Limitations"
    yield ""
    for limit in _limits(facts):
        yield f"- {limit}"
    yield ""
    yield "## Reproduction"
    yield ""
    if facts.arguments:
        yield "```"
        yield command(facts.arguments)
        yield "```"
        yield ""
    yield (
        f"The recipe with all defaults is `runs/{run.run_id}/recipe.json` in the work folder. Seeds: {_seeds(recipe)}. "
        "On another machine, floating-point sums can differ in the last digits."
    )


def command(arguments: Mapping[str, Any]) -> str:
    """Return the command of a run."""
    words = ["tandem", "run", str(arguments.get("schema_dir", ""))]
    words += ["--preset", str(arguments["preset"])] if arguments.get("preset") else []
    for override in arguments.get("overrides", ()):
        words += ["--set", str(override)]
    return shlex.join(words)


def _kind(recipe: Mapping[str, Any]) -> str:
    model = _mapping(recipe, "model")
    retrieval, rating = model.get("retrieval_weight", 1), model.get("rating_weight", 1)
    tasks = "retrieval and rating" if retrieval and rating else "retrieval only" if retrieval else "rating only"
    return f"two-tower recommender ({tasks}), embedding dimension {model.get('embedding_dim', '?')}"


def _versions(facts: Facts) -> str:
    model = facts.outputs.get("Trainer", {}).get("model")
    version = model.properties.get("tfx_version") if model is not None else None
    return f"Tandem on TFX {version}" if version else "Tandem"


def _limits(facts: Facts) -> Iterator[str]:
    verdict = facts.verdict
    yield "It recommends items of its catalogue only; a new item needs a new run."
    yield "Queries with a new user use the OOV embedding and the history in the request, if any."
    failures = verdict.failures() if verdict is not None else ()
    for bound in failures:
        yield f"Failed gate: {_escaped(str(bound))}."
    metrics = verdict.metrics if verdict is not None else {}
    if "coverage_10" in metrics:
        coverage = value("coverage_10", metrics["coverage_10"])
        yield f"Coverage: {coverage} of the catalogue is in at least one user's top 10."
    if metrics.get("popularity_bias_10", 0) > 0:
        yield (
            "Recommended items are more popular than chosen ones (popularity bias "
            f"{value('popularity_bias_10', metrics['popularity_bias_10'])})."
        )
    worse = [
        row for row in facts.metrics
        if row.baseline is not None
        and (row.model < row.baseline) == metric_words(row.name).higher_is_better
        and row.model != row.baseline
    ]  # fmt: skip
    if worse:
        yield f"The baseline is better than the model in: {', '.join(metric_words(row.name).label for row in worse)}."
    yield "It was trained on logged interactions and reproduces their selection bias."


def _seeds(recipe: Mapping[str, Any]) -> str:
    seeds = {
        "split": _mapping(recipe, "data", "split").get("seed"),
        "training": _mapping(recipe, "training").get("seed"),
    }
    return ", ".join(f"{name} {seed}" for name, seed in seeds.items() if seed is not None) or "see the recipe"


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
    """Escape text for Markdown."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|" else sign for sign in text)
