"""Create `.venv-airflow`: Airflow from `requirements-airflow.lock`, checked against its hashes, and Tandem without TFX.

`make airflow-setup` calls it after bootstrap.py. Airflow's processes read plans and start components in `.venv`, so
this environment needs neither TensorFlow nor a newer glibc.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bootstrap
from bootstrap import ROOT, SetupError, run, say

VENV = ROOT / ".venv-airflow"
LOCK = ROOT / "requirements-airflow.lock"
STAMP = VENV / ".tandem-airflow"


def install() -> None:
    """Create the environment."""
    shutil.rmtree(VENV, ignore_errors=True)
    say("creating .venv-airflow (first time only; 300 MB on disk)")
    # From the base interpreter: the one of .venv may load another glibc.
    run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--without-pip", VENV)
    uv = [
        bootstrap.VENV / "bin" / "uv",
        "pip",
        "install",
        "--quiet",
        "--no-config",
        "--python",
        VENV / "bin" / "python",
    ]
    env = bootstrap.installer_environment()
    run(*uv, "--no-deps", "--require-hashes", "--compile-bytecode", "-r", LOCK, env=env)
    run(*uv, "--no-deps", "--no-build-isolation", "-e", ROOT, env=env)
    say("ready: .venv-airflow/bin/airflow version")


def main() -> int:
    try:
        with open(ROOT / ".venv.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            expected = bootstrap.fingerprint(LOCK, ROOT / "pyproject.toml")
            if not bootstrap.is_current(STAMP, expected):
                install()
                STAMP.write_text(expected)
    except SetupError as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
