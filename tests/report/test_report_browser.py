"""The page in a real browser: nothing fails, everything shows, nothing sticks out on a phone."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import wideangle.report as report

pytestmark = pytest.mark.browser

DRIVERS = [Path("/usr/bin/chromedriver"), Path("/usr/lib/chromium-browser/chromedriver")]
BROWSERS = [Path("/usr/bin/chromium"), Path("/usr/bin/chromium-browser"), Path("/usr/bin/google-chrome")]
SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def find(paths: list[Path]) -> str | None:
    return next((str(path) for path in paths if path.exists()), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver, binary = find(DRIVERS), find(BROWSERS)
    if driver is None or binary is None or importlib.util.find_spec("selenium") is None:
        if os.environ.get("CI"):
            pytest.fail("the browser test needs selenium, chromium and chromedriver")
        pytest.skip("no selenium, chromium or chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in [*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


@pytest.fixture
def show(browser, tmp_path, document):
    path = report.write(document, tmp_path / "report.html")

    def open_at(width: int, height: int, scheme: str = "light"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [feature]})
        browser.get(path.as_uri())
        return browser

    return open_at


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844), (320, 640)])
def test_all_figures_show_and_nothing_sticks_out(show, document, width, height):
    browser = show(width, height)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => f.querySelector('svg.plot, .empty'))"
        ".map(e => e.getBoundingClientRect()).map(b => [b.width, b.height, b.left, b.right])"
    )
    assert len(boxes) == sum(len(section.figures) for section in document.sections)
    for wide, high, left, right in boxes:
        assert wide > 200
        assert high > 50
        assert left >= 0
        assert right <= width
    for state in ("closed", "open"):
        if state == "open":
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, state


def test_text_in_the_figures_stays_inside_them_and_readable(show):
    browser = show(390, 844)
    texts = browser.execute_script(
        "return [...document.querySelectorAll('svg.plot text')].map(t => {"
        " const b = t.getBoundingClientRect(), f = t.closest('svg').getBoundingClientRect();"
        " const sides = [b.left - f.left, f.right - b.right, b.top - f.top, f.bottom - b.bottom];"
        " return [t.textContent, ...sides, b.height]; })"
    )
    assert len(texts) > 60
    for name, *inside, size in texts:
        assert min(inside) > -2, name
        assert size > 9, name


def test_details_open_on_a_click(show):
    browser = show(1200, 900)
    summary = browser.find_element("css selector", "figure details summary")
    table = browser.find_element("css selector", "figure details table")
    assert not table.is_displayed()
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
    summary.click()
    assert table.is_displayed()
    assert table.size["height"] > 20


def test_no_console_message_and_no_request(show):
    browser = show(1200, 900)
    browser.get_log("performance")
    browser.refresh()
    assert browser.get_log("browser") == []
    events = [entry["message"] for entry in browser.get_log("performance")]
    asked = [event for event in events if '"Network.requestWillBeSent"' in event and '"documentURL"' in event]
    assert all('"url":"file:' in event or '"url":"data:' in event for event in asked)


def test_dark_mode_changes_the_figures_too(show):
    def colours(scheme: str) -> list[str]:
        return show(1200, 900, scheme).execute_script(
            "const s = e => getComputedStyle(e); return [s(document.body).backgroundColor,"
            " s(document.querySelector('svg.plot text')).fill]"
        )

    light, dark = colours("light"), colours("dark")
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_print_opens_the_details_and_uses_the_light_colours(show):
    browser = show(1200, 900, "dark")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    heights = browser.execute_script(
        "return [...document.querySelectorAll('figure details')].map(d => d.getBoundingClientRect().height)"
    )
    assert min(heights) > 60
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert len(printed["data"]) > 10_000
