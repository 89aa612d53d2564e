"""Training on several devices: virtual ones of one CPU, which TensorFlow treats as it treats GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SEVERAL = 2

WITHIN = {"validation_rmse": 0.01, "validation_top_100_accuracy": 0.01, "validation_top_100_accuracy_unseen": 0.015}
"""Twice what seeds differ by after so few epochs, on 16,000 held-out interactions."""


def test_several_devices_train_a_model_as_good_as_one(first_run: Any) -> None:
    overrides = ["training.epochs=3", "training.validation.fraction=0.2"]
    recipe = load_recipe(ROOT / "schemas" / "movielens", overrides).for_trainer()
    path = os.pathsep.join([str(ROOT), str(ROOT / "serving" / "client"), os.environ.get("PYTHONPATH", "")])
    script = Path(__file__).with_name("several_devices.py")
    done = subprocess.run(
        [sys.executable, script, recipe.model_dump_json(), first_run.workdir / "artifacts", str(SEVERAL)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    one, several = json.loads(done.stdout.splitlines()[-1])
    # The recipe's batch is that of all devices together, so an epoch has no fewer steps.
    assert several["steps"] == one["steps"]
    for name, within in WITHIN.items():
        assert abs(several[name][-1] - one[name][-1]) <= within, (name, one[name], several[name])
    # Popularity alone has 0.30 here: what is compared has learnt something.
    assert one["validation_top_100_accuracy"][-1] > 0.36
