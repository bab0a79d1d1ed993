"""Staff at work in a browser: each act as the role that may, refused as the role that may not, once however often."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.staff_desk import PASSWORD, code, confirm, customer, hire, job_page, late_and_live, sign_in
from tests.stack import Stack
from tests.visitor import share

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(600)]
CLIP_MS = 120_000


@pytest.fixture(scope="module")
def evening() -> datetime:
    """Before the first clip of `carla`: what others made on the same platform was earlier."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def staffed(stack: Stack) -> Stack:
    hire(stack)
    return stack


@pytest.fixture(scope="module")
def clips(staffed: Stack, evening: datetime) -> Iterator[list[str]]:
    """Four clips of `carla`; after the module the books must be right."""
    yield customer(staffed, "carla", ["One", "Two", "Three", "Four"])
    assert " 0 discrepancies" in staffed.manage("audit_credits")


@pytest.fixture(scope="module")
def sessions() -> dict[str, Any]:
    """Who has signed in, by role: once is enough, and no code is taken twice."""
    return {}


@pytest.fixture
def at_work(
    new_page: Callable[..., Page], clips: list[str], sessions: dict[str, Any]
) -> Callable[[str], Page]:
    def come_in(role: str) -> Page:
        page = new_page(viewport={"width": 1440, "height": 1000}, storage_state=sessions.get(role))
        if role not in sessions:
            sign_in(page, f"the-{role}")
            sessions[role] = page.context.storage_state()
        return page

    return come_in


def act(page: Page, name: str) -> Locator:
    """The action of that name above a row or a list; before the name stands its icon."""
    return page.get_by_role("link", name=re.compile(rf"(^|\s){name}$"))


def message(page: Page, words: str | re.Pattern[str]) -> None:
    expect(page.get_by_text(words).first).to_be_visible()


def refused(page: Page, address: str) -> None:
    answer = page.request.get(address)
    assert answer.status == 403, address


def open_person(page: Page, name: str) -> None:
    page.goto(f"/admin/accounts/user/?q={name}@example.org")
    page.get_by_role("link", name=name, exact=True).first.click()
    expect(page.get_by_text("credits free").first).to_be_visible()
    page.goto(page.url.partition("?")[0])


def test_somebody_new_sees_nothing_before_they_have_a_second_step(new_page, staffed):
    page = new_page()
    sign_in(page, "the-newcomer", to="/")
    page.goto("/admin/accounts/user/")
    expect(page).to_have_url(re.compile("/accounts/2fa/$"))
    message(page, "Staff need two-step sign-in")
    page.goto("/accounts/2fa/totp/activate/")
    page.locator("[name=password]").fill(PASSWORD)
    page.locator("[name=password]").press("Enter")
    secret = page.locator("#authenticator_secret").input_value()
    page.locator("[name=code]").fill(code(secret))
    page.locator("[name=code]").press("Enter")
    page.wait_for_url(re.compile("recovery-codes"))
    page.goto("/admin/")
    message(page, "In the queue")


def test_finance_grants_once_however_often_the_button_is_pressed(at_work):
    page = at_work("finance")
    open_person(page, "carla")
    person = page.url
    before = int(re.search(r"(\d+) credits free", page.content())[1])
    act(page, "Grant credits").click()
    confirm(page, "Grant credits", amount="40", reason="Contest", twice=True)
    page.wait_for_url(person)
    message(page, f"{before + 40} credits free")
    act(page, "Adjust balance").click()
    confirm(page, "Adjust balance", amount="-40", reason="Wrong person")
    message(page, f"{before} credits free")
    support = at_work("support")
    support.goto(person)
    message(support, f"{before} credits free")
    expect(act(support, "Grant credits")).to_have_count(0)
    refused(support, re.sub(r"(\d+)/change/.*", r"\1/grant-credits", person))


