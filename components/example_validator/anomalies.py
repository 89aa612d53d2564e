"""TFDV's anomalies in words: what was found, what the schema allows, and what to change where the data is right."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2

Type = anomalies_pb2.AnomalyInfo.Type

ABSENT = ("FEATURE_TYPE_LOW_FRACTION_PRESENT", "FEATURE_TYPE_NOT_PRESENT", "SCHEMA_MISSING_COLUMN")
TOO_LARGE = ("INT_TYPE_BIG_INT", "FLOAT_TYPE_BIG_FLOAT")
TOO_SMALL = ("INT_TYPE_SMALL_INT", "FLOAT_TYPE_SMALL_FLOAT")

# More allowed values than these are not listed.
LISTED = 12


def in_words(anomalies: anomalies_pb2.Anomalies, schema: schema_pb2.Schema) -> Iterator[tuple[str, str]]:
    """Every anomaly as the feature's name (or `dataset`) and a sentence, in the order of the names."""
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
    # TFDV tells the numbers in its sentence only.
    text = reason.description.strip().removesuffix(".")
    number = re.search(r"values?: (-?\d[\d.e+-]*)", text)
    actual = re.search(r"actual = ([\d.]+)", text)
    if kind == "ENUM_TYPE_UNEXPECTED_STRING_VALUES":
        found = text.rpartition("schema: ")[2]
        return f"found {found}; allowed are {_allowed(feature, schema)}; if they are right, add them to string_domain"
    domain = "int_domain" if feature.HasField("int_domain") else "float_domain"
    if kind in TOO_LARGE and number:
        limit = f"{getattr(feature, domain).max:.10g}"
        return f"found {number[1]}; at most {limit} is allowed; if it is right, raise max of {domain}"
    if kind in TOO_SMALL and number:
        limit = f"{getattr(feature, domain).min:.10g}"
        return f"found {number[1]}; at least {limit} is allowed; if it is right, lower min of {domain}"
    if kind in ABSENT:
        share = f"{_percent(1 - float(actual[1]))} of the rows have no value" if actual else "no row has a value"
        wanted = f"{_percent(feature.presence.min_fraction)} must have one"
        return f"{share}; {wanted}; if it may be missing, lower min_fraction of presence"
    if kind == "SCHEMA_NEW_COLUMN":
        return "the schema does not have it; add it there, or leave it out of the data"
    if kind == "UNEXPECTED_DATA_TYPE":
        return f"{text[0].lower()}{text[1:]}; if that is right, change its type"
    return f"{reason.short_description.strip()}: {text}" if reason.short_description else text


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def _allowed(feature: schema_pb2.Feature, schema: schema_pb2.Schema) -> str:
    domains = {domain.name: domain for domain in schema.string_domain}
    values = list(domains[feature.domain].value if feature.domain in domains else feature.string_domain.value)
    more = [f"and {len(values) - LISTED} more"] if len(values) > LISTED else []
    return ", ".join([*values[:LISTED], *more])
