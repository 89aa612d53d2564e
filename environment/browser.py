"""Find a headless Chromium and its driver for the tests of the report, or unpack the distribution's own in `.venv`.

The browser tests call it; standard library only, like bootstrap.py. An installed browser is preferred. Otherwise apt
downloads the packages with missing libraries and fonts (it checks signatures and needs no root), and they are unpacked
below `.venv`. The system and all other programs do not change.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bootstrap
from bootstrap import SetupError, run, say

FOLDER = bootstrap.VENV / "browser"
# Written last: an interrupted installation has none.
STAMP = ".tandem-browser"
BROWSER = "chromium-headless-shell"
DRIVER = "chromium-driver"
# Without a font, headless Chromium draws no text at all.
FONTS = "fonts-dejavu-core"

INSTALLED_BROWSERS = (BROWSER, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTEAD = (
    "Install Chromium (or Chrome) and its chromedriver so that both are on PATH "
    f"(Debian: apt-get install {BROWSER} {DRIVER} {FONTS}), and rerun the tests."
)


def browser() -> dict[str, str]:
    """Paths and environment variables of the browser.

    Returns:
        `browser` and `driver`: paths of the two programs. All other keys are environment variables that both need.

    Raises:
        SetupError: No browser is installed, and none can be downloaded.
    """
    driver = shutil.which("chromedriver")
    program = next((found for name in INSTALLED_BROWSERS if (found := shutil.which(name))), None)
    if driver and program:
        return {"browser": program, "driver": driver}
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (FOLDER / STAMP).is_file():
            _unpack()
    libraries = sorted({str(path.parent) for path in FOLDER.glob("usr/lib/**/*.so*")})
    return {
        "browser": str(FOLDER / "usr/lib/chromium" / BROWSER),
        "driver": str(FOLDER / "usr/bin/chromedriver"),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "FONTCONFIG_FILE": str(FOLDER / "fonts.conf"),
    }


def _unpack() -> None:
    """Download the packages with apt and unpack them in `FOLDER`."""
    if not all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb")):
        raise SetupError(
            f"the tests of the report need a browser, but neither a browser nor apt is on PATH.\n{INSTEAD}"
        )
    say("downloading a headless Chromium into .venv for the tests of the report (first time only; 300 MB on disk)")
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="tandem-browser-") as name:
        work = Path(name)
        for folder in ("lists/partial", "cache/archives/partial", "debs"):
            (work / folder).mkdir(parents=True)
        options = {
            "Dir::State::lists": work / "lists",
            "Dir::Cache": work / "cache",
            "APT::Sandbox::User": "",
            "APT::Get::List-Cleanup": "false",
            "Acquire::Retries": "3",
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-q", *(part for key, value in options.items() for part in ("-o", f"{key}={value}"))]
        try:
            run(*apt, "update")
            # A simulated installation lists missing packages. The driver's own would include the desktop browser.
            plan = run(*apt, "--simulate", "--no-install-recommends", "install", BROWSER, FONTS)
            missing = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
            run(*apt, "download", *{*missing, BROWSER, FONTS, DRIVER}, cwd=work / "debs")
        except SetupError as error:
            raise SetupError(f"cannot download the browser for the tests of the report: {error}\n{INSTEAD}") from None
        for package in sorted((work / "debs").glob("*.deb")):
            run("dpkg-deb", "-x", package, FOLDER)
    fonts = FOLDER / "usr/share/fonts"
    (FOLDER / "fonts.conf").write_text(
        f"<fontconfig><dir>{escape(str(fonts))}</dir><cachedir>{escape(str(FOLDER / 'fontcache'))}</cachedir>"
        "</fontconfig>\n"
    )
    (FOLDER / STAMP).touch()


def main() -> int:
    try:
        print(json.dumps(browser()))
    except SetupError as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
