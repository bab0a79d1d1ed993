"""A first clip in a real browser: order, watch, play, share; on a desktop, on a phone, without JavaScript."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests import web
from tests.e2e.conftest import COOLDOWN_SECONDS, STANDARD_STEPS
from tests.visitor import CLIP_MS, PASSWORD, cancel_all, create_key, generate, sign_up, sign_up_by_hand

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(400)]

SCREENS = {
    "desktop": {"viewport": {"width": 1440, "height": 900}, "reduced_motion": "no-preference"},
    "phone": {
        "viewport": {"width": 360, "height": 740},
        "has_touch": True,
        "is_mobile": True,
        "reduced_motion": "no-preference",
    },
}

# Writes down every value of the bar with the words beside it and the title, and counts what the event stream brought.
WATCH = """() => {
    window.seen = [];
    window.pushed = 0;
    document.addEventListener("htmx:sseBeforeMessage", () => { window.pushed += 1; });
    const look = () => {
        const bar = document.querySelector(".card.running progress");
        const words = document.querySelector(".card.running .status")?.textContent;
        if (bar && window.seen.at(-1)?.[0] !== bar.value) window.seen.push([bar.value, words, document.title]);
        requestAnimationFrame(look);
    };
    look();
}"""


@pytest.mark.parametrize("screen", SCREENS)
def test_a_first_clip_is_ordered_watched_played_shared_and_taken_back(
    new_page: Callable[..., Page], screen: str
) -> None:
    page = new_page(**SCREENS[screen])
    sign_up_by_hand(page, f"first-{screen}")
    _watch_it_being_made(page)
    _play_it_in_the_gallery(page, by_touch=screen == "phone")
    page.locator(".card.completed .card-prompt").click()
    _read_the_receipt(page)
    _play_and_seek(page)
    _share_and_revoke(page, new_page(**SCREENS[screen]))


def _watch_it_being_made(page: Page) -> None:
    page.evaluate(WATCH)
    generate(page, "A red ball bounces", preset="Standard")
    expect(page.locator("#balance")).to_have_text("250 credits")
    expect(page.get_by_label("Prompt: what")).to_have_value("")
    expect(page.locator(".card.completed")).to_be_visible(timeout=CLIP_MS)
    seen = page.evaluate("() => window.seen")
    assert len({bar for bar, _, _ in seen if 0 < bar < STANDARD_STEPS}) >= 3, (
        "the bar moved while the clip was made"
    )
    words = rf"step \d+ of {STANDARD_STEPS} · about \d+ (s|min) left"
    assert any(re.fullmatch(words, status) for _, status, _ in seen), seen
    assert any(re.match(r"\d+ % · Your videos", title) for _, _, title in seen), seen
    assert page.evaluate("() => window.pushed") >= 3, "the event stream moved it"
    expect(page.locator("#announcer")).to_have_text("Your video is ready.")
    expect(page).to_have_title(re.compile("^Your videos"))
    expect(page.locator(".card.completed img")).to_have_js_property("complete", True)


def _play_it_in_the_gallery(page: Page, *, by_touch: bool) -> None:
    media = page.locator(".card.completed .card-media")
    if by_touch:
        media.tap()
    else:
        media.hover()
    expect(media.locator("video")).to_be_visible()
    page.wait_for_function("() => document.querySelector('.card-media.playing video')?.currentTime > 0")


def _read_the_receipt(page: Page) -> None:
    facts = re.sub(r"\s+", " ", page.locator(".facts").inner_text())
    words = rf"Preset Standard .*Steps {STANDARD_STEPS} .*Model CogVideoX-tiny-random Profile exact"
    assert re.search(words, facts), facts
    words = re.sub(r"\s+", " ", page.locator(".receipt").inner_text())
    assert re.search(r"Balance before 500 Reserved .*−250 250 Charged .*250 250", words), words


def _play_and_seek(page: Page) -> None:
    player = page.locator("#player")
    player.evaluate("async (video) => { await video.play(); }")
    page.wait_for_function("() => document.querySelector('#player').currentTime > 0.1")
    player.evaluate("(video) => { video.pause(); video.currentTime = video.duration / 2; }")
    page.wait_for_function("() => !document.querySelector('#player').seeking")
    assert player.evaluate("(video) => Math.abs(video.currentTime - video.duration / 2)") < 0.1
    source = player.evaluate("(video) => video.currentSrc")
    part = page.request.get(source, headers={"Range": "bytes=10-19"})
    assert (part.status, len(part.body())) == (206, 10)


def _share_and_revoke(page: Page, stranger: Page) -> None:
    # A person who doubts the first press presses again, and must not meet another button.
    where, button = page.url, page.locator("#share-form").bounding_box()
    page.get_by_role("button", name="Share").dblclick()
    address = page.get_by_label("Anybody with this link").input_value()
    assert page.locator("#share-form").bounding_box() == button
    assert page.url == where
    assert stranger.goto(address).status == 200
    expect(stranger.get_by_role("heading", name="A red ball bounces")).to_be_visible()
    expect(stranger.get_by_role("link", name="Sign in")).to_be_visible()
    stranger.locator("#player").evaluate("async (video) => { await video.play(); }")
    stranger.wait_for_function("() => document.querySelector('#player').currentTime > 0.1")
    assert stranger.evaluate("() => document.documentElement.scrollWidth") <= stranger.viewport_size["width"]
    page.get_by_role("button", name="Stop sharing").click()
    expect(page.get_by_role("button", name="Share")).to_be_visible()
    assert stranger.goto(address).status == 404
    assert stranger.request.get(f"{address}video.mp4").status == 404


def test_a_double_click_makes_one_clip_and_the_button_then_counts_down(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "doubleclicker")
    page.get_by_label("Prompt: what").fill("Twice")
    page.locator(".generate").dblclick()
    expect(page.locator(".generate")).to_have_text(re.compile(r"Generate in [12] s"))
    expect(page.locator(".generate")).to_be_disabled()
    expect(page.locator(".generate")).to_be_enabled(timeout=(COOLDOWN_SECONDS + 5) * 1000)
    expect(page.locator(".generate")).to_contain_text("Generate · 50 credits")
    page.reload()
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#balance")).to_have_text("450 credits")
    cancel_all(page)


def test_mistakes_are_told_in_place_and_nothing_typed_is_lost(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "mistaker")
    page.locator(".chip", has_text="Standard").click()
    expect(page.locator(".generate")).to_contain_text("Generate · 250 credits")
    prompt = page.get_by_label("Prompt: what")
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


def test_who_cannot_afford_it_is_told_before_and_shown_a_way_on(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "spender")
    generate(page, "The first half", preset="Standard")
    generate(page, "A fifth of the rest")
    # The bar that came while the cheapest was chosen serves the others, too: no newer one has to come.
    with page.expect_response("**/videos/ready/*"):
        page.evaluate('htmx.trigger(document.body, "wallet")')
    page.route("**/videos/ready/*", lambda route: route.abort())
    page.locator(".chip", has_text="Standard").click()
    note = page.locator("[data-note=short]")
    expect(note).to_contain_text("Not enough credits: this video costs 250 credits, you have 200.")
    expect(note.get_by_role("link", name="How to get credits")).to_have_attribute("href", "/credits/#more")
    expect(page.locator(".generate")).to_be_disabled()
    expect(page.locator(".generate")).to_be_hidden()
    expect(page.get_by_role("link", name="Get credits", exact=True)).to_have_attribute(
        "href", "/credits/#more"
    )
    note.get_by_role("button", name="Take Quick for 50 credits").click()
    expect(page.locator(".generate")).to_be_enabled(timeout=(COOLDOWN_SECONDS + 5) * 1000)
    expect(note).to_be_hidden()
    cancel_all(page)


def test_a_sample_prompt_is_one_click_away_and_ctrl_enter_submits(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "sampler")
    expect(page.locator(".sample")).to_have_count(3)
    sample = page.locator(".sample").first
    words = sample.inner_text()
    sample.click()
    expect(page.get_by_label("Prompt: what")).to_have_value(words)
    page.get_by_label("Prompt: what").press("Control+Enter")
    expect(page.locator(".card", has_text=words)).to_be_visible()
    expect(page.locator("#empty")).to_have_count(0)
    cancel_all(page)


def test_a_prompt_survives_reloads_and_the_sign_up_and_is_not_sent_again(
    new_page: Callable[..., Page],
) -> None:
    page = new_page()
    page.goto("/")
    page.get_by_label("Prompt: what").fill("Kept in the drawer")
    page.reload()
    expect(page.get_by_label("Prompt: what")).to_have_value("Kept in the drawer")
    page.get_by_role("button", name="Make this video").click()
    page.get_by_label("Username").fill("drafter")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign up").click()
    expect(page.locator(".card", has_text="Kept in the drawer")).to_be_visible()
    expect(page.locator("#balance")).to_have_text("450 credits")
    prompt = page.get_by_label("Prompt: what")
    expect(prompt).to_have_value("")
    prompt.fill("Half a thought")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Leave out").fill("rain")
    page.locator(".chip", has_text="Standard").click()
    page.reload()
    expect(prompt).to_have_value("Half a thought")
    expect(page.get_by_label("Leave out")).to_have_value("rain")
    expect(page.locator(".generate")).to_contain_text(
        "Generate · 250 credits", timeout=(COOLDOWN_SECONDS + 30) * 1000
    )
    page.locator(".generate").click()
    expect(page.locator(".card", has_text="Half a thought")).to_be_visible()
    page.reload()
    expect(prompt).to_have_value("")
    cancel_all(page)


# A button that makes way for another at its place, as Cancel does for Retry.
SWAPPED = """() => {
    const made = (id) => Object.assign(document.createElement("button"), { id, type: "button", textContent: "Press" });
    const [first, second] = ["first", "second"].map(made);
    window.pressed = [];
    for (const button of [first, second]) button.addEventListener("click", () => window.pressed.push(button.id));
    first.addEventListener("click", () => first.replaceWith(second));
    document.querySelector("#main").prepend(first);
}"""


def test_the_second_press_of_a_double_click_meets_no_other_button(new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.goto("/accounts/login/")
    page.evaluate(SWAPPED)
    page.locator("#first").dblclick()
    assert page.evaluate("() => window.pressed") == ["first"]
    page.locator("#second").press("Enter")
    assert page.evaluate("() => window.pressed") == ["first", "second"], "another press counts"


# A browser that lets the site notify, writes down what it is told, and lies behind other windows.
NOTIFIED = """
window.told = [];
window.Notification = class {
    static permission = "granted";
    static requestPermission = async () => "granted";
    constructor(title, options) { window.told.push(`${title} ${options.body}`); }
};
Object.defineProperty(document, "hidden", { get: () => location.pathname === "/" });
"""


def test_a_browser_tells_of_a_ready_clip_by_choice(new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.add_init_script(NOTIFIED)
    sign_up(page, "notified")
    generate(page, "Not chosen yet")
    expect(page.locator(".card.completed")).to_have_count(1, timeout=CLIP_MS)
    assert page.evaluate("() => window.told") == []
    page.goto("/account/")
    page.locator("[data-notify]").click()
    expect(page.locator("[data-notify]")).to_have_text("Switch off")
    page.goto("/")
    generate(page, "Tell me")
    page.wait_for_function("() => window.told.length", timeout=CLIP_MS)
    assert page.evaluate("() => window.told") == ["Your video is ready. Tell me"]


def test_without_javascript_a_clip_is_ordered_watched_found_and_shared(new_page: Callable[..., Page]) -> None:
    page = new_page(java_script_enabled=False)
    sign_up(page, "plain")
    page.get_by_label("Prompt: what").fill("Plain and simple")
    page.get_by_role("button", name="Generate").click()
    expect(page).to_have_url(re.compile(r"/videos/video_[0-9a-f]{32}/$"))
    expect(page.locator("video")).to_be_visible(timeout=CLIP_MS)
    page.get_by_role("button", name="Share").click()
    address = page.get_by_label("Anybody with this link").input_value()
    assert page.request.get(address).status == 200
    page.get_by_role("link", name="All videos").click()
    page.get_by_role("searchbox").fill("simple")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".card.completed")).to_contain_text("Plain and simple")
    page.get_by_role("link", name="Delete").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("The video was deleted.")).to_be_visible()
    expect(page.locator(".card")).to_have_count(0)


def test_nothing_is_wider_than_a_small_phone(new_page: Callable[..., Page]) -> None:
    page = new_page(**SCREENS["phone"])
    page.goto("/")
    widths = {"front": page.evaluate("() => document.documentElement.scrollWidth")}
    sign_up(page, "phone-with-quite-a-long-name")
    generate(page, "Donaudampfschifffahrtsgesellschaftskapitän " * 4)
    link = page.locator(".card-prompt").get_attribute("href")
    for path in ("/", link, f"{link}delete/", "/credits/", "/api-keys/", "/accounts/password/change/"):
        page.goto(path)
        widths[path] = page.evaluate("() => document.documentElement.scrollWidth")
    assert not {path: width for path, width in widths.items() if width != 360}
    page.goto("/")
    cancel_all(page)
    page.locator(".menu summary").click()
    expect(page.get_by_role("link", name="API keys")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_a_press_is_not_lost_while_the_button_is_renewed(new_page: Callable[..., Page]) -> None:
    page = new_page()
    sign_up(page, "slow-hand")
    more = page.locator(".more > summary")
    where = more.bounding_box()
    more.click()
    assert more.bounding_box() == where
    page.get_by_label("Prompt: what").fill("A slow hand")
    page.get_by_role("button", name="Generate ·").hover()
    page.mouse.down()
    page.evaluate("""() => new Promise((done) => {
        document.addEventListener("htmx:beforeSwap", ({ detail }) => {
            if (detail.target.id === "submit-bar") setTimeout(done);
        });
        htmx.trigger(document.body, "wallet");
    })""")
    page.mouse.up()
    expect(page.locator(".card", has_text="A slow hand")).to_be_visible()
    cancel_all(page)


def test_an_api_key_is_shown_once_and_copied(new_page: Callable[..., Page], stack) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    sign_up(page, "keymaker")
    key = create_key(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == key
    headers = {"Authorization": f"Bearer {key}"}
    assert web.get(f"{stack.url}/v1/credits", headers=headers, timeout=30).json()["balance"] == 500
    page.reload()
    assert key not in page.content()
    expect(page.get_by_role("button", name="Revoke")).to_have_count(1)


def test_pages_about_errors_have_their_looks_too(stack) -> None:
    answer = web.get(f"{stack.url}/nowhere/", timeout=30)
    assert answer.status_code == 404
    for path in re.findall(r'href="(/static/[^"]+)"', answer.text):
        assert web.get(f"{stack.url}{path}", timeout=30).status_code == 200, path
