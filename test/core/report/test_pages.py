"""Reports in a real browser: the cloud turns, switches switch, nothing is loaded from elsewhere."""

from __future__ import annotations

import pytest
from support.browser import difference, needs_browser, open_browser, picture_of, show, wait_for
from support.plain_parameters import PLAIN
from support.recordings import (
    HEIGHT,
    INTRINSICS,
    WIDTH,
    M,
    RoomNetwork,
    header,
    ray_cast,
    room_entries,
    stamp_of,
    world_from_camera,
    write_recording,
)
from support.replays import replay

from qvggt_core.report import write_comparison
from qvggt_core.results.result import Result
from qvggt_ros.drivers.replay import Watcher

pytestmark = needs_browser

FRAMES = 12
CANVAS = "document.querySelector('#cloud')"


def depth_message(index):
    _, depth = ray_cast(world_from_camera(index), INTRINSICS, WIDTH, HEIGHT)
    return M.Image(
        header=header(index),
        height=HEIGHT,
        width=WIDTH,
        encoding="32FC1",
        is_bigendian=0,
        step=4 * WIDTH,
        data=depth.reshape(-1).view("uint8"),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run with everything that a report can show, and one without a truth."""
    folder = tmp_path_factory.mktemp("pages")
    entries = room_entries(FRAMES)
    entries += [("/depth", "Image", stamp_of(i), depth_message(i)) for i in range(FRAMES)]
    full = write_recording(folder / "in" / "full", entries)
    bare = write_recording(
        folder / "in" / "bare", [e for e in room_entries(4) if "truth" not in e[0]]
    )
    for bag in (full, bare):
        replay(bag, folder / bag.name, RoomNetwork(), PLAIN)
    results = {folder / name: Result.read(folder / name) for name in ("full", "bare")}
    write_comparison(folder / "compare.html", results)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def report(driver, results):
    show(driver, (results / "full" / "report.html").as_uri())
    wait_for(driver, f"{CANVAS}.dataset.ready")
    return driver


def find(driver, selector):
    return driver.find_element("css selector", selector)


def turned(driver):
    return float(find(driver, "#cloud").get_attribute("data-azimuth"))


def drag(driver, element, dx, dy):
    from selenium.webdriver import ActionChains

    ActionChains(driver).click_and_hold(element).move_by_offset(dx, dy).release().perform()


def test_the_cloud_is_drawn_and_turns_under_the_hand(report):
    canvas = find(report, "#cloud")
    before = picture_of(canvas)
    # Walls, floor, the orange path: colours, not only a background.
    assert colourful(canvas) > 0.02
    azimuth = turned(report)
    drag(report, canvas, 180, 30)
    assert turned(report) == pytest.approx(azimuth - 180 * 0.006, abs=0.02)
    assert difference(before, picture_of(canvas)) > 0.05
    find(report, "#reset").click()
    wait_for(report, f"Math.abs({CANVAS}.dataset.azimuth - {azimuth}) < 1e-3")


def test_keys_move_it_too(report):
    from selenium.webdriver.common.keys import Keys

    canvas = find(report, "#cloud")
    azimuth = turned(report)
    distance = float(canvas.get_attribute("data-distance"))
    canvas.send_keys(Keys.ARROW_LEFT)
    wait_for(report, f"{CANVAS}.dataset.azimuth < {azimuth - 0.05}")
    canvas.send_keys("+")
    wait_for(report, f"{CANVAS}.dataset.distance < {0.95 * distance}")


def test_it_turns_by_itself_until_it_is_touched(report):
    azimuth = turned(report)
    find(report, "#spin").click()
    wait_for(report, f"{CANVAS}.dataset.azimuth > {azimuth + 0.01}")
    drag(report, find(report, "#cloud"), 5, 0)
    assert find(report, "#spin").get_attribute("aria-pressed") == "false"


def test_what_is_shown_can_be_switched(report):
    canvas = find(report, "#cloud")
    # Here the truth lies under the path, so it comes last, when nothing covers it.
    for what in ("cloud", "cameras", "path", "truth"):
        chip = find(report, f"[data-show={what}]")
        before = picture_of(canvas)
        chip.click()
        assert chip.get_attribute("aria-pressed") == "false"
        assert (abs(before - picture_of(canvas)).max(axis=-1) > 8).mean() > 1e-4, what


def test_tabs_and_legends_of_charts(report):
    height = find(report, "#p-z")
    assert not height.is_displayed()
    find(report, "#t-z").click()
    assert height.is_displayed()
    assert not find(report, "#p-x").is_displayed()
    assert wait_for(report, "document.querySelector('#p-z svg path') !== null")
    (truth, _) = height.find_elements("css selector", "button.key")
    lines = len(height.find_elements("css selector", "svg > path"))
    truth.click()
    assert len(height.find_elements("css selector", "svg > path")) == lines - 1


def test_a_value_under_the_pointer_is_shown(report):
    from selenium.webdriver import ActionChains

    chart = find(report, "[data-chart=error] svg")
    ActionChains(report).scroll_to_element(chart).move_to_element(chart).perform()
    assert "position error" in find(report, "[data-chart=error] .tip").text


def test_light_and_dark_follow_the_system_and_the_button(driver, results):
    def background():
        return driver.execute_script("return getComputedStyle(document.body).backgroundColor")

    address = (results / "full" / "report.html").as_uri()
    show(driver, address, dark=True)
    dark = background()
    find(driver, "#theme").click()
    light = background()
    show(driver, address)
    assert background() == light != dark


def test_nothing_is_loaded_and_nothing_fails(driver, results):
    driver.get_log("browser")
    for page in ("full/report.html", "bare/report.html", "compare.html"):
        show(driver, (results / page).as_uri())
        wait_for(driver, "document.documentElement.dataset.ready")
        loaded = driver.execute_script(
            "return performance.getEntriesByType('resource').map(e => e.name)"
        )
        assert [name for name in loaded if not name.startswith("data:")] == []
        assert [entry["message"] for entry in driver.get_log("browser")] == []


def test_a_phone_shows_it_without_scrolling_sideways(driver, results):
    for page in ("full/report.html", "bare/report.html", "compare.html"):
        show(driver, (results / page).as_uri(), width=360, height=740)
        assert wait_for(driver, "document.documentElement.scrollWidth") <= 360, page


def test_everything_has_a_name_for_those_who_do_not_see_it(report):
    for image in report.find_elements("css selector", "img"):
        assert image.get_attribute("alt")
    for control in report.find_elements("css selector", "button, select, input, [role=tab]"):
        assert control.accessible_name or not control.is_displayed(), control.get_attribute(
            "outerHTML"
        )
    for chart in report.find_elements("css selector", "svg"):
        assert chart.get_attribute("aria-label")


def test_depth_is_beside_its_truth(report):
    names = {
        image.get_attribute("alt").split(" at ")[0]
        for image in report.find_elements("css selector", ".frames img")
    }
    assert {"image", "depth", "true depth", "error", "confidence"} == names
    assert report.execute_script(
        "return [...document.images].every(i => i.id || i.closest('.viewer') || i.naturalWidth > 0)"
    )


def test_a_click_on_a_heading_sorts_the_runs(driver, results):
    show(driver, (results / "compare.html").as_uri())

    def first():
        return find(driver, "tbody tr td").text

    frames = driver.find_elements("css selector", "th button")[1]
    frames.click()
    assert first() == "bare"
    frames.click()
    assert first() == "full"
    assert find(driver, "tbody a").get_attribute("href").endswith("full/report.html")


# The live view


def test_a_reconstruction_is_shown_while_it_grows_on_loopback(driver, results, tmp_path):
    pytest.importorskip("viser", reason="viser is not installed: pip install 'qvggt_ros[viz]'")
    from qvggt_ros.viewer import LiveView

    bag = write_recording(tmp_path / "in", room_entries(FRAMES))
    seen = []
    with LiveView(18_090) as live:
        assert live.address.startswith("http://127.0.0.1:")
        show(driver, live.address)
        wait_for(driver, "document.body.innerText.includes('waiting for the first window')")

        def watch(reconstruction, built):
            live.add(reconstruction, built)
            if reconstruction.frames:
                seen.append(len(reconstruction.frames))
                wait_for(driver, f"document.body.innerText.includes('{sum(seen)} frames')")

        replay(
            bag,
            tmp_path / "out",
            RoomNetwork(),
            PLAIN,
            report=False,
            watcher=Watcher(grown=watch),
        )
        assert len(seen) > 1
        assert sum(seen) == FRAMES
        # Walls and floor in colour, the image and its depth beside them.
        canvas = find(driver, "canvas")
        wait_until(lambda: colourful(canvas) > 0.02)
        wait_until(lambda: len(driver.find_elements("css selector", "img")) >= 2)


@pytest.mark.slow
def test_a_result_is_shown_live(driver, results):
    pytest.importorskip("viser", reason="viser is not installed: pip install 'qvggt_ros[viz]'")
    from qvggt_ros.viewer import LiveView

    with LiveView(18_080) as live:
        live.show_result(results / "full")
        show(driver, live.address)
        wait_for(driver, "document.body.innerText.includes('12 frames')")
        wait_until(lambda: colourful(find(driver, "canvas")) > 0.02)
        wait_until(lambda: len(driver.find_elements("css selector", "img")) >= 2)


def colourful(canvas):
    """Return the share of pixels that are neither grey nor nearly so."""
    pixels = picture_of(canvas)
    return (pixels.max(axis=-1) - pixels.min(axis=-1) > 60).mean()


def wait_until(condition, seconds=30):
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
