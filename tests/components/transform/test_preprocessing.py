"""The transform graph: each feature kind, on training rows and on new rows in serving."""

from __future__ import annotations

import os
import pickle

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tensorflow_transform.tf_metadata import dataset_metadata

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)
from components.transform.preprocessing import display_name, preprocessing_fn
from recipe.columns import Columns
from recipe.features import Features

Row = dict[str, Any]
Rows = Sequence[Row]
Transformed = list[dict[str, Any]]
Serve = Callable[[Rows], dict[str, Any]]

TYPES = {
    "user": "BYTES", "item": "BYTES", "stars": "INT", "at": "INT", "age": "INT", "height": "FLOAT", "plan": "BYTES",
    "floor": "INT", "title": "BYTES", "tags": "BYTES", "colours": "BYTES",
}  # fmt: skip

DTYPES = {"BYTES": tf.string, "INT": tf.int64, "FLOAT": tf.float32}

COLUMNS = Columns(user_id="user", item_id="item", label="stars", timestamp="at")
MINUTES = 200
FEATURES = Features.model_validate(
    {
        "query": [
            {"column": "user", "kind": "id"},
            {"column": "at", "kind": "buckets", "buckets": MINUTES, "boundaries": "uniform"},
            {"column": "at", "kind": "normalized"},
            {"column": "age", "kind": "buckets", "buckets": 4},
            {"column": "age", "kind": "normalized"},
            {"column": "height", "kind": "buckets", "buckets": 10, "boundaries": "uniform"},
            {"column": "floor", "kind": "buckets", "buckets": 5, "boundaries": "uniform"},
            {"column": "plan", "kind": "categorical", "min_count": 2},
        ],
        "candidate": [
            {"column": "item", "kind": "id"},
            {"column": "title", "kind": "text", "vocabulary_size": 6, "min_count": 2, "display": True},
            {"column": "tags", "kind": "multi_value"},
            {"column": "colours", "kind": "multi_value", "separator": ","},
        ],
    }
)

# Around MovieLens' own times, where float32 counts in steps of 64 seconds.
FIRST = 880_000_000
LAST = FIRST + 60 * MINUTES

TITLES = {
    "i0": "Amélie & the wolf",
    "i1": "AMÉLIE, the Return (2001)",
    "i2": "Return: the—wolf!",
    "i3": "…?!",
    "i4": "हिन्दी 2001",
    "i5": "हिन्दी हिन्दी",
    "i6": "singular",
    "i7": "twice TWICE",
}
TAGS = {"i0": "red|blue", "i1": "|red||", "i2": "red| green ", "i3": "", "i4": "|", "i6": "blue"}
COLOURS = {"i0": "red, dark blue", "i1": "dark blue,|"}
USERS = ["u 1", "ü2", "u3", "7"]


def _interactions() -> list[Row]:
    rows: list[Row] = []
    for minute in range(MINUTES + 1):
        user = USERS[min(minute % 7, 3)]
        item = f"i{minute % 3}"
        rows.append(
            {
                "user": user,
                "item": item,
                "stars": minute % 5 + 1,
                "at": FIRST + 60 * minute,
                "age": None if minute % 10 == 9 else 20 + minute % 40,
                "height": 1.5 + minute / MINUTES,
                "floor": 3,
                "plan": ["free", "paid", "free", None][minute % 4] if minute else "trial",
                "title": TITLES[item],
                "tags": TAGS[item],
                "colours": COLOURS.get(item),
            }
        )
    return rows


INTERACTIONS = _interactions()
CATALOGUE: list[Row] = [
    {"item": item, "title": title, "tags": TAGS.get(item), "colours": COLOURS.get(item)}
    for item, title in TITLES.items()
]


