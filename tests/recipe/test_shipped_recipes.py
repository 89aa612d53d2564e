"""The shipped recipes match the samples of their data, and support the variants that their comments describe."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "samples"
NAMES = ("books", "hm", "olist")

Checked = Callable[[Path, Path], Recipe]


@pytest.fixture(scope="module")
def checked(tandem: Callable[..., Any]) -> Checked:
    """The recipe of a folder, after `tandem check` with its data has passed."""

    def check(schema_dir: Path, data: Path) -> Recipe:
        done = tandem("check", schema_dir, "--data", data)
        assert done.code == 0, done.stderr
        return load_recipe(schema_dir)

    return check


@pytest.mark.parametrize("name", NAMES)
def test_recipe_matches_its_sample(checked: Checked, name: str) -> None:
    assert checked(ROOT / "schemas" / name, SAMPLES / name).name == name


def test_recipe_of_synthetic_data_matches_the_commands_files(
    checked: Checked, tandem: Callable[..., Any], tmp_path: Path
) -> None:
    made = tandem(
        "data", "synthetic", "--users", "40", "--items", "40", "--interactions", "200", "--out", tmp_path / "data"
    )
    assert made.code == 0, made.stderr
    recipe = checked(ROOT / "schemas" / "synthetic", tmp_path / "data")
    # `--broken` writes malformed rows.
    assert recipe.name == "synthetic" and recipe.data.max_bad_rows == 0.05


def test_recipes_have_the_settings_of_their_comments(checked: Checked) -> None:
    recipes = {name: checked(ROOT / "schemas" / name, SAMPLES / name) for name in NAMES}
    hm = recipes["hm"].data
    assert hm.aggregate is not None and hm.aggregate.count and hm.aggregate.sum == {"price": "spent"}
    assert (hm.columns.label, hm.timestamp_format, hm.split.kind) == ("purchased", "iso", "time")
    assert hm.label is not None and hm.label.constant == 1
    assert hm.negatives is not None and hm.negatives.label == 0
    olist = recipes["olist"].data
    assert len(olist.sources.tables()) == 5
    assert olist.aggregate is not None and olist.aggregate.count == olist.columns.label
    assert "product_category_name" in {feature.column for feature in recipes["olist"].features.candidate}
    books = recipes["books"]
    assert {source.file_format for source in books.data.sources.tables().values()} == {"json"}
    assert books.data.columns.item_id == "isbn"
    assert (books.model.embedding_dim, books.training.optimizer.kind, books.training.batch_size) == (64, "adamw", 32)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_samples", SAMPLES / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_samples_are_the_output_of_their_generator(generator: ModuleType, tmp_path: Path) -> None:
    generator.main(tmp_path)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    committed = {
        path.relative_to(SAMPLES): path.read_bytes() for name in NAMES for path in (SAMPLES / name).rglob("*.*")
    }
    assert written == committed
    assert sum(map(len, committed.values())) < 400_000


def edited(source: Path, target: Path, changes: dict[str, list[tuple[str, str]]]) -> Path:
    """A copy of a recipe with changes by regular expression."""
    shutil.copytree(source, target)
    for file, pairs in changes.items():
        text = (target / file).read_text()
        for pattern, new in pairs:
            text, count = re.subn(pattern, new, text, flags=re.DOTALL)
            assert count, pattern
        (target / file).write_text(text)
    return target


def test_olist_can_predict_review_scores(checked: Checked, tmp_path: Path) -> None:
    schema_dir = edited(
        ROOT / "schemas" / "olist",
        tmp_path / "olist",
        {
            "recipe.yaml": [
                ("label: pieces", "label: review_score"),
                (
                    r"\n  duplicates: aggregate\n  aggregate: {count: pieces}\n  negatives: [^\n]*",
                    "\n  duplicates: last",
                ),
                ("max_bad_rows: 0\n", "max_bad_rows: 0.02\n"),
            ],
            "schema.pbtxt": [(r'feature \{\n  name: "(pieces|is_positive)".*?\n\}\n', "")],
        },
    )
    recipe = checked(schema_dir, SAMPLES / "olist")
    assert recipe.data.columns.label == "review_score" and recipe.data.negatives is None


def test_olist_can_identify_returning_customers(checked: Checked, tmp_path: Path) -> None:
    lookup = "- {files: olist_orders_dataset.csv, key: order_id}"
    schema_dir = edited(
        ROOT / "schemas" / "olist",
        tmp_path / "olist",
        {
            "recipe.yaml": [
                ("user_id: customer_id", "user_id: customer_unique_id"),
                ("column: customer_id", "column: customer_unique_id"),
                (lookup, f"{lookup}\n        - {{files: olist_customers_dataset.csv, key: customer_id}}"),
            ],
            "schema.pbtxt": [('name: "customer_id"', 'name: "customer_unique_id"')],
        },
    )
    data = tmp_path / "data"
    shutil.copytree(SAMPLES / "olist", data)
    (data / "olist_customers_dataset.csv").write_text(
        '"customer_id","customer_unique_id","customer_zip_code_prefix","customer_city","customer_state"\n'
        '"06b8999e2fba1a1fbc88172c00ba8bc7","861eff4711a542e4b93843c6dd7febb0","14409",franca,SP\n'
    )
    assert checked(schema_dir, data).data.columns.user_id == "customer_unique_id"
