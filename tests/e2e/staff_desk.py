"""Staff and their customers in a real stack: people in every role, clips that were made, and a browser signed in."""

import base64
import hmac
import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from playwright.sync_api import Locator, Page, expect

from tests.processes import wait_for
from tests.stack import Stack

PASSWORD = "a long enough password"
# A trainee is staff, too, and has no rights yet.
ROLES = ("support", "operator", "finance", "owner", "trainee")
# The secret that the apps on the phones make their codes of.
SECRET = base64.b32encode(b"a secret of 20 bytes").decode()
HIRE = """
from allauth.mfa.totp.internal.auth import TOTP
from django.contrib.auth.models import Group
from accounts.models import User
for role in {roles!r}:
    user, new = User.objects.get_or_create(username=f"the-{{role}}", is_staff=True)
    if new:
        user.set_password({password!r})
        user.save()
        user.groups.set(Group.objects.filter(name=role))
        TOTP.activate(user, {secret!r})
User.objects.filter(username="the-newcomer").exists() or User.objects.create_user(
    "the-newcomer", password={password!r}, is_staff=True
).groups.add(Group.objects.get(name="support"))
"""
JOIN = """
from accounts import api_keys
from accounts.models import User
user = User.objects.create_user({name!r}, password={password!r}, email="{name}@example.org")
print(api_keys.issue(user=user)[1])
"""
ORDER = """
from django.db import transaction
from django.db.models.functions import Now
from accounts.models import User
from generation.jobs import submission
from generation.models import GenerationJob, Preset
for name in {late!r}:
    with transaction.atomic():
        job = submission.submit(user=User.objects.create_user(name), prompt=f"Too late, {{name}}", source="web")
        GenerationJob.objects.filter(pk=job.pk).update(deadline_at=Now())
    print(job.public_id)
for name in {live!r}:
    with transaction.atomic():
        job = submission.submit(
            user=User.objects.create_user(name),
            prompt=f"Long, {{name}}",
            source="web",
            preset=Preset.objects.get(name="standard"),
        )
        GenerationJob.objects.filter(pk=job.pk).update(num_inference_steps=1000, num_frames=49)
    print(job.public_id)
"""
PEOPLE = """
from accounts.models import User
from telegram_bot.models import TelegramAccount
for telegram_id, name in {people!r}.items():
    user = User.objects.create_user(name, password={password!r}, email=f"{{name}}@example.org")
    TelegramAccount.objects.create(telegram_id=telegram_id, user=user)
"""
NODE = """
from generation.models import GpuNode
GpuNode.objects.create(name={name!r}, base_url={url!r}, api_key={key!r})
"""


def hire(stack: Stack) -> None:
    """One member of the staff for each role, named `the-<role>`, with a second step; and a newcomer without."""
    stack.manage("shell", "-c", HIRE.format(roles=ROLES, password=PASSWORD, secret=SECRET))


def late_and_live(stack: Stack, *, late: list[str], live: list[str]) -> list[str]:
    """A video for each of these names: first those that fail by their deadline, then those that take very long."""
    return stack.manage("shell", "-c", ORDER.format(late=late, live=live)).split()[-len(late + live) :]


def people(stack: Stack, names: dict[int, str]) -> None:
    """Create a user for each of these, by Telegram id."""
    stack.manage("shell", "-c", PEOPLE.format(people=names, password=PASSWORD))


def customer(stack: Stack, name: str, prompts: list[str]) -> list[str]:
    """Create a user with finished clips of these prompts; returns the clips' ids."""
    key = stack.manage("shell", "-v", "0", "-c", JOIN.format(name=name, password=PASSWORD)).strip()
    return [_made(stack, key, prompt) for prompt in prompts]