def test_two_of_the_staff_refund_one_clip_once(at_work, clips):
    support, owner = at_work("support"), at_work("owner")
    for page in (support, owner):
        job_page(page, clips[0])
        act(page, "Refund").click()
        message(page, "gets back the 50 credits")
    confirm(support, "Refund", reason="Blurry", twice=True)
    message(support, "refunded 50")
    confirm(owner, "Refund", reason="Blurry")
    message(owner, "The 50 credits of this video were refunded before.")
    job_page(owner, clips[0])
    expect(act(owner, "Refund")).to_have_count(0)


def test_an_operator_tests_drains_and_enables_a_node_and_support_does_not(at_work):
    page = at_work("operator")
    page.goto("/admin/")
    page.get_by_role("link", name="default", exact=True).click()
    node = page.url
    act(page, "Test").click()
    page.get_by_role("button", name="Test", exact=True).click()
    expect(page.get_by_text("✓ The clip arrives and plays")).to_be_visible(timeout=CLIP_MS)
    act(page, "Drain").click()
    confirm(page, "Drain", reason="New driver")
    message(page, "default is drained (New driver).")
    act(page, "Enable").click()
    confirm(page, "Enable", reason="Done")
    message(page, "default gets jobs (Done).")
    support = at_work("support")
    support.goto(node)
    expect(act(support, "Drain")).to_have_count(0)
    refused(support, re.sub(r"(\d+)/change/.*", r"\1/drain", node))


def test_an_operator_adds_a_node_moves_a_video_there_cancels_it_and_retries_another(at_work, stack):
    page, support = at_work("operator"), at_work("support")
    refused(support, "/admin/generation/gpunode/add/")
    page.goto("/admin/generation/gpunode/add/")
    page.get_by_label("Name").fill("second")
    page.get_by_label("Base url").fill(stack.node_url.replace("127.0.0.1", "localhost"))
    page.get_by_label("API key", exact=True).fill(stack.environment["VIDEO_API_KEY"])
    page.get_by_label("Reason").fill("More people come")
    page.get_by_role("button", name="Save", exact=True).click()
    message(page, "was added successfully")
    late, live = late_and_live(stack)
    job_page(page, live)
    expect(act(page, "Move to another node")).to_be_visible(timeout=CLIP_MS)
    act(page, "Move to another node").click()
    elsewhere = "default" if "is on second" in page.content() else "second"
    page.get_by_label("Node").select_option(label=elsewhere)
    confirm(page, "Move", reason="Slow")
    message(page, f"is on {elsewhere} now (Slow).")
    act(page, "Cancel").click()
    confirm(page, "Cancel", reason="Not wanted", twice=True)
    message(page, "250 credits were given back")
    job_page(page, late)
    act(page, "Retry").click()
    confirm(page, "Retry", reason="Our fault", twice=True)
    message(page, "is made again as video_")
    for action in ("move", "cancel", "retry"):
        refused(support, f"/admin/generation/generationjob/{late.removeprefix('video_')}/{action}")
    page.goto("/admin/generation/gpunode/?q=second")
    page.get_by_role("link", name="second", exact=True).click()
    act(page, "Drain").click()
    confirm(page, "Drain", reason="Enough for today")
    message(page, "second is drained")


def test_finance_exports_what_is_shown_and_changes_what_is_on_offer(at_work):
    page, operator = at_work("finance"), at_work("operator")
    page.goto("/admin/accounts/credittransaction/?kind__exact=capture")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export these to CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert {line.split(",")[3] for line in lines[1:]} == {"capture"}
    assert any("carla" in line for line in lines)
    for kind in ("generation/preset", "telegram_bot/creditpack"):
        page.goto(f"/admin/{kind}/")
        page.locator("#result_list tbody a[href*='/change/']").first.click()
        page.get_by_label("Position").fill("7")
        page.get_by_label("Reason").fill("A better order")
        page.get_by_role("button", name="Save and continue editing").click()
        message(page, re.compile(r"the-finance · .*position .* → 7 · A better order"))
        refused(operator, f"/admin/{kind}/add/")
    refused(operator, "/admin/accounts/credittransaction/export.csv")


