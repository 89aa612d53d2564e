"""A real browser."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

# Last, because every folder of tests has a conftest.
sys.path.append(str(Path(__file__).parent))

from chromium import Browser

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser of this machine, or one that environment/browser.py unpacks in .venv."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "environment" / "browser.py")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    places = json.loads(found.stdout)
    options = Options()
    options.binary_location = places.pop("browser")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(places.pop("driver"), env={**os.environ, **places})
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    with contextlib.suppress(Exception):
        driver.quit()
