"""The backend of these tests fails where a cluster would, and follows the compiled file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_backend import Backend, BackendError

# Containers of a few milliseconds. The last argument is what the launcher fills in.
START = "import json, os, sys; told = json.loads(sys.argv[-1]); "
SAY = (
    "out = told['outputs']; places = {k: v['artifacts'][0]['uri'] for k, v in out['artifacts'].items()}; "
    "[os.makedirs(place) for place in places.values()]; "
    "open(out['outputFile'], 'w').write(json.dumps({'artifacts': {k: {'artifacts': [{'uri': place, 'metadata': "
    "{'rows': 3, 'names': ['a']}}]} for k, place in places.items()}})); "
)
WORK = START + SAY

Documents = dict[str, Any]
Write = Callable[[Documents], Path]


def document() -> Documents:
    """Two tasks: `Use` reads what `Make` made, and takes a parameter of the run."""
    schema = {"artifactType": {"instanceSchema": "title: tfx.Examples\n"}}
    return {
        "pipelineInfo": {"name": "bench"},
        "schemaVersion": "2.1.0",
        "components": {
            "Make": {
                "executorLabel": "make",
                "inputDefinitions": {"parameters": {"size": {"parameterType": "NUMBER_INTEGER"}}},
                "outputDefinitions": {"artifacts": {"data": schema}},
            },
            "Use": {
                "executorLabel": "use",
                "inputDefinitions": {"artifacts": {"data": schema}},
                "outputDefinitions": {"artifacts": {"model": schema}},
            },
        },
        "deploymentSpec": {
            "executors": {
                label: {"container": {"image": "any", "command": ["python", "-c", WORK], "args": ["{{$}}"]}}
                for label in ("make", "use")
            }
        },
        "root": {
            "inputDefinitions": {"parameters": {"size": {"parameterType": "NUMBER_INTEGER", "defaultValue": 4}}},
            "dag": {
                "tasks": {
                    "Make": {
                        "componentRef": {"name": "Make"},
                        "inputs": {"parameters": {"size": {"componentInputParameter": "size"}}},
                    },
                    "Use": {
                        "componentRef": {"name": "Use"},
                        "dependentTasks": ["Make"],
                        "inputs": {
                            "artifacts": {
                                "data": {"taskOutputArtifact": {"producerTask": "Make", "outputArtifactKey": "data"}}
                            }
                        },
                    },
                }
            },
        },
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(documents: Documents) -> Path:
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(documents))
        return path

    return run


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return Backend(tmp_path / "root")


def container(documents: Documents, label: str) -> dict[str, Any]:
    return documents["deploymentSpec"]["executors"][label]["container"]


def test_what_one_task_made_comes_to_the_next_as_ml_metadata_has_it(backend: Backend, write: Write) -> None:
    tasks = backend.run(write(document()), {"size": 7})
    assert [(task.name, task.state) for task in tasks.values()] == [("Make", "succeeded"), ("Use", "succeeded")]
    assert tasks["Make"].executor_input.inputs.parameter_values["size"].number_value == 7
    (given,) = tasks["Use"].executor_input.inputs.artifacts["data"].artifacts
    assert given.uri == str(tasks["Make"].output("data"))
    assert given.type.instance_schema == "", "the open-source backend does not set types"
    assert tasks["Make"].properties("data") == {
        "rows": 3, "names": {"list": ["a"]}, "display_name": "data", "store_session_info": "{}"
    }  # fmt: skip


def test_vertex_tells_types_and_calls_the_hook_before_its_cache(tmp_path: Path, write: Write) -> None:
    documents = document()
    hook = START + (
        "open(told['outputs']['outputFile'], 'w').write(json.dumps({'parameterValues': {'size': 40}, 'artifacts': "
        "{'data': {'artifacts': [{'metadata': {'span': 2}}]}}}))"
    )
    lifecycle = {"preCacheCheck": {"command": ["python", "-c", hook], "args": ["{{$}}"]}}
    container(documents, "make")["lifecycle"] = lifecycle
    tasks = Backend(tmp_path / "vertex", vertex=True).run(write(documents))
    told = tasks["Make"].executor_input
    assert told.inputs.parameter_values["size"].number_value == 40
    assert told.outputs.artifacts["data"].artifacts[0].metadata["span"] == 2
    assert tasks["Use"].executor_input.inputs.artifacts["data"].artifacts[0].type.instance_schema
    tasks = Backend(tmp_path / "open source").run(write(documents))
    assert tasks["Make"].executor_input.inputs.parameter_values["size"].number_value == 4


def task(documents: Documents, name: str) -> dict[str, Any]:
    return documents["root"]["dag"]["tasks"][name]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda d: container(d, "make").update(args=["{{$.inputs.parameters['length']}}"]), "no value for.*length"),
        (lambda d: container(d, "make").update(args=["{{$.outputs.artifacts['model'].uri}}"]), "no value for.*model"),
        (lambda d: container(d, "make").update(command=["python", "-c", "pass"]), "wrote no output metadata file"),
        (
            lambda d: container(d, "make").update(command=["python", "-c", WORK.replace("[os.makedirs", "[str")]),
            "the output data is not at",
        ),
        (
            lambda d: container(d, "make").update(
                command=["python", "-c", WORK.replace("for k, place in places.items()}", "for k, place in ()}")]
            ),
            "lacks data",
        ),
        (
            lambda d: container(d, "make").update(
                command=["python", "-c", WORK.replace("'artifacts': {k", "'art': {k")]
            ),
            "no ExecutorOutput",
        ),
        (lambda d: container(d, "make").update(command=["no such program"]), "cannot start"),
        (lambda d: task(d, "Use").update(dependentTasks=[]), "does not wait for"),
        (lambda d: task(d, "Make").update(dependentTasks=["Use"]), "depend on each other"),
        (
            lambda d: task(d, "Use")["inputs"]["artifacts"]["data"]["taskOutputArtifact"].update(outputArtifactKey="x"),
            "Make has no output 'x'",
        ),
        (lambda d: task(d, "Use")["inputs"]["artifacts"].clear(), "no value for the artifact data"),
        (lambda d: task(d, "Make")["inputs"]["parameters"].clear(), "no value for the parameter size"),
        (lambda d: task(d, "Make").update(triggerPolicy={"condition": "true"}), "evaluates none"),
        (lambda d: task(d, "Make").update(cachingPolicy={}), "is no PipelineSpec"),
        (lambda d: container(d, "make").update(imagePullPolicy="Always"), "no PipelineDeploymentConfig"),
        (lambda d: d["components"]["Make"].update(executorLabel="nobody"), "no executor 'nobody'"),
        (lambda d: d["deploymentSpec"]["executors"].update(make={"importer": {}}), "no executor of kind 'importer'"),
        (
            lambda d: d["root"]["inputDefinitions"]["parameters"]["size"].update(defaultValue="four"),
            "expected number_value, got string_value",
        ),
        (lambda d: d["root"]["inputDefinitions"]["parameters"]["size"].pop("defaultValue"), "no value for .* size"),
    ],
)
def test_a_pipeline_that_fails_on_a_cluster_fails_here(
    backend: Backend, write: Write, edit: Callable[[Documents], Any], complaint: str
) -> None:
    documents = document()
    edit(documents)
    with pytest.raises(BackendError, match=complaint):
        backend.run(write(documents))


def test_a_run_can_only_set_parameters_that_there_are(backend: Backend, write: Write) -> None:
    with pytest.raises(BackendError, match="no parameter sise; it has size"):
        backend.run(write(document()), {"sise": 7})


def test_behind_a_failed_container_nothing_runs(backend: Backend, write: Write) -> None:
    documents = document()
    container(documents, "make")["command"] = ["python", "-c", "import sys; print('no rows'); sys.exit(3)"]
    tasks = backend.run(write(documents))
    assert [(each.state, each.exit_code) for each in tasks.values()] == [("failed", 3), ("skipped", None)]
    assert tasks["Make"].log == "no rows\n"


def test_a_failed_container_starts_again_as_its_policy_says(backend: Backend, write: Write, tmp_path: Path) -> None:
    documents = document()
    tries = f"open({str(tmp_path / 'tries')!r}, 'a').write('x') and len(open({str(tmp_path / 'tries')!r}).read()) < 3"
    container(documents, "make")["command"] = ["python", "-c", f"{START}{tries} and sys.exit(1); {SAY}"]
    task(documents, "Make")["retryPolicy"] = {"maxRetryCount": 2}
    tasks = backend.run(write(documents), retry=True)
    assert (tasks["Make"].state, tasks["Make"].attempts) == ("succeeded", 3)
    (tmp_path / "tries").unlink()
    task(documents, "Make")["retryPolicy"] = {"maxRetryCount": 1}
    tasks = backend.run(write(documents), retry=True)
    assert (tasks["Make"].state, tasks["Make"].attempts) == ("failed", 2)


def test_the_cache_has_what_had_the_same_inputs_only_where_the_task_allows_it(backend: Backend, write: Write) -> None:
    documents = document()
    for name in ("Make", "Use"):
        task(documents, name)["cachingOptions"] = {"enableCache": True}

    def states(**parameters: Any) -> list[str]:
        return [each.state for each in backend.run(write(documents), parameters).values()]

    assert states() == ["succeeded", "succeeded"]
    assert states() == ["cached", "cached"]
    assert states(size=5) == ["succeeded", "succeeded"]
    task(documents, "Use")["cachingOptions"]["enableCache"] = False
    assert states(size=5) == ["cached", "succeeded"]
    task(documents, "Make")["cachingOptions"]["enableCache"] = False
    task(documents, "Use")["cachingOptions"]["enableCache"] = True
    assert states(size=5) == ["succeeded", "succeeded"]
