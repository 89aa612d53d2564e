"""Loading of recipes: every invalid key or value is an error that names the file, the line and the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recipe import BadInput, RecipeError, load_recipe, load_schema
from recipe.trainer import TrainerRecipe

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"

# Every key that a recipe can have, in block and in flow style.
RECIPE = """\
name: shop
description: A recipe with every key.
data:
  sources:
    interactions: {files: "clicks-*.csv"}
    items: {files: items.csv, key: item}
    users:
      files: users.csv
      key: user
  columns: {user_id: user, item_id: item, label: stars, timestamp: at}
  split: {kind: random, eval_fraction: 0.2, seed: 3}
  max_bad_rows: 0.01
features:
  query:
    - {column: user, kind: id}
    - {column: at, kind: buckets, buckets: 10, boundaries: uniform}
    - column: at
      kind: normalized
    - {column: plan, kind: categorical, min_count: 2}
  candidate:
    - {column: item, kind: id}
    - {column: name, kind: text, vocabulary_size: 100, min_count: 1, display: true}
    - {column: tags, kind: multi_value, separator: ","}
model:
  embedding_dim: 8
  query_tower: {layers: [16, 8], dropout: 0.1}
  candidate_tower: {layers: [16]}
  rating_head: {kind: mlp, layers: [8], dimension: 4, dropout: 0.1, l2: 0.1}
  retrieval: {log_q_correction: true, remove_accidental_hits: false}
  retrieval_weight: 1.0
  rating_weight: 0.5
  id_dropout: 0.2
  l2: 0.001
training:
  epochs: 2
  batch_size: 64
  optimizer: {kind: adagrad, learning_rate: 0.1}
  seed: 7
gates:
  - {metric: top_100_accuracy, at_least: 0.3, may_drop: 0.01}
  - metric: rmse
    at_most: 1.0
    may_rise: 0.02
serving: {k: 20, exclude_seen: false}
schedule: "30 4 * * *"
"""

SCHEMA = "".join(
    f'feature {{ name: "{name}" type: {kind} }}\n'
    for name, kind in {
        "user": "BYTES", "item": "BYTES", "stars": "FLOAT", "at": "INT", "plan": "BYTES", "name": "BYTES",
        "tags": "BYTES",
    }.items()
)  # fmt: skip

Problem = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid schema folder."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "schema.pbtxt").write_text(SCHEMA)
    return tmp_path


@pytest.fixture
def problem(folder: Path) -> Problem:
    """The error of a recipe in which `old` is replaced by `new`, or of overrides, without the folder's path."""

    def load(old: str = "", new: str = "", *overrides: str) -> str:
        assert not old or RECIPE.count(old) == 1, f"{old!r} occurs {RECIPE.count(old)} times in the recipe"
        (folder / "recipe.yaml").write_text(RECIPE.replace(old, new) if old else RECIPE)
        with pytest.raises(RecipeError) as raised:
            load_schema(folder, load_recipe(folder, overrides))
        return str(raised.value).replace(f"{folder}/", "")

    return load


def line_of(text: str) -> int:
    """The line of `text` in the recipe."""
    return RECIPE[: RECIPE.index(text)].count("\n") + 1


# --- valid recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema_dir", [path.parent for path in sorted(SCHEMAS.glob("*/recipe.yaml"))], ids=str)
def test_shipped_recipes_match_their_schemas(schema_dir: Path) -> None:
    recipe = load_recipe(schema_dir)
    schema = load_schema(schema_dir, recipe)
    assert recipe.gates
    assert {feature.name for feature in schema.feature} >= {column for column, _, _ in recipe.columns()}


def test_every_key_of_a_full_recipe_is_loaded(folder: Path) -> None:
    loaded = load_recipe(folder).model_dump(mode="json", exclude_unset=True)
    assert loaded == yaml.safe_load(RECIPE)


def test_number_in_scientific_notation_is_a_number(folder: Path) -> None:
    # YAML 1.1 reads 1e-3 (without a point) as a string.
    assert load_recipe(folder, ["training.optimizer.learning_rate=1e-3"]).training.optimizer.learning_rate == 0.001


