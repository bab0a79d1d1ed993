"""Steps of a user on the site, for tests that drive a browser."""

import re
import time
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Locator, Page, expect

PASSWORD = "a long enough password"
CLIP_MS = 300_000  # the tiny model on a busy machine, and everything around it


def sign_up(page: Page, name: str) -> None:
    """A new account, made as the form makes it but without drawing it; the page shows the dashboard."""
    page.request.get("/accounts/signup/")
    [token] = [cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "csrftoken"]
    fields = {"username": name, "password1": PASSWORD, "csrfmiddlewaretoken": token}
    page.request.post("/accounts/signup/", form=fields, max_redirects=0)
    page.goto("/")
    expect(page.locator("#balance")).to_have_text("500 credits")


def sign_up_by_hand(page: Page, name: str) -> None:
    page.goto("/accounts/signup/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("main").get_by_role("button", name="Sign up").click()
    expect(page.locator("#balance")).to_have_text("500 credits")


def generate(page: Page, prompt: str, *, preset: str = "Quick") -> Locator:
    """Submit, and the card that appears."""
    page.get_by_label("Prompt: what").fill(prompt)
    page.locator(".chip", has_text=preset).click()
    page.get_by_role("button", name="Generate ·").click()
    card = page.locator(".card", has_text=prompt)
    expect(card).to_be_visible()
    return card


def cancel_all(page: Page) -> None:
    """Leave the GPU, and the books as they will stay, to the next test. The dashboard is open."""
    [token] = [cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "csrftoken"]
    live = page.locator(".card[data-live]")
    for job in live.evaluate_all("(cards) => cards.map((card) => card.dataset.job)"):
        # Once more where the server has just closed the connection, which had been idle.
        page.request.post(f"/videos/video_{job}/cancel/", form={"csrfmiddlewaretoken": token}, max_retries=2)
    expect(live).to_have_count(0, timeout=CLIP_MS)


# For rows of clips that never were: the books want an entry for every one, even if it costs nothing.
IN_THE_BOOKS = """
from accounts import ledger
def book(job):
    ledger.reserve(user=job.user, amount=0, reference=job.pk, reason="A row for a test")
    ledger.release(reference=job.pk, reason="A row for a test")
"""


def create_key(page: Page) -> str:
    page.goto("/api-keys/")
    page.get_by_label("What is it for?").fill("laptop")
    page.get_by_role("button", name="Create a key").click()
    return page.get_by_label("Your new API key").input_value()


def order_by_api(url: str, key: str, prompt: str, *, preset: str = "quick") -> str:
    """The id of a clip that was ordered over the API, as soon as the cooldown lets it."""
    headers, body = {"Authorization": f"Bearer {key}"}, {"prompt": prompt, "preset": preset}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as api:
        while (answer := api.post("/v1/videos", json=body)).status_code == 429:
            time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def add_authenticator(page: Page) -> None:
    """A device that holds passkeys and confirms whatever it is asked, as Chromium's own tools have it."""
    devices = page.context.new_cdp_session(page)
    devices.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "internal",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    devices.send("WebAuthn.addVirtualAuthenticator", {"options": options})


def register_passkey(page: Page) -> None:
    """Passkeys are for names: the page must have come from `localhost`, not from 127.0.0.1."""
    add_authenticator(page)
    page.goto("/accounts/2fa/webauthn/add/")
    expect(page.get_by_label("instead of the password")).to_be_checked()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page).to_have_url(re.compile("/accounts/2fa/(recovery-codes|webauthn)/$"))


def share(page: Page) -> str:
    """Share the clip whose page is open; the path that anybody may open."""
    page.get_by_role("button", name="Share").click()
    return urlsplit(page.get_by_label("Anybody with this link can watch it").input_value()).path
