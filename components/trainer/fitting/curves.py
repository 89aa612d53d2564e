"""Learning curves: the content of `curves.json` in a model run, for the report and `tandem compare`.

The file is a JSON object of columns: lists of finite numbers of equal length, with one value per epoch.

    epoch                                1, 2, …
    steps                                total steps at the end of the epoch
    seconds                              duration of the epoch, validation included
    learning_rate                        learning rate of the last step
    loss                                 mean of the minimized loss, regularization included
    regularization_loss                  mean of the L2 penalty of layer weights, which is part of the loss
    …                                    the model's own metrics on the training rows: the mean loss of each task
    validation_top_100_accuracy          top-100 accuracy on the validation split
    validation_top_100_accuracy_unseen   the same, without the items that the user interacted with in the train split
    validation_rmse                      RMSE on the validation split, of ratings clipped as in the served model
    kept                                 1 for the epoch whose weights the model has, else 0

Without a validation split there are no validation columns. A resumed training has the epochs before the interruption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recipe.training import EarlyStopping

CURVES_FILE = "curves.json"
VALIDATION = "validation_"

Curves = dict[str, list[float]]


def with_epoch(curves: Curves, row: Mapping[str, float]) -> Curves:
    """Return the curves with an additional epoch.

    Args:
        curves: The curves of the epochs before; empty for the first epoch.
        row: The epoch's value of each column.

    Raises:
        ValueError: The row has other columns than the curves.

    Example:
        >>> with_epoch({"epoch": [1.0], "loss": [5.5]}, {"epoch": 2, "loss": 4.5})
        {'epoch': [1.0, 2.0], 'loss': [5.5, 4.5]}
    """
    if curves and set(curves) != set(row):
        raise ValueError(f"expected the columns {sorted(curves)} of the epochs before, got {sorted(row)}")
    return {name: [*curves.get(name, []), float(value)] for name, value in row.items()}


def best_epoch(values: Sequence[float], stopping: EarlyStopping) -> int:
    """Return the index of the epoch whose weights early stopping restores.

    It is the last epoch that improved the best value before it by more than `min_delta`.

    Args:
        values: `stopping.metric` of each epoch; at least one.
        stopping: The section `training.early_stopping` of the recipe.

    Example:
        >>> best_epoch([0.95, 0.91, 0.93], EarlyStopping(metric="rmse"))
        1
    """
    sign = 1.0 if stopping.higher_is_better else -1.0
    best = 0
    for index, value in enumerate(values):
        if sign * (value - values[best]) > stopping.min_delta:
            best = index
    return best
