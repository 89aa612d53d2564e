"""Access to rendered manifests: pods, containers, and TensorFlow Serving's flags and configuration files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

Manifest = dict[str, Any]

CONFIG = "recommender-serving"
CONFIG_DIR = "/etc/tensorflow-serving"


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each["kind"] in kinds]


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def workloads(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Every Deployment, Job and CronJob with its pod template."""
    for each in of_kind(manifests, "Deployment", "Job", "CronJob"):
        spec = each["spec"]
        yield each, (spec["jobTemplate"]["spec"] if each["kind"] == "CronJob" else spec)["template"]


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", ())]


def deployment(manifests: list[Manifest]) -> Manifest:
    """The spec of TensorFlow Serving's Deployment."""
    (found,) = of_kind(manifests, "Deployment")
    spec: Manifest = found["spec"]
    return spec


def serving(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """TensorFlow Serving's pod template and its container."""
    template = deployment(manifests)["template"]
    (container,) = template["spec"]["containers"]
    return template, container


def flags(container: Manifest) -> dict[str, str]:
    """TensorFlow Serving's flags, with environment variables filled in."""
    values = {each["name"]: each.get("value", "") for each in container.get("env", ())}
    filled = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], argument) for argument in container["args"]]
    return dict(argument.removeprefix("--").split("=", 1) for argument in filled)


def config_files(manifests: list[Manifest]) -> dict[str, str]:
    """TensorFlow Serving's configuration files, by name, from the generated ConfigMap."""
    (found,) = [
        each["data"]
        for each in of_kind(manifests, "ConfigMap")
        if re.fullmatch(rf"{CONFIG}-[a-z0-9]{{10}}", each["metadata"]["name"])
    ]
    files: dict[str, str] = found
    return files


def models(manifests: list[Manifest]) -> list[Any]:
    """The models of models.config, as messages."""
    config = model_server_config_pb2.ModelServerConfig()
    return list(text_format.Parse(config_files(manifests)["models.config"], config).model_config_list.config)
