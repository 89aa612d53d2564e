"""Executor of ExampleValidator: an anomaly is an error with the split, the feature and the reason."""

from __future__ import annotations

import os
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx.components.example_validator import executor

from pipeline.recipe import SCHEMA_FILE, BadInput


class AnomalyError(BadInput):
    """The data breaks the curated schema."""


class Executor(executor.Executor):
    """Validates every split and fails when one of them has an anomaly."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: Any) -> Any:  # noqa: N802  (TFX's name)
        """Writes the anomalies of each split.

        Raises:
            AnomalyError: A split has an anomaly.
        """
        self._found: dict[str, list[str]] = {}
        result = super().Do(input_dict, output_dict, exec_properties)
        if self._found:
            listed = "\n".join(f"  {reason} (split {', '.join(splits)})" for reason, splits in self._found.items())
            raise AnomalyError(
                f"the data breaks {SCHEMA_FILE}:\n{listed}\n"
                f"Nothing was trained. Mend the data, or, if it is right, widen the feature's domain in {SCHEMA_FILE}."
            )
        return result

    def _Validate(self, inputs: Any, outputs: Any) -> anomalies_pb2.Anomalies:  # noqa: N802
        anomalies = super()._Validate(inputs, outputs)
        split = os.path.basename(outputs["schema_diff_path"][0] if isinstance(outputs["schema_diff_path"], list)
                                 else outputs["schema_diff_path"]).removeprefix("Split-")  # fmt: skip
        for name, info in sorted(anomalies.anomaly_info.items()):
            for reason in info.reason or [info]:
                description = getattr(reason, "description", "") or info.description
                short = getattr(reason, "short_description", "") or info.short_description
                self._found.setdefault(f"feature {name!r}: {short}: {description}", []).append(split)
        if anomalies.HasField("dataset_anomaly_info"):
            self._found.setdefault(f"dataset: {anomalies.dataset_anomaly_info.description}", []).append(split)
        return anomalies
