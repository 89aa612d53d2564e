"""Training by epoch: what `curves.json` of a Trainer's model run holds, for the report and `tandem compare`.

The file is one JSON object of columns, equally long lists of finite numbers with one value an epoch:

    epoch                                1, 2, …
    steps                                batches so far
    seconds                              that the epoch took, its validation included
    learning_rate                        of its last step
    loss                                 mean of what training minimises, regularisation included
    regularization_loss                  mean of the part of it that is the size of layer weights
    …                                    the model's own metrics of the training rows: each task's mean loss
    validation_top_100_accuracy          share of the validation slice's interactions whose item is among the 100 best
    validation_top_100_accuracy_unseen   the same among the items that the user has not in train
    validation_rmse                      of the slice's ratings, clipped as the served model clips them
    kept                                 1 for the epoch whose weights the model has, else 0

Without a validation slice its columns are not there. Epochs that ran before a Trainer was killed, and another one went
on, are there like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recipe.training import EarlyStopping

CURVES_FILE = "curves.json"
VALIDATION = "validation_"

Curves = dict[str, list[float]]


def with_epoch(curves: Curves, row: Mapping[str, float]) -> Curves:
    """`curves` with one more epoch.

    Raises:
        ValueError: The row has not the columns that the epochs before it have.
    """
    if curves and set(curves) != set(row):
        raise ValueError(
            f"an epoch has the columns {sorted(row)}; {sorted(curves)} were wanted, as those before it have"
        )
    return {name: [*curves.get(name, []), float(value)] for name, value in row.items()}


def best_epoch(values: Sequence[float], stopping: EarlyStopping) -> int:
    """The index of the epoch that early stopping goes back to: the latest that was better than the best before it.

    Args:
        values: `stopping.metric` of every epoch; at least one.
        stopping: The recipe's section.
    """
    sign = 1.0 if stopping.higher_is_better else -1.0
    best = 0
    for index, value in enumerate(values):
        if sign * (value - values[best]) > stopping.min_delta:
            best = index
    return best
