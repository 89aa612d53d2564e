"""MovieLens on a real Apache Flink, through Beam's own job server: what comes out is what the local runner makes.

A task manager that dies in the middle of a job takes nothing with it.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flink_cluster import TASK_MANAGERS, FlinkCluster, Job, wait_for

pytestmark = [pytest.mark.flink, pytest.mark.slow, pytest.mark.timeout(3600)]

ON_BEAM = {"InteractionExampleGen", "StatisticsGen", "Transform", "Evaluator"}
COPIES = 4
FILES = 8

Tandem = Callable[..., Any]
Example = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """Output of `tandem run --json`, and the folder of its artifacts."""

    said: dict[str, Any]
    workdir: Path

    def folder(self, component: str, output: str) -> Path:
        """An artifact; the oldest one if there are several."""
        return min(self.workdir.glob(f"artifacts/{component}/{output}/*"), key=lambda path: int(path.name))

    def cached(self) -> set[str]:
        return set(self.said["cached"])


# --- what is read from artifacts --------------------------------------------------------------------------------------


def examples(folder: Path, split: str) -> collections.Counter[Example]:
    """The examples of a split; their bytes differ, because a protocol buffer's maps have no order."""
    import tensorflow as tf

    files = sorted(map(str, (folder / f"Split-{split}").glob("*.gz")))
    assert files
    found: collections.Counter[Example] = collections.Counter()
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        found[tuple(sorted((name, str(feature)) for name, feature in features.items()))] += 1
    return found


def statistics(folder: Path, split: str) -> Any:
    """The statistics of a split, without the order of features and of values that are equally frequent."""
    import tensorflow_data_validation as tfdv

    found = tfdv.load_stats_binary(str(folder / f"Split-{split}" / "FeatureStats.pb")).datasets[0]
    summary: dict[str, Any] = {"examples": found.num_examples}
    for feature in found.features:
        kind = feature.WhichOneof("stats")
        stats = getattr(feature, kind)
        one: dict[str, Any] = {
            "present": stats.common_stats.num_non_missing,
            "missing": stats.common_stats.num_missing,
            "values": stats.common_stats.tot_num_values,
        }
        if kind == "num_stats":
            one |= {name: pytest.approx(getattr(stats, name)) for name in ("mean", "std_dev", "min", "max", "median")}
        else:
            one |= {"unique": stats.unique, "most frequent": sorted(value.frequency for value in stats.top_values)}
        summary[feature.path.step[0]] = one
    return summary


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the same run here and there --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tandem: Tandem, schema_dir: Path, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the local runner."""
    workdir = tmp_path_factory.mktemp("local") / "work"
    outcome = tandem("run", schema_dir, "--data", sample, "--workdir", workdir, "--json")
    assert outcome.code == 0, outcome.stderr
    return Run(outcome.json, workdir)


@pytest.fixture(scope="module")
def on_flink(
    cluster: FlinkCluster, tandem: Tandem, schema_dir: Path, sample: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The same run, with Beam's part on Flink."""
    workdir = tmp_path_factory.mktemp("on_flink") / "work"
    beam = [f"--beam-arg={arg}" for arg in cluster.beam_args]
    outcome = tandem(
        "run", schema_dir, "--data", sample, "--workdir", workdir, "--json", "--beam-runner", "flink", *beam
    )
    assert outcome.code == 0, f"{outcome.stderr}\n{cluster.log_of('jobs')[-3000:]}\n{cluster.log_of('pool')[-3000:]}"
    return Run(outcome.json, workdir)


@pytest.fixture(scope="module")
def jobs(cluster: FlinkCluster, on_flink: Run) -> list[Job]:
    """The jobs of that run."""
    return cluster.jobs()


