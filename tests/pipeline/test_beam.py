"""Beam's options: one place, every component that runs on Beam, errors before anything runs, no download."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import logging
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.dag as dag

# isort: split
import apache_beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.version import __version__ as beam_version
from google.protobuf import json_format
from tfx import v1 as tfx
from tfx.dsl.compiler import compiler
from tfx.dsl.component.experimental.annotations import BeamComponentParameter
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.orchestration.local import runner_utils
from tfx.proto.orchestration import executable_spec_pb2

from pipeline import beam
from pipeline.beam import DIRECT, BeamOptions, BeamRunner, UnknownBeamOption
from pipeline.dag import compile_dag
from pipeline.runners import launch
from pipeline.runners.airflow import component_task
from recipe import BadInput, load_recipe, load_schema

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ROOT / "schemas" / "books"

# Flink's runner of Beam, with the job service that Beam's Python brings along: all of Flink's way but Flink.
PORTABLE = BeamOptions(BeamRunner.FLINK, ("--job_endpoint=embed", "--environment_type=LOOPBACK"))

# TFX reads the annotations of component functions, so they cannot be strings (`from __future__ import annotations`).
Examples = tfx.types.standard_artifacts.Examples


def options(line: str) -> BeamOptions:
    runner, *args = line.split()
    return BeamOptions(BeamRunner(runner), tuple(args))


# --- Beam's arguments ------------------------------------------------------------------------------------------------


@given(args=st.lists(st.sampled_from(["--parallelism=3", "--job_endpoint=h:1", "--experiments=a"]), max_size=4))
@pytest.mark.parametrize(
    ("runner", "name"),
    [("direct", "FnApiRunner"), ("flink", "FlinkRunner"), ("spark", "SparkRunner"), ("dataflow", "DataflowRunner")],
)
def test_the_runner_is_always_set_and_all_other_options_are_passed_on(runner: str, name: str, args: list[str]) -> None:
    told = BeamOptions(BeamRunner(runner), tuple(args)).pipeline_args()
    assert PipelineOptions(list(told)).view_as(StandardOptions).runner == name
    assert told[len(told) - len(args) :] == tuple(args)


def test_tfx_builds_a_package_of_itself_for_dataflow_only() -> None:
    """Only Dataflow reads the image's name, which the user sets there."""
    for runner in BeamRunner:
        packed = not any(arg.startswith("--sdk_container_image=") for arg in BeamOptions(runner).pipeline_args())
        assert packed == (runner is BeamRunner.DATAFLOW)


def test_the_defaults_import_nothing() -> None:
    code = (
        "import sys; from pipeline.beam import DIRECT; DIRECT.check(); DIRECT.pipeline_args();"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(["__main__", "components", "pipeline"])


@pytest.mark.parametrize(
    ("megabytes", "processors", "processes"),
    [(0, 16, 1), (127, 16, 1), (128, 1, 1), (128, 2, 2), (128, 16, 2), (640, 4, 4)],
)
def test_a_large_file_uses_several_processes(
    megabytes: int, processors: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beam, "processors", lambda: processors)
    told = PipelineOptions(list(DIRECT.pipeline_args(megabytes << 20))).view_as(DirectOptions)
    assert told.direct_num_workers == processes
    assert told.direct_running_mode == ("multi_processing" if processes > 1 else "in_memory")


@pytest.mark.parametrize("arg", ["--direct_running_mode=multi_threading", "--direct_num_workers=7"])
def test_options_replace_the_default_number_of_processes(arg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "processors", lambda: 16)
    asked = BeamOptions(args=(arg,))
    assert asked.pipeline_args(1 << 40) == asked.pipeline_args()
    assert BeamOptions(BeamRunner.FLINK).pipeline_args(1 << 40) == BeamOptions(BeamRunner.FLINK).pipeline_args()


@pytest.mark.parametrize(
    ("files", "allowed", "processors"),
    [
        ({}, 8, 8),
        ({"cpu.max": "max 100000"}, 8, 8),
        ({"cpu.max": "250000 100000"}, 8, 2),
        ({"cpu.max": "50000 100000"}, 8, 1),
        ({"cpu.max": "900000 100000"}, 3, 3),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 8, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 8),
    ],
)
def test_a_container_counts_the_processors_that_it_may_use(
    files: dict[str, str], allowed: int, processors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(beam, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(allowed)))
    assert beam.processors() == processors


# --- components ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wired() -> tfx.dsl.Pipeline:
    recipe = load_recipe(BOOKS)
    return dag.create_pipeline(
        recipe,
        load_schema(BOOKS, recipe),
        data_root="data",
        pipeline_root="artifacts",
        serving_dir="serving",
        metadata=tfx.orchestration.metadata.sqlite_metadata_connection_config("metadata.sqlite"),
        beam_pipeline_args=PORTABLE.pipeline_args(),
    )


