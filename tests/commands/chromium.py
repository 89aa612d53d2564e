"""A headless Chromium for tests of pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait


class Browser:
    """Headless Chromium, with what a reader of the report would see and what the page did meanwhile."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        """Opens a page as wide as a device, in its colour scheme, and waits until its charts are drawn."""
        self._driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        self.scheme(scheme)
        for kind in ("browser", "performance"):
            self._driver.get_log(kind)
        self._driver.get(page.as_uri())
        self.wait("return document.documentElement.dataset.drawn !== undefined")

    def scheme(self, scheme: str) -> None:
        """Changes between light and dark, as the reader's system does at dusk."""
        self._driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self._driver.execute_script(script, *arguments)

    def wait(self, script: str) -> None:
        """Waits until a script returns true."""
        WebDriverWait(self._driver, 60, 0.1).until(lambda driver: driver.execute_script(script))

    def console(self) -> list[str]:
        """Messages since the page was opened."""
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
