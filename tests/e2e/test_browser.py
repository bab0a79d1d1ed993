"""A person with a real browser in front of the whole stack: what `make run` starts, with the tiny model on its node."""

import os
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from tests.stack import Stack

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
PASSWORD = "a long enough password"
CLIP_MS = 120_000  # the tiny model on a busy machine, and everything around it
COOLDOWN_SECONDS = 2

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(400)]
if not CHROMIUM.exists():
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"REQUIRE_BROWSER=1, but there is no Chromium at {CHROMIUM}", pytrace=False)
    pytest.skip(f"there is no Chromium at {CHROMIUM}", allow_module_level=True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    settings = {"VIDEO_COOLDOWN_SECONDS": str(COOLDOWN_SECONDS)}
    with Stack(tmp_path_factory.mktemp("browser"), settings) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*quiet, "--disable-component-update", "--disable-sync"]
        )
        yield browser
        browser.close()


# Writes down every value of the bar with the words beside it, and counts what the event stream brought.
WATCH = """() => {
    window.seen = [];
    window.pushed = 0;
    document.addEventListener("htmx:sseBeforeMessage", (event) => {
        if (event.target.matches(".card")) window.pushed += 1;
    });
    const look = () => {
        const bar = document.querySelector(".card.running progress");
        const words = document.querySelector(".card.running .status")?.textContent;
        if (bar && window.seen.at(-1)?.[0] !== bar.value) window.seen.push([bar.value, words]);
        requestAnimationFrame(look);
    };
    look();
}"""


def is_complaint(message: ConsoleMessage) -> bool:
    """Not the refusals that a test provokes, nor htmx's word on a stream that was cut."""
    provoked = ("status of 422", "net::ERR_FAILED", "[object Event]")
    return message.type == "error" and not any(words in message.text for words in provoked)


