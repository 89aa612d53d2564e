"""The recipe's optimizers: Keras's Adagrad and AdamW, lazy Adam and rectified Adam, with Lookahead, clipping and EMA.

`build_optimizer` returns a `CompositeOptimizer`, which is a Keras optimizer, so that `tf.distribute`, checkpoints and
loss scaling work with it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from recipe.training import Lookahead, Optimizer

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices

DENSE_ROWS = 1 << 14
"""Maximum number of rows of a table whose sparse gradient is converted to a dense one: summing rows into a dense table
is faster than deduplicating them. Of a larger table, Adagrad and Adam update and average the rows of the batch only, so
that the time of a step does not depend on the number of users."""


class WarmUpAndDecay(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Learning-rate schedule: linear warm-up, then constant or with cosine decay to 0.

    In step t of T, counted from 1, with W steps of warm-up, the learning rate is rate · t / W up to step W, and then
    rate, or rate · (1 + cos(pi (t - 1 - W) / (T - W))) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983). It is above
    0 in all steps.

    Example:
        >>> schedule = WarmUpAndDecay(0.1, steps=10, warm_up=0.2)
        >>> [round(float(schedule(tf.constant(step))), 3) for step in range(3)]
        [0.05, 0.1, 0.1]
    """

    def __init__(self, learning_rate: float, steps: int, warm_up: float = 0.0, cosine: bool = False) -> None:
        """
        Args:
            learning_rate: The maximum learning rate.
            steps: T, the total steps of the training.
            warm_up: W / T, the fraction of the steps that are warm-up.
            cosine: Whether to decay the learning rate after the warm-up.
        """
        super().__init__()
        self.learning_rate = learning_rate
        self.steps = steps
        self.warm_up = warm_up
        self.cosine = cosine

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the learning rate, float32 [], of the step after `step` steps."""
        now = tf.cast(step, tf.float32) + 1.0
        warm_up_steps = float(math.ceil(self.warm_up * self.steps))
        factor = tf.minimum(now / warm_up_steps, 1.0) if warm_up_steps else tf.ones([])
        if self.cosine:
            progress = tf.clip_by_value((now - 1.0 - warm_up_steps) / max(self.steps - warm_up_steps, 1.0), 0.0, 1.0)
            factor *= 0.5 * (1.0 + tf.cos(math.pi * progress))
        return self.learning_rate * factor

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warm_up": self.warm_up,
            "cosine": self.cosine,
        }


class LazyAdam(tf.keras.optimizers.Adam):
    """Adam that updates only the rows of a table that have a sparse gradient, as TensorFlow Addons' LazyAdam.

    In other steps a row and its moments stay the same; the bias correction counts all steps. Dense gradients are
    applied as in Kingma and Ba 2015 (arXiv:1412.6980).

    Example:
        >>> table, optimizer = tf.Variable(tf.ones([3, 1])), LazyAdam(0.1)
        >>> int(optimizer.apply_gradients([(tf.IndexedSlices(tf.ones([1, 1]), tf.constant([1])), table)]))
        1
    """

    def update_step(self, gradient: Gradient, variable: tf.Variable) -> None:
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        index = self._index_dict[self._var_key(variable)]
        momentum, velocity = self._momentums[index], self._velocities[index]
        step = tf.cast(self.iterations + 1, variable.dtype)
        correction = tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        rate = tf.cast(self.learning_rate, variable.dtype) * correction
        values, rows = gradient.values, gradient.indices
        first = self.beta_1 * tf.gather(momentum, rows) + (1 - self.beta_1) * values
        second = self.beta_2 * tf.gather(velocity, rows) + (1 - self.beta_2) * tf.square(values)
        momentum.scatter_update(tf.IndexedSlices(first, rows))
        velocity.scatter_update(tf.IndexedSlices(second, rows))
        variable.scatter_sub(tf.IndexedSlices(rate * first / (tf.sqrt(second) + self.epsilon), rows))


class RectifiedAdam(tf.keras.optimizers.Optimizer):
    """Rectified Adam (RAdam; Liu et al. 2020, arXiv:1908.03265), with decoupled weight decay as in AdamW.

    Algorithm 2 of the paper, with the rectified variance if rho > 4, and Adam's epsilon in the denominator. A sparse
    gradient has the effect of a dense one with rows of zeros: all moments decay.

    Example:
        >>> weights, optimizer = tf.Variable([1.0]), RectifiedAdam(0.1)
        >>> int(optimizer.apply_gradients([(tf.constant([0.5]), weights)]))
        1
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        name: str = "RectifiedAdam",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, weight_decay=weight_decay, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._momentums = [self.add_variable_from_reference(variable, "m") for variable in var_list]
        self._velocities = [self.add_variable_from_reference(variable, "v") for variable in var_list]

    def update_step(self, gradient: Gradient, variable: tf.Variable) -> None:
        index = self._index_dict[self._var_key(variable)]
        momentum, velocity = self._momentums[index], self._velocities[index]
        # float64, because rho is a small difference of two large numbers in the first steps.
        step = tf.cast(self.iterations + 1, tf.float64)
        power_1, power_2 = self.beta_1**step, self.beta_2**step
        longest = 2.0 / (1.0 - self.beta_2) - 1.0
        rho = longest - 2.0 * step * power_2 / (1.0 - power_2)
        adapts = rho > 4.0
        safe = tf.where(adapts, rho, tf.constant(5.0, tf.float64))
        rectification = tf.sqrt((safe - 4.0) * (safe - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * safe))
        rate = tf.cast(self.learning_rate, tf.float64) / (1.0 - power_1)
        plain = tf.cast(rate, variable.dtype)
        adaptive = tf.cast(rate * rectification * tf.sqrt(1.0 - power_2), variable.dtype)

        if isinstance(gradient, tf.IndexedSlices):
            momentum.assign(momentum * self.beta_1)
            momentum.scatter_add(tf.IndexedSlices(gradient.values * (1 - self.beta_1), gradient.indices))
            velocity.assign(velocity * self.beta_2)
            velocity.scatter_add(tf.IndexedSlices(tf.square(gradient.values) * (1 - self.beta_2), gradient.indices))
        else:
            momentum.assign_add((gradient - momentum) * (1 - self.beta_1))
            velocity.assign_add((tf.square(gradient) - velocity) * (1 - self.beta_2))
        variable.assign_sub(
            tf.where(adapts, adaptive * momentum / (tf.sqrt(velocity) + self.epsilon), plain * momentum)
        )

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


