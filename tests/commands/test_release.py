"""`tandem promote` and `tandem rollback` on real folders: the version that a server serves afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components  # noqa: F401  (before TensorFlow: it decides which Keras is imported)

# isort: split
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from commands.cli import main
from components.pusher import version_labels as model_config
from components.pusher.push_destination import ORIGIN_FILE, pushed_versions

Tandem = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tandem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tandem:
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tandem", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Versions 10, 20 and 30, as the Pusher writes them."""
    for number in (10, 20, 30):
        write_version(tmp_path / "serving" / "shop", number)
    return tmp_path / "serving" / "shop"


def write_version(folder: Path, number: int) -> None:
    path = folder / str(number)
    (path / "variables").mkdir(parents=True)
    (path / "assets.extra").mkdir()
    (path / "saved_model.pb").write_text(f"graph {number}")
    (path / "variables" / "variables.index").write_text(f"weights {number}")
    (path / ORIGIN_FILE).write_text(json.dumps({"model": f"model {number}"}))


def read(folder: Path) -> Any:
    text = (folder.parent / "models.config").read_text()
    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def labels(folder: Path, name: str = "recommender") -> dict[str, int]:
    (entry,) = (entry for entry in read(folder).model_config_list.config if entry.name == name)
    return dict(entry.version_labels)


def write(folder: Path, text: str) -> None:
    (folder.parent / "models.config").write_text(text)


def content(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != Path(ORIGIN_FILE).name
    }


# --- promote ----------------------------------------------------------------------------------------------------------


def test_the_first_promotion_writes_the_file_that_a_server_can_start_with(tandem: Tandem, folder: Path) -> None:
    code, out, _ = tandem("promote", "--model-dir", folder, "--label", "canary", "--model", "shop")
    assert code == 0 and "canary is version 30" in out
    (entry,) = read(folder).model_config_list.config
    assert (entry.name, entry.base_path, entry.model_platform) == ("shop", str(folder), "tensorflow")
    assert entry.model_version_policy.WhichOneof("policy_choice") == "all", "a label's version has to be loaded"
    assert dict(entry.version_labels) == {"canary": 30}


def test_a_canary_becomes_stable_and_the_other_label_stays(tandem: Tandem, folder: Path) -> None:
    tandem("promote", "--model-dir", folder, "--label", "stable", "--version", "10")
    tandem("promote", "--model-dir", folder, "--label", "canary")
    assert labels(folder) == {"stable": 10, "canary": 30}
    code, out, _ = tandem("promote", "--model-dir", folder, "--label", "stable", "--version", "30", "--json")
    assert (code, labels(folder)) == (0, {"stable": 30, "canary": 30})
    assert json.loads(out) == {
        "label": "stable", "version": 30, "before": 10, "copy_of": None, "config": str(folder.parent / "models.config"),
    }  # fmt: skip


def test_other_fields_of_the_file_are_kept(tandem: Tandem, folder: Path) -> None:
    """A base path of a container, another model, a policy that would have let the label's version go."""
    write(
        folder,
        """# of the cluster
        model_config_list {
          config { name: "recommender" base_path: "/models/recommender" model_platform: "tensorflow"
                   model_version_policy { latest { num_versions: 1 } } version_labels { key: "red" value: 20 }
                   logging_config { sampling_config { sampling_rate: 0.25 } } }
          config { name: "other" base_path: "/models/other" version_labels { key: "stable" value: 7 } }
        }""",
    )
    assert tandem("promote", "--model-dir", folder, "--label", "stable", "--version", "20")[0] == 0
    mine, other = read(folder).model_config_list.config
    assert mine.base_path == "/models/recommender" and mine.logging_config.sampling_config.sampling_rate == 0.25
    assert mine.model_version_policy.WhichOneof("policy_choice") == "all"
    assert dict(mine.version_labels) == {"red": 20, "stable": 20}
    assert other.base_path == "/models/other" and dict(other.version_labels) == {"stable": 7}


