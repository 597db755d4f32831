"""A real browser without a window: Debian's Chromium."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def chromium(folder: Path, *, width: int = 1400, height: int = 1000) -> Iterator[Any]:
    """A driver of a new browser; the test is left out where none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-first-run",
    ]
    for argument in (*arguments, f"--window-size={width},{height}", f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(
        options, webdriver.ChromeService(driver, env={**os.environ, "HOME": str(folder)})
    )
    running.set_page_load_timeout(30)
    try:
        yield running
    finally:
        running.quit()


def complaints(driver: Any) -> list[str]:
    """What the browser found wrong since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
