"""Create `.flink`: Apache Flink and Beam's job server for it, from Maven Central, checked against their hashes.

`make flink-setup` calls it. After a change of environment/flink/pom.xml, `python environment/flink_setup.py --pin`
writes the new hashes.
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
    """Reject a machine without Java or Maven."""
    for tool, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(tool) is None:
            raise SetupError(f"{tool} is not on PATH. Install it (Debian package {package}) and rerun make.")
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found[1]) < NEEDED_JAVA:
        first = said.partition("\n")[0] or "no output"
        raise SetupError(
            f"expected Java {NEEDED_JAVA} or newer, got {first!r} from `java -version`. Put a newer one first on PATH."
        )


def download(folder: Path) -> None:
    """Download the jars of POM and their dependencies to `folder` with Maven."""
    say("downloading Apache Flink and Beam's job server for it (first time only; 160 MB)")
    run("mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", POM, "dependency:copy-dependencies",
        f"-DoutputDirectory={folder}", "-DincludeScope=runtime")  # fmt: skip


def hashes(folder: Path) -> str:
    """Hashes of the files of a folder in the format of `sha256sum`, by name."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())
    )


def check(folder: Path, pinned: str) -> None:
    """Reject jars whose hashes are not the pinned ones."""
    expected, found = set(pinned.splitlines()), set(hashes(folder).splitlines())
    if expected != found:
        names = sorted({line.split()[1] for line in expected ^ found})
        raise SetupError(
            f"{len(names)} jars differ from {HASHES.relative_to(ROOT)}, among them {', '.join(names[:3])}. "
            "Remove them from Maven's local repository and rerun make; after a change of "
            f"{POM.relative_to(ROOT)} write the new hashes with: python environment/flink_setup.py --pin"
        )


def install(*, pin: bool) -> None:
    """Create the folder."""
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