def test_each_component_on_beam_ran_there_on_both_task_managers(
    cluster: FlinkCluster, on_flink: Run, jobs: list[Job]
) -> None:
    assert on_flink.cached() == set()
    assert len(jobs) >= len(ON_BEAM)
    for job in jobs:
        assert job.state == "FINISHED", job
        assert not job.failures, job
        assert {one.state for one in job.attempts} == {"FINISHED"}, job
        assert set(job.finished()) == set(TASK_MANAGERS), job
        assert f"Job {job.name} ({job.id}) switched from state RUNNING to FINISHED" in cluster.log_of("manager")
    for task_manager in TASK_MANAGERS:
        assert sum(one.records for job in jobs for one in job.finished()[task_manager]) > 0
        assert "switched from RUNNING to FINISHED" in cluster.log_of(task_manager)


def test_rows_and_examples_are_the_local_ones(local: Run, on_flink: Run) -> None:
    assert on_flink.said["rows"] == local.said["rows"]
    for split in ("train", "eval", "catalogue"):
        here, there = (examples(run.folder("InteractionExampleGen", "examples"), split) for run in (local, on_flink))
        assert there == here
        assert there.total() == local.said["rows"][split]


def test_statistics_are_the_local_ones(local: Run, on_flink: Run) -> None:
    for split in ("train", "eval"):
        here, there = (statistics(run.folder("StatisticsGen", "statistics"), split) for run in (local, on_flink))
        assert there == here
        assert there["examples"] == local.said["rows"][split]


def test_vocabularies_are_the_local_ones_to_the_byte(local: Run, on_flink: Run) -> None:
    here, there = (
        files_of(run.folder("Transform", "transform_graph") / "transform_fn" / "assets") for run in (local, on_flink)
    )
    assert here
    assert there == here


def test_transformed_examples_are_the_local_ones(local: Run, on_flink: Run) -> None:
    for split in ("train", "catalogue"):
        here, there = (examples(run.folder("Transform", "transformed_examples"), split) for run in (local, on_flink))
        assert there == here


def test_metrics_are_those_of_the_local_run(local: Run, on_flink: Run) -> None:
    assert on_flink.said["metrics"] == pytest.approx(local.said["metrics"], abs=0.01)


def test_metrics_are_those_that_the_local_runner_measures_of_the_same_model(
    on_flink: Run, tandem: Tandem, schema_dir: Path, sample: Path, tmp_path: Path
) -> None:
    # All but what hangs on the gates comes from the cache, so that the Evaluator here sees Flink's examples and model.
    other_gates = tmp_path / "movielens"
    shutil.copytree(schema_dir, other_gates)
    text = (other_gates / "recipe.yaml").read_text()
    (other_gates / "recipe.yaml").write_text(text.replace("at_least: 0.01", "at_least: 0.011"))
    again = tandem("run", other_gates, "--data", sample, "--workdir", on_flink.workdir, "--json")
    assert again.code == 0, again.stderr
    assert Run(again.json, on_flink.workdir).cached() >= {*ON_BEAM, "Trainer"} - {"Evaluator"}
    assert "Evaluator" not in Run(again.json, on_flink.workdir).cached()
    assert again.json["metrics"] == pytest.approx(on_flink.said["metrics"], rel=1e-5)


# --- a task manager dies ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(movielens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens several times over, each time with other users, in several files: enough to be in the middle of it."""
    folder = tmp_path_factory.mktemp("crowd")
    shutil.copy(movielens / "items.csv", folder)
    for name, parts in (("users", 1), ("interactions", FILES)):
        with (movielens / f"{name}.csv").open(newline="") as source:
            reader = csv.DictReader(source)
            rows = list(reader)
        rows = [{**row, "user_id": f"{row['user_id']}-{copy}"} for copy in range(COPIES) for row in rows]
        for part in range(parts):
            with (folder / f"{name}-{part}.csv").open("w", newline="") as target:
                writer = csv.DictWriter(target, reader.fieldnames or ())
                writer.writeheader()
                writer.writerows(rows[part::parts])
    return folder


