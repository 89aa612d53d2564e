"""Where Beam's part of a run is computed, and what Beam is told: one place for every command and every orchestrator.

`tandem run`, `compare`, `batch` and `compile kubeflow` and Airflow's plans take Beam's arguments from here. Neither
Beam nor TensorFlow is imported before there is an option to check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any


class BeamRunner(StrEnum):
    """The engines that Beam's part of a run can be computed on."""

    DIRECT = "direct"
    """This machine, with nothing else to start."""
    FLINK = "flink"
    SPARK = "spark"
    DATAFLOW = "dataflow"


# Always by name: Beam's default, DirectRunner, would first try to download the binary of its Prism runner.
_BEAM_NAMES = {
    BeamRunner.DIRECT: "FnApiRunner",
    BeamRunner.FLINK: "FlinkRunner",
    BeamRunner.SPARK: "SparkRunner",
    BeamRunner.DATAFLOW: "DataflowRunner",
}

# TFX packs its own installation for each component (1.3 s) unless an image is named. Dataflow alone reads the name.
_NO_PACKING = "--sdk_container_image=unused"

# Whoever gives one of these has decided how this machine works.
_PROCESSES = ("--direct_running_mode", "--direct_num_workers")

# Classes of Beam's options that change nothing on an engine; whoever gives one most likely meant another engine.
_WITHOUT_EFFECT = {
    BeamRunner.DIRECT: ("FlinkRunnerOptions", "SparkRunnerOptions", "PortableOptions", "JobServerOptions"),
    BeamRunner.FLINK: ("DirectOptions", "SparkRunnerOptions"),
    BeamRunner.SPARK: ("DirectOptions", "FlinkRunnerOptions"),
    BeamRunner.DATAFLOW: ("DirectOptions", "FlinkRunnerOptions", "SparkRunnerOptions", "JobServerOptions"),
}

# What Java's FlinkPipelineOptions and SparkPipelineOptions know and Beam's Python does not: it asks the job server.
_JOB_SERVER_OPTIONS = {
    BeamRunner.FLINK: """
        allow_non_restored_state attached_mode auto_balance_write_files_sharding_enabled auto_watermark_interval
        checkpoint_timeout_millis checkpointing_interval checkpointing_mode disable_metrics enable_stable_input_drain
        execution_mode_for_batch execution_retry_delay externalized_checkpoints_enabled fail_on_checkpointing_errors
        faster_copy files_to_stage finish_bundle_before_checkpointing flink_conf_dir force_unaligned_checkpoint_enabled
        job_check_interval_in_secs latency_tracking_interval max_bundle_size max_bundle_time_mills
        min_pause_between_checkpoints num_concurrent_checkpoints number_of_execution_retries object_reuse
        operator_chaining re_iterable_group_by_key_result retain_externalized_checkpoints_on_cancellation savepoint_path
        shutdown_sources_after_idle_ms state_backend state_backend_factory state_backend_storage_path
        tolerable_checkpoint_failure_number unaligned_checkpoint_enabled use_data_stream_for_batch
    """,
    BeamRunner.SPARK: """
        bundle_size cache_disabled checkpoint_dir enable_spark_metric_sinks files_to_stage
        prefer_group_by_key_to_handle_huge_values storage_level
    """,
}

# Engines that a job starts by itself, in this process or beside it.
_STARTED_HERE = re.compile(r"embed|\[local\]|\[auto\]|local(\[.+\])?")

# Of interactions. InteractionExampleGen writes a shard for each span of a large file, and shards are what processes
# share; fewer bytes are not worth a process that takes 13 s to import TensorFlow. docs/beam.md has the measurements.
BYTES_A_PROCESS = 64 << 20

CGROUP = Path("/sys/fs/cgroup")

