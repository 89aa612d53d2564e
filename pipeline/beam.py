"""Beam's runner and pipeline options, the same for every command and every orchestrator.

`tandem run`, `compare`, `batch` and `compile kubeflow` and Airflow's tasks take Beam's arguments from here. Neither
Beam nor TensorFlow is imported unless there are options to check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any


class BeamRunner(StrEnum):
    """Engines that can run Beam's pipelines."""

    DIRECT = "direct"
    """This machine; no service is needed."""
    FLINK = "flink"
    SPARK = "spark"
    DATAFLOW = "dataflow"


# Always set: Beam's default, DirectRunner, would first try to download the binary of its Prism runner.
_BEAM_NAMES = {
    BeamRunner.DIRECT: "FnApiRunner",
    BeamRunner.FLINK: "FlinkRunner",
    BeamRunner.SPARK: "SparkRunner",
    BeamRunner.DATAFLOW: "DataflowRunner",
}

# Without an image, TFX builds a package of its own installation for each component (1.3 s). Only Dataflow reads it.
_NO_PACKING = "--sdk_container_image=unused"

# Options that replace the default number of processes.
_PROCESSES = ("--direct_running_mode", "--direct_num_workers")

# Classes of Beam's options that have no effect on a runner; most likely, another runner was meant.
_WITHOUT_EFFECT = {
    BeamRunner.DIRECT: ("FlinkRunnerOptions", "SparkRunnerOptions", "PortableOptions", "JobServerOptions"),
    BeamRunner.FLINK: ("DirectOptions", "SparkRunnerOptions"),
    BeamRunner.SPARK: ("DirectOptions", "FlinkRunnerOptions"),
    BeamRunner.DATAFLOW: ("DirectOptions", "FlinkRunnerOptions", "SparkRunnerOptions", "JobServerOptions"),
}

# Engines that Beam starts itself, in this process or in a child process.
_STARTED_HERE = re.compile(r"embed|\[local\]|\[auto\]|local(\[.+\])?")

# Of interactions. InteractionExampleGen writes one shard for each byte range of a large file, and a process works on
# whole shards; fewer bytes do not pay for a process, which imports TensorFlow for 13 s. Measurements: docs/beam.md.
BYTES_PER_PROCESS = 64 << 20

CGROUP = Path("/sys/fs/cgroup")

_ENVIRONMENTS = ("DOCKER", "EXTERNAL", "LOOPBACK", "PROCESS")
_WORKERS = (
    "Workers need Tandem's code: set --beam-arg=--environment_type=EXTERNAL with "
    "--beam-arg=--environment_config=HOST:PORT of a worker pool on each of the engine's machines, "
    "PROCESS with the command that starts a worker, DOCKER with --beam-arg=--environment_config=IMAGE, or LOOPBACK for "
    "workers in this process. docs/beam.md shows each"
)