# --- unknown, missing and repeated keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "closest"),
    [
        ("max_bad_rows: 0.01\n", "max_bad_rows: 0.01\nfeature: 3\n", "feature", "features"),
        ("max_bad_rows", "max_bad_row", "data.max_bad_row", "max_bad_rows"),
        ("      key: user", "      keys: user", "data.sources.users.keys", "key"),
        ("eval_fraction", "eval_fracton", "data.split.eval_fracton", "eval_fraction"),
        ("boundaries", "boundary", "features.query.1.boundary", "boundaries"),
        ("separator", "seperator", "features.candidate.2.seperator", "separator"),
        ("embedding_dim: 8", "embedding_dims: 8", "model.embedding_dims", "embedding_dim"),
        ("log_q_correction", "logq_correction", "model.retrieval.logq_correction", "log_q_correction"),
        ("learning_rate", "learning_rat", "training.optimizer.learning_rat", "learning_rate"),
        ("at_most: 1.0", "at_mots: 1.0", "gates.1.at_mots", "at_most"),
        ("exclude_seen", "excludes_seen", "serving.excludes_seen", "exclude_seen"),
    ],
)
def test_unknown_key_names_its_line_and_the_closest_known_key(
    problem: Problem, old: str, new: str, key: str, closest: str
) -> None:
    # `new` puts the key on the next line.
    line = line_of(old) + (1 if "\n" in new else 0)
    assert f"recipe.yaml:{line}: {key}: unknown key; did you mean {closest!r}?" in problem(old, new)


def test_key_of_another_kind_of_feature_is_unknown(problem: Problem) -> None:
    message = problem("kind: categorical, min_count: 2", "kind: categorical, buckets: 8")
    assert f"recipe.yaml:{line_of('column: plan')}: features.query.3.buckets: unknown key" in message


def test_missing_key_with_the_name_of_the_kind_is_named(problem: Problem) -> None:
    message = problem("kind: buckets, buckets: 10", "kind: buckets")
    assert f"recipe.yaml:{line_of('kind: buckets')}: features.query.1.buckets: required key is missing" in message


@pytest.mark.parametrize(
    ("old", "key"),
    [
        ("name: shop\n", "name"),
        ("  columns: {user_id: user, item_id: item, label: stars, timestamp: at}\n", "data.columns"),
        ("label: stars, ", "data.columns.label"),
        ("metric: top_100_accuracy, ", "gates.0.metric"),
        (", key: item}", "data.sources.items.key"),
    ],
)
def test_missing_key_is_named(problem: Problem, old: str, key: str) -> None:
    message = problem(old, "}" if old.endswith("}") else "")
    assert re.search(rf"recipe\.yaml:\d+: {re.escape(key)}: required key is missing", message)


def test_duplicate_key_is_an_error(problem: Problem) -> None:
    message = problem("serving: {", "gates: []\nserving: {")
    assert f"recipe.yaml:{line_of('serving')}: not valid YAML: duplicate key gates, first on line" in message


def test_key_that_yaml_reads_as_a_boolean_is_an_error(problem: Problem) -> None:
    message = problem("max_bad_rows", "on")
    assert f"recipe.yaml:{line_of('max_bad')}: not valid YAML: expected a string as key, got 'on'" in message


def keys_of(node: yaml.Node) -> list[tuple[int, str]]:
    """Every key of a YAML document with its offset."""
    if isinstance(node, yaml.MappingNode):
        return [
            part for name, child in node.value for part in ((name.start_mark.index, str(name.value)), *keys_of(child))
        ]
    return [part for child in node.value for part in keys_of(child)] if isinstance(node, yaml.SequenceNode) else []


KEYS = keys_of(yaml.compose(RECIPE))


@st.composite
def misspelt_recipes(draw: st.DrawFn) -> tuple[str, int, str, str]:
    """The recipe with one misspelled key, the line of the key, the misspelled and the correct key."""
    start, key = draw(st.sampled_from(KEYS))
    place = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_0"))
    wrong = draw(
        st.sampled_from(
            [
                key[:place] + key[place + 1 :],
                key[:place] + letter + key[place + 1 :],
                key[:place] + letter + key[place:],
                key[:place] + key[place : place + 2][::-1] + key[place + 2 :],
                key[:place] + key[place].upper() + key[place + 1 :],
            ]
        ).filter(lambda word: word != key and not word[:1].isdigit() and word)
    )
    text = RECIPE[:start] + wrong + RECIPE[start + len(key) :]
    return text, RECIPE[:start].count("\n") + 1, wrong, key


