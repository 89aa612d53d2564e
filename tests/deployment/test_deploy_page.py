"""docs/deploy.md can be copied and pasted: its commands, files, manifests and Python are those of this release."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kfp
import kubernetes_validate
import pytest
import typer
import yaml
from command_line import parsed
from google.cloud import aiplatform
from kfp.cli.run import create as kfp_run_create
from rendered import Manifest, of_kind

from tandem_client import Recommender

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "deploy.md"
TEXT = PAGE.read_text()
FENCED = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
# Indented lines of shell; a line that ends in a backslash goes on with the next.
LINES = re.sub(
    r"\\\n\s*", "", "\n".join(re.findall(r"^ {4,}(\S.*)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.M))
)

CALLS = {
    "Client": kfp.Client,
    "create_run_from_pipeline_package": kfp.Client.create_run_from_pipeline_package,
    "create_experiment": kfp.Client.create_experiment,
    "create_recurring_run": kfp.Client.create_recurring_run,
    "PipelineJob": aiplatform.PipelineJob,
    "submit": aiplatform.PipelineJob.submit,
    "create_schedule": aiplatform.PipelineJob.create_schedule,
    "Recommender": Recommender,
    "recommend": Recommender.recommend,
}


def commands(program: str) -> list[list[str]]:
    """The arguments of each call of a program on the page."""
    found = []
    for line in LINES.splitlines():
        words = shlex.split(line, comments=True)
        if program in words[:1]:
            end = next((place for place, word in enumerate(words) if word in ("&", "|", ";")), len(words))
            found.append(words[1:end])
    return found


def test_every_command_of_tandem_is_one() -> None:
    found = commands(".venv/bin/tandem")
    assert {tuple(each[:2]) for each in found} >= {("compile", "kubeflow"), ("data", "movielens")}
    for arguments in found:
        parsed(arguments)


def test_unknown_command_and_option_are_noticed() -> None:
    with pytest.raises(LookupError, match="got 'server'"):
        parsed(["server"])
    with pytest.raises(typer.TyperException, match="--model-folder"):
        parsed(["batch", "--model-folder", "x"])
    with pytest.raises(SystemExit):
        parsed(["serve", "--model-folder", "x"])


def test_the_run_is_started_with_options_that_kfp_has() -> None:
    ((endpoint, _, *arguments),) = commands(".venv/bin/kfp")
    assert endpoint == "--endpoint" and arguments[:2] == ["run", "create"]
    options = {option for parameter in kfp_run_create.params for option in parameter.opts}
    assert {each for each in arguments if each.startswith("--")} <= options
    assert [each.split("=")[0] for each in arguments[-2:]] == ["data_root", "push_destination"]


def test_every_path_is_there() -> None:
    named = {each for each in re.findall(r"(?<![\w./])kubeflow/[\w./-]+\w", TEXT)}
    assert {"kubeflow/image/Dockerfile", "kubeflow/manifests/overlays/bucket", "kubeflow/manifests/release"} <= named
    assert [each for each in sorted(named) if not (ROOT / each).exists()] == []
    addons = {
        f"kubeflow/manifests/addons/{each.name}" for each in (ROOT / "kubeflow" / "manifests" / "addons").iterdir()
    }
    assert addons <= named, "an add-on that the page does not name"
    for link in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (PAGE.parent / link).exists(), link


def test_every_call_of_an_sdk_fits_its_signature() -> None:
    seen = set()
    for language, code in FENCED:
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in CALLS:
                called: Callable[..., Any] = CALLS[name]
                keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                itself = [] if inspect.isclass(called) else [None]
                inspect.signature(called).bind(*itself, *node.args, **keywords)
                seen.add(name)
    assert seen == set(CALLS)


def test_the_users_own_folder_is_rendered(kustomize: Callable[[Path], list[Manifest]], tmp_path: Path) -> None:
    (example,) = [code for language, code in FENCED if language == "yaml"]
    (tmp_path / "tandem").symlink_to(ROOT)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(example)
    found = kustomize(tmp_path / "mine")
    for each in found:
        if each["kind"] != "PodMonitor":
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    assert {each["metadata"]["namespace"] for each in found} == {"recommender"}
    assert of_kind(found, "HorizontalPodAutoscaler")[0]["spec"]["maxReplicas"] == 40
    assert of_kind(found, "PodMonitor")


def test_the_users_names_get_everywhere(kustomize: Callable[[Path], list[Manifest]], tmp_path: Path) -> None:
    (command,) = [line for line in LINES.splitlines() if line.startswith("grep -rl")]
    shutil.copytree(ROOT / "kubeflow", tmp_path / "kubeflow")
    names = {"BUCKET": "our-bucket", "PROJECT": "our-project", "IMAGE": "images.our.net/team/tandem:0.1.0"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", **names}, check=True)
    found = kustomize(tmp_path / "kubeflow" / "manifests" / "overlays" / "bucket")
    text = yaml.safe_dump_all(found)
    assert "example" not in text
    assert "images.our.net/team/tandem:0.1.0" in text
    assert "gs://our-bucket/serving/recommender" in text
    assert "recommender-batch@our-project.iam.gserviceaccount.com" in text
