"""Open pages that stay true: cancel, a web process that is restarted, a page that slept, a node that is down."""

import os
import re
import signal
import time
from collections.abc import Callable

import httpx
import psutil
import pytest
from playwright.sync_api import Page, expect

from tests import web
from tests.e2e.conftest import STANDARD_STEPS
from tests.stack import Stack
from tests.visitor import CLIP_MS, IN_THE_BOOKS, cancel_all, create_key, generate, order_by_api, sign_up

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(400)]

COUNT_STREAMS = """() => {
    window.opened = 0;
    document.addEventListener("htmx:sseOpen", () => { window.opened += 1; });
}"""
# As the event that a busy page reads in the same breath as the answer that brought the card.
CANCELED_AT_ONCE = """() => {
    const Plain = window.EventSource;
    let stream;
    window.EventSource = function (...about) { return (stream = new Plain(...about)); };
    new MutationObserver((_, observer) => {
        const card = document.querySelector(".card.queued, .card.running");
        if (!card) return;
        observer.disconnect();
        const next = card.cloneNode(true);
        next.className = "card canceled";
        next.dataset.state = "canceled";
        delete next.dataset.live;
        stream.dispatchEvent(new MessageEvent("card", { data: next.outerHTML }));
    }).observe(document, { subtree: true, childList: true });
}"""
SLOWLY_MS = 20
RIGHT_AGAIN = """() => {
    const [newest, older] = document.querySelectorAll(".card");
    return newest.textContent.includes("In the night") && older.textContent.includes("Before the night")
        && older.className === "card canceled" && document.querySelector("#balance").innerText === "450 credits";
}"""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def cancel_by_api(stack: Stack, key: str, video: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    answer = web.post(f"{stack.url}/v1/videos/{video}/cancel", headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def test_a_clip_is_canceled_in_the_middle_and_says_where_it_stopped(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "canceler")
    card = generate(page, "Never mind", preset="Standard")
    page.wait_for_function(
        "() => document.querySelector('.card.running progress')?.value > 2", timeout=CLIP_MS
    )
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_class("card canceled")
    expect(card).to_contain_text("Canceled. No credits were deducted.")
    expect(card).to_contain_text(re.compile(rf"It stopped at step \d+ of {STANDARD_STEPS}\."), timeout=30_000)
    expect(card).to_contain_text("250 credits released")
    expect(page.locator("#balance")).to_have_text("500 credits")
    card.get_by_role("link", name="Delete").click()
    question = page.get_by_role("dialog")
    expect(question).to_contain_text("Never mind")
    expect(question.get_by_role("link", name="Keep it")).to_be_focused()
    question.get_by_role("link", name="Keep it").click()
    expect(question).to_be_hidden()
    card.get_by_role("link", name="Delete").click()
    question.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("The video was deleted.")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)


def test_a_change_that_comes_together_with_the_card_is_seen(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "hasty")
    page.add_init_script(f"({CANCELED_AT_ONCE})()")
    page.goto("/")
    page.get_by_label("Prompt: what").fill("Over before it began")
    page.get_by_role("button", name="Generate ·").click()
    expect(page.locator(".card")).to_have_class("card canceled")
    page = page.context.new_page()
    page.goto("/")
    cancel_all(page)


def test_an_open_page_goes_on_when_the_web_process_was_restarted(
    new_page: Callable[..., Page], stack: Stack
) -> None:
    page = new_page()
    sign_up(page, "restarter")
    key = create_key(page)
    with page.expect_response("**/events"):
        page.goto("/")
    page.evaluate(COUNT_STREAMS)
    before = _pid_of_web(stack)
    order_by_api(stack.url, key, "Before the fall")
    expect(page.locator(".card", has_text="Before the fall")).to_be_visible()
    os.kill(before, signal.SIGKILL)
    wait_until(
        lambda: _pid_of_web(stack) not in (before, None) and _answers(stack), "the web process came back"
    )
    page.wait_for_function("() => window.opened >= 1", timeout=60_000)
    order_by_api(stack.url, key, "After the fall")
    expect(page.locator(".card", has_text="After the fall")).to_be_visible()
    for prompt in ("Before the fall", "After the fall"):
        expect(page.locator(".card", has_text=prompt)).to_have_class("card completed", timeout=CLIP_MS)
    expect(page.locator("#balance")).to_have_text("400 credits")


def _pid_of_web(stack: Stack) -> int | None:
    """None while it is down, a zombie's remains included."""
    try:
        return stack.pid_of("web")
    except (LookupError, psutil.Error):
        return None


def _answers(stack: Stack) -> bool:
    try:
        return web.get(f"{stack.url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_page_that_slept_is_right_within_two_seconds(new_page: Callable[..., Page], stack: Stack) -> None:
    """Without the event stream, which would have missed the hour: what ended, what came, and the balance.

    By the page's own clock, which is played slowly: how busy the machine is says nothing about the page.
    """
    page = new_page()
    page.route("**/events", lambda route: route.abort())
    page.clock.install()
    sign_up(page, "sleeper")
    key = create_key(page)
    first = order_by_api(stack.url, key, "Before the night", preset="standard")
    page.goto("/")
    expect(page.locator(".card", has_text="Before the night")).to_be_visible()
    page.clock.pause_at(page.evaluate("() => Date.now() / 1000 + 1"))
    cancel_by_api(stack, key, first)
    order_by_api(stack.url, key, "In the night")
    page.clock.fast_forward("01:00:00")
    for _ in range(2000 // SLOWLY_MS):
        page.clock.run_for(SLOWLY_MS)
        time.sleep(0.1)  # what was asked for arrives
        if page.evaluate(RIGHT_AGAIN):
            break
    else:
        pytest.fail("it was not right within two seconds")
    page.clock.resume()
    expect(page.locator(".card", has_text="In the night")).to_have_class("card completed", timeout=CLIP_MS)


def test_while_the_node_is_down_the_page_says_so_and_the_clip_waits(
    new_page: Callable[..., Page], stack: Stack
) -> None:
    page = new_page()
    sign_up(page, "waiter")
    processes = _processes_of_node(stack)
    for process in processes:
        process.suspend()
    try:
        note = "No GPU is ready just now: your video will wait in line."
        wait_until(lambda: note in page.request.get("/").text(), "the node was noticed to be down")
        page.reload()
        expect(page.locator("#submit-note")).to_contain_text(note)
        expect(page.locator(".chip", has_text="Quick")).to_contain_text("no GPU is ready")
        card = generate(page, "Patience")
        expect(card).to_contain_text("1st in line")
        expect(card).to_contain_text("no GPU is ready just now")
        expect(page.locator("#balance")).to_have_text("450 credits")
    finally:
        for process in processes:
            process.resume()
    expect(page.locator(".chip", has_text="Quick")).to_contain_text("wait", timeout=CLIP_MS)
    expect(card).to_have_class("card completed", timeout=CLIP_MS)


def _processes_of_node(stack: Stack) -> list[psutil.Process]:
    leader = psutil.Process(stack.pid_of("gpu_node"))
    return [leader, *leader.children(recursive=True)]


def test_a_gallery_goes_on_while_scrolling_and_finds_what_is_looked_for(
    new_page: Callable[..., Page], stack: Stack
) -> None:
    page = new_page(viewport={"width": 1440, "height": 900})
    sign_up(page, "collector")
    generate(page, "The newest of them")
    _add_wishes(stack, "collector", 60)
    page.goto("/")
    assert page.locator(".card").count() == 24
    for shown in (48, 61):
        page.mouse.wheel(0, 20_000)
        expect(page.locator(".card")).to_have_count(shown)
    _goes_away_and_comes_back(page)
    page.keyboard.press("Home")
    page.get_by_role("searchbox").fill("number 42")
    expect(page.locator(".card")).to_have_count(1)
    expect(page).to_have_url(re.compile(r"\?q=number\+42$"))
    page.reload()
    expect(page.locator(".card-prompt")).to_have_text("An old prompt, number 42")
    page.get_by_label("State").select_option("ready")
    expect(page.get_by_text("No video is like that.")).to_be_visible()
    page.get_by_role("link", name="Show all videos").click()
    expect(page.locator(".card")).to_have_count(24)
    card = page.locator(".card", has_text="number 59")
    card.get_by_role("button", name="Retry").click()
    expect(page.locator(".card").first).to_contain_text("number 59")
    expect(page.locator(".card").first).to_have_attribute("data-state", re.compile("queued|running"))
    cancel_all(page)


def _goes_away_and_comes_back(page: Page) -> None:
    """A look at one clip far down, and back to the place where its card was."""
    card = page.locator(".card", has_text="number 20")
    for way_back in (page.go_back, page.get_by_role("link", name="All videos").click):
        card.scroll_into_view_if_needed()
        card.locator(".card-prompt").click()
        expect(page.get_by_role("heading", name="number 20")).to_be_visible()
        way_back()
        expect(page.locator(".card")).to_have_count(61)
        expect(card).to_be_in_viewport()


def _add_wishes(stack: Stack, name: str, count: int) -> None:
    """Clips that failed and cost nothing, as rows alone; the last is the newest of them."""
    stack.manage(
        "shell",
        "-c",
        f"{IN_THE_BOOKS}import uuid, datetime\n"
        "from generation.models import GenerationJob as J\n"
        f"job = J.objects.get(user__username={name!r})\n"
        "began = job.created_at\n"
        f"for n in range({count}):\n"
        "    job.pk, job.idempotency_key, job.current_attempt = uuid.uuid4(), None, None\n"
        "    job.state, job.finished_at, job.error_message, job.cost = 'failed', began, 'It broke.', 0\n"
        "    job.prompt = f'An old prompt, number {n}'\n"
        "    job.save(force_insert=True)\n"
        "    book(job)\n"
        f"    older = began - datetime.timedelta(hours={count} - n)\n"
        "    J.objects.filter(pk=job.pk).update(created_at=older)\n",
    )
