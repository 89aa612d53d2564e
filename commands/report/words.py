"""Names, definitions and formats of metrics, gates and results in the report and the model card."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from components.evaluator.verdict import Bound
from pipeline.run_history import Run, Status
from recipe.evaluation import ITEM_POPULARITY, METRICS, RATING_METRICS, USER_ACTIVITY

ABSENT = "–"
# No line break between a number and its unit.
NARROW = "\u00a0"


@dataclasses.dataclass(frozen=True)
class MetricWords:
    """Label and definition of a metric."""

    label: str
    meaning: str
    """Definition, in lower case and without a full stop."""
    is_share: bool
    """Whether the value is a fraction, shown in percent."""
    higher_is_better: bool


_NAMED: dict[str, tuple[str, str, bool]] = {
    "rmse": ("RMSE", "root mean squared error of predicted ratings", False),
    "mae": ("MAE", "mean absolute error of predicted ratings", False),
    "ndcg_10": ("NDCG@10", "normalised discounted cumulative gain of each user's top 10; 1 is the ideal order", False),
    "recall_10": ("Recall@10", "fraction of a user's relevant items in the top 10, mean over users", True),
    "mrr": ("MRR", "mean reciprocal rank of each user's best-ranked relevant item", False),
    "coverage_10": ("Catalogue coverage@10", "fraction of the catalogue that is in at least one user's top 10", True),
    "popularity_bias_10": (
        "Popularity bias@10",
        "how much more popular recommended items are than chosen ones (difference of mean logs); 0: no bias",
        False,
    ),
}
_SLICES = {USER_ACTIVITY: "users", ITEM_POPULARITY: "items"}
_TOP_K = re.compile(r"top_(\d+)_accuracy(_unseen)?")

STATUSES: dict[Status, str] = {
    "pushed": "Blessed and pushed",
    "not blessed": "Not blessed",
    "not servable": "Not servable",
    "failed": "Failed",
    "stopped": "Interrupted",
    "running": "Running",
}


def metric_words(name: str) -> MetricWords:
    """Return label and definition of a metric; other names are their own label."""
    higher = METRICS.get(name, "higher") == "higher"
    found = _TOP_K.fullmatch(name)
    if found:
        unseen = ", without the items that the user interacted with in the train split" if found[2] else ""
        return MetricWords(
            f"Top-{found[1]} {'unseen' if found[2] else 'accuracy'}",
            f"fraction of examples whose item is in the top {found[1]} of the catalogue{unseen}",
            True,
            higher,
        )
    if name in _NAMED:
        return MetricWords(*_NAMED[name], higher)
    return MetricWords(name.replace("_", " "), "", False, higher)


def value(name: str, number: float | None) -> str:
    """Format a metric's value: fractions in percent, others with three decimals."""
    if number is None:
        return ABSENT
    return f"{100 * number:.1f}{NARROW}%" if metric_words(name).is_share else f"{number:.3f}"


def change(name: str, number: float | None) -> str:
    """Format the difference of two values of a metric, with its sign."""
    if number is None:
        return ABSENT
    signed = f"{100 * number:+.1f}{NARROW}points" if metric_words(name).is_share else f"{number:+.3f}"
    return signed.replace("-", "−")


def better_or_worse(name: str, number: float, other: float) -> str:
    """Format how much better or worse a value is than another."""
    if number == other:
        return "equal"
    far = change(name, abs(number - other)).lstrip("+")
    return f"{far} {'better' if (number > other) == metric_words(name).higher_is_better else 'worse'}"


def gate_words(bound: Bound) -> str:
    """Return a gate's threshold as text."""
    allowed = change(bound.metric, bound.allowed).lstrip("+")
    if bound.condition == "beats_baseline_by":
        sign = "≥" if metric_words(bound.metric).higher_is_better else "≤"
        return f"{sign} baseline{_offset(sign == '≥', allowed) if bound.allowed else ''}"
    if bound.condition in ("may_drop", "may_rise"):
        sign = "≥" if bound.condition == "may_drop" else "≤"
        return f"{sign} last blessed model{_offset(sign == '≤', allowed) if bound.allowed else ''}"
    return f"{'≥' if bound.condition == 'at_least' else '≤'} {value(bound.metric, bound.limit)}"


def _offset(plus: bool, number: str) -> str:
    return f" {'+' if plus else '−'} {number}"


def gate_outcome(bound: Bound) -> str:
    """Return a gate's result: the margin, or the reason if nothing was compared."""
    if bound.margin is None:
        return bound.reason or "not measured"
    far = change(bound.metric, abs(bound.margin)).lstrip("+")
    return f"passed by {far}" if bound.passed else f"failed by {far}"


def slice_words(where: Mapping[str, str] | None) -> str:
    """Return a slice's name; empty for the whole eval split."""
    return ", ".join(slice_name(name, of) for name, of in (where or {}).items())


def slice_name(name: str, of: str) -> str:
    """Return a slice as text: `items: tail`, `gender: F`."""
    return f"{_SLICES.get(name, name)}: {of}"


def duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def brief_duration(seconds: float) -> str:
    """Format a duration in a few characters."""
    if seconds < 600:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def summary(run: Run) -> list[str]:
    """Return a summary of the run in a few sentences."""
    sentences = [_outcome(run)]
    metrics, verdict = run.metrics, run.verdict
    catalogue = run.rows.get("catalogue")
    hits = next((name for name in ("top_100_accuracy_unseen", "top_100_accuracy") if name in metrics), None)
    if hits is not None:
        of = f" of {catalogue:,}" if catalogue else ""
        unseen = ", without items that the user interacted with before" if hits.endswith("unseen") else ""
        sentences.append(
            f"{value(hits, metrics[hits])} of the items that users chose in the eval split are in the model's top 100"
            f"{of}{unseen}."
        )
    if "rmse" in metrics:
        sentences.append(f"RMSE of the predicted ratings: {metrics['rmse']:.2f}.")
    if verdict is not None:
        for other, values in (("the baseline", verdict.baselines), ("the last blessed model", verdict.last_blessed)):
            compared = [
                f"{metric_words(name).label} is {better_or_worse(name, metrics[name], values[name])}"
                for name in (hits, "rmse")
                if name in metrics and name in values
            ]
            if compared:
                sentences.append(f"Compared with {other}, {' and '.join(compared)}.")
    return sentences


def baseline_words(metric: str) -> str:
    """Return the baseline of a metric."""
    return "user and item means" if metric in RATING_METRICS else "the most popular items"


def _outcome(run: Run) -> str:
    bounds = run.verdict.bounds if run.verdict is not None else ()
    if run.status == "pushed":
        gates = "its only gate" if len(bounds) == 1 else f"all {len(bounds)} gates"
        return f"The model passed {gates} and was pushed as version {run.pushed_version}."
    if run.status == "not blessed":
        missed = sum(not bound.passed for bound in bounds)
        return f"The model failed {missed} of {len(bounds)} gates and was not pushed. The served version is unchanged."
    if run.status == "not servable":
        return f"The model was evaluated, but InfraValidator did not bless it: {run.not_servable}. Nothing was pushed."
    if run.status == "running":
        return "The run has not finished; the report shows the results so far."
    last = next((one.name for one in reversed(run.components) if one.state in ("failed", "unfinished")), None)
    where = f" in {last}" if last else ""
    ended = "failed" if run.status == "failed" else "was interrupted"
    return f"The run {ended}{where}. Nothing was pushed."
