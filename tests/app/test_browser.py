"""The page in a real browser (headless Chromium, Debian's), as somebody new would use it.

Every test also asserts that the console has no error and that no request leaves this machine.
Screenshots and figures stay in ``build/screenshots``.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

pytestmark = pytest.mark.slow
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # ms
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.fail("browser: expected chromium, found none; apt-get install chromium")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(app: Any, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page as a new visitor; ``allowed`` errors are those that a test provokes."""
    contexts, errors, requests = [], [], []
    allowed: list[str] = []

    def listen(page: Page) -> None:
        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                errors.append(message.text)

        def on_request(request: Request) -> None:
            requests.append(request.url)

        page.on("console", on_console)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", on_request)

    def open_page(allow: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        allowed.extend([allow] if allow else [])
        page = context.new_page()
        listen(page)
        page.goto(app.url)
        ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    unexpected = [e for e in errors if not any(re.search(a, e) for a in allowed)]
    assert unexpected == []
    local = ("data", "blob")
    elsewhere = [
        u for u in requests
        if urlsplit(u).scheme not in local and urlsplit(u).netloc != urlsplit(app.url).netloc
    ]  # fmt: skip
    assert requests and elsewhere == []
    assert app.outbound() == []


def ready(page: Page) -> None:
    """Wait until the visitor's state is on the page."""
    expect(page.locator("#model-ready")).to_contain_text("loaded and ready")


def tab(page: Page, name: str) -> None:
    """Go to a tab, which a narrow page keeps behind a button."""
    there = page.get_by_role("tab", name=name)
    if not there.first.is_visible():
        page.locator(".overflow-menu button").first.click()
        page.get_by_role("button", name=name).last.click()
        return
    there.first.click()


def shot(page: Page, name: str) -> None:
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def shown_return(page: Page, side: str) -> float:
    return float(page.locator(f"[data-return={side}]").inner_text())


def press_adapt(page: Page, presses: int = 1) -> float:
    """Press the button for the n-th time; seconds until the result is drawn."""
    started = time.monotonic()
    page.click("#adapt")
    page.wait_for_selector(f"#adapt-result [data-presses='{presses}']")
    return time.monotonic() - started


def slowdown(seconds: float = 1.0) -> float:
    """How many times as long as alone something takes here now: tests run beside one another."""
    started, worked = time.perf_counter(), time.process_time()
    while time.process_time() - worked < seconds:
        pass
    return (time.perf_counter() - started) / seconds


def test_somebody_new_breaks_the_plant_and_watches_it_adapt(visit: Callable[..., Page]) -> None:
    page = visit()
    shot(page, "0-model")
    page.click("#go-adapt")
    page.check("#disturb input")
    seconds = [press_adapt(page)]
    assert shown_return(page, "after") >= 475
    assert shown_return(page, "before") < 200
    expect(page.locator("[data-caption=before]")).to_contain_text("failed after")
    page.wait_for_function("Number(document.querySelector('.ssm-player').dataset.fps) > 0")
    frames = float(page.get_attribute(".ssm-player", "data-fps") or 0)
    shot(page, "2-adapted")
    for presses in (2, 3):
        seconds.append(press_adapt(page, presses))
    expect(page.locator("#adapt-result")).to_contain_text("60 environment steps")
    assert shown_return(page, "after") >= 475
    slow = slowdown()
    figures = {"click_to_result_seconds": seconds, "frames_per_second": frames, "slowdown": slow}
    (SHOTS / "figures.json").write_text(json.dumps(figures, indent=1))
    assert min(seconds) <= 2.0 * slow and frames * slow >= 30, figures


def test_the_live_plant_is_disturbed_and_recovers_or_fails(visit: Callable[..., Page]) -> None:
    page = visit()
    tab(page, "2. Test-Time Adaptation")
    log, state = page.locator("#live ol"), page.locator("#live [data-state]")
    page.click("#live [data-do=start]")
    expect(state).to_have_text("running, adapted")
    page.click("#live [data-do=disturb]")
    expect(log).to_contain_text("the plant was disturbed: flip")
    expect(log).to_contain_text("it noticed that the plant is another one")
    expect(state).to_have_text("running, adapted")
    page.wait_for_timeout(1500)
    assert "failed" not in log.inner_text()
    shot(page, "2-live")
    page.locator("#live-how").get_by_text("never adapt").click()
    page.click("#live [data-do=start]")
    expect(log).to_contain_text("never adapts")
    page.wait_for_timeout(1000)
    page.click("#live [data-do=disturb]")
    expect(log).to_contain_text("it failed")


def test_a_training_is_started_watched_cancelled_and_used(visit: Callable[..., Page]) -> None:
    page = visit()
    tab(page, "1. Meta-Training")
    page.fill("#train-steps input", "100000")
    page.click("#train")
    status = page.locator("#train-status")
    expect(status).to_contain_text("environment steps in")
    expect(page.locator("#train-curve svg polyline").first).to_be_visible()
    shot(page, "1-training")
    page.click("#train-cancel")
    expect(status).to_contain_text("Stopped (cancelled)")
    page.click("#train-use")
    tab(page, "0. Load Pre-trained Model")
    expect(page.locator("#model-ready")).to_contain_text("my training is loaded")
    page.reload()
    expect(page.locator("#model-ready")).to_contain_text("my training is loaded")


def test_a_pendulum_of_ones_own_is_adapted_to_and_disturbed(visit: Callable[..., Page]) -> None:
    page = visit()
    tab(page, "1. Meta-Training")
    page.locator("#train-family input").click()
    page.get_by_role("option", name="pendulum").click()
    page.fill("#train-steps input", "100000")
    page.click("#train")
    expect(page.locator("#train-status")).to_contain_text("environment steps in")
    page.click("#train-cancel")
    expect(page.locator("#train-status")).to_contain_text("Stopped (cancelled)")
    page.click("#train-use")
    tab(page, "2. Test-Time Adaptation")
    expect(page.locator("#plant-damping")).to_be_visible()
    expect(page.locator("#plant-force")).to_be_hidden()
    page.check("#disturb input")
    press_adapt(page)
    assert -3255.6 <= shown_return(page, "after") < 0
    expect(page.locator("#adapt-result")).to_contain_text("1.0 s of the plant")
    expect(page.locator("[data-caption=after]")).to_contain_text("ran for 10.0 s")
    page.click("#live [data-do=start]")
    expect(page.locator("#live [data-clock]")).to_have_text(re.compile("[2-9].. s"))
    page.click("#live [data-do=disturb]")
    expect(page.locator("#live ol")).to_contain_text("the plant was disturbed: flip")
    page.click("[data-do=restart]")
    page.wait_for_timeout(1000)
    shot(page, "2-pendulum")


def test_a_cycle_of_self_improvement(visit: Callable[..., Page]) -> None:
    page = visit()
    tab(page, "3. Recursive Self-Improvement")
    page.click("#improve")
    status, lineage = page.locator("#improve-status"), page.locator("#improve-lineage")
    expect(lineage).to_contain_text("generalization", timeout=2 * PATIENCE)
    expect(status).to_contain_text("Done.", timeout=3 * PATIENCE)
    for word in ("candidate", "control", "placebo", "stability", "Generations"):
        expect(lineage).to_contain_text(word)
    expect(page.locator("#improve-generations svg")).to_be_visible()
    shot(page, "3-improvement")
    page.get_by_role("tab", name="The daemon").click()
    expect(page.locator("#daemon-status")).to_contain_text("The daemon is not running")


def test_the_results_and_the_about_page(visit: Callable[..., Page]) -> None:
    page = visit()
    tab(page, "4. Compare")
    expect(page.locator("#result-plot svg")).to_be_visible()
    expect(page.locator("#result-command")).to_contain_text("bench adaptation")
    shot(page, "4-compare")
    tab(page, "About")
    expect(page.get_by_text("MIT licence")).to_be_visible()
    shot(page, "5-about")


def test_bad_input_is_told_beside_the_field_and_nothing_is_lost(
    visit: Callable[..., Page],
) -> None:
    page = visit(allow="422")
    tab(page, "1. Meta-Training")
    page.locator("#train-core").get_by_label("state space", exact=True).check()
    page.fill("#train-steps input", "5")
    page.click("#train")
    field = page.locator("#train-steps")
    expect(field).to_contain_text("expected 2,000 to 3,000,000, received 5")
    assert page.locator("#train-core input:checked").get_attribute("value") == "state_space"
    assert field.locator("input").input_value() == "5"
    expect(page.locator("#train-status")).to_contain_text("Nothing is training yet")


def test_a_reload_restores_and_another_visitor_sees_nothing_of_it(
    visit: Callable[..., Page],
) -> None:
    page = visit()
    page.click("#go-adapt")
    page.click("#surprise-ood")
    press_adapt(page)
    plant = page.locator("#adapt-result p").inner_text()
    page.reload()
    ready(page)
    tab(page, "2. Test-Time Adaptation")
    assert page.locator("#adapt-result p").inner_text() == plant
    stranger = visit()
    tab(stranger, "2. Test-Time Adaptation")
    expect(stranger.locator("#adapt-result")).to_contain_text("Press Adapt")


def test_it_works_by_keyboard_alone(visit: Callable[..., Page]) -> None:
    page = visit()
    page.focus("#go-adapt")
    page.keyboard.press("Enter")
    expect(page.locator("#disturb input")).to_be_visible()
    page.focus("#disturb input")
    page.keyboard.press("Space")
    for _ in range(4):  # to the next button, wherever the browser stops on the way
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "adapt":
            break
    assert page.evaluate("document.activeElement.id") == "adapt"
    page.keyboard.press("Enter")
    expect(page.locator("[data-return=after]")).to_be_visible()
    assert shown_return(page, "after") >= 475 > 200 > shown_return(page, "before")


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DARK = {"color_scheme": "dark", "reduced_motion": "reduce"}


@pytest.mark.parametrize(("name", "options"), [("phone", PHONE), ("dark", DARK)])
def test_it_works_on_a_phone_and_in_the_dark(
    visit: Callable[..., Page], name: str, options: dict[str, Any]
) -> None:
    page = visit(**options)
    shot(page, f"{name}-0-model")
    page.click("#go-adapt")
    page.check("#disturb input")
    press_adapt(page)
    shot(page, f"{name}-2-adapted")
    for each in ("1. Meta-Training", "3. Recursive Self-Improvement", "4. Compare", "About"):
        tab(page, each)
        page.wait_for_timeout(400)
        inner, wide = page.evaluate("[window.innerWidth, document.documentElement.scrollWidth]")
        assert wide <= inner, f"{each} scrolls sideways"
        shot(page, f"{name}-{each[0]}")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", background)[:3])) > 380
    assert bright == (name == "phone")


def test_reduced_motion_shows_the_end_and_moves_nothing(visit: Callable[..., Page]) -> None:
    page = visit(reduced_motion="reduce")
    page.click("#go-adapt")
    page.check("#disturb input")
    press_adapt(page)
    expect(page.locator("[data-caption=after]")).to_contain_text("ran for 10.0 s")
    expect(page.locator("[data-do=play]")).to_have_text("Replay")
    assert page.get_attribute(".ssm-player", "data-fps") is None
