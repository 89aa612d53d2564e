"""Where the browser tests get their browser from: what is installed, else apt, else a message that says what to do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "environment" / "browser.py"


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The script as a module, with a folder of its own."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("browser_of_tests", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path / ".venv" / "browser")
    yield module


def installed(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}" if name in programs else None)


def test_an_installed_browser_with_its_driver_is_taken(browser: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(browser, monkeypatch, "google-chrome", "chromedriver", "apt-get", "dpkg-deb")
    assert browser.browser() == {"browser": "/bin/google-chrome", "driver": "/bin/chromedriver"}


def test_error_without_a_browser_and_apt_has_a_remedy(
    browser: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(browser, monkeypatch, "chromium")
    assert browser.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "Install Chromium" in said.err and "chromedriver" in said.err


def test_error_of_apt_is_reported_and_no_partial_folder_remains(
    browser: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(browser, monkeypatch, "apt-get", "dpkg-deb")

    def refuse(*command: object, **_: object) -> str:
        raise browser.SetupError(f"`{command[0]}` failed:\nno such mirror")

    monkeypatch.setattr(browser, "run", refuse)
    assert browser.main() == 1
    assert "no such mirror" in capsys.readouterr().err
    assert not (browser.FOLDER / browser.STAMP).exists()


def test_missing_packages_are_fetched_once_and_their_libraries_and_fonts_found(
    browser: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(browser, monkeypatch, "apt-get", "dpkg-deb")
    commands: list[list[str]] = []

    def apt(*command: object, cwd: Path | None = None) -> str:
        words = [str(word) for word in command]
        commands.append(words)
        if "download" in words and cwd is not None:
            (cwd / "one.deb").touch()
        if words[0] == "dpkg-deb":
            for file in ("usr/lib/machine/deep/libneeded.so.1", "usr/bin/chromedriver"):
                (Path(words[3]) / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(words[3]) / file).touch()
        return "Inst libneeded (1.0 stable [amd64])\nConf libneeded (1.0)\n" if "--simulate" in words else ""

    monkeypatch.setattr(browser, "run", apt)
    places = browser.browser()
    (download,) = [words for words in commands if "download" in words]
    assert {browser.BROWSER, browser.DRIVER, browser.FONTS, "libneeded"} <= set(download)
    # Lists and cache of its own: no root needed, and the machine's stay as they are.
    assert all("Dir::State::lists=" in " ".join(words) for words in commands if words[0] == "apt-get")
    assert places["LD_LIBRARY_PATH"] == str(browser.FOLDER / "usr/lib/machine/deep")
    assert Path(places["FONTCONFIG_FILE"]).is_file()
    commands.clear()
    assert browser.browser() == places and commands == []