def _serving_inputs(rows: Rows) -> dict[str, tf.SparseTensor]:
    """Raw columns as Transform gets them: a column that a row lacks, or has None in, is missing there."""
    inputs = {}
    for column, kind in TYPES.items():
        places = [place for place, row in enumerate(rows) if row.get(column) is not None]
        indices = np.array([[place, 0] for place in places], np.int64).reshape(-1, 2)
        values = tf.constant([rows[place][column] for place in places], DTYPES[kind], shape=[len(places)])
        inputs[column] = tf.SparseTensor(indices, values, [len(rows), 1 if places else 0])
    return inputs


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> tuple[tft.TFTransformOutput, Transformed]:
    """What one analysis and transformation of interactions and catalogue give."""
    folder = tmp_path_factory.mktemp("transform")
    spec = {name: tf.io.VarLenFeature(DTYPES[kind]) for name, kind in TYPES.items()}
    config = {"features": FEATURES.model_dump_json(), "columns": COLUMNS.model_dump_json()}
    rows = [
        {column: None if row.get(column) is None else [_encoded(row[column])] for column in TYPES}
        for row in (*INTERACTIONS, *CATALOGUE)
    ]
    with beam.Pipeline("FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        raw = (pipeline | beam.Create(rows), dataset_metadata.DatasetMetadata.from_feature_spec(spec))
        (data, _), transform_fn = raw | tft_beam.AnalyzeAndTransformDataset(
            lambda inputs: preprocessing_fn(inputs, config)
        )
        _ = data | beam.combiners.ToList() | beam.Map(lambda found: (folder / "rows").write_bytes(pickle.dumps(found)))
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "output"))
    return tft.TFTransformOutput(str(folder / "output")), pickle.loads((folder / "rows").read_bytes())


def _encoded(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


@pytest.fixture(scope="module")
def output(transformed: tuple[tft.TFTransformOutput, Transformed]) -> tft.TFTransformOutput:
    return transformed[0]


@pytest.fixture(scope="module")
def serve(output: tft.TFTransformOutput) -> Serve:
    """The saved graph on new rows, as the exported model calls it."""
    layer = output.transform_features_layer()
    return lambda rows: layer(_serving_inputs(rows))


def values(column: tf.Tensor) -> list[Any]:
    return list(column.numpy().tolist())


def rows_of(column: tf.SparseTensor) -> list[list[int]]:
    """The values of each row of a text or multi-value feature."""
    return list(tf.RaggedTensor.from_sparse(column).to_list())


def words_of(output: tft.TFTransformOutput, feature: str, found: tf.SparseTensor) -> list[list[str]]:
    """As `rows_of`, in words; an unknown word is `?`."""
    vocabulary = ["?", *(word.decode() for word in output.vocabulary_by_name(feature))]
    return [[vocabulary[index] for index in row] for row in rows_of(found)]


def test_serving_transforms_as_training(transformed: tuple[tft.TFTransformOutput, Transformed], serve: Serve) -> None:
    served = serve([*INTERACTIONS, *CATALOGUE])
    columns = {
        name: rows_of(column) if isinstance(column, tf.SparseTensor) else values(column)
        for name, column in served.items()
    }
    again = Counter(
        str(sorted(dict(zip(columns, row, strict=True)).items())) for row in zip(*columns.values(), strict=True)
    )
    trained = Counter(
        str(sorted((name, value.tolist() if isinstance(value, np.ndarray) else value) for name, value in row.items()))
        for row in transformed[1]
    )
    assert len(INTERACTIONS) + len(CATALOGUE) == trained.total()
    assert again == trained


def test_missing_values_are_index_0_and_the_mean(serve: Serve) -> None:
    found = serve([{}])
    indices = [name for name, column in found.items() if column.dtype == tf.int64 and isinstance(column, tf.Tensor)]
    assert sorted(indices) == sorted(
        [
            "user_id",
            "item_id",
            "time",
            "at_buckets",
            "age_buckets",
            "height_buckets",
            "floor_buckets",
            "plan_categorical",
        ]
    )
    assert [values(found[name]) for name in indices] == [[0]] * len(indices)
    assert values(found["at_normalized"]) == values(found["age_normalized"]) == [0.0]
    for name in ("title_text", "tags_multi_value", "colours_multi_value"):
        assert rows_of(found[name]) == [[]]
    assert values(found[display_name("title")]) == [b""]


def test_values_outside_the_vocabulary_are_index_0(serve: Serve) -> None:
    found = serve([{"user": "new user", "item": "nothing", "plan": "golden", "title": "Unheard of", "tags": "grey"}])
    for name in ("user_id", "item_id", "plan_categorical"):
        assert values(found[name]) == [0], name
    assert rows_of(found["title_text"]) == [[0, 0]]
    assert rows_of(found["tags_multi_value"]) == [[0]]


def test_an_empty_string_is_a_missing_value(serve: Serve) -> None:
    empty = serve([{"user": "", "item": "", "plan": "", "title": "", "tags": ""}])
    for name, column in serve([{}]).items():
        if isinstance(column, tf.SparseTensor):
            assert rows_of(empty[name]) == rows_of(column), name
        else:
            assert values(empty[name]) == values(column), name


def test_ids_have_indices_from_1_in_the_vocabulary_s_order(output: tft.TFTransformOutput, serve: Serve) -> None:
    vocabulary = [word.decode() for word in output.vocabulary_by_name("item_id")]
    assert sorted(vocabulary) == sorted(TITLES)
    assert values(serve([{"item": item} for item in vocabulary])["item_id"]) == list(range(1, len(TITLES) + 1))


def test_vocabularies_are_ordered_by_frequency(output: tft.TFTransformOutput) -> None:
    users = Counter(row["user"] for row in INTERACTIONS)
    vocabulary = [word.decode() for word in output.vocabulary_by_name("user_id")]
    assert sorted(vocabulary) == sorted(USERS)
    assert [users[user] for user in vocabulary] == sorted(users.values(), reverse=True)


def test_rows_of_the_catalogue_add_no_user_no_category_and_no_time(output: tft.TFTransformOutput, serve: Serve) -> None:
    # Were a catalogue row's missing time taken for 0, all buckets but the first would lie before 1998.
    assert output.vocabulary_size_by_name("user_id") == len(USERS)
    assert sorted(output.vocabulary_by_name("plan_categorical")) == [b"free", b"paid"]
    assert values(serve([{"at": FIRST}, {"at": LAST}])["at_buckets"]) == [1, MINUTES]


def test_items_without_interactions_are_in_the_vocabulary(output: tft.TFTransformOutput) -> None:
    assert set(output.vocabulary_by_name("item_id")) >= {b"i5", b"i6"}


def test_a_category_below_its_min_count_is_index_0(serve: Serve) -> None:
    assert INTERACTIONS[0]["plan"] == "trial"
    found = values(serve([{"plan": plan} for plan in ("free", "paid", "trial")])["plan_categorical"])
    assert found == [1, 2, 0]


# --- text and multi-value ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Amélie & the wolf", ["amélie", "the", "wolf"]),
        ("AMÉLIE", ["amélie"]),
        ("the-wolf/the.wolf", ["the", "wolf", "the", "wolf"]),
        ("(2001)", ["2001"]),
        ("  the\t wolf\n", ["the", "wolf"]),
        ("…?! — ", []),
        ("", []),
        ("हिन्दी 2001", ["हिन्दी", "2001"]),
        ("wolfs the", ["?", "the"]),
    ],
)
def test_titles_become_lower_case_words(
    output: tft.TFTransformOutput, serve: Serve, title: str, words: list[str]
) -> None:
    assert words_of(output, "title_text", serve([{"title": title}])["title_text"]) == [words]


