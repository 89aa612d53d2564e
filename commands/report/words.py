"""What metrics, gates and outcomes are called on the page and in the model card, for people who do not know TFX."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from components.evaluator.verdict import Bound
from pipeline.runs import Run, Status
from recipe.evaluation import ITEM_POPULARITY, METRICS, RATING_METRICS, USER_ACTIVITY

ABSENT = "–"
# No line breaks between a number and its unit.
NARROW = "\u00a0"


@dataclasses.dataclass(frozen=True)
class MetricWords:
    """A metric for people."""

    label: str
    meaning: str
    """What the number says, as the end of a sentence that begins with it."""
    is_share: bool
    """Shown in percent."""
    higher_is_better: bool


_NAMED: dict[str, tuple[str, str, bool]] = {
    "rmse": ("RMSE", "root of the mean squared error of predicted ratings; large errors weigh more", False),
    "mae": ("MAE", "mean distance between predicted and real ratings", False),
    "ndcg_10": ("NDCG@10", "quality of the order of each user's first ten, 1 is ideal", False),
    "recall_10": ("Recall@10", "share of a user's items that are among the first ten, averaged over users", True),
    "mrr": ("MRR", "one over the place of a user's best-placed item, averaged over users", False),
    "coverage_10": ("Catalogue coverage@10", "share of the catalogue that is recommended to anyone at all", True),
    "popularity_bias_10": (
        "Popularity bias@10",
        "how much more popular recommendations are than choices (mean log); 0 is no bias",
        False,
    ),
}
_SLICES = {USER_ACTIVITY: "users", ITEM_POPULARITY: "items"}
_TOP_K = re.compile(r"top_(\d+)_accuracy(_unseen)?")

VERDICTS: dict[Status, str] = {
    "pushed": "Passed and pushed",
    "not blessed": "Stopped by its gates",
    "not servable": "Cannot be served",
    "failed": "Failed",
    "stopped": "Stopped before the end",
    "running": "Still running",
}


def metric_words(name: str) -> MetricWords:
    """Label and meaning of a metric; a name that nobody described stays as it is."""
    higher = METRICS.get(name, "higher") == "higher"
    found = _TOP_K.fullmatch(name)
    if found:
        place = "the first one" if found[1] == "1" else f"among the first {found[1]}"
        left_out = ", with what the user knows from train left out" if found[2] else ""
        return MetricWords(
            f"Top-{found[1]} {'unseen' if found[2] else 'accuracy'}",
            f"how often the item that a user chose is {place} recommended{left_out}",
            True,
            higher,
        )
    if name in _NAMED:
        return MetricWords(*_NAMED[name], higher)
    return MetricWords(name.replace("_", " "), "", False, higher)


def value(name: str, number: float | None) -> str:
    """A metric's value as it is read: shares in percent, the others with three digits behind the point."""
    if number is None:
        return ABSENT
    return f"{100 * number:.1f}{NARROW}%" if metric_words(name).is_share else f"{number:.3f}"


def change(name: str, number: float | None) -> str:
    """A difference between two values of a metric, with its sign."""
    if number is None:
        return ABSENT
    signed = f"{100 * number:+.1f}{NARROW}points" if metric_words(name).is_share else f"{number:+.3f}"
    return signed.replace("-", "−")


def better_or_worse(name: str, number: float, other: float) -> str:
    """How much better or worse a value is than another."""
    if number == other:
        return "the same"
    far = change(name, abs(number - other)).lstrip("+")
    return f"{far} {'better' if (number > other) == metric_words(name).higher_is_better else 'worse'}"


def gate_words(bound: Bound) -> str:
    """What a gate asks for, as the end of a sentence about its metric."""
    allowed = change(bound.metric, bound.allowed).lstrip("+")
    if bound.condition == "beats_baseline_by":
        return f"better than the baseline by {allowed}" if bound.allowed else "at least as good as the baseline"
    if bound.condition in ("may_drop", "may_rise"):
        kind = "lower" if bound.condition == "may_drop" else "higher"
        return f"at most {allowed} {kind} than the last blessed model"
    return f"{'at least' if bound.condition == 'at_least' else 'at most'} {value(bound.metric, bound.limit)}"


def gate_outcome(bound: Bound) -> str:
    """How a gate decided: by how much, or why without a number."""
    if bound.margin is None:
        return bound.reason or "nothing could be measured"
    far = change(bound.metric, abs(bound.margin)).lstrip("+")
    return f"passed by {far}" if bound.passed else f"missed by {far}"


def slice_words(where: Mapping[str, str] | None) -> str:
    """What a slice is called; empty for the whole eval split."""
    return ", ".join(slice_name(name, of) for name, of in (where or {}).items())


def slice_name(name: str, of: str) -> str:
    """A slice for people: `items: tail`, `gender: F`."""
    return f"{_SLICES.get(name, name)}: {of}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def brief_duration(seconds: float) -> str:
    """Seconds in a few letters."""
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def summary(run: Run) -> list[str]:
    """The outcome in a few sentences that need no knowledge of machine learning."""
    sentences = [_outcome(run)]
    metrics, verdict = run.metrics, run.verdict
    catalogue = run.rows.get("catalogue")
    hits = next((name for name in ("top_100_accuracy_unseen", "top_100_accuracy") if name in metrics), None)
    if hits is not None:
        of = f" of {catalogue:,}" if catalogue else ""
        known = "; what they knew already is left out" if hits.endswith("unseen") else ""
        sentences.append(
            f"Of the choices that people made outside of training, {value(hits, metrics[hits])} are among the first 100"
            f"{of} items that the model recommends to them{known}."
        )
    if "rmse" in metrics:
        sentences.append(f"Predicted ratings are off by {metrics['rmse']:.2f} (root mean square).")
    if verdict is not None:
        for other, values in (("the baseline", verdict.baselines), ("the last blessed model", verdict.last_blessed)):
            compared = [
                f"{metric_words(name).label} is {better_or_worse(name, metrics[name], values[name])}"
                for name in (hits, "rmse")
                if name in metrics and name in values
            ]
            if compared:
                sentences.append(f"Against {other}, {' and '.join(compared)}.")
    return sentences


def baseline_words(metric: str) -> str:
    """What the baseline of a metric does."""
    return "user and item means" if metric in RATING_METRICS else "the most popular items"


def _outcome(run: Run) -> str:
    bounds = run.verdict.bounds if run.verdict is not None else ()
    if run.status == "pushed":
        gates = "its only gate" if len(bounds) == 1 else f"all {len(bounds)} gates"
        return f"The new model passed {gates} and is pushed as version {run.pushed_version}."
    if run.status == "not blessed":
        missed = sum(not bound.passed for bound in bounds)
        return (
            f"The new model missed {missed} of {len(bounds)} gates, so it was not pushed: users keep being served by "
            "the model before it."
        )
    if run.status == "not servable":
        return f"The new model was measured, but a server could not serve it: {run.not_servable}. Nothing was pushed."
    if run.status == "running":
        return "The run is still going on; this page shows what there is so far."
    last = next((one.name for one in reversed(run.components) if one.state in ("failed", "unfinished")), None)
    where = f" in {last}" if last else ""
    ended = "failed" if run.status == "failed" else "ended"
    return f"The run {ended}{where} before there was a verdict. Nothing was pushed."
