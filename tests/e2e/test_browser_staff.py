"""Staff at work in a browser: each act as the role that may, refused as the role that may not, once however often."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.staff_desk import confirm, customer, hire, job_page, sign_in
from tests.stack import Stack

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(600)]
CLIP_MS = 120_000


@pytest.fixture(scope="module")
def evening() -> datetime:
    """Before the first clip of `carla`: what others made on the same platform was earlier."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def clips(stack: Stack, evening: datetime) -> Iterator[list[str]]:
    """Four clips of `carla`; after the module the books must be right."""
    hire(stack)
    yield customer(stack, "carla", ["One", "Two", "Three", "Four"])
    assert " 0 discrepancies" in stack.manage("audit_credits")


@pytest.fixture
def at_work(new_page: Callable[..., Page], clips: list[str]) -> Callable[[str], Page]:
    def come_in(role: str) -> Page:
        page = new_page(viewport={"width": 1440, "height": 1000})
        sign_in(page, f"the-{role}")
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


def test_an_operator_keeps_rules_and_removes_what_was_reported(at_work, clips, new_page, stack):
    page = at_work("operator")
    page.goto("/admin/generation/blockedprompt/add/")
    page.get_by_label("Text").fill("dragon")
    page.get_by_label("Explanation").fill("No dragons here.")
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
    refused(at_work("finance"), "/admin/generation/blockedprompt/add/")


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
    act(page, "Ban").click()
    confirm(page, "Ban", reason="Spam")
    message(page, "carla is banned (Spam).")
    owner = at_work("owner")
    owner.goto(person)
    act(owner, "Lift the ban").click()
    confirm(owner, "Lift the ban", reason="A mistake")
    message(owner, "carla may sign in again (A mistake).")
    finance = at_work("finance")
    refused(finance, re.sub(r"(\d+)/change/.*", r"\1/ban", person))