class UnknownBeamOption(UserWarning):
    """An option that Beam's parser does not know, and therefore ignores."""


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """Beam's runner and further pipeline options.

    Example:
        beam = BeamOptions(BeamRunner.FLINK, ("--job_endpoint=flink:8099", "--environment_type=LOOPBACK"))
        beam.check()
    """

    runner: BeamRunner = BeamRunner.DIRECT
    args: tuple[str, ...] = ()
    """Pipeline options of Beam, each as `--key=value` or `--key`, passed on unchanged."""

    def pipeline_args(self, input_bytes: int = 0) -> tuple[str, ...]:
        """Return the arguments of every Beam pipeline. No result depends on them.

        Args:
            input_bytes: Size of a run's interactions. It sets the number of processes on this machine, unless `args`
                set it; 0 is one process.
        """
        defaults = [f"--runner={_BEAM_NAMES[self.runner]}"]
        if self.runner is not BeamRunner.DATAFLOW:
            defaults.append(_NO_PACKING)
        if self.runner is BeamRunner.DIRECT and not any(arg.startswith(_PROCESSES) for arg in self.args):
            processes = min(processors(), input_bytes // BYTES_PER_PROCESS)
            if processes > 1:
                defaults += ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"]
        return (*defaults, *self.args)

    def check(self, *, on_cluster: bool = False) -> None:
        """Reject options that Beam would ignore, that would cause a download, or that fail only in the first component.

        An option that Beam's parser does not know is a warning: the engine's job server may know it.

        Args:
            on_cluster: Whether components run in containers, with their artifacts in an object store. Files and
                programs of this machine are not checked then.

        Raises:
            BadInput: An option is invalid, has no effect on the runner, or is missing.
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
"""The default."""


def processors() -> int:
    """Return the number of processors that this process may use; a container may have fewer than the machine."""
    allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()  # cgroup v2; "max" means no limit
        return max(1, min(allowed, int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:  # cgroup v1; -1 means no limit
            return max(1, min(allowed, int(quota) // int(period)))
    return allowed


def _given(beam: BeamOptions) -> Mapping[str, Any]:
    """Return the values of the options that are set, by Beam's names, after a check of each one."""
    from apache_beam.options import pipeline_options

    known = pipeline_options.PipelineOptions([]).get_all_options().keys()
    for_others = {
        option
        for name in _WITHOUT_EFFECT[beam.runner]
        for option in getattr(pipeline_options, name)([]).get_all_options(current_only=True)
    }
    for arg in beam.args:
        name = arg.partition("=")[0]
        if not name.startswith("--"):
            raise _bad_input(
                f"--beam-arg={arg}: expected an option of Beam, such as --beam-arg=--parallelism=4, got {arg!r}"
            )
        if name == "--runner":
            raise _bad_input(f"--beam-arg={arg}: set the runner with --beam-runner: {', '.join(BeamRunner)}")
        for option in _read([arg]):
            if option not in known:
                _warn_unknown(beam.runner, arg, option, known)
            if option in for_others:
                raise _bad_input(
                    f"--beam-arg={arg}: has no effect with --beam-runner {beam.runner}. Remove it, or choose its "
                    f"runner with --beam-runner: {', '.join(BeamRunner)}"
                )
    return _read(beam.args)


def _warn_unknown(runner: BeamRunner, arg: str, option: str, known: Collection[str]) -> None:
    """Warn that Beam ignores an option, unless it is one of the job server's own."""
    from recipe.errors import did_you_mean

    effect = "it has no effect"
    if runner in (BeamRunner.FLINK, BeamRunner.SPARK):
        effect = f"it has no effect unless Beam's job server for {runner.capitalize()} has it"
    hint = did_you_mean(option, known)
    message = f"--beam-arg={arg}: Beam's Python SDK has no option --{option}; {effect}{hint}"
    warnings.warn(message, UnknownBeamOption, stacklevel=2)


def _read(args: Sequence[str]) -> dict[str, Any]:
    """Return the values of options that `args` set or that differ from Beam's defaults, unknown options included."""
    from apache_beam.options.pipeline_options import PipelineOptions

    output = io.StringIO()
    try:
        # On an invalid value, Beam prints the usage of all its options and ends the process.
        with contextlib.redirect_stderr(output):
            options = PipelineOptions(list(args))
            values = options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        error = output.getvalue().rpartition("error: ")[2].strip()
        raise _bad_input(f"{' '.join(f'--beam-arg={arg}' for arg in args)}: {error}") from None
    named = {arg.partition("=")[0].removeprefix("--") for arg in args}
    changed = options.get_all_options(drop_default=True, retain_unknown_options=True)
    return {option: value for option, value in values.items() if option in named or option in changed}


# --- options that a runner needs --------------------------------------------------------------------------------------


def _check_engine(runner: BeamRunner, given: Mapping[str, Any]) -> None:
    """Check that the engine's address is set."""
    if _engine(given):
        return
    option, example = {
        BeamRunner.FLINK: ("flink_master", "HOST:8081"),
        BeamRunner.SPARK: ("spark_master_url", "spark://HOST:7077"),
    }[runner]
    raise _bad_input(
        f"--beam-runner {runner}: the address of {runner.capitalize()} is missing. Set --beam-arg=--{option}={example} "
        "or --beam-arg=--job_endpoint=HOST:PORT of a running job server of Beam"
    )


def _engine(given: Mapping[str, Any]) -> str:
    """Return the address that jobs are sent to, or an empty string if none is set."""
    return str(next(filter(None, map(given.get, ("job_endpoint", "flink_master", "spark_master_url"))), ""))


def _check_workers(beam: BeamOptions, given: Mapping[str, Any]) -> None:
    """Check that the options specify how the engine starts workers that have Tandem's code."""
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
        raise _bad_input(f"--beam-runner {beam.runner}: --environment_type is missing. {_WORKERS}")
    if kind not in _ENVIRONMENTS:
        raise _bad_input(
            f"--beam-arg=--environment_type={given['environment_type']}: expected {', '.join(_ENVIRONMENTS[:-1])} or "
            f"{_ENVIRONMENTS[-1]}, got {given['environment_type']!r}"
        )
    options = PipelineOptions(list(beam.args)).view_as(PortableOptions)
    problems = PipelineOptionsValidator(options, None).validate_environment_options(options)
    if kind == "DOCKER" and not options.environment_config and not options.lookup_environment_option(
        "docker_container_image"
    ):  # fmt: skip
        problems = ["Beam's default image does not contain Tandem"]
    if problems:
        raise _bad_input(f"--beam-arg=--environment_type={kind}: {' '.join(problems).rstrip('.')}. {_WORKERS}")


def _check_job_server(runner: BeamRunner, given: Mapping[str, Any], on_cluster: bool) -> None:
    """Check that there is a job server, because Beam would download one during the run."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions
    from apache_beam.version import __version__ as beam_version

    if "job_endpoint" in given:
        return
    option = f"{runner}_job_server_jar"
    jar = given.get(option)
    built_for = given.get("flink_version", FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1])
    artifact = f"beam-runners-{'spark-3' if runner is BeamRunner.SPARK else f'flink-{built_for}'}-job-server"
    remedy = (
        f"Download it once: mvn dependency:copy -Dartifact=org.apache.beam:{artifact}:{beam_version} "
        f"-DoutputDirectory=jars. Then set --beam-arg=--{option}=jars/{artifact}-{beam_version}.jar, or "
        "--beam-arg=--job_endpoint=HOST:PORT of a running job server; docs/beam.md shows how to start one"
    )
    if jar is None:
        raise _bad_input(
            f"--beam-runner {runner}: Beam's job server for {runner.capitalize()} is missing, and Beam would download "
            f"it during the run. {remedy}"
        )
    if "://" in jar:
        raise _bad_input(f"--beam-arg=--{option}={jar}: Beam would download it during the run. {remedy}")
    if on_cluster:
        return
    if not Path(jar).is_file():
        raise _bad_input(f"--beam-arg=--{option}={jar}: file does not exist. {remedy}")
    java = given.get("job_server_java_launcher", "java")
    if shutil.which(java) is None:
        raise _bad_input(
            f"--beam-runner {runner}: Beam's job server needs Java, but there is no program {java!r}. Install Java 17, "
            "or set --beam-arg=--job_server_java_launcher=/path/to/java"
        )


def _check_dataflow(given: Mapping[str, Any], on_cluster: bool) -> None:
    """Check that Dataflow's workers can read the artifacts, and that its required options are set."""
    if not on_cluster:
        raise _bad_input(
            "--beam-runner dataflow: its workers cannot read this machine's folders. Compile the pipeline with "
            "`tandem compile kubeflow`, which keeps artifacts in a bucket, or choose another runner: "
            f"{', '.join(runner for runner in BeamRunner if runner is not BeamRunner.DATAFLOW)}"
        )
    required = {
        "project": "PROJECT",
        "region": "REGION",
        "temp_location": "gs://BUCKET/tmp",
        "sdk_container_image": "IMAGE with Tandem and Beam's worker",
    }
    missing = [f"--beam-arg=--{option}={example}" for option, example in required.items() if not given.get(option)]
    if missing:
        raise _bad_input(f"--beam-runner dataflow: missing options: {', '.join(missing)}")
    if not given["temp_location"].startswith("gs://"):
        raise _bad_input(
            f"--beam-arg=--temp_location={given['temp_location']}: expected gs://BUCKET/FOLDER, "
            f"got {given['temp_location']!r}"
        )


def _bad_input(message: str) -> Exception:
    # Imported only on failure: it imports pydantic and YAML.
    from recipe import BadInput

    return BadInput(message)
