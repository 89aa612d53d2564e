"""An exported model passes the InfraValidator: served results equal evaluated ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from components.infra_validator import executor, latency
from components.infra_validator.eval_rows import EvalRows, read_eval_rows
from components.infra_validator.executor import InfraValidatorSettings, validate
from components.infra_validator.response_checks import NotServable

# The end-to-end run of the books validates an export as well, on every `make test`.
pytestmark = pytest.mark.slow

SETTINGS = InfraValidatorSettings(code_version="test", user_id="customer", item_id="item", exclude_seen=True)


@pytest.fixture(scope="module")
def rows(world: Any, example: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> EvalRows:
    """Interactions of each user, a third of them with an item new to the user, and some with missing columns."""
    folder = tmp_path_factory.mktemp("eval")
    random = np.random.default_rng(2)
    with tf.io.TFRecordWriter(str(folder / "rows.gz"), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for row in random.permutation(world.interactions)[:60]:
            strange = {"item": str(random.choice(world.items))} if random.random() < 0.33 else {}
            missing = {"age": None} if random.random() < 0.2 else {}
            writer.write(example({**row, **strange, **missing}))
    return read_eval_rows(str(folder), 60, "customer", "item")


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_an_exported_model_is_servable(
    unseen_items: Any, all_items: Any, rows: EvalRows, exclude_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "REQUESTS", 20)
    model = unseen_items if exclude_seen else all_items
    validate(str(model.path), rows, SETTINGS.model_copy(update={"exclude_seen": exclude_seen}))


def test_rows_are_requested_with_their_own_columns(
    unseen_items: Any, rows: EvalRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them the model would use the columns of each user's latest training interaction."""
    monkeypatch.setattr(executor, "_context", lambda *arguments: {})
    with pytest.raises(NotServable, match=r"expected the evaluated"):
        validate(str(unseen_items.path), rows, SETTINGS)


def test_columns_of_other_users_are_detected(unseen_items: Any, rows: EvalRows) -> None:
    others = dataclasses.replace(rows, users=[*rows.users[1:], rows.users[0]])
    with pytest.raises(NotServable, match=r"expected the evaluated"):
        validate(str(unseen_items.path), others, SETTINGS)