def test_only_frequent_words_get_an_index(output: tft.TFTransformOutput) -> None:
    vocabulary = [word.decode() for word in output.vocabulary_by_name("title_text")]
    assert vocabulary[0] == "the"
    # Room for six; `twice` comes second last, `singular` comes once and would not be let in with room either.
    assert sorted(vocabulary) == sorted(["the", "amélie", "wolf", "return", "2001", "हिन्दी"])


@pytest.mark.parametrize(
    ("tags", "colours", "expected_tags", "expected_colours"),
    [
        ("red|blue", "red, dark blue", ["red", "blue"], ["red", "dark blue"]),
        ("|red||blue|", ",,", ["red", "blue"], []),
        ("red | blue", " red ,dark blue", ["red", "blue"], ["red", "dark blue"]),
        ("red,blue", "red|dark blue", ["?"], ["?"]),
        ("Red|blue", "|", ["?", "blue"], ["|"]),
        ("", "", [], []),
    ],
)
def test_cells_with_several_values_are_split_at_the_separator(
    output: tft.TFTransformOutput,
    serve: Serve,
    tags: str,
    colours: str,
    expected_tags: list[str],
    expected_colours: list[str],
) -> None:
    found = serve([{"tags": tags, "colours": colours}])
    assert words_of(output, "tags_multi_value", found["tags_multi_value"]) == [expected_tags]
    assert words_of(output, "colours_multi_value", found["colours_multi_value"]) == [expected_colours]