_ENVIRONMENTS = ("DOCKER", "EXTERNAL", "LOOPBACK", "PROCESS")
_WORKERS = (
    "Workers need Tandem's code: give --beam-arg=--environment_type=EXTERNAL with "
    "--beam-arg=--environment_config=HOST:PORT of a worker pool on each of the engine's machines, "
    "PROCESS with the command that starts a worker, DOCKER with --beam-arg=--environment_config=IMAGE, or LOOPBACK for "
    "workers in this process. docs/beam.md shows each"
)


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """The engine that a person chose, and what else they told Beam."""

    runner: BeamRunner = BeamRunner.DIRECT
    args: tuple[str, ...] = ()
    """Options of Beam, each as `--key=value` or `--key`, handed through."""

    def pipeline_args(self, input_bytes: int = 0) -> tuple[str, ...]:
        """The arguments for everything that runs on Beam; no result depends on them.

        Args:
            input_bytes: Of the interactions that a run reads. On this machine, they decide how many processes work; 0
                is one, and so is anything where `args` say something about it.
        """
        told = [f"--runner={_BEAM_NAMES[self.runner]}"]
        if self.runner is not BeamRunner.DATAFLOW:
            told.append(_NO_PACKING)
        if self.runner is BeamRunner.DIRECT and not any(arg.startswith(_PROCESSES) for arg in self.args):
            processes = min(processors(), input_bytes // BYTES_A_PROCESS)
            if processes > 1:
                told += ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"]
        return (*told, *self.args)

    def check(self, *, on_cluster: bool = False) -> None:
        """Refuses what Beam would pass over, download, or find out only when the first component runs.

        Args:
            on_cluster: Whether components run in containers, with their artifacts in an object store. Then it does not
                matter which files and programs this machine has.

        Raises:
            BadInput: An option is unknown, has no effect on the engine, or one is missing.
        """
        if self.runner is BeamRunner.DIRECT and not self.args:
            return
        given = _given(self)
        if self.runner is BeamRunner.DATAFLOW:
            _check_dataflow(given, on_cluster)
        elif self.runner is not BeamRunner.DIRECT:
            _check_engine(self.runner, given)
            _check_workers(self, given)
            _check_job_server(self.runner, given, on_cluster)


DIRECT = BeamOptions()
"""Where nobody asks for anything else."""


def processors() -> int:
    """How many this process may use, which in a container is less than the machine has."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()  # control groups, version 2; "max" is no limit
        return max(1, min(allowed, int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:  # -1 is no limit
            return max(1, min(allowed, int(quota) // int(period)))
    return allowed


def _given(beam: BeamOptions) -> Mapping[str, Any]:
    """The options that are given, by the names that Beam has for them.

    Beam itself passes over what no class of its options knows.
    """
    from apache_beam.options import pipeline_options

    known = pipeline_options.PipelineOptions([]).get_all_options().keys() | set(
        _JOB_SERVER_OPTIONS.get(beam.runner, "").split()
    )
    for_others = {
        option
        for name in _WITHOUT_EFFECT[beam.runner]
        for option in getattr(pipeline_options, name)([]).get_all_options(current_only=True)
    }
    for arg in beam.args:
        name = arg.partition("=")[0]
        if not name.startswith("--"):
            raise _bad_input(f"--beam-arg={arg}: an option of Beam was wanted, as in --beam-arg=--parallelism=4")
        if name == "--runner":
            raise _bad_input(f"--beam-arg={arg}: --beam-runner chooses the engine: {', '.join(BeamRunner)}")
        for option in _read([arg]):
            if option not in known:
                raise _bad_input(f"--beam-arg={arg}: Beam has no option --{option}{_closest(option, known)}")
            if option in for_others:
                raise _bad_input(
                    f"--beam-arg={arg}: it has no effect with --beam-runner {beam.runner}. Choose the engine that it "
                    f"is meant for with --beam-runner ({', '.join(BeamRunner)}), or leave it out"
                )
    return _read(beam.args)


def _read(args: Sequence[str]) -> dict[str, Any]:
    """The options that are given, or differ from Beam's defaults; those that Beam does not know as well."""
    from apache_beam.options.pipeline_options import PipelineOptions

    said = io.StringIO()
    try:
        # On a value of the wrong kind, Beam prints a page about all its options and ends the process.
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(args))
            values = options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        told = said.getvalue().rpartition("error: ")[2].strip()
        raise _bad_input(f"{_typed(args)}: {told}") from None
    named = {arg.partition("=")[0].removeprefix("--") for arg in args}
    changed = options.get_all_options(drop_default=True, retain_unknown_options=True)
    return {option: value for option, value in values.items() if option in named or option in changed}


# --- what each engine needs -------------------------------------------------------------------------------------------


def _check_engine(runner: BeamRunner, given: Mapping[str, Any]) -> None:
    """Whether it is said where the engine is."""
    if _engine(given):
        return
    option, example = {
        BeamRunner.FLINK: ("flink_master", "HOST:8081"),
        BeamRunner.SPARK: ("spark_master_url", "spark://HOST:7077"),
    }[runner]
    raise _bad_input(
        f"--beam-runner {runner}: it is not said where it is. Give --beam-arg=--{option}={example}, or "
        "--beam-arg=--job_endpoint=HOST:PORT of a job server of Beam that runs already"
    )


def _engine(given: Mapping[str, Any]) -> str:
    """Where jobs go; empty where nobody says it."""
    return str(next(filter(None, map(given.get, ("job_endpoint", "flink_master", "spark_master_url"))), ""))