@pytest.fixture(scope="module")
def ingest(crowd: Path, schema_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs ExampleGen of the DAG on many rows."""
    from pipeline.beam import BeamOptions
    from pipeline.dag import compile_dag, create_pipeline
    from pipeline.runners.launch import Launches
    from recipe import load_recipe, load_schema

    files = [f"data.sources.{name}.files={name}-*.csv" for name in ("interactions", "users")]
    recipe = load_recipe(schema_dir, files)

    def run(workdir: Path, beam: BeamOptions) -> Path:
        """The folder of the examples."""
        from tfx import v1 as tfx

        workdir.mkdir(parents=True)
        dag = create_pipeline(
            recipe,
            load_schema(schema_dir, recipe),
            data_root=str(crowd),
            pipeline_root=str(workdir / "artifacts"),
            metadata=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(workdir / "metadata.db")),
            beam_pipeline_args=beam.pipeline_args(),
            last="Evaluator",
        )
        outcome = Launches(compile_dag(dag), "run").launch("InteractionExampleGen")
        return Path(outcome.outputs["examples"][0].uri)

    return run


@dataclasses.dataclass(frozen=True)
class Survived:
    """A job of ExampleGen during which a task manager was killed.

    Attributes:
        job: As Flink has it.
        folder: Its examples.
        killed: The task manager's address.
        at: When, in seconds since the epoch.
    """

    job: Job
    folder: Path
    killed: str
    at: float


@pytest.fixture(scope="module")
def survived(cluster: FlinkCluster, ingest: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Survived:
    """Kills a task manager while it writes examples. None comes in its place: the one that is left has the slots."""
    from pipeline.beam import BeamOptions, BeamRunner

    before = {job.id for job in cluster.jobs()}
    workdir = tmp_path_factory.mktemp("survived") / "work"
    folders: list[Path] = []
    beam = BeamOptions(BeamRunner.FLINK, cluster.beam_args)
    thread = threading.Thread(target=lambda: folders.append(ingest(workdir, beam)))
    thread.start()
    killed = TASK_MANAGERS[0]

    def writes() -> bool:
        assert thread.is_alive(), cluster.log_of("jobs")[-3000:]
        written = any(workdir.glob("artifacts/InteractionExampleGen/examples/*/.partial/train-*"))
        return written and killed in cluster.running()

    wait_for(writes, "a task manager to write examples", every=0.02)
    at = time.time()
    cluster.kill_task_manager(killed)
    thread.join()
    assert folders, cluster.log_of("jobs")[-3000:]
    (job,) = (job for job in cluster.jobs() if job.id not in before)
    return Survived(job, folders[0], killed, at)


def test_a_job_whose_task_manager_is_killed_in_the_middle_completes_on_the_other(
    cluster: FlinkCluster, survived: Survived
) -> None:
    (left,) = set(TASK_MANAGERS) - {survived.killed}
    assert survived.job.state == "FINISHED"
    assert cluster.task_managers() == {left}
    # It did some of the work, it had more when it died, and the other one started again and went on.
    died = [one for one in survived.job.attempts if one.task_manager == survived.killed]
    assert sum(one.records for one in died if one.state == "FINISHED") > 0
    assert {one.state for one in died} > {"FINISHED"}
    assert survived.job.failures
    assert max(one.ended for one in survived.job.finished()[left]) > survived.at
    log = cluster.log_of("manager")
    for change in ("RUNNING to RESTARTING", "RESTARTING to RUNNING", "RUNNING to FINISHED"):
        assert f"Job {survived.job.name} ({survived.job.id}) switched from state {change}" in log


def test_no_row_is_lost_or_doubled(survived: Survived, ingest: Callable[..., Path], tmp_path: Path) -> None:
    from pipeline.beam import DIRECT

    here = ingest(tmp_path / "work", DIRECT)
    for split in ("train", "eval", "catalogue"):
        assert examples(survived.folder, split) == examples(here, split)
    # As many files too, and nothing of the attempt that died.
    assert files_of(survived.folder).keys() == files_of(here).keys()
