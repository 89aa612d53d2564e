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

from pipeline.recipe import Lookahead, Optimizer

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices

DENSE_ROWS = 1 << 14
"""A table of up to this many rows gets its sparse gradient as a dense one: adding up rows into a zeroed table is faster
than finding the unique ones first, and each optimizer here does the same with a row of zeros as without it."""


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
        self._optimizers[self._group_of[key]].update_step(gradient, variable)
        if self._lookahead is None:
            return
        slow = self._slow[self._index_dict[key]]
        step, share = self._lookahead.steps, self._lookahead.slow_step

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

    def _update_model_variables_moving_average(self, var_list: Sequence[tf.Variable]) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        # With the corrected average of the step before, this is the corrected average: 0 at first, then ever nearer
        # to the momentum.
        kept = self.ema_momentum * (1 - self.ema_momentum ** (step - 1)) / (1 - self.ema_momentum**step)

        def update(average: tf.Variable, variable: tf.Tensor) -> None:
            average.assign(kept * average + (1 - kept) * variable)

        for variable in var_list:
            average = self._model_variables_moving_average[self._index_dict[self._var_key(variable)]]
            self._distribution_strategy.extended.update(average, update, args=(variable,), group=False)


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
        return tf.keras.optimizers.Adam(rate)
    if config.kind == "adamw":
        return tf.keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    # Nothing to decay saves a pass over all weights; Keras knows that from None only.
    return RectifiedAdam(rate, weight_decay=config.weight_decay or None)


def _dense(gradient: Gradient | None, variable: tf.Variable) -> Gradient | None:
    """A sparse gradient of a small table as a dense one."""
    if not isinstance(gradient, tf.IndexedSlices) or variable.shape[0] > DENSE_ROWS:
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
