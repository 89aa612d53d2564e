"""The `tandem` command: start time, exit codes and error messages."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from commands.cli import main

ROOT = Path(__file__).resolve().parents[2]
TANDEM = Path(sys.executable).parent / "tandem"

INTERACTIONS = "user_id,item_id,rating,timestamp\n1,1,3,881250949\n2,2,4,891717742\n"
ITEMS = "item_id,title,year,genres\n1,Toy Story,1995,Animation\n2,GoldenEye,1995,Action|Thriller\n"
USERS = "user_id,age,gender,occupation\n1,24,M,technician\n2,53,F,other\n"

Done = subprocess.CompletedProcess[str]
Break = Callable[["Inputs"], None]


def tandem(*arguments: str | Path) -> Done:
    return subprocess.run(
        [str(TANDEM), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def imported(*arguments: str | Path) -> tuple[Done, set[str]]:
    """Runs the command and also returns the top-level modules it imported."""
    command = [sys.executable, "-X", "importtime", str(TANDEM), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done, {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


class Inputs:
    """A recipe, its schema and its data, all in order until a test breaks them."""

    def __init__(self, folder: Path) -> None:
        self.schema_dir = folder / "schema"
        self.data = folder / "data"
        self.workdir = folder / "work"
        shutil.copytree(ROOT / "schemas" / "movielens", self.schema_dir)
        self.data.mkdir()
        for name, text in (("interactions", INTERACTIONS), ("items", ITEMS), ("users", USERS)):
            (self.data / f"{name}.csv").write_text(text)
        self.flags: Sequence[str] = ()

    def path(self, file: str) -> Path:
        return (self.data if file.endswith(".csv") else self.schema_dir) / file

    def change(self, file: str, old: str, new: str) -> None:
        path = self.path(file)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def run(self, *more: str) -> Done:
        return tandem(
            "run", self.schema_dir, "--data", self.data, "--workdir", self.workdir, *self.flags, *more
        )  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: when it changed, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


# --- help -------------------------------------------------------------------------------------------------------------


def test_process_exits_immediately(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python would go through all objects of TensorFlow for garbage once more, for seconds."""
    gc.unfreeze()
    monkeypatch.setattr(sys, "argv", ["tandem", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_help_takes_half_a_second() -> None:
    clock, processor = [], []
    for _ in range(5):
        start, used = time.monotonic(), os.times()
        done = tandem("--help")
        clock.append(time.monotonic() - start)
        processor.append(sum(os.times()[2:4]) - sum(used[2:4]))
        assert done.returncode == 0
    # On a machine that is busy with something else, the clock measures that; the processor time is the command's own.
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert min(processor if busy else clock) < 0.5, (clock, processor)
    for command in ("run", "check", "data", "serve", "recommend", "rate", "similar"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("run", "--help"), ("recommend", "--help"), ("similar", "--help"), ("compile", "kubeflow", "--help")],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done, modules = imported(*arguments)
    assert done.returncode == 0
    assert "typer" in modules
    heavy = {"tensorflow", "tfx", "numpy", "apache_beam", "pyarrow", "pandas", "grpc", "google"}
    # typer itself needs pydantic for the help of a command with arguments.
    assert not modules & (heavy | ({"pydantic"} if arguments == ("--help",) else set()))


def test_help_shows_defaults_that_depend_on_other_arguments() -> None:
    assert "[default: data/NAME]" in tandem("run", "--help").stdout


# --- bad input --------------------------------------------------------------------------------------------------------


def replaced(file: str, old: str, new: str) -> Break:
    return lambda inputs: inputs.change(file, old, new)


def removed(file: str) -> Break:
    return lambda inputs: inputs.path(file).unlink()


def emptied(file: str) -> Break:
    return lambda inputs: inputs.path(file).write_text("") and None


def cut_to_its_header(file: str) -> Break:
    def spoil(inputs: Inputs) -> None:
        path = inputs.path(file)
        path.write_text(path.read_text().splitlines()[0] + "\n")

    return spoil


def flags(*arguments: str) -> Break:
    return lambda inputs: setattr(inputs, "flags", arguments)


def no_data_folder(inputs: Inputs) -> None:
    shutil.rmtree(inputs.data)


def data_is_a_file(inputs: Inputs) -> None:
    shutil.rmtree(inputs.data)
    inputs.data.write_text("x")


def items_under_another_name(inputs: Inputs) -> None:
    inputs.path("items.csv").rename(inputs.path("item.csv"))


def occupation_becomes(column: str) -> Break:
    """The feature has another column, and no tower asks for it by its old name."""

    def spoil(inputs: Inputs) -> None:
        inputs.change("recipe.yaml", "        - occupation_categorical\n", "")
        inputs.change(
            "recipe.yaml", "{column: occupation, kind: categorical}", f"{{column: {column}, kind: categorical}}"
        )

    return spoil


def a_feature_nobody_provides(inputs: Inputs) -> None:
    occupation_becomes("mood")(inputs)
    schema = inputs.path("schema.pbtxt")
    schema.write_text(schema.read_text() + 'feature { name: "mood" type: BYTES }\n')


BAD: dict[str, tuple[Break, Sequence[str]]] = {
    "no data folder": (no_data_folder, ["data.sources.interactions.files", "data"]),
    "data is a file": (data_is_a_file, ["data.sources.interactions.files"]),
    "no file": (removed("items.csv"), ["data.sources.items.files", "items.csv"]),
    "no file, but a similar one": (
        items_under_another_name, ["data.sources.items.files", "did you mean 'item.csv'"]
    ),
    "no column": (replaced("items.csv", "genres", "genre"), ["items.csv", "'genres'", "did you mean 'genre'"]),
    "the query tower would see the item": (
        occupation_becomes("title"),
        ["features.query.5.column", "'title'", "items table", "features.candidate"],
    ),
    "the catalogue would be without a feature": (
        replaced("recipe.yaml", 'genres, kind: multi_value, separator: "|"', "gender, kind: multi_value"),
        ["features.candidate.2.column", "'gender'", "items table", "features.query"],
    ),
    "no column that joins": (
        replaced("interactions.csv", "user_id", "user"), ["interactions.csv:1", "'user_id'"]
    ),
    "an empty file": (emptied("interactions.csv"), ["interactions.csv"]),
    "an empty lookup": (emptied("users.csv"), ["users.csv"]),
    "only a header": (cut_to_its_header("interactions.csv"), ["interactions.csv"]),
    "an unknown key": (
        replaced("recipe.yaml", "max_bad_rows", "max_bad_row"),
        ["recipe.yaml:12", "data.max_bad_row", "did you mean 'max_bad_rows'"],
    ),
    "an unknown key on the command line": (
        flags("--set", "model.embeding_dim=3"), ["--set model.embeding_dim=3", "did you mean 'embedding_dim'"]
    ),
    "a set without a value": (flags("--set", "model.embedding_dim"), ["--set model.embedding_dim", "key=value"]),
    "a feature of a misspelt column": (
        occupation_becomes("ocupation"),
        ["recipe.yaml", "features.query.5.column: expected a column of schema.pbtxt, got 'ocupation'",
         "did you mean 'occupation'"],
    ),
    "a feature nobody provides": (a_feature_nobody_provides, ["'mood'", "interactions.csv", "users.csv"]),
    "no recipe": (removed("recipe.yaml"), ["recipe.yaml", "the file does not exist"]),
    "no schema": (removed("schema.pbtxt"), ["schema.pbtxt", "the file does not exist"]),
    "a broken schema": (replaced("schema.pbtxt", "name:", "nmae:"), ["schema.pbtxt", "nmae"]),
    "a broken recipe": (replaced("recipe.yaml", "gates:", "gates: ["), ["recipe.yaml:", "not valid YAML"]),
    "an unknown flag": (flags("--workdirs", "x"), ["--workdirs"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_code_2_and_a_message_and_leaves_nothing_behind(inputs: Inputs, case: str) -> None:
    spoil, told = BAD[case]
    spoil(inputs)
    done = inputs.run()
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in told:
        assert part in done.stderr
    assert not inputs.workdir.exists()


def test_bad_input_does_not_change_earlier_runs_and_push_destination(inputs: Inputs) -> None:
    version = inputs.workdir / "serving" / "movielens" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"model")
    before = state(inputs.workdir)
    (inputs.data / "users.csv").unlink()
    assert inputs.run().returncode == 2
    assert state(inputs.workdir) == before


def test_a_workdir_that_is_a_file_is_bad_input(inputs: Inputs) -> None:
    inputs.workdir.write_text("in the way")
    done = inputs.run()
    assert done.returncode == 2, done.stderr
    assert str(inputs.workdir) in done.stderr and "Traceback" not in done.stderr
    assert inputs.workdir.read_text() == "in the way"


@pytest.mark.parametrize("case", ["no file", "an unknown key", "a feature nobody provides"])
def test_with_json_the_error_is_one_object(inputs: Inputs, case: str) -> None:
    spoil, told = BAD[case]
    spoil(inputs)
    done = inputs.run("--json")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == 2
    for part in told:
        assert part in answer["error"]
    assert answer["error"] in done.stderr


def test_bad_input_is_reported_before_tensorflow_starts(inputs: Inputs) -> None:
    (inputs.data / "users.csv").unlink()
    done, modules = imported("run", inputs.schema_dir, "--data", inputs.data, "--workdir", inputs.workdir)
    assert done.returncode == 2
    assert "pydantic" in modules
    assert not modules & {"tensorflow", "tfx", "apache_beam", "tensorflow_transform"}


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_accepts_valid_input(inputs: Inputs) -> None:
    done = tandem("check", inputs.schema_dir, "--data", inputs.data)
    assert done.returncode == 0, done.stderr
    assert "'movielens'" in done.stdout and "10 features" in done.stdout and "4 gates" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("case", ["no column", "an unknown key", "no schema", "an empty file"])
def test_check_finds_the_errors_of_run(inputs: Inputs, case: str) -> None:
    spoil, told = BAD[case]
    spoil(inputs)
    done = tandem("check", inputs.schema_dir, "--data", inputs.data)
    assert done.returncode == 2
    assert done.stdout == ""
    for part in told:
        assert part in done.stderr


def test_check_warns_of_a_renamed_key_in_one_line_on_stderr(inputs: Inputs) -> None:
    replaced("recipe.yaml", "  id_dropout: 0\n", "  id_dropout: 0\n  stranger_dropout: 0.1\n")(inputs)
    recipe = inputs.path("recipe.yaml")
    line = recipe.read_text().split("stranger_dropout")[0].count("\n") + 1
    done = tandem("check", inputs.schema_dir, "--data", inputs.data)
    assert done.returncode == 0 and "4 gates" in done.stdout
    assert done.stderr == (
        f"tandem: warning: {recipe}:{line}: model.stranger_dropout is deprecated; "
        "rename it to model.cold_start_dropout\n"
    )


# --- gates ------------------------------------------------------------------------------------------------------------


def finished(workdir: Path, run_id: str, top_100: float) -> Path:
    """A work folder with a run that came to a verdict."""
    from components.evaluator.verdict import Measured, decide
    from pipeline.result import RunResult
    from pipeline.workdir import RESULT_FILE
    from recipe.evaluation import Gate

    gates = [
        Gate(metric="top_100_accuracy", at_least=0.27, may_drop=0.1, beats_baseline_by=0),
        Gate(metric="rmse", slice={"user_activity": "new"}, at_most=1.0),
    ]
    values = {"metrics": {"top_100_accuracy": top_100, "rmse": 0.9}, "baselines": {"top_100_accuracy": 0.299}}
    measured = {None: Measured(examples=1200, **values), ("user_activity", "new"): Measured(examples=30, **values)}
    verdict = decide(gates, measured)
    result = RunResult(
        run_id=run_id, recipe="movielens", seconds=1.0, components=(), rows={}, metrics=verdict.metrics,
        verdict=verdict, not_servable=None, blessed=verdict.blessed, pushed_model=None, log="log.txt",
    )  # fmt: skip
    folder = workdir / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / RESULT_FILE).write_text(result.model_dump_json())
    return workdir


def test_gates_prints_latest_and_earlier_results(tmp_path: Path) -> None:
    finished(tmp_path, "20260101-000000", 0.1)
    finished(tmp_path, "20260102-000000", 0.4)
    latest = tandem("gates", "--workdir", tmp_path)
    assert latest.returncode == 0 and latest.stderr == ""
    lines = latest.stdout.splitlines()
    assert lines[0] == "Run 20260102-000000 of movielens: blessed"
    assert any(
        line.split() == ["pass", "top_100_accuracy", "0.4000", "≥", "0.2990", "baseline", "0.2990", "+0.1010"]
        for line in lines
    )
    assert any(line.startswith("skip  top_100_accuracy") and "no blessed model" in line for line in lines)
    assert any(line.split()[:2] == ["user_activity:", "new"] for line in lines)
    earlier = tandem("gates", "20260101-000000", "--workdir", tmp_path)
    assert earlier.returncode == 0
    assert "not blessed" in earlier.stdout.splitlines()[0]
    assert "(baseline, most popular items: 0.2990)" in earlier.stdout


def test_gates_as_json_has_thresholds_baselines_and_slices(tmp_path: Path) -> None:
    done = tandem("gates", "--workdir", finished(tmp_path, "20260101-000000", 0.1), "--json")
    found = json.loads(done.stdout)
    assert (found["run_id"], found["blessed"], found["examples"]) == ("20260101-000000", False, 1200)
    assert found["baselines"] == {"top_100_accuracy": 0.299}
    assert [(gate["condition"], gate["limit"], gate["passed"]) for gate in found["gates"]] == [
        ("at_least", 0.27, False), ("may_drop", None, True), ("beats_baseline_by", 0.299, False), ("at_most", 1.0, True)
    ]  # fmt: skip
    assert found["gates"][3]["slice"] == {"user_activity": "new"}
    assert [(part["name"], part["value"], part["examples"]) for part in found["slices"]] == [
        ("user_activity", "new", 30)
    ]


def test_gates_of_missing_unfinished_or_incompatible_run_is_bad_input(tmp_path: Path) -> None:
    none = tandem("gates", "--workdir", tmp_path)
    assert none.returncode == 2 and "there are no runs" in none.stderr
    finished(tmp_path, "20260101-000000", 0.4)
    unknown = tandem("gates", "yesterday", "--workdir", tmp_path)
    assert unknown.returncode == 2 and "got 'yesterday'" in unknown.stderr
    folder = tmp_path / "runs" / "20260102-000000"
    folder.mkdir()
    failed = tandem("gates", "20260102", "--workdir", tmp_path)
    assert failed.returncode == 2 and "has no gate results" in failed.stderr and "log.txt" in failed.stderr
    (folder / "result.json").write_text('{"run_id": "20260102-000000"}')
    other = tandem("gates", "--workdir", tmp_path)
    assert other.returncode == 2 and "another version of Tandem" in other.stderr


# --- asking a server --------------------------------------------------------------------------------------------------


@pytest.fixture
def dead_target() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    "asked",
    [("recommend", "--user", "42"), ("rate", "--user", "42", "--item", "1"), ("similar", "--title", "batman")],
    ids=" ".join,
)
def test_unreachable_server_error_has_address_and_remedy(asked: tuple[str, ...], dead_target: str) -> None:
    done, modules = imported(*asked, "--target", dead_target)
    assert done.returncode == 1
    assert done.stdout == ""
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("tandem: ")]
    assert dead_target in told and "tandem serve" in told
    assert "Traceback" not in done.stderr
    # A client must not take as long to start as TensorFlow does.
    assert not modules & {"tensorflow", "tfx", "apache_beam"}


def test_unreachable_server_is_one_json_object(dead_target: str) -> None:
    done = tandem("rate", "--user", "42", "--item", "242", "--target", dead_target, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == 1 and dead_target in answer["error"]


@pytest.mark.parametrize("k", ["0", "-1", "many"])
def test_invalid_k_is_bad_input(k: str, dead_target: str) -> None:
    done = tandem("recommend", "--user", "42", "--k", k, "--target", dead_target)
    assert done.returncode == 2
    assert "--k" in done.stderr


@pytest.mark.parametrize("command", [("recommend", "--user", "42"), ("similar", "--item", "1")], ids=" ".join)
def test_certificate_without_key_and_url_target_are_bad_input(command: tuple[str, ...], tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.write_text("-----BEGIN")
    half = tandem(*command, "--tls-key", pem, "--json")
    assert half.returncode == 2
    assert "--tls-key without --tls-cert" in json.loads(half.stdout)["error"]
    url = tandem(*command, "--target", "http://127.0.0.1:8501")
    assert url.returncode == 2 and "expected the gRPC port as host:port" in url.stderr
