"""Executor of ExampleValidator: reports each anomaly with feature, split and reason as an error."""

from __future__ import annotations

import os
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.components.example_validator import executor, labels
from tfx.types import standard_component_specs

from components.example_validator.anomalies import describe_anomalies
from recipe.errors import BadInput
from recipe.files import SCHEMA_FILE


class AnomalyError(BadInput):
    """The data has anomalies against the curated schema."""


class Executor(executor.Executor):
    """Validates every split and fails if one has an anomaly."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> Any:  # noqa: N802  (TFX's name)
        """Write the anomalies of each split.

        Raises:
            AnomalyError: A split has an anomaly.
        """
        self._splits: dict[tuple[str, str], list[str]] = {}
        result = super().Do(input_dict, output_dict, exec_properties)
        if self._splits:
            listed = [
                f"  {feature} ({', '.join(splits)}): {reason}." for (feature, reason), splits in self._splits.items()
            ]
            raise AnomalyError(
                "\n".join([f"the data has anomalies against {SCHEMA_FILE}, by feature (and splits):", *listed])
                + f"\nNothing was trained. Fix the data, or {SCHEMA_FILE} if the data is valid, and rerun."
            )
        return result

    def _Validate(self, inputs: Any, outputs: Any) -> anomalies_pb2.Anomalies:  # noqa: N802
        anomalies = super()._Validate(inputs, outputs)
        split = os.path.basename(outputs[labels.SCHEMA_DIFF_PATH]).removeprefix("Split-")
        for anomaly in describe_anomalies(anomalies, inputs[standard_component_specs.SCHEMA_KEY]):
            self._splits.setdefault(anomaly, []).append(split)
        return anomalies