def test_misspelling_strategy_covers_every_key() -> None:
    assert len(KEYS) == RECIPE.count(": ") + len(re.findall(r":\n", RECIPE))


@given(misspelt_recipes())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_misspelled_key_is_an_error_with_its_line(folder: Path, misspelt: tuple[str, int, str, str]) -> None:
    text, line, wrong, right = misspelt
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as raised:
        load_recipe(folder)
    messages = [message for message in str(raised.value).splitlines() if f"{wrong}: unknown key" in message]
    # A wrong name that is the name of another key of the section is a duplicate.
    assert any(f"recipe.yaml:{line}:" in message for message in messages) or "duplicate key" in str(raised.value)
    if len(right) > 3 and messages:
        assert f"did you mean {right!r}?" in messages[0]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "found"),
    [
        ("embedding_dim: 8", "embedding_dim: wide", "model.embedding_dim", "'wide'"),
        ("embedding_dim: 8", "embedding_dim: 0", "model.embedding_dim", "0"),
        ("epochs: 2", "epochs: 2.5", "training.epochs", "2.5"),
        ("buckets: 10", "buckets: 1", "features.query.1.buckets", "1"),
        ("layers: [16, 8]", "layers: [16, none]", "model.query_tower.layers.1", "'none'"),
        ("layers: [16, 8]", "layers: 16", "model.query_tower.layers", "16"),
        ("at_least: 0.3", "at_least: .nan", "gates.0.at_least", "nan"),
        ("at_most: 1.0", "at_most: .inf", "gates.1.at_most", "inf"),
        ("eval_fraction: 0.2", "eval_fraction: 1", "data.split.eval_fraction", "1"),
        ("name: shop", "name: My Shop", "name", "'My Shop'"),
        ("kind: adagrad", "kind: sgd", "training.optimizer.kind", "'sgd'"),
        ('schedule: "30 4 * * *"', 'schedule: "@nightly"', "schedule", "'@nightly'"),
        ('schedule: "30 4 * * *"', "schedule: 30 4 * *", "schedule", "'30 4 * *'"),
        ('schedule: "30 4 * * *"', "schedule: half past 4 at night", "schedule", "'half past 4 at night'"),
        ("separator: ','".replace("'", '"'), 'separator: ", "', "features.candidate.2.separator", "', '"),
    ],
)
def test_invalid_value_is_shown_with_its_key_and_line(
    problem: Problem, old: str, new: str, key: str, found: str
) -> None:
    message = problem(old, new)
    assert message.startswith(f"recipe.yaml:{line_of(old)}: {key}: ")
    assert ": expected " in message and f", got {found}" in message
    assert "dictionary" not in message and "tuple" not in message.lower()


@pytest.mark.parametrize("key", ["embedding_dim: 8", "epochs: 2", "at_most: 1.0", "min_count: 2"])
def test_true_is_not_accepted_as_the_number_one(problem: Problem, key: str) -> None:
    name = key.split(":")[0]
    message = problem(key, f"{name}: yes", "model.l2=0.1", "training.seed=3")
    assert re.match(rf"recipe\.yaml:{line_of(key)}: [\w.]+\.{name}: expected a number or string, got true$", message)


def test_unknown_kind_of_feature_names_the_closest_one(problem: Problem) -> None:
    message = problem("kind: categorical", "kind: category")
    assert f"recipe.yaml:{line_of('column: plan')}: features.query.3.kind: expected one of id, categorical, " in message
    assert message.endswith("got 'category'; did you mean 'categorical'?")


def test_feature_without_a_kind_names_all_kinds(problem: Problem) -> None:
    message = problem(", kind: categorical, min_count: 2", "")
    assert "features.query.3: the required key 'kind' is missing; expected one of id, categorical, text" in message


