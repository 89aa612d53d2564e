"""Each optimizer of the recipe, compared step by step with the algorithm of its paper in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split

import numpy as np
import pytest
import tensorflow as tf

from components.trainer.fitting import optimizers
from components.trainer.fitting.optimizers import CompositeOptimizer, WarmUpAndDecay, build_optimizer
from recipe.training import Optimizer

STEPS = 14
ROWS, WIDTH = 5, 3
Weights = list[np.ndarray]


def config(**values: Any) -> Optimizer:
    return Optimizer.model_validate({"kind": "adam", "learning_rate": 0.1, **values})


def gradients() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Gradients of each step: rows of an embedding table, with duplicates, their values, and a dense gradient."""
    random = np.random.default_rng(3)
    return [
        (random.integers(0, ROWS, 4), random.normal(size=(4, WIDTH)), random.normal(size=(WIDTH, 2)))
        for _ in range(STEPS)
    ]


def initial() -> Weights:
    random = np.random.default_rng(4)
    return [random.normal(size=(ROWS, WIDTH)), random.normal(size=(WIDTH, 2))]


def variables() -> list[tf.Variable]:
    return [tf.Variable(value, dtype=tf.float32) for value in initial()]


def step(optimizer: CompositeOptimizer, trained: Sequence[tf.Variable], rows: Any, values: Any, dense: Any) -> None:
    sparse = tf.IndexedSlices(tf.cast(values, tf.float32), tf.convert_to_tensor(rows), tf.constant([ROWS, WIDTH]))
    optimizer.apply_gradients(zip([sparse, tf.cast(dense, tf.float32)], trained, strict=True))


def run(optimizer: CompositeOptimizer, trained: Sequence[tf.Variable]) -> list[Weights]:
    """The weights after each step."""
    after = []
    compiled = tf.function(lambda rows, values, dense: step(optimizer, trained, rows, values, dense))
    for rows, values, dense in gradients():
        compiled(tf.constant(rows), tf.constant(values, tf.float32), tf.constant(dense, tf.float32))
        after.append([variable.numpy() for variable in trained])
    return after


class Adam:
    """Kingma and Ba 2015, the form before section 2.1's; with decay, Loshchilov and Hutter 2019."""

    def __init__(self, decay: float = 0.0, rectified: bool = False) -> None:
        self.decay, self.rectified, self.t = decay, rectified, 0
        self.m: Any = 0.0
        self.v: Any = 0.0

    def __call__(self, weight: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        weight = weight - rate * self.decay * weight
        corrected = self.m / (1 - 0.9**self.t)
        if self.rectified:
            # Liu et al. 2020, algorithm 2.
            longest = 2 / (1 - 0.999) - 1
            rho = longest - 2 * self.t * 0.999**self.t / (1 - 0.999**self.t)
            if rho <= 4:
                return weight - rate * corrected
            length = math.sqrt(((rho - 4) * (rho - 2) * longest) / ((longest - 4) * (longest - 2) * rho))
            return weight - rate * length * corrected * math.sqrt(1 - 0.999**self.t) / (np.sqrt(self.v) + 1e-7)
        return weight - rate * math.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t) * self.m / (np.sqrt(self.v) + 1e-7)


