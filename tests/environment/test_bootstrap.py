"""Set-up on a fresh machine: the lock files, apt sources on an older Debian, and the messages."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "environment" / "bootstrap.py"
BASE = getattr(sys, "_base_executable", sys.executable)
LOCKS = [
    ROOT / "requirements.lock",
    ROOT / "requirements-airflow.lock",
    ROOT / "environment" / "tools.lock",
]

# Runs set-up, but exits with 99 instead of installing: a test must not rebuild the environment that it runs in.
CAREFULLY = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("bootstrap", {str(SCRIPT)!r})
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)
def refuse():
    sys.exit(99)
for name in dir(bootstrap):
    if name.startswith("install") and name != "installer_environment":
        setattr(bootstrap, name, refuse)
sys.exit(bootstrap.main())
"""


@pytest.fixture
def bootstrap() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


# --- running it again -------------------------------------------------------------------------------------------------


def test_set_up_of_what_is_set_up_takes_less_than_two_seconds() -> None:
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([BASE, "-c", CAREFULLY], capture_output=True, text=True, timeout=60, check=False)
        seconds.append(time.monotonic() - start)
        if done.returncode == 99:
            pytest.skip("`make setup` has not run since the lock files changed")
        assert done.returncode == 0, done.stderr
        assert not done.stdout and not done.stderr
    assert min(seconds) < 2


def copied(root: Path) -> Path:
    """A project of its own with the script, empty lock files and an environment without packages."""
    script = root / "environment" / "bootstrap.py"
    for path in (script, root / "environment" / "tools.lock", root / "requirements.lock", root / "pyproject.toml",
                 root / "serving" / "client" / "pyproject.toml"):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shutil.copy(SCRIPT, script)
    subprocess.run([BASE, "-m", "venv", "--copies", "--without-pip", root / ".venv"], check=True)
    return script