def test_every_component_on_beam_gets_the_arguments(wired: tfx.dsl.Pipeline) -> None:
    deployment = runner_utils.extract_local_deployment_config(compiler.Compiler().compile(wired))
    told = {}
    for component in wired.components:
        spec = runner_utils.extract_executor_spec(deployment, component.id)
        if isinstance(spec, executable_spec_pb2.BeamExecutableSpec):
            told[component.id] = tuple(spec.beam_pipeline_args)
    assert told == dict.fromkeys(
        ("InteractionExampleGen", "StatisticsGen", "Transform", "Evaluator"), PORTABLE.pipeline_args()
    )


def test_no_component_runs_beam_without_the_arguments(wired: tfx.dsl.Pipeline) -> None:
    """An executor of Beam that is declared as another kind gets no options at all."""
    for component in wired.components:
        spec = component.executor_spec
        assert issubclass(spec.executor_class, BaseBeamExecutor) == hasattr(spec, "beam_pipeline_args"), component.id


@pytest.fixture
def nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TFX parses its flags from sys.argv, and pytest has others of the same name."""
    monkeypatch.setattr(sys, "argv", ["tandem"])


@tfx.dsl.components.component(use_beam=True)
def Count(  # noqa: N802
    examples: tfx.dsl.components.OutputArtifact[Examples],
    beam_pipeline: BeamComponentParameter[apache_beam.Pipeline] = None,
):
    """Writes the name of the Beam runner."""
    with beam_pipeline as pipeline:
        _ = (
            pipeline
            | apache_beam.Create([1, 2, 3])
            | apache_beam.CombineGlobally(sum)
            | apache_beam.Map(lambda found: Path(examples.uri, "sum").write_text(str(found)))
        )
    Path(examples.uri, "runner").write_text(type(beam_pipeline.runner).__name__)
    Path(examples.uri, "processes").write_text(str(beam_pipeline.options.view_as(DirectOptions).direct_num_workers))


def counting(folder: Path, asked: BeamOptions) -> tfx.dsl.Pipeline:
    return tfx.dsl.Pipeline(
        pipeline_name="counting",
        pipeline_root=str(folder / "artifacts"),
        components=[Count()],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(folder / "metadata.sqlite")
        ),
        beam_pipeline_args=list(asked.pipeline_args()),
    )


def counted(folder: Path, asked: BeamOptions, run_id: str) -> launch.ComponentRun:
    (run,) = launch.run(
        compile_dag(counting(folder, asked)), run_id, started=lambda name: None, finished=lambda run: None
    )
    return run


@pytest.mark.usefixtures("nothing_typed")
def test_the_chosen_runner_runs_the_component(tmp_path: Path) -> None:
    for asked, runner in ((DIRECT, "FnApiRunner"), (PORTABLE, "FlinkRunner")):
        (examples,) = counted(tmp_path / runner, asked, "run").outputs["examples"]
        assert Path(examples.uri, "runner").read_text() == runner
        assert Path(examples.uri, "sum").read_text() == "6"


@pytest.mark.usefixtures("nothing_typed")
def test_results_of_one_runner_are_cached_for_all_runners(tmp_path: Path) -> None:
    first = counted(tmp_path, DIRECT, "first")
    second = counted(tmp_path, PORTABLE, "second")
    third = counted(tmp_path, BeamOptions(args=("--direct_num_workers=2",)), "third")
    assert [run.cached for run in (first, second, third)] == [False, True, True]
    assert len({run.outputs["examples"][0].uri for run in (first, second, third)}) == 1


@pytest.mark.parametrize(
    ("told", "runner"),
    [({}, "FnApiRunner"), ({"beam_runner": "flink", "beam_args": list(PORTABLE.args)}, "FlinkRunner")],
    ids=["direct", "flink"],
)
@pytest.mark.usefixtures("nothing_typed")
def test_an_airflow_task_uses_the_runner_of_its_deployment(told: dict[str, Any], runner: str, tmp_path: Path) -> None:
    """The number of processes depends on the current data, not on the data at compile time."""
    compiled = compile_dag(counting(tmp_path, BeamOptions(args=("--direct_num_workers=9",))))
    plan = {
        "deployment": {"schema_dir": "", "data": str(tmp_path), "workdir": str(tmp_path), "overrides": [], **told},
        "recipe": load_recipe(BOOKS).model_dump(mode="json"),
        "tasks": {},
        "pipeline": json_format.MessageToDict(compiled, preserving_proto_field_name=True),
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert component_task.main([str(tmp_path / "plan.json"), "run", "Count"]) == 0
    (noted,) = tmp_path.glob("artifacts/Count/examples/*/runner")
    assert noted.read_text() == runner
    assert noted.with_name("processes").read_text() == "1"


# --- nothing is downloaded --------------------------------------------------------------------------------------------


@pytest.fixture
def calls_outside(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine without a network; returns the attempts to reach it."""
    attempts: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def is_here(host: Any) -> bool:
        return not isinstance(host, str) or host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "")

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not is_here(address[0]):
            attempts.append(address)
            raise OSError("no network")
        connect(self, address)

    def look_up_here(host: Any, *arguments: Any, **named: Any) -> Any:
        if not is_here(host):
            attempts.append(host)
            raise socket.gaierror("no network")
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
    monkeypatch.setenv("HOME", "/nowhere")
    return attempts