def test_a_server_never_reads_half_a_file(tandem: Tandem, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tandem("promote", "--model-dir", folder, "--label", "stable", "--version", "10")
    before = (folder.parent / "models.config").read_text()
    rename = model_config.fileio.rename

    def killed(source: str, target: str, overwrite: bool = False) -> None:
        assert (folder.parent / "models.config").read_text() == before, "written elsewhere, whole, before the rename"
        assert "value: 20" in Path(source).read_text()
        raise OSError("disk gone")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk gone"):
        patched.setattr(model_config.fileio, "rename", killed)
        tandem_raising(monkeypatch, "promote", "--model-dir", folder, "--label", "stable", "--version", "20")
    assert rename is model_config.fileio.rename
    assert [path.name for path in folder.parent.iterdir() if path.is_file()] == ["models.config"]
    assert labels(folder) == {"stable": 10}


def tandem_raising(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["tandem", *map(str, arguments)])
    main()


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        (None, ("--version", "40"), ("version 40 does not exist", "10, 20, 30")),
        ("model_config_list { config { name: ", (), ("models.config:1", "ModelServerConfig")),
        (
            'model_config_list { config { name: "films" } }',
            (),
            ("expected one of the models 'films'", "got 'recommender'", "--model"),
        ),
        (
            'model_config_list { config { name: "recommender" model_version_policy { specific { versions: 10 } } } }',
            (),
            ("specific (10)", "model_version_policy"),
        ),
    ],
)
def test_invalid_promotion_is_an_error_and_writes_nothing(
    tandem: Tandem, folder: Path, config: str | None, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if config is not None:
        write(folder, config)
    code, _, told = tandem("promote", "--model-dir", folder, "--label", "stable", *arguments)
    assert code == 2
    for word in words:
        assert word in told
    path = folder.parent / "models.config"
    assert (path.read_text() if path.exists() else None) == config


def test_unknown_label_and_missing_folder_are_errors(tandem: Tandem, folder: Path) -> None:
    assert tandem("promote", "--model-dir", folder, "--label", "gold")[0] == 2
    code, _, told = tandem("promote", "--model-dir", folder.parent / "shoop", "--label", "stable")
    assert code == 2 and "folder does not exist" in told


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_with_labels_a_rollback_moves_stable_and_touches_no_version(tandem: Tandem, folder: Path) -> None:
    for label, version in (("stable", "20"), ("canary", "30")):
        tandem("promote", "--model-dir", folder, "--label", label, "--version", version)
    before = content(folder)
    assert tandem("rollback", "--model-dir", folder)[0] == 0
    assert labels(folder) == {"stable": 10, "canary": 30} and content(folder) == before
    assert tandem("rollback", "--model-dir", folder, "--to", "20")[0] == 0
    assert labels(folder) == {"stable": 20, "canary": 30}
    code, _, told = tandem("rollback", "--model-dir", folder, "--to", "20")
    assert code == 2 and "already stable" in told


def test_without_labels_the_previous_version_is_pushed_again(tandem: Tandem, folder: Path) -> None:
    code, out, _ = tandem("rollback", "--model-dir", folder, "--json")
    *earlier, newest = pushed_versions(str(folder))
    assert code == 0 and earlier == [10, 20, 30] and newest > 30, "no version goes or changes its number"
    assert json.loads(out) == {"label": None, "version": newest, "before": 30, "copy_of": 20, "config": None}
    assert content(folder / str(newest)) == content(folder / "20")
    assert json.loads((folder / str(newest) / ORIGIN_FILE).read_text()) == {"model": "model 20", "copy_of": 20}
    assert not (folder.parent / "models.config").exists()


def test_second_rollback_goes_to_the_version_before(tandem: Tandem, folder: Path) -> None:
    tandem("rollback", "--model-dir", folder)
    tandem("rollback", "--model-dir", folder)
    assert content(folder / str(pushed_versions(str(folder))[-1])) == content(folder / "10")
    code, _, told = tandem("rollback", "--model-dir", folder)
    assert code == 2 and "no version before 10" in told
    assert tandem("rollback", "--model-dir", folder, "--to", "30")[0] == 0
    assert content(folder / str(pushed_versions(str(folder))[-1])) == content(folder / "30")


@pytest.mark.parametrize("labelled", [False, True])
def test_without_label_stable_the_latest_version_is_served(tandem: Tandem, folder: Path, labelled: bool) -> None:
    label = 'version_labels { key: "canary" value: 30 }' if labelled else ""
    text = f'model_config_list {{ config {{ name: "recommender" {label} }} }}'
    write(folder, text)
    assert tandem("rollback", "--model-dir", folder, "--to", "10")[0] == 0
    assert (folder.parent / "models.config").read_text() == text
    assert content(folder / str(pushed_versions(str(folder))[-1])) == content(folder / "10")


@pytest.mark.parametrize(("to", "word"), [("30", "already"), ("15", "version 15 does not exist")])
def test_rollback_to_served_or_missing_version_is_an_error(tandem: Tandem, folder: Path, to: str, word: str) -> None:
    code, _, told = tandem("rollback", "--model-dir", folder, "--to", to)
    assert code == 2 and word in told
    assert pushed_versions(str(folder)) == [10, 20, 30]