def test_set_up_called_by_the_environment_s_own_python_keeps_the_environment(tmp_path: Path) -> None:
    """With .venv/bin first on PATH, `make` calls the interpreter that set-up would remove."""
    script = copied(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(script.parent)!r}); import bootstrap as b;"
        "b.PACKAGES_STAMP.write_text(b.fingerprint(b.TOOLS_LOCK, b.PACKAGES_LOCK));"
        "b.PROJECTS_STAMP.write_text(b.fingerprint(*(each / 'pyproject.toml' for each in b.PROJECTS)))"
    )
    subprocess.run([BASE, "-c", code], check=True)
    own = tmp_path / ".venv" / "bin" / "python3.11"
    done = subprocess.run([own, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert own.exists(), "the environment was removed"


def test_an_environment_without_its_base_interpreter_is_rejected_before_anything_is_removed(tmp_path: Path) -> None:
    script = copied(tmp_path)
    own = tmp_path / ".venv" / "bin" / "python3.11"
    code = "import runpy, sys; sys._base_executable = '/no/python3.11';"
    code += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([own, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "/no/python3.11 does not exist" in done.stderr and "make PYTHON=" in done.stderr
    assert own.exists()


# --- lock files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    requirements = re.sub(r"\\\n\s*", "", lock.read_text()).splitlines()
    requirements = [line for line in requirements if line.strip() and not line.lstrip().startswith("#")]
    assert requirements
    for line in requirements:
        assert re.match(r"[\w.-]+(\[[\w,.-]+\])?==[\w.!+-]+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}(\s|$)", line), line


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_files_name_no_index_and_no_host(lock: Path) -> None:
    # A lock file with an address works on the machine it was made on only.
    text = lock.read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|@ file", text)
    assert not re.search(r"\b[\w-]+\.(com|org|io|net|dev|internal|local)\b", re.sub(r"(?m)^[\w.-]+==", "", text))


def test_every_dependency_of_the_project_is_locked() -> None:
    import tomllib

    def names(lock: Path) -> set[str]:
        found = re.findall(r"(?m)^([\w.-]+)(?:\[.*\])?==", lock.read_text())
        return {re.sub(r"[-_.]+", "-", name).lower() for name in found}

    locked, with_airflow = names(LOCKS[0]), names(LOCKS[1])
    for pyproject in (ROOT / "pyproject.toml", ROOT / "serving" / "client" / "pyproject.toml"):
        project = tomllib.loads(pyproject.read_text())["project"]
        extras = {"": project["dependencies"], **project.get("optional-dependencies", {})}
        for extra, requirement in ((extra, each) for extra, listed in extras.items() for each in listed):
            name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]
            assert name in (with_airflow if extra == "airflow" else locked) or name.startswith("tandem"), name


def test_airflow_and_tensorflow_are_in_environments_of_their_own() -> None:
    """Airflow asks for a Rich that is older than the one in our lock file."""
    assert "apache-airflow==" not in LOCKS[0].read_text()
    assert not re.search(r"(?m)^(tensorflow|tfx|mysqlclient)==", LOCKS[1].read_text())


# --- apt sources ------------------------------------------------------------------------------------------------------


def apt(folder: Path, **files: str) -> Path:
    """A folder like /etc/apt; `sources_list` is its sources.list, `x_list` and `x_sources` lie in sources.list.d."""
    (folder / "sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        place = folder if name == "sources_list" else folder / "sources.list.d"
        (place / f"{stem}.{suffix}").write_text(text)
    return folder


def stanzas(text: str) -> list[dict[str, str]]:
    """deb822 text as one dictionary a stanza."""
    found = []
    for stanza in re.split(r"\n\s*\n", text.strip()):
        pairs = [line.split(":", 1) for line in stanza.splitlines() if line and not line[0].isspace()]
        found.append({key: value.strip() for key, value in pairs})
    return found


def test_the_stanza_of_the_release_is_rewritten_and_keeps_its_key(bootstrap: ModuleType, tmp_path: Path) -> None:
    etc = apt(
        tmp_path,
        debian_sources=(
            "# the distribution\nTypes: deb\n# one mirror\nURIs: mirror://one\nSuites: bookworm bookworm-updates\n"
            "Components: main\nSigned-By: /keys/debian.gpg\n\n"
            "Types: deb\nURIs: mirror://two\nSuites: bookworm-security\nComponents: main\n"
        ),
    )
    assert stanzas(bootstrap.successor_sources("bookworm", "trixie", etc)) == [
        {"Types": "deb", "URIs": "mirror://one", "Suites": "trixie", "Components": "main",
         "Signed-By": "/keys/debian.gpg"}
    ]  # fmt: skip


def test_an_embedded_key_stays_whole(bootstrap: ModuleType, tmp_path: Path) -> None:
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    etc = apt(tmp_path, a_sources=f"Types: deb\nURIs: mirror://one\nSuites: bookworm\nComponents: main\n{key}\n")
    assert key in bootstrap.successor_sources("bookworm", "trixie", etc)


@pytest.mark.parametrize(
    "stanza",
    [
        "Types: deb\nURIs: mirror://one\nSuites: bookworm-security\nComponents: main",
        "Types: deb\nURIs: mirror://one\nSuites: bookworm-backports\nComponents: main",
        "Types: deb\nURIs: mirror://one\nSuites: stable\nComponents: main",
        "Types: deb\nURIs: mirror://vendor\nSuites: bookworm-pgdg\nComponents: main",
        "Enabled: no\nTypes: deb\nURIs: mirror://one\nSuites: bookworm\nComponents: main",
        "Types: deb\nURIs: mirror://one\nSuites: bookworm\nComponents: main\nenabled:no",
        "Types: deb\nURIs: mirror://one\nSuites: bookworm\nComponents: main\nEnabled: false",
        "#Types: deb\n#URIs: mirror://one\n#Suites: bookworm\n#Components: main",
    ],
)
def test_other_suites_and_disabled_stanzas_are_left_out(bootstrap: ModuleType, tmp_path: Path, stanza: str) -> None:
    assert bootstrap.successor_sources("bookworm", "trixie", apt(tmp_path, a_sources=f"{stanza}\n")) == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb mirror://one bookworm main contrib", {}),
        ("deb   mirror://one  bookworm   main contrib   # the mirror", {}),
        ("deb [signed-by=/keys/a.gpg] mirror://one bookworm main contrib", {"Signed-By": "/keys/a.gpg"}),
        ("deb [ arch=amd64 signed-by=/keys/a.gpg ] mirror://one bookworm main contrib", {"Signed-By": "/keys/a.gpg"}),
        ("deb [trusted=yes] mirror://one bookworm main contrib", {"Trusted": "yes"}),
    ],
)
def test_one_line_entries_become_stanzas(
    bootstrap: ModuleType, tmp_path: Path, line: str, expected: dict[str, str]
) -> None:
    (found,) = stanzas(bootstrap.successor_sources("bookworm", "trixie", apt(tmp_path, sources_list=f"{line}\n")))
    assert (found["Types"], found["URIs"], found["Suites"]) == ("deb", "mirror://one", "trixie")
    assert found["Components"] == "main contrib"
    assert {key.title(): value for key, value in found.items()}.items() >= expected.items()


@pytest.mark.parametrize(
    "line",
    [
        "# deb mirror://one bookworm main",
        "deb-src mirror://one bookworm main",
        "deb mirror://one bookworm-security main",
        "deb mirror://one bookworm-updates main",
        "deb mirror://vendor stable main",
        "deb mirror://bookworm sid main",
        "deb cdrom:[Debian 12 _Bookworm_]/ bookworm main",
    ],
)
def test_other_lines_are_left_out(bootstrap: ModuleType, tmp_path: Path, line: str) -> None:
    assert bootstrap.successor_sources("bookworm", "trixie", apt(tmp_path, a_list=f"{line}\n")) == ""


def test_a_vendor_without_the_next_release_does_not_stop_the_set_up(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Vendors use the codename as their suite too; `apt-get update` fails if one of them lacks the next release.
    commands = []

    def run(*command: object, **_: object) -> str:
        commands.append([str(part) for part in command])
        if "update" in command:
            raise bootstrap.SetupError("the repository 'mirror://vendor trixie Release' does not have a Release file")
        return ""

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "RUNTIME", tmp_path / "glibc")
    monkeypatch.setattr(bootstrap, "distribution_codename", lambda: "bookworm")
    monkeypatch.setattr(bootstrap.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(bootstrap, "successor_sources", lambda *_: "Types: deb\n")
    bootstrap.unpack_newer_glibc()
    assert any("download" in command for command in commands)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_wrong_python_is_told_how_to_name_the_right_one(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "sys", SimpleNamespace(version_info=(3, 12, 1), executable="/some/python3.12"))
    with pytest.raises(bootstrap.SetupError, match=r"(?s)expected Python 3\.11, got .*python3\.12.*make PYTHON="):
        bootstrap.check_platform()


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_a_wrong_platform_is_told_what_to_use(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(bootstrap.platform, "system", lambda: system)
    monkeypatch.setattr(bootstrap.platform, "machine", lambda: machine)
    with pytest.raises(bootstrap.SetupError, match=rf"(?s){system} on {machine}.*linux/amd64 container"):
        bootstrap.check_platform()


@pytest.mark.parametrize("codename", ["", "buster", "jammy"])
def test_an_unknown_distribution_is_told_what_to_use(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, codename: str
) -> None:
    monkeypatch.setattr(bootstrap, "distribution_codename", lambda: codename)
    monkeypatch.setattr(bootstrap, "glibc_version", lambda: (2, 35))
    with pytest.raises(bootstrap.SetupError, match=r"(?s)expected glibc 2\.39 or newer.*got 2\.35.*Use Debian 13"):
        bootstrap.unpack_newer_glibc()


def test_an_apt_that_cannot_fetch_is_told_what_to_do(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*command: object, **_: object) -> str:
        raise bootstrap.SetupError("no network")

    monkeypatch.setattr(bootstrap, "run", run)
    monkeypatch.setattr(bootstrap, "distribution_codename", lambda: "bookworm")
    monkeypatch.setattr(bootstrap.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(bootstrap, "successor_sources", lambda *_: "Types: deb\n")
    with pytest.raises(bootstrap.SetupError, match=r"(?s)cannot download.*no network.*Use Debian 13"):
        bootstrap.unpack_newer_glibc()


def test_apt_sources_that_name_no_mirror_are_told_what_to_do(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "distribution_codename", lambda: "bookworm")
    monkeypatch.setattr(bootstrap.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(bootstrap, "successor_sources", lambda *_: "")
    with pytest.raises(bootstrap.SetupError, match=r"(?s)has no source for bookworm.*Use Debian 13"):
        bootstrap.unpack_newer_glibc()


def test_make_without_python_says_what_to_install() -> None:
    done = subprocess.run(
        ["make", "-s", "setup", "PYTHON=python3.11-that-is-not-there"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Install Python 3.11, or run make PYTHON=/path/to/python3.11" in done.stderr


def test_a_failed_command_shows_its_last_lines(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.SetupError, match=r"(?s)failed:.*the reason"):
        bootstrap.run(sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)")