@given(st.lists(st.text("ab,| é\t", max_size=12), max_size=5))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["|red", "", "red|"])
def test_any_cell_gives_left_aligned_values(serve: Serve, cells: list[str]) -> None:
    # TFT rejects rows whose values are not left-aligned during a run.
    found = serve([{"tags": cell} for cell in cells])["tags_multi_value"]
    expected = [sum(1 for value in cell.split("|") if value.strip(" \t")) for cell in cells]
    assert [len(row) for row in rows_of(found)] == expected
    assert [place for _, place in found.indices.numpy().tolist()] == [p for count in expected for p in range(count)]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_timestamps_a_minute_apart_fall_into_buckets_of_their_own(serve: Serve) -> None:
    # float32 rounds these numbers to multiples of 64.
    middles = [FIRST + 60 * minute + 30 for minute in range(MINUTES)]
    assert np.spacing(np.float32(FIRST)) == 64
    assert values(serve([{"at": at} for at in middles])["at_buckets"]) == list(range(1, MINUTES + 1))


@given(st.lists(st.one_of(st.integers(FIRST - 100, LAST + 100), st.integers(-(2**63), 2**63 - 1)), min_size=1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example([-(2**63), FIRST - 1, FIRST, LAST, LAST + 1, 2**63 - 1])
def test_uniform_buckets_have_equal_width_and_open_ends(serve: Serve, times: list[int]) -> None:
    found = np.array(values(serve([{"at": at} for at in times])["at_buckets"]))
    assert found.min() >= 1 and found.max() <= MINUTES
    for at, bucket in zip(times, found, strict=True):
        # On a boundary itself, rounding may go either way.
        low, high = FIRST + 60 * (bucket - 1), FIRST + 60 * bucket
        assert (at >= low or bucket == 1) and (at <= high or bucket == MINUTES), at


def test_a_constant_column_has_buckets_below_at_and_above(serve: Serve) -> None:
    found = values(serve([{"floor": floor} for floor in (3, 3, -(2**63), 2**63 - 1, 1000)])["floor_buckets"])
    assert found == [1, 1, 1, 5, 5]


def test_buckets_of_floats(serve: Serve) -> None:
    found = values(serve([{"height": height} for height in (-9.0, 1.5, 1.58, 1.99, 2.49, 2.5, 9e30)])["height_buckets"])
    assert found == [1, 1, 1, 5, 10, 10, 10]


def test_quantile_buckets_have_equal_counts_in_order(serve: Serve) -> None:
    ages = sorted(row["age"] for row in INTERACTIONS if row["age"] is not None)
    found = values(serve([{"age": age} for age in ages])["age_buckets"])
    assert found == sorted(found)
    shares = Counter(found)
    assert sorted(shares) == [1, 2, 3, 4]
    assert max(shares.values()) - min(shares.values()) <= 0.15 * len(ages)
    assert values(serve([{"age": age} for age in (-5, 0, 500)])["age_buckets"]) == [1, 1, 4]


@pytest.mark.parametrize("column", ["at", "age"])
def test_z_scores_of_train_have_mean_0_and_deviation_1(serve: Serve, column: str) -> None:
    numbers = np.array([row[column] for row in INTERACTIONS if row[column] is not None], np.float64)
    found = serve([{column: number} for number in numbers.astype(int).tolist()])[f"{column}_normalized"]
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found.numpy(), (numbers - numbers.mean()) / numbers.std(), atol=1e-4)


def test_z_scores_distinguish_minutes(serve: Serve) -> None:
    found = serve([{"at": FIRST + second} for second in range(0, 600, 20)])["at_normalized"].numpy()
    assert (np.diff(found) > 0).all()


def test_labels_are_floats_whatever_the_column_is(
    transformed: tuple[tft.TFTransformOutput, Transformed], serve: Serve
) -> None:
    spec = transformed[0].transformed_feature_spec()["label"]
    assert (spec.dtype, spec.shape) == (tf.float32, [])
    assert values(serve([{"stars": 4}])["label"]) == [4.0]


def test_display_columns_are_unchanged(serve: Serve) -> None:
    found = serve([{"title": title} for title in TITLES.values()])[display_name("title")]
    assert [title.decode() for title in values(found)] == list(TITLES.values())
