"""Messages for TFDV's anomalies: the value found, the value expected by the schema, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2

Type = anomalies_pb2.AnomalyInfo.Type

ABSENT = ("FEATURE_TYPE_LOW_FRACTION_PRESENT", "FEATURE_TYPE_NOT_PRESENT", "SCHEMA_MISSING_COLUMN")
TOO_LARGE = ("INT_TYPE_BIG_INT", "FLOAT_TYPE_BIG_FLOAT")
TOO_SMALL = ("INT_TYPE_SMALL_INT", "FLOAT_TYPE_SMALL_FLOAT")

# Maximum number of allowed values in a message.
LISTED = 12


def describe_anomalies(anomalies: anomalies_pb2.Anomalies, schema: schema_pb2.Schema) -> Iterator[tuple[str, str]]:
    """Yield the feature's name (or `dataset`) and a message for each anomaly, ordered by name."""
    features = {feature.name: feature for feature in schema.feature}
    for name, info in sorted(anomalies.anomaly_info.items()):
        feature = features.get(name, schema_pb2.Feature())
        for reason in info.reason or [info]:
            yield name, _sentence(reason, feature, schema)
    if anomalies.HasField("dataset_anomaly_info"):
        yield "dataset", anomalies.dataset_anomaly_info.description.strip()


def _sentence(
    reason: anomalies_pb2.AnomalyInfo.Reason | anomalies_pb2.AnomalyInfo,
    feature: schema_pb2.Feature,
    schema: schema_pb2.Schema,
) -> str:
    kind = Type.Name(reason.type) if isinstance(reason, anomalies_pb2.AnomalyInfo.Reason) else ""
    # TFDV has the numbers only in its description.
    text = reason.description.strip().removesuffix(".")
    number = re.search(r"values?: (-?\d[\d.e+-]*)", text)
    actual = re.search(r"actual = ([\d.]+)", text)
    if kind == "ENUM_TYPE_UNEXPECTED_STRING_VALUES":
        found = text.rpartition("schema: ")[2]
        return f"expected {_allowed(feature, schema)}, got {found}; if they are valid, add them to string_domain"
    domain = "int_domain" if feature.HasField("int_domain") else "float_domain"
    if kind in TOO_LARGE and number:
        limit = f"{getattr(feature, domain).max:.10g}"
        return f"expected at most {limit}, got {number[1]}; if it is valid, raise max of {domain}"
    if kind in TOO_SMALL and number:
        limit = f"{getattr(feature, domain).min:.10g}"
        return f"expected at least {limit}, got {number[1]}; if it is valid, lower min of {domain}"
    if kind in ABSENT:
        expected = f"expected a value in at least {_percent(feature.presence.min_fraction)} of the rows"
        found = _percent(float(actual[1])) if actual else "0 %"
        return f"{expected}, got {found}; if it may be missing, lower min_fraction of presence"
    if kind == "SCHEMA_NEW_COLUMN":
        return "not in the schema; add it to the schema, or remove it from the data"
    if kind == "UNEXPECTED_DATA_TYPE":
        return f"{text[0].lower()}{text[1:]}; if the data is valid, change its type in the schema"
    return f"{reason.short_description.strip()}: {text}" if reason.short_description else text


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _allowed(feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str:
    domains = {domain.name: domain for domain in schema.string_domain}
    values = list(domains[feature.domain].value if feature.domain in domains else feature.string_domain.value)
    more = [f"and {len(values) - LISTED} more"] if len(values) > LISTED else []
    return ", ".join([*values[:LISTED], *more])
