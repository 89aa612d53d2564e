"""TFDV statistics of a few rows, a curated schema, and the ExampleValidator's real executor."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs

from components.example_validator.executor import Executor
from recipe.files import SCHEMA_FILE

SCHEMA = """
feature {
  name: "user_id" type: BYTES value_count { min: 1 max: 1 } presence { min_fraction: 1.0 min_count: 1 }
}
feature {
  name: "gender" type: BYTES value_count { min: 1 max: 1 } presence { min_fraction: 0.5 }
  string_domain { name: "gender" value: "F" value: "M" }
}
feature {
  name: "age" type: INT value_count { min: 1 max: 1 } presence { min_fraction: 0.5 }
  int_domain { min: 1 max: 120 }
}
feature {
  name: "rating" type: FLOAT value_count { min: 1 max: 1 } presence { min_fraction: 1.0 min_count: 1 }
  float_domain { min: 1.0 max: 5.0 }
}
feature {
  name: "at" type: INT value_count { min: 1 max: 1 } presence { min_fraction: 1.0 min_count: 1 }
  int_domain { min: 788918400 max: 4102444800 }
}
feature {
  name: "country" type: BYTES value_count { min: 1 max: 1 } presence { min_fraction: 1.0 min_count: 1 }
  domain: "country"
}
"""
COUNTRIES = " ".join(f'value: "c{number}"' for number in range(30))
SCHEMA += f'string_domain {{ name: "country" {COUNTRIES} }}'


@pytest.fixture
def rows() -> pd.DataFrame:
    """Rows that keep to the schema."""
    return pd.DataFrame(
        {
            "user_id": [f"u{number}" for number in range(20)],
            "gender": ["F", "M"] * 10,
            "age": range(18, 38),
            "rating": [1.0, 2.5, 4.0, 5.0] * 5,
            "at": [1_700_000_000] * 20,
            "country": ["c0", "c29"] * 10,
        }
    )


@pytest.fixture
def validate(tmp_path: Path) -> Callable[[Mapping[str, pd.DataFrame]], Any]:
    """Runs the executor on the statistics of each split; returns the anomalies artifact."""

    def run(splits: Mapping[str, pd.DataFrame]) -> Any:
        statistics = standard_artifacts.ExampleStatistics()
        statistics.uri = str(tmp_path / "statistics")
        statistics.split_names = artifact_utils.encode_split_names(list(splits))
        for split, rows in splits.items():
            folder = tmp_path / "statistics" / f"Split-{split}"
            folder.mkdir(parents=True)
            computed = tfdv.generate_statistics_from_dataframe(rows)
            (folder / "FeatureStats.pb").write_bytes(computed.SerializeToString())
        schema = standard_artifacts.Schema()
        schema.uri = str(tmp_path / "schema")
        (tmp_path / "schema").mkdir()
        (tmp_path / "schema" / SCHEMA_FILE).write_text(SCHEMA)
        anomalies = standard_artifacts.ExampleAnomalies()
        anomalies.uri = str(tmp_path / "anomalies")
        context = base_executor.BaseExecutor.Context(tmp_dir=str(tmp_path / "tmp"), unique_id="1")
        Executor(context).Do(
            {
                standard_component_specs.STATISTICS_KEY: [statistics],
                standard_component_specs.SCHEMA_KEY: [schema],
            },
            {standard_component_specs.ANOMALIES_KEY: [anomalies]},
            {},
        )
        return anomalies

    return run
