"""Staff and their customers in a real stack: people in every role, clips that were made, and a browser signed in."""

import base64
import hmac
import json
import time

import httpx
from playwright.sync_api import Page

from tests.stack import Stack

PASSWORD = "a long enough password"
ROLES = ("support", "operator", "finance", "owner")
# What the app on everybody's phone makes its codes of.
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
ORDER = """
from django.db import transaction
from django.db.models.functions import Now
from accounts.models import User
from generation import lifecycle
from generation.models import GenerationJob
with transaction.atomic():
    late = lifecycle.submit(user=User.objects.create_user("dora"), prompt="Too late", source="web")
    GenerationJob.objects.filter(pk=late.pk).update(deadline_at=Now())
live = lifecycle.submit(user=User.objects.create_user("emil"), prompt="Long", source="web", preset="standard")
print(late.public_id, live.public_id)
"""


def hire(stack: Stack) -> None:
    """One member of the staff for each role, named `the-<role>`, with a second step; and a newcomer without."""
    stack.manage("shell", "-c", HIRE.format(roles=ROLES, password=PASSWORD, secret=SECRET))


def late_and_live(stack: Stack) -> list[str]:
    """Two videos: one that fails by its deadline, and one that takes its time."""
    return stack.manage("shell", "-c", ORDER).split()[-2:]


def customer(stack: Stack, name: str, prompts: list[str]) -> list[str]:
    """Somebody new with finished clips of these prompts; the clips' ids."""
    create = f"User.objects.create_user({name!r}, password={PASSWORD!r}, email='{name}@example.org')"
    stack.manage("shell", "-c", f"from accounts.models import User; {create}")
    key = stack.manage("create_api_key", name).strip().splitlines()[-1]
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


def code(secret: str) -> str:
    """What the app on the phone shows now (RFC 6238)."""
    digest = hmac.digest(base64.b32decode(secret), int(time.time() // 30).to_bytes(8, "big"), "sha1")
    start = digest[-1] & 15
    return f"{(int.from_bytes(digest[start : start + 4], 'big') & 0x7FFFFFFF) % 10**6:06d}"


def sign_in(page: Page, name: str, *, to: str = "/admin/") -> None:
    """On the site's own page, as staff with two steps have to."""
    page.goto(f"/accounts/login/?next={to}")
    page.locator("[name=login]").fill(name)
    page.locator("[name=password]").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign in", exact=True).click()
    if name.removeprefix("the-") in ROLES:
        page.locator("[name=code]").fill(code(SECRET))
        page.locator("[name=code]").press("Enter")
    page.wait_for_url(lambda url: url.endswith(to))


def job_page(page: Page, job: str) -> None:
    page.goto(f"/admin/generation/generationjob/{job.removeprefix('video_')}/change/")


def confirm(page: Page, title: str, *, reason: str, twice: bool = False, **fields: str) -> None:
    """Fill in the page that asks, and press its button; `twice` as a nervous hand does."""
    for label, value in fields.items():
        page.get_by_label(label.capitalize()).fill(value)
    page.get_by_label("Reason").fill(reason)
    button = page.get_by_role("button", name=title, exact=True)
    button.dblclick() if twice else button.click()