def _check_workers(beam: BeamOptions, given: Mapping[str, Any]) -> None:
    """Whether it is said how the engine starts workers that have Tandem's code."""
    from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
    from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

    if "sdk_container_image" in given:
        raise _bad_input(
            f"--beam-arg=--sdk_container_image={given['sdk_container_image']}: only Dataflow reads it. {_WORKERS}"
        )
    kind = str(given.get("environment_type", "")).upper()
    if not kind:
        # Then Beam's own choice is LOOPBACK.
        if _STARTED_HERE.fullmatch(_engine(given)):
            return
        raise _bad_input(f"--beam-runner {beam.runner}: how are its workers started? {_WORKERS}")
    if kind not in _ENVIRONMENTS:
        raise _bad_input(
            f"--beam-arg=--environment_type={given['environment_type']}: {', '.join(_ENVIRONMENTS)} were wanted"
        )
    options = PipelineOptions(list(beam.args)).view_as(PortableOptions)
    problems = PipelineOptionsValidator(options, None).validate_environment_options(options)
    if kind == "DOCKER" and not options.environment_config and not options.lookup_environment_option(
        "docker_container_image"
    ):  # fmt: skip
        problems = ["Beam's own image has no Tandem"]
    if problems:
        raise _bad_input(f"--beam-arg=--environment_type={kind}: {' '.join(problems).rstrip('.')}. {_WORKERS}")


def _check_job_server(runner: BeamRunner, given: Mapping[str, Any], on_cluster: bool) -> None:
    """Whether there is a program that hands jobs to the engine; Beam would download one while the run waits."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions
    from apache_beam.version import __version__ as beam_version

    if "job_endpoint" in given:
        return
    option = f"{runner}_job_server_jar"
    jar = given.get(option)
    built_for = given.get("flink_version", FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1])
    artifact = f"beam-runners-{'spark-3' if runner is BeamRunner.SPARK else f'flink-{built_for}'}-job-server"
    remedy = (
        f"Get it once, as mvn dependency:copy -Dartifact=org.apache.beam:{artifact}:{beam_version} "
        f"-DoutputDirectory=jars does, and give --beam-arg=--{option}=jars/{artifact}-{beam_version}.jar, or "
        "--beam-arg=--job_endpoint=HOST:PORT of a job server that runs already; docs/beam.md shows how to start one"
    )
    if jar is None:
        raise _bad_input(
            f"--beam-runner {runner}: Beam needs its job server for {runner.capitalize()}, and would download it in "
            f"the middle of the run. {remedy}"
        )
    if "://" in jar:
        raise _bad_input(f"--beam-arg=--{option}={jar}: Beam would download it in the middle of the run. {remedy}")
    if on_cluster:
        return
    if not Path(jar).is_file():
        raise _bad_input(f"--beam-arg=--{option}={jar}: there is no such file. {remedy}")
    java = given.get("job_server_java_launcher", "java")
    if shutil.which(java) is None:
        raise _bad_input(
            f"--beam-runner {runner}: {java!r} cannot be run, and Beam's job server needs it. Install Java 17, or name "
            "it with --beam-arg=--job_server_java_launcher=/path/to/java"
        )


def _check_dataflow(given: Mapping[str, Any], on_cluster: bool) -> None:
    """Dataflow's workers are machines of their own: they see buckets, not disks."""
    if not on_cluster:
        raise _bad_input(
            "--beam-runner dataflow: its workers cannot read this machine's folders. Compile the pipeline with "
            "tandem compile kubeflow, whose artifacts lie in a bucket, or choose another engine here: "
            f"{', '.join(runner for runner in BeamRunner if runner is not BeamRunner.DATAFLOW)}"
        )
    wanted = {
        "project": "PROJECT",
        "region": "REGION",
        "temp_location": "gs://BUCKET/tmp",
        "sdk_container_image": "IMAGE, which has Tandem and Beam's worker",
    }
    missing = [f"--beam-arg=--{option}={example}" for option, example in wanted.items() if not given.get(option)]
    if missing:
        raise _bad_input(f"--beam-runner dataflow: missing are {', '.join(missing)}")
    if not given["temp_location"].startswith("gs://"):
        raise _bad_input(f"--beam-arg=--temp_location={given['temp_location']}: gs://BUCKET/FOLDER was wanted")


def _typed(args: Sequence[str]) -> str:
    return " ".join(f"--beam-arg={arg}" for arg in args)


def _closest(option: str, known: Iterable[str]) -> str:
    from recipe.errors import did_you_mean

    return did_you_mean(option, known) or ". docs/beam.md says where all of them are listed"


def _bad_input(message: str) -> Exception:
    # Imported only for a failure: it brings pydantic and YAML.
    from recipe import BadInput

    return BadInput(message)
