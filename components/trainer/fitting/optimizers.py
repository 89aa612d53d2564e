"""The recipe's optimizers: Keras's own, rectified Adam, and what goes around any of them.

The training loop takes one `CompositeOptimizer` from `build_optimizer`. It is an ordinary Keras optimizer, so that
`tf.distribute`, checkpoints and loss scaling work with it as with any other.
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
"""A table of up to this many rows gets its sparse gradient as a dense one: adding up rows into a zeroed table is faster
than finding the unique ones first. Of a larger one, Adagrad and Adam change only the rows that a batch has, and average
only those: users grow with the interactions, and a step must not cost more for that."""


class WarmUpAndDecay(tf.keras.optimizers.schedules.LearningRateSchedule):
    """`learning_rate`, climbed up to linearly, then kept or let down to 0 along a cosine.

    In step t of T (from 1), with W steps of warm-up: rate t / W up to W; after that the rate itself, or
    rate (1 + cos(pi (t - 1 - W) / (T - W))) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983). No step has the rate 0.
    """

    def __init__(self, learning_rate: float, steps: int, warm_up: float = 0.0, cosine: bool = False) -> None:
        """
        Args:
            learning_rate: The highest rate.
            steps: T, all steps of the training.
            warm_up: W / T.
            cosine: Whether the rate falls after the warm-up.
        """
        super().__init__()
        self.learning_rate = learning_rate
        self.steps = steps
        self.warm_up = warm_up
        self.cosine = cosine

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """The rate float32 [] of the step that has `step` steps before it."""
        now = tf.cast(step, tf.float32) + 1.0
        climb = float(math.ceil(self.warm_up * self.steps))
        share = tf.minimum(now / climb, 1.0) if climb else tf.ones([])
        if self.cosine:
            progress = tf.clip_by_value((now - 1.0 - climb) / max(self.steps - climb, 1.0), 0.0, 1.0)
            share *= 0.5 * (1.0 + tf.cos(math.pi * progress))
        return self.learning_rate * share

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warm_up": self.warm_up,
            "cosine": self.cosine,
        }


class LazyAdam(tf.keras.optimizers.Adam):
    """Adam, but a row of a sparse gradient's table changes only in the steps that have a gradient for it.

    In the others its moments do not decay and it takes no step; their bias correction counts all steps. TensorFlow
    Addons, which is retired, had this under the same name. Dense gradients do what Kingma and Ba 2015 say.
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
    """RAdam: Adam that takes plain momentum steps until it knows the variance (Liu et al. 2020, arXiv:1908.03265).

    Algorithm 2 of the paper, with the variance rectified from rho > 4 on, and Adam's epsilon in the denominator. Weight
    decay is decoupled, as in AdamW. Sparse gradients do what dense ones with rows of zeros would: all moments decay.
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
        # In double precision: rho is a small difference of two large numbers in the first steps.
        step = tf.cast(self.iterations + 1, tf.float64)
        power_1, power_2 = self.beta_1**step, self.beta_2**step
        longest = 2.0 / (1.0 - self.beta_2) - 1.0
        rho = longest - 2.0 * step * power_2 / (1.0 - power_2)
        known = rho > 4.0
        safe = tf.where(known, rho, tf.constant(5.0, tf.float64))
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
        variable.assign_sub(tf.where(known, adaptive * momentum / (tf.sqrt(velocity) + self.epsilon), plain * momentum))

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        return config | {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


class CompositeOptimizer(tf.keras.optimizers.Optimizer):
    """Several optimizers, each for its own variables, under one gradient clip, one Lookahead and one average.

    What `tfrs.experimental.optimizers.CompositeOptimizer` is for Keras's legacy optimizers, which know neither averages
    nor a norm over all groups. A step is: add up sparse gradients by row, clip all of them together, decay weights, let
    each variable's own optimizer update it, every few steps join the slow weights, and average.

    Where only some rows of a large table change, only theirs are averaged: the average of a row whose weights stayed
    the same is known without the steps between, so it is the same one.
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
            groups: Optimizers that have taken no step yet, and the variables of each; together all that are trained.
            clip_norm: The largest norm of all gradients together.
            lookahead: Slow weights that all variables join (Zhang et al. 2019, arXiv:1907.08610).
            ema: What a step keeps of the averaged weights. Keras's own average starts at the initial weights, which
                short trainings would still be made of; this one is bias-corrected as Adam's moments are (Kingma and
                Ba 2015, arXiv:1412.6980): a mean of the weights after each step, weighted with powers of `ema`.
        """
        super().__init__(name=name, use_ema=ema is not None, ema_momentum=0.0 if ema is None else ema)
        self._clip_norm = clip_norm
        self._lookahead = lookahead
        self._optimizers = [optimizer for optimizer, _ in groups]
        self._group_of = self._no_dependency(
            {self._var_key(variable): index for index, (_, variables) in enumerate(groups) for variable in variables}
        )
        for optimizer in self._optimizers:
            # One counter for all, so that a group without gradients does not fall behind.
            optimizer.iterations = self.iterations

    @property
    def learning_rate(self) -> tf.Variable:
        """The first group's rate of the latest step, float32 []."""
        return self._optimizers[0].learning_rate

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        for index, optimizer in enumerate(self._optimizers):
            optimizer.build([variable for variable in var_list if self._group_of[self._var_key(variable)] == index])
        # For each large table of which steps may change some rows only: after how many steps each row's average is due.
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
        step, share = self._lookahead.sync_period, self._lookahead.slow_step_size

        def join() -> tf.Tensor:
            slow.assign_add(share * (variable - slow))
            variable.assign(slow)
            return tf.constant(True)

        tf.cond(tf.equal((self.iterations + 1) % step, 0), join, lambda: tf.constant(False))

    @contextlib.contextmanager
    def measured_weights(self, variables: Sequence[tf.Variable]) -> Iterator[None]:
        """Within it, `variables` have the weights that count: the averaged ones, or Lookahead's slow ones.

        The average of a variable that never got a gradient, and every weight of an optimizer that has neither, is the
        weight itself. What training goes on with is put back afterwards.
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
        """Gives `var_list` for good the weights that count. Keras's `fit` calls it at its end."""
        if self.use_ema or self._lookahead is None or not getattr(self, "_built", False):
            super().finalize_variable_values(var_list)
            return
        for variable in var_list:
            variable.assign(self._slow[self._index_dict[self._var_key(variable)]])

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("build_optimizer makes it from the recipe, which is what is kept")

    def _clip_gradients(self, grads: Sequence[Gradient]) -> Sequence[Gradient]:
        if not self._clip_norm:
            return grads
        # Keras clips before it adds up what several rows of a batch want of the same embedding: not the true norm.
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
        # Several replicas have several values of a gradient, all of one kind.
        kinds = {self._var_key(variable): distribution.experimental_local_results(gradient)[0]
                 for gradient, variable in pairs}  # fmt: skip
        self._averaged_by_row = {key for key in self._table_of if isinstance(kinds.get(key), tf.IndexedSlices)}
        return super()._distributed_apply_gradients_fn(distribution, pairs, **kwargs)

    def _update_model_variables_moving_average(self, var_list: Sequence[tf.Variable]) -> None:
        kept = self._kept(self.iterations, self.iterations + 1)

        def update(average: tf.Variable, variable: tf.Tensor) -> None:
            average.assign(kept * average + (1 - kept) * variable)

        def settle(averaged_at: tf.Variable) -> None:
            averaged_at.assign(tf.fill(averaged_at.shape, self.iterations + 1))

        extended = self._distribution_strategy.extended
        for variable in var_list:
            key = self._var_key(variable)
            if key in self._averaged_by_row:
                continue
            extended.update(self._averages(variable), update, args=(variable,), group=False)
            if key in self._table_of:
                extended.update(self._averaged_at[self._table_of[key]], settle, group=False)

    def _overwrite_model_variables_with_average_value(self, var_list: Sequence[tf.Variable]) -> None:
        now = tf.identity(self.iterations)

        def catch_up(average: tf.Variable, variable: tf.Tensor, averaged_at: tf.Variable) -> None:
            kept = _of_rows(self._kept(averaged_at, now), variable)
            average.assign(variable + kept * (average - variable))
            averaged_at.assign(tf.fill(averaged_at.shape, now))

        for variable in var_list:
            index = self._table_of.get(self._var_key(variable))
            if index is not None:
                args = (variable, self._averaged_at[index])
                self._distribution_strategy.extended.update(self._averages(variable), catch_up, args=args)
        super()._overwrite_model_variables_with_average_value(var_list)

    def _changes_by_row(self, variable: tf.Variable) -> bool:
        """Whether its average can be known without having been at every step."""
        optimizer = self._optimizers[self._group_of[self._var_key(variable)]]
        lazy = isinstance(optimizer, LazyAdam | tf.keras.optimizers.Adagrad)
        rows = variable.shape[0] if variable.shape.rank else 0
        return bool(self.use_ema and self._lookahead is None and lazy and rows > DENSE_ROWS)

    def _averages(self, variable: tf.Variable) -> tf.Variable:
        return self._model_variables_moving_average[self._index_dict[self._var_key(variable)]]

    def _average_of(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        """What the average of some rows has come to, their weights being what they are since they last changed."""
        weights = tf.gather(variable, rows)
        averaged_at = tf.gather(self._averaged_at[self._table_of[self._var_key(variable)]], rows)
        kept = _of_rows(self._kept(averaged_at, self.iterations), weights)
        return weights + kept * (tf.gather(self._averages(variable), rows) - weights)

    def _average_rows(self, variable: tf.Variable, rows: tf.Tensor, average: tf.Tensor) -> None:
        """Adds this step's weights of some rows to the `average` that they had before it."""
        now = self.iterations + 1
        kept = self._kept(self.iterations, now)
        average = kept * average + (1 - kept) * tf.gather(variable, rows)
        self._averages(variable).scatter_update(tf.IndexedSlices(average, rows))
        averaged_at = self._averaged_at[self._table_of[self._var_key(variable)]]
        averaged_at.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(rows), now), rows))

    def _kept(self, since: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        """What the corrected average after `since` steps has of that after `now`; the weights between have the rest.

        For one step that is 0 at first, then ever nearer to the momentum; for several, the product of those.
        """
        since, now = tf.cast(since, tf.float32), tf.cast(now, tf.float32)
        momentum = self.ema_momentum
        kept = momentum ** (now - since) * (1 - momentum**since)
        return tf.math.divide_no_nan(kept, 1 - momentum**now)


def build_optimizer(
    config: Optimizer,
    steps: int,
    variables: Sequence[tf.Variable],
    rating_variables: Sequence[tf.Variable] = (),
) -> CompositeOptimizer:
    """The recipe's optimizer for a model that has its variables already.

    Args:
        config: The recipe's section `training.optimizer`.
        steps: All steps of the training, which warm-up and decay are parts of.
        variables: All that are trained.
        rating_variables: Those of them that only the rating head has; `rating_learning_rate` is theirs.
    """
    rating = {variable.ref() for variable in rating_variables} if config.rating_learning_rate is not None else set()
    shares = [
        (config.learning_rate, [variable for variable in variables if variable.ref() not in rating]),
        (config.rating_learning_rate, [variable for variable in variables if variable.ref() in rating]),
    ]
    groups = [(_optimizer(config, rate, steps), own) for rate, own in shares if rate is not None and own]
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
    # Nothing to decay saves a pass over all weights; Keras knows that from None only.
    return RectifiedAdam(rate, weight_decay=config.weight_decay or None)


def _dense(gradient: Gradient | None, variable: tf.Variable) -> Gradient | None:
    """A sparse gradient of a small table as a dense one."""
    if not isinstance(gradient, tf.IndexedSlices) or variable.shape[0] > DENSE_ROWS:
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def _of_rows(values: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Values [rows] shaped to be multiplied with a table [rows, ...]."""
    return tf.reshape(values, [-1] + [1] * (table.shape.rank - 1))
