"""Makes `.flink`: Apache Flink and Beam's job server for it, from Maven Central, checked by their hashes.

Called by `make flink-setup`. `python environment/flink_setup.py --pin` writes the hashes anew after a change of
environment/flink/pom.xml.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bootstrap import ROOT, SetupError, fingerprint, is_current, run, say

HOME = ROOT / ".flink"
POM = ROOT / "environment" / "flink" / "pom.xml"
HASHES = ROOT / "environment" / "flink" / "jars.sha256"
STAMP = HOME / ".tandem-flink"
NEEDED_JAVA = 17


def check_tools() -> None:
    """Refuses a machine without Java or Maven."""
    for tool, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(tool) is None:
            raise SetupError(
                f"{tool} was not found on PATH. Install it (Debian's package {package}), and run make again."
            )
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found[1]) < NEEDED_JAVA:
        first = said.partition("\n")[0] or "nothing"
        raise SetupError(
            f"Java {NEEDED_JAVA} or newer was wanted, and `java -version` says: {first}. Put a newer one first on PATH."
        )


def download(folder: Path) -> None:
    """Lets Maven collect the jars that POM names, with all they need, in `folder`."""
    say("downloading Apache Flink and Beam's job server for it (first time only; 160 MB)")
    run("mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", POM, "dependency:copy-dependencies",
        f"-DoutputDirectory={folder}", "-DincludeScope=runtime")  # fmt: skip


def hashes(folder: Path) -> str:
    """The files of a folder as `sha256sum` prints them, by name."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())
    )


def check(folder: Path, pinned: str) -> None:
    """Refuses jars that are not the pinned ones."""
    wanted, found = set(pinned.splitlines()), set(hashes(folder).splitlines())
    if wanted != found:
        names = sorted({line.split()[1] for line in wanted ^ found})
        raise SetupError(
            f"{len(names)} jars are not those of {HASHES.relative_to(ROOT)}, among them {', '.join(names[:3])}. "
            "Remove them from Maven's local repository, and run make again; after a change of "
            f"{POM.relative_to(ROOT)} write the hashes anew with: python environment/flink_setup.py --pin"
        )


def install(*, pin: bool) -> None:
    """Makes the folder from nothing."""
    partial = HOME.with_name(".flink.partial")
    shutil.rmtree(partial, ignore_errors=True)
    jars = partial / "jars"
    download(jars)
    if pin:
        HASHES.write_text(hashes(jars))
    check(jars, HASHES.read_text())
    shutil.rmtree(HOME, ignore_errors=True)
    partial.rename(HOME)
    say("ready: .flink")


def main() -> int:
    pin = "--pin" in sys.argv[1:]
    try:
        check_tools()
        with open(ROOT / ".venv.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if pin or not is_current(STAMP, fingerprint(POM, HASHES)):
                install(pin=pin)
                STAMP.write_text(fingerprint(POM, HASHES))
    except SetupError as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