def test_an_operator_keeps_rules_and_removes_what_was_reported(at_work, clips, new_page, stack):
    page = at_work("operator")
    page.goto("/admin/generation/blockedprompt/add/")
    page.get_by_label("Text").fill("dragon")
    page.get_by_label("Explanation").fill("No dragons here.")
    page.get_by_label("Reason").fill("The law")
    page.get_by_role("button", name="Save", exact=True).click()
    act(page, "Try a prompt").click()
    page.get_by_label("Prompt").fill("A DRAGON flies")
    page.get_by_role("button", name="Try", exact=True).click()
    message(page, "Blocked by")
    carla = new_page()
    sign_in(carla, "carla", to="/")
    carla.locator("textarea[name=prompt]").fill("A dragon")
    carla.get_by_role("button", name="Generate ·").click()
    message(carla, "No dragons here. No credits were deducted.")
    job_page(page, clips[1])
    act(page, "Remove the video").click()
    confirm(page, "Remove the video", reason="A real person")
    message(page, "Its owner is told.")
    carla.goto("/")
    message(carla, "Your video “Two” was removed: A real person")
    notice = carla.get_by_role("status").filter(has_text="was removed")
    notice.get_by_role("button", name="Close").click()
    expect(carla.get_by_text("was removed")).to_have_count(0)
    carla.goto(f"/videos/{clips[2]}/")
    carla.goto(share(carla) + "report/")
    carla.get_by_label("Something else").check()
    carla.get_by_role("button", name="Report").click()
    page.goto("/admin/generation/report/")
    page.locator("#result_list tbody a[href*='/change/']").first.click()
    act(page, "Dismiss").click()
    confirm(page, "Dismiss", reason="Nothing wrong with it")
    message(page, "are dismissed (Nothing wrong with it).")
    refused(at_work("finance"), "/admin/generation/blockedprompt/add/")
    refused(at_work("finance"), page.url.replace("/change/", "/dismiss"))


def test_the_bad_night_of_a_node_is_refunded_by_who_may(at_work, new_page, evening):
    page = at_work("finance")
    page.goto("/admin/generation/refundbatch/")
    act(page, "Refund a bad time of a node").click()
    page.get_by_label("Node").select_option(label="default")
    for end, moment in (("since", evening), ("until", datetime.now(UTC) + timedelta(minutes=1))):
        page.locator(f"[name={end}_0]").fill(f"{moment:%Y-%m-%d}")
        page.locator(f"[name={end}_1]").fill(f"{moment:%H:%M:%S}")
    page.get_by_role("button", name="Look").click()
    message(page, re.compile(r"3 videos of 1 p"))
    confirm(page, "Refund", reason="A bad night", twice=True)
    expect(page).to_have_url(re.compile(r"/refundbatch/$"))
    page.locator("#result_list tbody a").first.click()
    expect(page.get_by_text(re.compile(r"3 refunded, 0 waiting"))).to_be_visible(timeout=60_000)
    carla = new_page()
    sign_in(carla, "carla", to="/")
    message(carla, "We gave you back 150 credits for 3 videos: A bad night")


def test_an_operator_bans_and_an_owner_lifts_the_ban(at_work):
    page = at_work("operator")
    open_person(page, "carla")
    person = page.url
    act(page, "Limits").click()
    page.get_by_label("Videos in 24 hours").fill("5")
    confirm(page, "Set limits", reason="Trial")
    message(page, "The limits of carla are set (Trial).")
    act(page, "Ban").click()
    confirm(page, "Ban", reason="Spam")
    message(page, "carla is banned (Spam).")
    owner = at_work("owner")
    owner.goto(person)
    act(owner, "Lift the ban").click()
    confirm(owner, "Lift the ban", reason="A mistake")
    message(owner, "carla may sign in again (A mistake).")
    finance = at_work("finance")
    for action in ("ban", "limits"):
        refused(finance, re.sub(r"(\d+)/change/.*", rf"\1/{action}", person))