class LazyAdam(Adam):
    """Rows without a gradient keep moments and weights."""

    def __call__(self, weight: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        before = [np.broadcast_to(moment, weight.shape).copy() for moment in (self.m, self.v)]
        after = super().__call__(weight, gradient, rate)
        still = ~gradient.any(axis=1)
        self.m[still], self.v[still] = before[0][still], before[1][still]
        after[still] = weight[still]
        return after


class Adagrad:
    """Duchi et al. 2011."""

    def __init__(self) -> None:
        self.total: Any = 0.1

    def __call__(self, weight: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        self.total = self.total + gradient**2
        return weight - rate * gradient / np.sqrt(self.total + 1e-7)


def reference(kind: str, decay: float = 0.0) -> Any:
    if kind == "adagrad":
        return Adagrad()
    if kind == "adam" and optimizers.DENSE_ROWS < ROWS:
        return LazyAdam()
    return Adam(decay=decay if kind != "adam" else 0.0, rectified=kind == "radam")


def expected(
    kind: str,
    rates: Sequence[Sequence[float]] = ((0.1,) * STEPS, (0.1,) * STEPS),
    decay: float = 0.0,
    clip: float = math.inf,
    lookahead: tuple[int, float] | None = None,
) -> list[Weights]:
    weights, updates = initial(), [reference(kind, decay), reference(kind, decay)]
    slow = [weight.copy() for weight in weights]
    after = []
    for number, (rows, values, dense) in enumerate(gradients()):
        table = np.zeros((ROWS, WIDTH))
        np.add.at(table, rows, values)
        norm = math.sqrt((table**2).sum() + (dense**2).sum())
        scale = min(1.0, clip / norm)
        for index, gradient in enumerate((table, dense)):
            weights[index] = updates[index](weights[index], gradient * scale, rates[index][number])
            if lookahead and (number + 1) % lookahead[0] == 0:
                slow[index] = slow[index] + lookahead[1] * (weights[index] - slow[index])
                weights[index] = slow[index].copy()
        after.append([weight.copy() for weight in weights])
    return after


def assert_same(found: list[Weights], expected: list[Weights]) -> None:
    assert len(found) == len(expected) == STEPS
    for number, (left, right) in enumerate(zip(found, expected, strict=True)):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5, err_msg=f"after step {number + 1}")


@pytest.fixture(params=["small table", "large table"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways that sparse gradients take."""
    if request.param == "large table":
        monkeypatch.setattr(optimizers, "DENSE_ROWS", 1)


KINDS = ["adagrad", "adam", "adamw", "radam"]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_follows_its_paper(kind: str) -> None:
    decay = 0.3 if kind in ("adamw", "radam") else 0.0
    trained = variables()
    found = run(build_optimizer(config(kind=kind, weight_decay=decay), STEPS, trained), trained)
    assert_same(found, expected(kind, decay=decay))


def test_rectified_adam_starts_as_momentum_and_becomes_adaptive() -> None:
    # The scale of the gradients decides how far plain momentum goes, and not how far an adaptive step goes.
    moved = []
    for scale in (1.0, 100.0):
        weight = tf.Variable([0.0])
        optimizer = build_optimizer(config(kind="radam", learning_rate=0.01), STEPS, [weight])
        places = []
        for _ in range(10):
            optimizer.apply_gradients([(tf.constant([scale]), weight)])
            places.append(float(weight[0]))
        moved.append(np.diff([0.0, *places]))
    np.testing.assert_allclose(moved[1][:4], 100 * moved[0][:4], rtol=1e-4)
    np.testing.assert_allclose(moved[1][5:], moved[0][5:], rtol=1e-3)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "share"), [(1, 0.25), (4, 0.5), (5, 1.0)])
def test_lookahead_works_with_each_kind(kind: str, steps: int, share: float) -> None:
    trained = variables()
    optimizer = build_optimizer(
        config(kind=kind, lookahead={"sync_period": steps, "slow_step_size": share}), STEPS, trained
    )
    assert_same(run(optimizer, trained), expected(kind, lookahead=(steps, share)))


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("clip", [0.5, 3.0, 1000.0])
def test_clipping_uses_the_global_norm(clip: float) -> None:
    trained = variables()
    found = run(build_optimizer(config(kind="adagrad", clip_norm=clip), STEPS, trained), trained)
    assert_same(found, expected("adagrad", clip=clip))


def schedule(rate: float, warm_up: int, cosine: bool) -> list[float]:
    rates = []
    for now in range(1, STEPS + 1):
        share = min(1.0, now / warm_up) if warm_up else 1.0
        if cosine and now > warm_up:
            share *= (1 + math.cos(math.pi * (now - 1 - warm_up) / (STEPS - warm_up))) / 2
        rates.append(rate * share)
    return rates


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("warm_up", [0, 4])
def test_schedule_follows_its_formula(warm_up: int, cosine: bool) -> None:
    found = WarmUpAndDecay(0.1, STEPS, warm_up / STEPS, cosine)
    again = WarmUpAndDecay.from_config(found.get_config())
    for number, expected in enumerate(schedule(0.1, warm_up, cosine)):
        assert float(found(number)) == pytest.approx(expected, abs=1e-7)
        assert float(again(number)) == pytest.approx(expected, abs=1e-7)
    # Whatever comes after the last step does not climb again.
    assert float(found(STEPS + 3)) == pytest.approx(0.0 if cosine else 0.1, abs=1e-7)


def test_rating_learning_rate_with_everything_else() -> None:
    trained = variables()
    optimizer = build_optimizer(
        config(
            kind="radam", weight_decay=0.2, rating_learning_rate=0.01, warm_up=4 / STEPS, decay="cosine", clip_norm=2.0,
            lookahead={"sync_period": 3, "slow_step_size": 0.5},
        ),
        STEPS, trained, rating_variables=trained[1:],
    )  # fmt: skip
    rates = [schedule(0.1, 4, True), schedule(0.01, 4, True)]
    assert_same(run(optimizer, trained), expected("radam", rates, decay=0.2, clip=2.0, lookahead=(3, 0.5)))
    assert float(optimizer.learning_rate) == pytest.approx(rates[0][-1], abs=1e-6)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lookahead", [None, {"sync_period": 4, "slow_step_size": 0.5}])
def test_average_is_bias_corrected(kind: str, lookahead: Any) -> None:
    trained = variables()
    optimizer = build_optimizer(config(kind=kind, ema=0.7, lookahead=lookahead), STEPS, trained)
    seen: list[Weights] = []
    for rows, values, dense in gradients():
        step(optimizer, trained, rows, values, dense)
        seen.append([variable.numpy() for variable in trained])
        with optimizer.evaluation_weights(trained):
            for index, variable in enumerate(trained):
                np.testing.assert_allclose(variable.numpy(), average(seen, index), rtol=1e-4, atol=1e-5)
        for index, variable in enumerate(trained):
            np.testing.assert_array_equal(variable.numpy(), seen[-1][index])
    optimizer.finalize_variable_values(trained)
    np.testing.assert_allclose(trained[0].numpy(), average(seen, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_average_does_not_depend_on_evaluations(kind: str) -> None:
    trained = variables()
    optimizer = build_optimizer(config(kind=kind, ema=0.7), STEPS, trained)
    seen = run(optimizer, trained)
    optimizer.finalize_variable_values(trained)
    for index, variable in enumerate(trained):
        np.testing.assert_allclose(variable.numpy(), average(seen, index), rtol=1e-4, atol=1e-5)


def test_a_row_with_one_gradient_is_averaged_over_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "DENSE_ROWS", 1)
    table = tf.Variable(np.zeros((3, 1), np.float32))
    optimizer = build_optimizer(config(kind="adagrad", ema=0.5), 4, [table])
    seen = []
    for row in (0, 1, 0, 0):
        gradient = tf.IndexedSlices(tf.ones([1, 1]), tf.constant([row]), tf.constant([3, 1]))
        optimizer.apply_gradients([(gradient, table)])
        seen.append(table.numpy().ravel())
    optimizer.finalize_variable_values([table])
    expected = np.average(seen, axis=0, weights=[0.125, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(table.numpy().ravel(), expected, rtol=1e-5)
    assert table.numpy()[2] == 0 and abs(table.numpy()[1]) < abs(seen[-1][1])


def average(seen: list[Weights], index: int) -> np.ndarray:
    powers = [0.7 ** (len(seen) - 1 - number) for number in range(len(seen))]
    return np.average([weights[index] for weights in seen], axis=0, weights=powers)


def test_the_average_after_one_step_excludes_the_initial_weights() -> None:
    trained = variables()
    optimizer = build_optimizer(config(ema=0.999), STEPS, trained)
    step(optimizer, trained, *gradients()[0])
    with optimizer.evaluation_weights(trained):
        np.testing.assert_allclose(trained[0].numpy(), expected("adam")[0][0], rtol=1e-4, atol=1e-5)


def test_slow_weights_are_evaluated_between_synchronizations() -> None:
    trained = variables()
    optimizer = build_optimizer(config(lookahead={"sync_period": 4, "slow_step_size": 0.5}), STEPS, trained)
    after = run(optimizer, trained)
    with optimizer.evaluation_weights(trained):
        # 14 steps: the last join was after the twelfth.
        np.testing.assert_allclose(trained[0].numpy(), after[11][0], rtol=1e-6)
    np.testing.assert_array_equal(trained[0].numpy(), after[13][0])


def test_weights_without_average_and_lookahead_are_evaluated_unchanged() -> None:
    trained = variables()
    optimizer = build_optimizer(config(), STEPS, trained)
    after = run(optimizer, trained)
    with optimizer.evaluation_weights(trained):
        np.testing.assert_array_equal(trained[0].numpy(), after[-1][0])


def test_a_variable_without_a_gradient_is_unchanged() -> None:
    trained = variables()
    optimizer = build_optimizer(config(kind="radam", ema=0.9, lookahead={"sync_period": 2}), STEPS, trained)
    for _, _, dense in gradients()[:3]:
        optimizer.apply_gradients([(None, trained[0]), (tf.constant(dense, tf.float32), trained[1])])
    optimizer.finalize_variable_values(trained)
    np.testing.assert_allclose(trained[0].numpy(), initial()[0], rtol=1e-6)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_continues_where_it_was_written(kind: str, tmp_path: Path) -> None:
    values = {
        "kind": kind, "rating_learning_rate": 0.03, "warm_up": 0.5, "decay": "cosine", "ema": 0.8,
        "lookahead": {"sync_period": 3},
    }  # fmt: skip

    def new() -> tuple[CompositeOptimizer, list[tf.Variable], tf.train.Checkpoint]:
        trained = variables()
        optimizer = build_optimizer(config(**values), STEPS, trained, trained[1:])
        optimizer.build(trained)
        return optimizer, trained, tf.train.Checkpoint(optimizer=optimizer, trained=trained)

    optimizer, trained, checkpoint = new()
    for each in gradients()[:5]:
        step(optimizer, trained, *each)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    for each in gradients()[5:]:
        step(optimizer, trained, *each)

    other, restored, its_checkpoint = new()
    its_checkpoint.restore(path).assert_consumed()
    assert int(other.iterations) == 5
    for each in gradients()[5:]:
        step(other, restored, *each)
    assert_equal(trained, restored)
    optimizer.finalize_variable_values(trained)
    other.finalize_variable_values(restored)
    assert_equal(trained, restored)


def assert_equal(found: Sequence[tf.Variable], expected: Sequence[tf.Variable]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_weight_decay_of_an_optimizer_that_has_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="adamw or radam"):
        config(kind="adam", weight_decay=0.1)