def run_something(args: tuple[str, ...]) -> None:
    with apache_beam.Pipeline(options=PipelineOptions(list(args))) as pipeline:
        _ = pipeline | apache_beam.Create([1]) | apache_beam.Map(str)


def test_the_direct_runner_does_not_use_the_network(calls_outside: list[Any]) -> None:
    run_something(DIRECT.pipeline_args())
    assert calls_outside == []


def test_the_default_of_beam_downloads_its_prism_runner(
    calls_outside: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The reason for `_BEAM_NAMES`; if Beam's default changes, it may become unnecessary."""
    caplog.set_level(logging.INFO)
    run_something(("--prism_location=",))
    assert "PrismRunner" in caplog.text or calls_outside


# --- mistakes ---------------------------------------------------------------------------------------------------------

HERE = {
    "not an option": ("direct parallelism=4", "expected an option of Beam, such as --beam-arg=--parallelism=4, got"),
    "a value of the wrong kind": ("flink --parallelism=four", "invalid int value: 'four'"),
    "no such choice": ("direct --direct_running_mode=fast", "choose from 'in_memory', 'multi_threading'"),
    "the engine twice": ("flink --runner=FlinkRunner", "set the runner with --beam-runner: direct, flink, spark"),
    "another engine's": ("direct --flink_master=h:8081", "has no effect with --beam-runner direct"),
    "this machine's on Flink": ("flink --direct_num_workers=2", "has no effect with --beam-runner flink"),
    "no address of Flink": ("flink", "--beam-arg=--flink_master=HOST:8081 or --beam-arg=--job_endpoint"),
    "no address of Spark": ("spark", "--beam-arg=--spark_master_url=spark://HOST:7077"),
    "no workers": ("flink --flink_master=h:8081", "--environment_type is missing"),
    "no workers for a job server": ("flink --job_endpoint=h:8099", "--environment_type is missing"),
    "an unknown kind of worker": ("flink --job_endpoint=h:1 --environment_type=POOL", "expected DOCKER, EXTERNAL"),
    "a pool without address": ("flink --job_endpoint=h:1 --environment_type=EXTERNAL", "external_service_address"),
    "a process without command": ("flink --job_endpoint=h:1 --environment_type=PROCESS", "process_command is required"),
    "Beam's default image": ("flink --job_endpoint=h:1 --environment_type=DOCKER", "image does not contain Tandem"),
    "an image without effect": ("spark --job_endpoint=h:1 --sdk_container_image=i", "only Dataflow reads it"),
    "no job server for Flink": (
        "flink --flink_master=[local] --flink_version=1.20",
        f"dependency:copy -Dartifact=org.apache.beam:beam-runners-flink-1.20-job-server:{beam_version}",
    ),
    "no job server for Spark": (
        "spark --spark_master_url=local[4]",
        f"org.apache.beam:beam-runners-spark-3-job-server:{beam_version}",
    ),
    "a job server to download": (
        "flink --flink_master=[local] --flink_job_server_jar=https://example.com/server.jar",
        "Beam would download it during the run",
    ),
    "no such job server": (
        "spark --spark_master_url=local[4] --spark_job_server_jar=nowhere.jar", "nowhere.jar: file does not exist",
    ),
    "Dataflow from here": ("dataflow --project=p", "cannot read this machine's folders. Compile the pipeline with"),
}  # fmt: skip
ELSEWHERE = {
    "Dataflow without a project": (
        "dataflow --region=r",
        "missing options: --beam-arg=--project=PROJECT, --beam-arg=--temp_location=gs://BUCKET/tmp, --beam-arg=--sdk",
    ),
    "Dataflow with a folder": (
        "dataflow --project=p --region=r --temp_location=/tmp --sdk_container_image=i",
        "--temp_location=/tmp: expected gs://BUCKET/FOLDER, got '/tmp'",
    ),
    "no job server in the image": ("flink --flink_master=[local]", "Beam's job server for Flink is missing"),
}


@pytest.mark.parametrize("case", [*HERE, *ELSEWHERE])
def test_a_mistake_is_reported_with_a_remedy(case: str) -> None:
    line, message = {**HERE, **ELSEWHERE}[case]
    with pytest.raises(BadInput, match=re.escape(message)):
        options(line).check(on_cluster=case in ELSEWHERE)


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        (
            "direct --direct_num_worker=2",
            "Beam's Python SDK has no option --direct_num_worker; it has no effect; did you mean 'direct_num_workers'?",
        ),
        ("direct --zzzz=red", "Beam's Python SDK has no option --zzzz; it has no effect"),
        (
            "flink --job_endpoint=embed --operator_chaining=false",
            "--operator_chaining; it has no effect unless Beam's job server for Flink has it",
        ),
        (
            "spark --job_endpoint=h:8099 --environment_type=LOOPBACK --storage_level=DISK_ONLY",
            "--storage_level; it has no effect unless Beam's job server for Spark has it",
        ),
    ],
)
def test_an_option_that_beam_does_not_know_is_one_warning(line: str, warning: str) -> None:
    given = options(line)
    with pytest.warns(UnknownBeamOption, match=re.escape(warning)) as caught:
        given.check()
    (message,) = [str(each.message) for each in caught if each.category is UnknownBeamOption]
    assert "\n" not in message
    assert given.pipeline_args()[-len(given.args) :] == given.args


