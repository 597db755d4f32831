"""The live page in a real browser, of a real run on a real stream."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium, complaints
from tests.runtime.commands.test_cli_live import events_in, lines_of, live, running, wait_for
from tests.runtime.servers import MjpegServer, mjpeg_server

for needed in ("hnswlib", "onnx", "onnxruntime", "starlette", "uvicorn", "selenium"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")


# In place of the clock that ends a request after ten seconds.
END_REQUESTS_BY_HAND = """
    const controllers = [];
    AbortSignal.timeout = () => {
        controllers.push(new AbortController());
        return controllers.at(-1).signal;
    };
    window.endRequests = () => controllers.forEach((controller) => controller.abort());
"""


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    with mjpeg_server("--fps", 20, "--size", "320x240") as running_server:
        yield running_server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with chromium(tmp_path) as driver:
        yield driver


class Page:
    """What a person does with it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def part(self, identity: str) -> Any:
        return self.driver.find_element("id", identity)

    def text(self, identity: str) -> str:
        return str(self.part(identity).text)

    def try_threshold(self, value: object) -> None:
        self.part("trial-value").clear()
        self.part("trial-value").send_keys(str(value))


def frames(path: Path) -> list[dict[str, Any]]:
    return [record for record in lines_of(path) if "frame" in record]


def test_a_run_is_watched_and_its_threshold_changed(
    tiny_bundle: Path, tmp_path: Path, server: MjpegServer, browser: Any
) -> None:
    path = tmp_path / "r.jsonl"
    command = live(tiny_bundle, server.url, "--output", path, "--serve", 0, "--threshold", 0.001)
    with running(command) as process:
        assert process.stderr is not None
        address = None
        while address is None:
            address = re.search(r"live page at (http://\S+)", process.stderr.readline())
        browser.get(address[1])
        page = Page(browser)

        wait_for(lambda: page.text("verdict-word").lower() == "anomalous")
        wait_for(lambda: page.part("frame").get_property("naturalWidth") == 320)
        wait_for(lambda: page.driver.find_elements("css selector", "#gallery img"))
        assert len(page.driver.find_elements("css selector", "#stages tr")) == 8
        assert page.driver.find_element("css selector", "#chart .scores").get_attribute("d").count("L") > 3
        assert "token" not in browser.current_url

        page.try_threshold(1000)
        wait_for(lambda: "with 1000 it would have been 0" in page.text("trial-outcome"))
        count = len(frames(path))
        wait_for(lambda: len(frames(path)) > count + 5)
        assert {record["threshold"] for record in frames(path)} == {0.001}, "trying changes nothing"
        assert "threshold_changed" not in events_in(path)

        page.part("trial-apply").click()
        page.driver.switch_to.alert.accept()  # 1000 is far from the bundle's
        wait_for(lambda: page.text("verdict-word").lower() == "normal")
        wait_for(lambda: frames(path)[-1]["threshold"] == 1000)
        assert "threshold_changed" in events_in(path)
        wait_for(lambda: "threshold changed" in page.text("events"))

        # Back to the bundle's own, and a comma is a point.
        page.part("trial-bundle").click()
        wait_for(lambda: page.part("trial-apply").is_enabled())
        page.try_threshold("2,5")
        wait_for(lambda: "with 2.5 it would" in page.text("trial-outcome"))
        page.try_threshold("-3")
        wait_for(lambda: "-3 is no threshold" in page.text("trial-outcome"))
        assert not page.part("trial-apply").is_enabled()

        server.kill()
        wait_for(lambda: page.text("verdict-word").lower() == "no current verdict")
        assert "lost" in page.text("facts") and "lost" in page.text("verdict-score")
        assert complaints(browser) == []
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: "cannot be reached" in page.text("link"))
        assert page.text("verdict-word").lower() == "no current verdict"


def test_without_the_token_nothing_is_applied(
    tiny_bundle: Path, tmp_path: Path, server: MjpegServer, browser: Any
) -> None:
    path = tmp_path / "r.jsonl"
    with running(live(tiny_bundle, server.url, "--output", path, "--serve", 0)) as process:
        assert process.stderr is not None
        address = None
        while address is None:
            address = re.search(r"live page at (http://\S+)#token", process.stderr.readline())
        browser.get(address[1])
        page = Page(browser)
        wait_for(lambda: page.text("verdict-word").lower() in ("normal", "anomalous"))
        page.driver.execute_script(END_REQUESTS_BY_HAND)
        page.try_threshold(1000)
        page.part("trial-apply").click()
        page.driver.switch_to.alert.accept()
        wait_for(lambda: page.part("login").is_displayed())
        assert not page.part("login-wrong").is_displayed()
        page.part("token").send_keys("not-the-token-of-this-run")
        page.driver.find_element("css selector", "#login .main").click()
        wait_for(lambda: page.part("login-wrong").is_displayed())
        page.driver.execute_script("endRequests();")  # as after ten seconds before the dialog
        page.driver.find_element("css selector", "#login button[value=cancel]").click()
        wait_for(lambda: "Not applied: the token is missing or wrong" in page.text("trial-outcome"))
        assert "threshold_changed" not in events_in(path)