def _made(stack: Stack, key: str, prompt: str) -> str:
    with httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api:
        while (answer := api.post("/v1/videos", json={"prompt": prompt})).status_code == 429:
            time.sleep(0.5)
        job = answer.raise_for_status().json()
        while job["status"] not in ("completed", "failed"):
            time.sleep(0.3)
            job = api.get(f"/v1/videos/{job['id']}").json()
    assert job["status"] == "completed", json.dumps(job)
    return str(job["id"])


@contextmanager
def another_node(stack: Stack, name: str) -> Iterator[None]:
    """Add the stack's own node once more, by another spelling of its address; drain it at the end."""
    url = stack.node_url.replace("127.0.0.1", "LOCALHOST")
    stack.manage("shell", "-c", NODE.format(name=name, url=url, key=stack.environment["VIDEO_API_KEY"]))
    try:
        heard_of = "SELECT 1 FROM generation_gpunode WHERE name = %s AND status = 'ready'"
        wait_for(lambda: stack.sql(heard_of, name), message="the node was not found")
        yield
    finally:
        stack.sql("UPDATE generation_gpunode SET enabled = false WHERE name = %s", name)


def code(secret: str) -> str:
    """The code that the app on the phone shows now (RFC 6238)."""
    digest = hmac.digest(base64.b32decode(secret), int(time.time() // 30).to_bytes(8, "big"), "sha1")
    start = digest[-1] & 15
    return f"{(int.from_bytes(digest[start : start + 4], 'big') & 0x7FFFFFFF) % 10**6:06d}"


def sign_in(page: Page, name: str, *, to: str = "/admin/") -> None:
    """Sign in on the site's own page, as staff with two steps have to."""
    page.goto(f"/accounts/login/?next={to}")
    page.locator("[name=login]").fill(name)
    page.locator("[name=password]").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign in", exact=True).click()
    if name.removeprefix("the-") in ROLES:
        page.locator("[name=code]").fill(code(SECRET))
        page.locator("[name=code]").press("Enter")
    # The pages before end with it, too: it is what they go on to.
    page.wait_for_url(lambda url: url.endswith(to) and "/accounts/" not in url)


def job_page(page: Page, job: str) -> None:
    page.goto(f"/admin/generation/generationjob/{job.removeprefix('video_')}/change/")


def confirm(page: Page, title: str, *, reason: str, twice: bool = False, **fields: str) -> None:
    """Fill in the page that asks, and press its button; `twice` as a nervous hand does."""
    for label, value in fields.items():
        page.get_by_label(label.capitalize()).fill(value)
    page.get_by_label("Reason").fill(reason)
    button = page.get_by_role("button", name=title, exact=True)
    button.dblclick() if twice else button.click()


# --- What staff do with a page ----------------------------------------------------------------------------------------


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


def listed(page: Page, words: str) -> Locator:
    """The rows of a list with these words in them."""
    return page.locator("#result_list tbody tr").filter(has_text=words)


def choose(page: Page, rows: list[str], action: str) -> None:
    """Tick rows of a list and have something done with them, at its foot."""
    for words in rows:
        listed(page, words).locator("input.action-select").check()
    page.locator("select[name=action]").select_option(label=action)
    page.get_by_role("button", name="Run", exact=True).click()


def refused_many(page: Page, address: str, action: str) -> None:
    """Check that a list does not offer the action, and that a forged form neither asks nor acts."""
    page.goto(address)
    expect(page.locator(f"select[name=action] option[value={action}]")).to_have_count(0)
    row = page.locator("#result_list tbody a[href*='/change/']").first.get_attribute("href") or ""
    token = page.locator("[name=csrfmiddlewaretoken]").first.get_attribute("value")
    values = {"once": str(uuid.uuid4()), "reason": "Why not", "amount": "1"}
    chosen = {"action": action, "index": "0", "_selected_action": row.split("/")[-3]}
    form = {**values, **chosen, "csrfmiddlewaretoken": token or ""}
    answer = page.request.post(address, form=form, headers={"Referer": page.url})
    assert answer.status == 200
    assert 'name="once"' not in answer.text()