def test_all_errors_are_reported_together(folder: Path) -> None:
    text = RECIPE.replace("epochs: 2", "epochs: x").replace("batch_size", "batchsize").replace("k: 20", "k: 0")
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as raised:
        load_recipe(folder)
    assert len(str(raised.value).splitlines()) == 3


def test_recipe_errors_are_bad_input() -> None:
    # Exit code 2 of the command line depends on it.
    assert issubclass(RecipeError, BadInput)


# --- contradictions between keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric: rmse\n    at_most: 1.0\n    may_rise: 0.02", "metric: top_100_accuracy\n    at_least: 0.1",
         "gates: duplicate at_least for top_100_accuracy"),
        ("may_rise: 0.02", "may_drop: 0.02", "may_drop does not apply to rmse, where lower is better; use may_rise"),
        ("may_drop: 0.01", "may_rise: 0.01", "may_rise does not apply to top_100_accuracy"),
        ("metric: rmse", "metric: rsme", "unknown metric 'rsme'; did you mean 'rmse'?"),
        (", at_least: 0.3, may_drop: 0.01", "", "the gate has no threshold; set at_least"),
        ("    items: {files: items.csv, key: item}\n", "",
         "features.candidate: the feature 'name_text' requires data.sources.items, which is not set"),
        ("- {column: user, kind: id}", "- {column: user, kind: categorical}",
         "expected one feature of kind id, on the column 'user', got 0"),
        ("{column: item, kind: id}", "{column: name, kind: id}",
         "features.candidate: expected one feature of kind id, on the column 'item', got 1 on ['name']"),
        ("- {column: plan, kind: categorical, min_count: 2}", "- {column: at, kind: normalized}",
         "duplicate feature 'at_normalized'"),
        ("kind: categorical, min_count: 2", "kind: categorical, display: true",
         "display: true on the query feature 'plan_categorical'"),
        ("retrieval_weight: 1.0\n  rating_weight: 0.5", "retrieval_weight: 0\n  rating_weight: 0",
         "retrieval_weight and rating_weight are both 0"),
        ("{column: plan, kind: categorical, min_count: 2}", "{column: stars, kind: normalized}",
         "features.query.3: 'stars' is the label, which is unknown to the query tower at serving time"),
        ("{column: plan, kind: categorical, min_count: 2}", "{column: item, kind: categorical}",
         "features.query.3: 'item' is the item, which is unknown"),
        ("{column: tags, kind: multi_value, separator: \",\"}", "{column: user, kind: categorical}",
         "features.candidate.2: 'user' is the user, which is unknown"),
        ("rating_head: {kind: mlp, layers: [8]", "rating_head: {kind: dot, cross_layers: 2",
         "cross_layers is 2, but kind dot has no layers; set kind: mlp"),
        ("rating_head: {kind: mlp", "rating_head: {linear: true, kind: mlp",
         "linear is true, but inputs is shared, so the head has no towers of its own"),
        ("rating_head: {kind: mlp", "rating_head: {factor_l2: 0.1, kind: mlp",
         "factor_l2 is 0.1, but kind mlp has no factors; set kind: dot"),
        ("rating_head: {kind: mlp", "rating_head: {bias_l2: 0.1, biases: false, kind: mlp",
         "bias_l2 is 0.1, but biases is false"),
        ("rating_head: {kind: mlp", "rating_head: {bias_rounds: 3, biases: false, kind: mlp",
         "bias_rounds is 3, but biases is false"),
        ("retrieval: {", "retrieval: {candidates: catalogue, uniform_negatives: 5, ",
         "uniform_negatives is 5, but with candidates: catalogue all items are negatives already"),
        ("column: plan", "column: favourite plan",
         "features.query: the column name 'favourite plan' cannot be an input"),
        ("column: plan", "column: only", "the column name 'only' cannot be an input"),
        ("column: tags", "column: book tags", "features.candidate: the column name 'book tags' cannot be an input"),
        ("column: plan", "column: class", "the column name 'class' cannot be an input"),
        ("column: plan", "column: größe", "the column name 'größe' cannot be an input"),
        ("column: plan", "column: item_id", "the column name 'item_id' cannot be an input"),
        ("column: name, kind: text", "column: scores, kind: text",
         "the column name 'scores' with display: true is reserved for an output"),
    ],
)  # fmt: skip
def test_contradiction_between_keys_is_an_error(problem: Problem, old: str, new: str, message: str) -> None:
    assert message in problem(old, new)