@pytest.fixture
def new_page(stack, chromium):
    """Pages in a context of their own, as of another person; what their consoles complain about fails the test."""
    contexts, complaints = [], []

    def make(**options):
        context = chromium.new_context(base_url=stack.url, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints


def sign_up(page: Page, name: str) -> None:
    page.goto("/accounts/signup/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign up").click()
    expect(page.locator("#balance")).to_have_text("500 credits")


def generate(page: Page, prompt: str, *, preset: str = "Quick"):
    """Submit, and the card that appears."""
    page.get_by_label("Prompt").fill(prompt)
    page.locator(".chip", has_text=preset).click()
    page.get_by_role("button", name="Generate ·").click()
    card = page.locator(".card", has_text=prompt)
    expect(card).to_be_visible()
    return card


def create_key(page: Page) -> str:
    page.goto("/api-keys/")
    page.get_by_label("What is it for?").fill("laptop")
    page.get_by_role("button", name="Create a key").click()
    return page.get_by_label("Your new API key").input_value()


def test_a_person_signs_up_watches_the_bar_plays_and_seeks(new_page):
    page = new_page(viewport={"width": 1440, "height": 900})
    sign_up(page, "watcher")
    page.evaluate(WATCH)
    generate(page, "A red ball bounces", preset="Standard")
    expect(page.locator("#balance")).to_have_text("250 credits")
    expect(page.get_by_label("Prompt")).to_have_value("")
    expect(page.locator(".card.completed")).to_be_visible(timeout=CLIP_MS)
    seen = page.evaluate("() => window.seen")
    assert len({bar for bar, _ in seen if 0 < bar < 50}) >= 3, "the bar moved while the clip was made"
    assert any(re.fullmatch(r"step \d+ of 50 · about \d+ (s|min) left", words) for _, words in seen), seen
    assert page.evaluate("() => window.pushed") >= 3, "the event stream moved it"
    expect(page.locator("#announcer")).to_have_text("Your video is ready.")

    page.locator(".card.completed .card-media").hover()
    expect(page.locator(".card-media video")).to_be_visible()
    page.locator(".card.completed .card-prompt").click()
    expect(page.locator(".receipt")).to_have_text(
        re.compile(r"Reserved\s*250 credits\s*Charged\s*250 credits")
    )
    player = page.locator("video")
    player.evaluate("async (video) => { await video.play(); }")
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.1")
    player.evaluate("(video) => { video.pause(); video.currentTime = video.duration / 2; }")
    page.wait_for_function("() => !document.querySelector('video').seeking")
    assert player.evaluate("(video) => Math.abs(video.currentTime - video.duration / 2)") < 0.1
    part = page.request.get(player.evaluate("(video) => video.currentSrc"), headers={"Range": "bytes=10-19"})
    assert (part.status, len(part.body())) == (206, 10)


def test_a_double_click_makes_one_clip_and_the_button_then_counts_down(new_page):
    page = new_page()
    sign_up(page, "doubleclicker")
    page.get_by_label("Prompt").fill("Twice")
    page.locator(".generate").dblclick()
    expect(page.locator(".generate")).to_have_text(re.compile(r"Generate in [12] s"))
    expect(page.locator(".generate")).to_be_disabled()
    expect(page.locator(".generate")).to_be_enabled(timeout=(COOLDOWN_SECONDS + 5) * 1000)
    page.reload()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("450 credits")


def test_a_clip_can_be_canceled_from_its_card(new_page):
    page = new_page()
    sign_up(page, "canceler")
    card = generate(page, "Never mind", preset="Standard")
    card.get_by_role("button", name="Cancel").click()
    expect(card.get_by_text("Canceled. No credits were deducted.")).to_be_visible()
    expect(page.locator("#balance")).to_have_text("500 credits")


def test_mistakes_are_told_in_place_and_nothing_typed_is_lost(new_page):
    page = new_page()
    sign_up(page, "mistaker")
    page.locator(".chip", has_text="Standard").click()
    expect(page.locator(".generate")).to_contain_text("Generate · 250 credits")
    prompt = page.get_by_label("Prompt")
    prompt.fill("🦊" * 201)
    expect(page.locator("#prompt-count")).to_have_text("201/200")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Seed").fill("12")
    prompt.press("Control+Enter")
    expect(page.get_by_role("alert")).to_have_text("Prompt too long. Maximum 200 characters.")
    expect(prompt).to_have_value("🦊" * 201)
    expect(page.get_by_label("Seed")).to_have_value("12")
    expect(page.locator(".generate")).to_contain_text("Generate · 250 credits")
    expect(page.locator(".card")).to_have_count(0)


def test_the_button_says_at_once_what_cannot_be_afforded(new_page):
    page = new_page()
    sign_up(page, "spender")
    generate(page, "The first half", preset="Standard")
    generate(page, "A fifth of the rest")
    page.locator(".chip", has_text="Standard").click()
    expect(page.locator("#submit-note")).to_have_text(
        "Not enough credits: this video costs 250 credits, you have 200."
    )
    expect(page.locator(".generate")).to_be_disabled()
    page.locator(".chip", has_text="Quick").click()
    expect(page.locator(".generate")).to_be_enabled(timeout=(COOLDOWN_SECONDS + 5) * 1000)
    expect(page.locator("#submit-note")).to_have_text("")


def test_a_sample_prompt_is_one_click_away_and_ctrl_enter_submits(new_page):
    page = new_page()
    sign_up(page, "sampler")
    sample = page.locator(".sample").first
    words = sample.inner_text()
    sample.click()
    expect(page.get_by_label("Prompt")).to_have_value(words)
    page.get_by_label("Prompt").press("Control+Enter")
    expect(page.locator(".card", has_text=words)).to_be_visible()
    expect(page.get_by_text("Nothing here yet")).to_have_count(0)


def test_without_the_event_stream_the_cards_are_asked_for(new_page):
    page = new_page()
    page.route("**/events", lambda route: route.abort())
    sign_up(page, "poller")
    card = generate(page, "By asking")
    expect(card).to_have_class("card completed", timeout=CLIP_MS)


def test_a_clip_ordered_by_the_api_appears_in_the_open_gallery(new_page, stack):
    page = new_page()
    sign_up(page, "programmer")
    key = create_key(page)
    with page.expect_response("**/events"):
        page.goto("/")
    answer = httpx.post(
        f"{stack.url}/v1/videos",
        headers={"Authorization": f"Bearer {key}"},
        json={"prompt": "From afar"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    expect(page.locator(".card", has_text="From afar")).to_be_visible()
    expect(page.locator("#balance")).to_have_text("450 credits")


def test_without_javascript_a_clip_is_ordered_and_watched(new_page):
    page = new_page(java_script_enabled=False)
    sign_up(page, "plain")
    page.get_by_label("Prompt").fill("Plain and simple")
    page.get_by_role("button", name="Generate").click()
    expect(page).to_have_url(re.compile(r"/videos/video_[0-9a-f]{32}/$"))
    expect(page.locator("video")).to_be_visible(timeout=CLIP_MS)
    page.get_by_role("link", name="All videos").click()
    expect(page.locator(".card.completed")).to_contain_text("Plain and simple")


def test_nothing_is_wider_than_a_small_phone(new_page):
    page = new_page(viewport={"width": 360, "height": 740})
    page.goto("/")
    widths = {"front": page.evaluate("() => document.documentElement.scrollWidth")}
    sign_up(page, "phone-with-quite-a-long-name")
    generate(page, "Donaudampfschifffahrtsgesellschaftskapitän " * 4)
    link = page.locator(".card-prompt").get_attribute("href")
    for path in ("/", link, "/credits/", "/api-keys/", "/accounts/password/change/", "/accounts/email/"):
        page.goto(path)
        widths[path] = page.evaluate("() => document.documentElement.scrollWidth")
    assert not {path: width for path, width in widths.items() if width != 360}
    page.goto("/")
    page.locator(".menu summary").click()
    expect(page.get_by_role("link", name="API keys")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_an_api_key_is_shown_once_and_copied(new_page, stack):
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    sign_up(page, "keymaker")
    key = create_key(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == key
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{stack.url}/v1/credits", headers=headers, timeout=30).json()["balance"] == 500
    page.reload()
    assert key not in page.content()


def test_the_first_load_is_under_100_kb_on_the_wire_and_kept_by_browsers(stack):
    def wire(path):
        with httpx.stream(
            "GET", f"{stack.url}{path}", headers={"Accept-Encoding": "gzip"}, timeout=30
        ) as answer:
            assert answer.status_code == 200, path
            return len(b"".join(answer.iter_raw())), answer.headers

    page = httpx.get(stack.url, timeout=30).text
    assets = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(assets) >= 5
    sizes = {path: wire(path) for path in assets}
    assert wire("/")[0] + sum(size for size, _ in sizes.values()) < 100_000
    assert all("immutable" in headers["Cache-Control"] for _, headers in sizes.values())


def test_pages_about_errors_have_their_looks_too(stack):
    answer = httpx.get(f"{stack.url}/nowhere/", timeout=30)
    assert answer.status_code == 404
    for path in re.findall(r'href="(/static/[^"]+)"', answer.text):
        assert httpx.get(f"{stack.url}{path}", timeout=30).status_code == 200, path