@pytest.mark.parametrize(
    "line",
    [
        "direct",
        "direct --direct_running_mode=multi_processing --direct_num_workers=2",
        "flink --job_endpoint=embed",
        "flink --job_endpoint=h:8099 --environment_type=EXTERNAL --environment_config=localhost:50000 --parallelism=2",
        "flink --job_endpoint=h:8099 --environment_type=process --environment_options=process_command=/opt/boot",
        "flink --job_endpoint=h:8099 --environment_type=DOCKER --environment_config=registry/tandem:1",
        "flink --job_endpoint=h:8099 --environment_type=LOOPBACK --max_parallelism=8 --flink_version=1.19",
        "flink --flink_master=[local] --flink_job_server_jar=JAR",
        "spark --spark_master_url=local[4] --spark_job_server_jar=JAR",
        "spark --job_endpoint=h:8099 --environment_type=LOOPBACK --spark_version=3",
    ],
)
def test_sufficient_options_pass_without_a_warning(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    (tmp_path / "server.jar").write_bytes(b"jar")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    options(line.replace("JAR", str(tmp_path / "server.jar"))).check()
    assert not [each for each in recwarn if each.category is UnknownBeamOption]


def test_a_job_server_needs_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "server.jar").write_bytes(b"jar")
    asked = options(f"flink --flink_master=[local] --flink_job_server_jar={tmp_path / 'server.jar'}")
    with pytest.raises(BadInput, match="Install Java 17"):
        asked.check()
    asked.check(on_cluster=True)


def test_files_of_a_cluster_are_not_checked() -> None:
    for line in (
        "dataflow --project=p --region=r --temp_location=gs://bucket/tmp --sdk_container_image=registry/tandem:1",
        "flink --flink_master=h:8081 --environment_type=LOOPBACK --flink_job_server_jar=/opt/server.jar",
    ):
        options(line).check(on_cluster=True)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("run", str(BOOKS), "--data", str(ROOT / "tests/samples/books"), "--workdir", "OUT"),
        ("compare", "tutorial", "--data", "DATA", "--workdir", "OUT"),
        ("batch", "--model-dir", "MODELS", "--users", "users.csv", "--out", "OUT"),
        ("compile", "kubeflow", str(BOOKS), "--image", "i", "--pipeline-root", "gs://b", "--out", "OUT"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_rejects_invalid_options_before_it_writes_anything(
    command: tuple[str, ...], tmp_path: Path, tandem: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    if command[0] == "compare":
        command = tuple(str(request.getfixturevalue("movielens")) if word == "DATA" else word for word in command)
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command]
    outcome = tandem(*words, "--beam-runner", "flink", "--beam-arg=--flink_mster=h:8081")
    assert outcome.code == 2
    warning, error = (line for line in outcome.stderr.splitlines() if line.startswith("tandem: "))
    assert warning.startswith("tandem: warning: --beam-arg=--flink_mster=h:8081: ")
    assert warning.endswith("did you mean 'flink_master'?")
    assert error.startswith("tandem: --beam-runner flink: the address of Flink is missing")
    assert not (tmp_path / "out").exists()