# --- overrides --------------------------------------------------------------------------------------------------------


def test_override_changes_nested_keys_and_list_entries(folder: Path) -> None:
    recipe = load_recipe(
        folder, ["model.embedding_dim=32", "gates.0.at_least=0.5", "model.query_tower.layers=[4, 2]", "name=other"]
    )
    assert (recipe.model.embedding_dim, recipe.gates[0].at_least, recipe.name) == (32, 0.5, "other")
    assert recipe.model.query_tower.layers == (4, 2)
    assert recipe.gates[1].at_most == 1.0


def test_override_adds_sections_that_the_recipe_does_not_set(folder: Path) -> None:
    start, end = RECIPE.index("model:"), RECIPE.index("gates:")
    (folder / "recipe.yaml").write_text(RECIPE[:start] + RECIPE[end:])
    assert load_recipe(folder, ["training.optimizer.kind=adamw"]).training.optimizer.kind == "adamw"


def test_last_override_of_a_key_applies(folder: Path) -> None:
    assert load_recipe(folder, ["serving.k=5", "serving.k=6"]).serving.k == 6


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.embedding_dim", "expected key=value"),
        ("=3", "expected key=value"),
        ("model..l2=3", "expected key=value"),
        ("gates.-1.at_least=3", "expected key=value"),
        ("model.embedding_dim=[1", "the value is not valid YAML"),
        ("description=2020-13-45", "the value is not valid YAML"),
        ("gates.2.at_least=1", "gates: expected an index from 0 to 1, got 2"),
        ("gates.²=1", "gates: expected an index from 0 to 1, got '²'"),
        ("gates.first.at_least=1", "gates: expected an index from 0 to 1, got 'first'"),
        ("name.first=1", "name is a value, so it has no key 'first'"),
        ("modle.l2=1", "modle: unknown key; did you mean 'model'?"),
        ("model.embeding_dim=1", "model.embeding_dim: unknown key; did you mean 'embedding_dim'?"),
        ("model.retrieval={log_q_corection: true}", "did you mean 'log_q_correction'?"),
        ("model.embedding_dim=many", "model.embedding_dim: expected an integer, got 'many'"),
        ("model.embedding_dim=", "model.embedding_dim: expected an integer, got null"),
        ("features.query=[]", "features.query: expected at least 1 entry, got 0"),
        ("gates.0.may_rise=1", "may_rise does not apply to top_100_accuracy"),
    ],
)
def test_invalid_override_is_named_as_typed(problem: Problem, override: str, expected: str) -> None:
    message = problem("", "", override)
    assert f"--set {override}: " in message
    assert expected in message


def test_error_in_the_file_does_not_name_an_override_of_another_key(problem: Problem) -> None:
    message = problem("epochs: 2", "epochs: no", "training.batch_size=3", "model.l2=0.1")
    assert message.startswith(f"recipe.yaml:{line_of('epochs')}: ") and "--set" not in message


# --- files ------------------------------------------------------------------------------------------------------------


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=re.escape(f"{tmp_path / 'nowhere' / 'recipe.yaml'}: the file does not exist")
    ):
        load_recipe(tmp_path / "nowhere")


