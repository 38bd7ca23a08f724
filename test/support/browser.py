"""A real browser for tests: headless Chromium, or the reason why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
MISSING = " and ".join(
    name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if found is None
)

needs_browser = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no browser: {MISSING} not found (Debian: apt-get install chromium chromium-driver)",
)

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)


@contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """Yield a selenium driver with a fresh profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={profile}", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, address: str, *, width: int = 1200, height: int = 900, dark: bool = False):
    """Open a page in a window of a size, in a colour scheme, and wait until its script is done."""
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(address)
    WebDriverWait(driver, 30).until(
        lambda d: d.execute_script("return document.readyState") == "complete"
    )


def wait_for(driver: Any, script: str, seconds: float = 30) -> Any:
    """Return the value of a script as soon as it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, seconds).until(lambda d: d.execute_script(f"return {script}"))


def picture_of(element: Any) -> np.ndarray:
    """Return the pixels (H, W, 3) of an element as they are on the screen."""
    driver = element.parent
    driver.execute_script("arguments[0].scrollIntoView({block: 'start'})", element)
    # What was drawn for the last event is on the screen after two frames.
    driver.execute_async_script(
        "const done = arguments[0];"
        "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0)))"
    )
    return np.asarray(Image.open(BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of pixels that differ between two pictures."""
    assert first.shape == second.shape
    return float((np.abs(first - second).max(axis=-1) > 24).mean())