class CompositeOptimizer(tf.keras.optimizers.Optimizer):
    """Several optimizers, each with its own variables, with common gradient clipping, Lookahead and EMA.

    `tfrs.experimental.optimizers.CompositeOptimizer` does the same for Keras's legacy optimizers, without EMA and
    without clipping by the global norm. A step deduplicates sparse gradients, clips all gradients by their global norm,
    decays weights, updates each variable with its own optimizer, synchronizes the slow weights every few steps, and
    updates the EMA.

    If a step updates some rows of a large table only, it averages these rows only. The average of a row whose weights
    did not change has a closed form, so the result is that of averaging all rows in each step.

    Example:
        >>> tower, head = tf.Variable([1.0]), tf.Variable([1.0])
        >>> optimizer = CompositeOptimizer([(LazyAdam(0.1), [tower]), (LazyAdam(0.01), [head])], clip_norm=1.0, ema=0.9)
        >>> int(optimizer.apply_gradients([(tf.constant([3.0]), tower), (tf.constant([4.0]), head)]))
        1
    """

    def __init__(
        self,
        groups: Sequence[tuple[tf.keras.optimizers.Optimizer, Sequence[tf.Variable]]],
        clip_norm: float | None = None,
        lookahead: Lookahead | None = None,
        ema: float | None = None,
        name: str = "CompositeOptimizer",
    ) -> None:
        """
        Args:
            groups: New optimizers with the variables of each; together all trained variables.
            clip_norm: Maximum global norm of all gradients; None for no clipping.
            lookahead: Slow weights (Zhang et al. 2019, arXiv:1907.08610); None for none.
            ema: Decay of the moving average of the weights; None for no average. Keras's average starts at the initial
                weights, which affects short trainings. This one is bias-corrected as Adam's moments are (Kingma and Ba
                2015, arXiv:1412.6980): a mean of the weights after each step, weighted with powers of `ema`.
        """
        super().__init__(name=name, use_ema=ema is not None, ema_momentum=0.0 if ema is None else ema)
        self._clip_norm = clip_norm
        self._lookahead = lookahead
        self._optimizers = [optimizer for optimizer, _ in groups]
        self._group_of = self._no_dependency(
            {self._var_key(variable): index for index, (_, variables) in enumerate(groups) for variable in variables}
        )
        for optimizer in self._optimizers:
            # A common counter, so that a group without gradients has the same step.
            optimizer.iterations = self.iterations

    @property
    def learning_rate(self) -> tf.Variable:
        """Learning rate of the first group in the latest step, float32 []."""
        return self._optimizers[0].learning_rate

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        for index, optimizer in enumerate(self._optimizers):
            optimizer.build([variable for variable in var_list if self._group_of[self._var_key(variable)] == index])
        # For each large table that is averaged by row: the step of each row's average.
        tables = [variable for variable in var_list if self._changes_by_row(variable)]
        self._averaged_at = [self.add_variable((table.shape[0],), tf.int64, name="averaged_at") for table in tables]
        self._table_of = self._no_dependency({self._var_key(table): index for index, table in enumerate(tables)})
        self._slow = (
            [self.add_variable_from_reference(variable, "slow", initial_value=variable) for variable in var_list]
            if self._lookahead
            else []
        )

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[Gradient | None, tf.Variable]], *args: Any, **kwargs: Any
    ) -> tf.Tensor:
        return super().apply_gradients(
            [(_dense(gradient, variable), variable) for gradient, variable in grads_and_vars], *args, **kwargs
        )

    def update_step(self, gradient: Gradient, variable: tf.Variable) -> None:
        key = self._var_key(variable)
        optimizer = self._optimizers[self._group_of[key]]
        if isinstance(gradient, tf.IndexedSlices) and key in self._table_of:
            rows = gradient.indices
            average = self._average_of(variable, rows)
            optimizer.update_step(gradient, variable)
            self._average_rows(variable, rows, average)
        else:
            optimizer.update_step(gradient, variable)
        if self._lookahead is None:
            return
        slow = self._slow[self._index_dict[key]]
        period, slow_step_size = self._lookahead.sync_period, self._lookahead.slow_step_size

        def synchronize() -> tf.Tensor:
            slow.assign_add(slow_step_size * (variable - slow))
            variable.assign(slow)
            return tf.constant(True)

        tf.cond(tf.equal((self.iterations + 1) % period, 0), synchronize, lambda: tf.constant(False))

    @contextlib.contextmanager
    def evaluation_weights(self, variables: Sequence[tf.Variable]) -> Iterator[None]:
        """Swap the averaged weights, or Lookahead's slow weights, into `variables` within the context.

        A variable that never had a gradient keeps its weights, as do all variables without EMA and Lookahead. The
        trained weights are restored at the end of the context.
        """
        if not getattr(self, "_built", False) or not (self.use_ema or self._lookahead):
            yield
            return
        trained = [tf.identity(variable) for variable in variables]
        self.finalize_variable_values(variables)
        try:
            yield
        finally:
            for variable, value in zip(variables, trained, strict=True):
                variable.assign(value)

    def finalize_variable_values(self, var_list: Sequence[tf.Variable]) -> None:
        """Assign the averaged weights, or Lookahead's slow weights. Keras's `fit` calls it at its end."""
        if self.use_ema or self._lookahead is None or not getattr(self, "_built", False):
            super().finalize_variable_values(var_list)
            return
        for variable in var_list:
            variable.assign(self._slow[self._index_dict[self._var_key(variable)]])

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("CompositeOptimizer has no config; build_optimizer creates it from the recipe")

    def _clip_gradients(self, grads: Sequence[Gradient]) -> Sequence[Gradient]:
        if not self._clip_norm:
            return grads
        # Keras clips before it deduplicates sparse gradients, so that its norm is not the gradient's.
        return tf.clip_by_global_norm(self._deduplicate_sparse_grad(grads), self._clip_norm)[0]

    def _compute_current_learning_rate(self) -> None:
        for optimizer in self._optimizers:
            optimizer._compute_current_learning_rate()

    def _apply_weight_decay(self, variables: Sequence[tf.Variable]) -> None:
        for index, optimizer in enumerate(self._optimizers):
            optimizer._apply_weight_decay(
                [variable for variable in variables if self._group_of[self._var_key(variable)] == index]
            )

    def _distributed_apply_gradients_fn(self, distribution: Any, grads_and_vars: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        # The gradients of all replicas have the same type.
        kinds = {self._var_key(variable): distribution.experimental_local_results(gradient)[0]
                 for gradient, variable in pairs}  # fmt: skip
        self._averaged_by_row = {key for key in self._table_of if isinstance(kinds.get(key), tf.IndexedSlices)}
        return super()._distributed_apply_gradients_fn(distribution, pairs, **kwargs)

    def _update_model_variables_moving_average(self, var_list: Sequence[tf.Variable]) -> None:
        retained = self._retained(self.iterations, self.iterations + 1)

        def update(average: tf.Variable, variable: tf.Tensor) -> None:
            average.assign(retained * average + (1 - retained) * variable)

        def mark_averaged(averaged_at: tf.Variable) -> None:
            averaged_at.assign(tf.fill(averaged_at.shape, self.iterations + 1))

        extended = self._distribution_strategy.extended
        for variable in var_list:
            key = self._var_key(variable)
            if key in self._averaged_by_row:
                continue
            extended.update(self._averages(variable), update, args=(variable,), group=False)
            if key in self._table_of:
                extended.update(self._averaged_at[self._table_of[key]], mark_averaged, group=False)

    def _overwrite_model_variables_with_average_value(self, var_list: Sequence[tf.Variable]) -> None:
        now = tf.identity(self.iterations)

        def catch_up(average: tf.Variable, variable: tf.Tensor, averaged_at: tf.Variable) -> None:
            retained = _of_rows(self._retained(averaged_at, now), variable)
            average.assign(variable + retained * (average - variable))
            averaged_at.assign(tf.fill(averaged_at.shape, now))

        for variable in var_list:
            index = self._table_of.get(self._var_key(variable))
            if index is not None:
                args = (variable, self._averaged_at[index])
                self._distribution_strategy.extended.update(self._averages(variable), catch_up, args=args)
        super()._overwrite_model_variables_with_average_value(var_list)

    def _changes_by_row(self, variable: tf.Variable) -> bool:
        """Return whether steps may update some rows of the variable only, so that it is averaged by row."""
        optimizer = self._optimizers[self._group_of[self._var_key(variable)]]
        lazy = isinstance(optimizer, LazyAdam | tf.keras.optimizers.Adagrad)
        rows = variable.shape[0] if variable.shape.rank else 0
        return bool(self.use_ema and self._lookahead is None and lazy and rows > DENSE_ROWS)

    def _averages(self, variable: tf.Variable) -> tf.Variable:
        return self._model_variables_moving_average[self._index_dict[self._var_key(variable)]]

    def _average_of(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        """Return the current average of some rows, whose weights have not changed since they were last averaged."""
        weights = tf.gather(variable, rows)
        averaged_at = tf.gather(self._averaged_at[self._table_of[self._var_key(variable)]], rows)
        retained = _of_rows(self._retained(averaged_at, self.iterations), weights)
        return weights + retained * (tf.gather(self._averages(variable), rows) - weights)

    def _average_rows(self, variable: tf.Variable, rows: tf.Tensor, average: tf.Tensor) -> None:
        """Update the `average` of some rows with this step's weights."""
        now = self.iterations + 1
        retained = self._retained(self.iterations, now)
        average = retained * average + (1 - retained) * tf.gather(variable, rows)
        self._averages(variable).scatter_update(tf.IndexedSlices(average, rows))
        averaged_at = self._averaged_at[self._table_of[self._var_key(variable)]]
        averaged_at.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(rows), now), rows))

    def _retained(self, since: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        """Return the coefficient of the bias-corrected average at step `since` in the average at step `now`.

        For one step it is 0 at first and approaches the decay; for several steps it is the product over the steps.
        """
        since, now = tf.cast(since, tf.float32), tf.cast(now, tf.float32)
        momentum = self.ema_momentum
        retained = momentum ** (now - since) * (1 - momentum**since)
        return tf.math.divide_no_nan(retained, 1 - momentum**now)


def build_optimizer(
    config: Optimizer,
    steps: int,
    variables: Sequence[tf.Variable],
    rating_variables: Sequence[tf.Variable] = (),
) -> CompositeOptimizer:
    """Return the recipe's optimizer.

    Args:
        config: The section `training.optimizer` of the recipe.
        steps: Total steps of the training, for warm-up and decay.
        variables: All trained variables.
        rating_variables: The variables of the rating head, which `rating_learning_rate` applies to.

    Example:
        >>> optimizer = build_optimizer(Optimizer(kind="radam", learning_rate=0.1), 100, [tf.Variable([1.0])])
        >>> round(float(optimizer.learning_rate), 3)
        0.1
    """
    rating = {variable.ref() for variable in rating_variables} if config.rating_learning_rate is not None else set()
    rates = [
        (config.learning_rate, [variable for variable in variables if variable.ref() not in rating]),
        (config.rating_learning_rate, [variable for variable in variables if variable.ref() in rating]),
    ]
    groups = [(_optimizer(config, rate, steps), own) for rate, own in rates if rate is not None and own]
    return CompositeOptimizer(groups, config.clip_norm, config.lookahead, config.ema)


def _optimizer(config: Optimizer, learning_rate: float, steps: int) -> tf.keras.optimizers.Optimizer:
    rate: Any = learning_rate
    if config.warm_up or config.decay != "none":
        rate = WarmUpAndDecay(learning_rate, steps, config.warm_up, cosine=config.decay == "cosine")
    if config.kind == "adagrad":
        return tf.keras.optimizers.Adagrad(rate)
    if config.kind == "adam":
        return LazyAdam(rate)
    if config.kind == "adamw":
        return tf.keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    # With None, unlike 0, Keras skips the pass over all weights.
    return RectifiedAdam(rate, weight_decay=config.weight_decay or None)


def _dense(gradient: Gradient | None, variable: tf.Variable) -> Gradient | None:
    """Convert the sparse gradient of a small table to a dense one."""
    if not isinstance(gradient, tf.IndexedSlices) or variable.shape[0] > DENSE_ROWS:
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def _of_rows(values: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Reshape values [rows] so that they broadcast to a table [rows, ...]."""
    return tf.reshape(values, [-1] + [1] * (table.shape.rank - 1))