def test_missing_schema_is_named(folder: Path) -> None:
    (folder / "schema.pbtxt").unlink()
    with pytest.raises(RecipeError, match=r"schema\.pbtxt: the file does not exist"):
        load_schema(folder, load_recipe(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: shop\ndata: {a: [1,\n", "recipe.yaml:3: not valid YAML"),
        ("name: a: b\n", "recipe.yaml:1: not valid YAML"),
        ("name: shop\n---\nname: other\n", "recipe.yaml:2: not valid YAML"),
        ("name: !!python/object:os.system x\n", "recipe.yaml:1: not valid YAML"),
        ("name: &a [*a]\n", "not valid YAML"),
        ("description: 2020-13-45\n", "not valid YAML"),
        ("- name\n", "recipe.yaml: expected a mapping of keys, got a list"),
        ("", "recipe.yaml: expected a mapping of keys, got an empty file"),
    ],
)
def test_file_that_is_not_a_recipe_is_an_error_with_its_line(folder: Path, text: str, message: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(folder)


def test_file_that_is_not_utf_8_is_an_error(folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(folder)


@given(st.text(max_size=60))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example("a: &a [*a]")
@example("0")
@example("? []")
@example("=: 1")
def test_any_text_is_rejected_with_a_recipe_error(folder: Path, text: str) -> None:
    (folder / "recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(folder)


@given(st.text("model.=gates0[]{}:,-e1 ²", max_size=30))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example("gates.²=1")
@example("gates.0=")
@example("model.0=1")
def test_any_override_loads_or_is_rejected_with_its_text(folder: Path, override: str) -> None:
    try:
        load_recipe(folder, [override])
    except RecipeError as error:
        assert f"--set {override}" in str(error)


# --- validation against the schema ------------------------------------------------------------------------------------


def test_column_missing_in_the_schema_names_the_closest_one(problem: Problem) -> None:
    message = problem("column: plan", "column: plans")
    assert message.startswith("recipe.yaml: features.query.3.column: expected a column of schema.pbtxt, got 'plans'")
    assert "did you mean 'plan'?" in message and "at, item, name, plan, stars, tags, user" in message


@pytest.mark.parametrize(
    ("column", "kind", "key"),
    [
        ("user", "INT", "data.columns.user_id"),
        ("stars", "BYTES", "data.columns.label"),
        ("at", "FLOAT", "data.columns.timestamp"),
        ("plan", "FLOAT", "features.query.3.column"),
        ("tags", "INT", "features.candidate.2.column"),
    ],
)
def test_column_of_the_wrong_type_is_named(folder: Path, column: str, kind: str, key: str) -> None:
    schema = re.sub(rf'("{column}" type: )\w+', rf"\1{kind}", SCHEMA)
    (folder / "schema.pbtxt").write_text(schema)
    with pytest.raises(RecipeError, match=rf"column {column!r}: expected type .* for {re.escape(key)}, got {kind}\."):
        load_schema(folder, load_recipe(folder))


def test_every_use_of_a_column_is_validated_against_its_type(problem: Problem) -> None:
    # `at` is an INT, which data.columns.timestamp and its buckets accept, but a text feature does not.
    message = problem("    - column: at\n      kind: normalized\n", "    - {column: at, kind: text}\n")
    assert "column 'at': expected type BYTES for features.query.2.column, got INT" in message


@pytest.mark.parametrize("text", ['feature { nme: "user" }', "feature {", "{}", "not a schema"])
def test_schema_that_does_not_parse_is_an_error_with_its_line(folder: Path, text: str) -> None:
    (folder / "schema.pbtxt").write_text(f"# first line\n{text}\n")
    with pytest.raises(
        RecipeError, match=r"schema\.pbtxt: expected a schema of TensorFlow Metadata as text proto: [23]:"
    ):
        load_schema(folder, load_recipe(folder))


# --- the Trainer's part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    ["gates.0.at_least=0.9", "description=Another description", "data.split.seed=9", "data.max_bad_rows=0.5"],
)
def test_gates_and_descriptions_do_not_change_the_trainers_recipe(folder: Path, override: str) -> None:
    # The Trainer's recipe is a part of its cache key.
    assert load_recipe(folder, [override]) != load_recipe(folder)
    assert load_recipe(folder, [override]).for_trainer() == load_recipe(folder).for_trainer()


@pytest.mark.parametrize("override", ["model.l2=0.5", "training.seed=8", "serving.k=21", "features.query.1.buckets=9"])
def test_key_that_changes_the_model_changes_the_trainers_recipe(folder: Path, override: str) -> None:
    assert load_recipe(folder, [override]).for_trainer() != load_recipe(folder).for_trainer()


def test_trainers_recipe_is_the_same_after_json(folder: Path) -> None:
    recipe: Any = load_recipe(folder).for_trainer()
    assert TrainerRecipe.model_validate_json(recipe.model_dump_json()) == recipe
