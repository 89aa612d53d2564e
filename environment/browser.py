"""Finds a headless Chromium and its driver for the tests of the report, or unpacks the distribution's own in `.venv`.

Called by the browser tests; standard library only, like bootstrap.py. An installed browser is taken where there is one.
Else apt fetches the packages (signatures checked; no root needed) with the libraries and the fonts that this machine
lacks, and they are unpacked below `.venv`: the system, and every other program, stays as it is.
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
# Written last, so that a broken attempt is never taken for a good one.
STAMP = ".tandem-browser"
BROWSER = "chromium-headless-shell"
DRIVER = "chromium-driver"
# Without a font, headless Chromium draws no text at all.
FONTS = "fonts-dejavu-core"

INSTALLED_BROWSERS = (BROWSER, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTEAD = (
    "What to do: install Chromium (or Chrome) and its chromedriver so that both are on the PATH "
    f"(Debian: apt-get install {BROWSER} {DRIVER} {FONTS}), and run the tests again."
)


def browser() -> dict[str, str]:
    """Where the browser is.

    Returns:
        `browser` and `driver`: paths of the two programs. Everything else is environment variables that both need.

    Raises:
        SetupError: There is none, and none can be had; the text says what to do.
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
    """Fetches the packages with apt and unpacks them in `FOLDER`."""
    if not all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb")):
        raise SetupError(f"the tests of the report need a browser; there is none on the PATH, and no apt.\n{INSTEAD}")
    say("fetching a headless Chromium into .venv for the tests of the report (first time only; 300 MB on disk)")
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
            # A simulated installation names what is missing here. The driver would bring the whole desktop browser.
            plan = run(*apt, "--simulate", "--no-install-recommends", "install", BROWSER, FONTS)
            missing = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
            run(*apt, "download", *{*missing, BROWSER, FONTS, DRIVER}, cwd=work / "debs")
        except SetupError as error:
            raise SetupError(
                f"the browser for the tests of the report could not be fetched: {error}\n{INSTEAD}"
            ) from None
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
