"""`make screenshots`: every page at both widths and in both themes, from the real stack and a real browser.

All of them go to .data/screenshots, to be looked at; the best, smaller, to docs/screenshots.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import django
from django.template.loader import render_to_string
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests import environment  # noqa: F401  (Django's settings, to render the pages about errors)
from tests.stack import Stack
from tests.staff_screenshots import PICTURES
from tests.visitor import create_key, generate, register_passkey, share, sign_up

REPOSITORY = Path(__file__).resolve().parent.parent
ALL, BEST = REPOSITORY / ".data" / "screenshots", REPOSITORY / "docs" / "screenshots"
SIZES = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 360, "height": 780}}
THEMES = ("light", "dark")
LOOKS = [(size, theme) for size in SIZES for theme in THEMES]
PROMPTS = [
    "A red ball moving right on a white background",
    "A blue square growing on the sea",
    "A yellow star moving up on a black background",
    "A green triangle shrinking on a meadow",
]
LIVE_PROMPTS = [
    "A purple ball moving left on the sea",
    "A yellow square moving down on a meadow",
    "A red star growing on a black background",
]
CLIP_MS = 180_000
PATIENCE_MS = 30_000  # a busy machine may take its time
WELL_UNDER_WAY = "() => document.querySelector('.card.running progress')?.value > 4"
CAN_PLAY = "() => [...document.querySelectorAll('video')].every((video) => video.readyState >= 3)"
SPINNER_FADES_MS = 1500
COMPOSER_SETTLES_MS = 1000

FOR_VISITORS = {
    "front": "/",
    "sign-in": "/accounts/login/",
    "sign-up": "/accounts/signup/",
    "forgotten-password": "/accounts/password/reset/",
    "about": "/about/",
    "404": "/nowhere/",
    "api": "/v1/docs",
}
FOR_THE_OWNER = {
    "credits": "/credits/",
    "account": "/account/",
    "delete-account": "/account/delete/",
    "email": "/accounts/email/",
    "password": "/accounts/password/change/",
    "confirm-password": "/accounts/reauthenticate/",
    "sessions": "/accounts/sessions/",
    "two-step": "/accounts/2fa/",
    "authenticator": "/accounts/2fa/totp/activate/",
    "passkeys": "/accounts/2fa/webauthn/",
    "add-passkey": "/accounts/2fa/webauthn/add/",
    "recovery-codes": "/accounts/2fa/recovery-codes/",
}
ERRORS = ("400", "403", "403_csrf", "413", "429", "500", "503")
IN_RUSSIAN = {"front": "/", "dashboard": "/", "credits": "/credits/", "account": "/account/"}
# The picture of the README.
SHOWN = ("dashboard-desktop-dark",)


@dataclass
class Furnished:
    """Somebody with finished clips, a canceled one, a shared one, a key and a passkey."""

    state: dict
    newcomer: dict
    pages: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    django.setup()
    expect.set_options(timeout=PATIENCE_MS)
    for folder in (ALL, BEST):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data,
        Stack(Path(data), {"VIDEO_COOLDOWN_SECONDS": "0"}) as stack,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        site = stack.url.replace("127.0.0.1", "localhost")
        furnished = furnish(browser, site, stack)
        take_live(browser, site, furnished)
        for look in LOOKS:
            take(browser, site, furnished, *look)
        browser.close()
    sys.stdout.write(f"{len(list(ALL.glob('*.jpg')))} pictures in {ALL}, the best in {BEST}\n")


def furnish(browser: Browser, site: str, stack: Stack) -> Furnished:
    context = browser.new_context(base_url=site)
    page = context.new_page()
    sign_up(page, "ada")
    stack.manage("grant_credits", "ada", "2500", "--reason", "Prize of the month")
    page.goto("/")
    unwanted = generate(page, "A plan that was withdrawn")
    unwanted.get_by_role("button", name="Cancel").click()
    expect(page.locator(".card.canceled")).to_be_visible()
    pages = {"canceled": where(unwanted)}
    for number, prompt in enumerate(PROMPTS, start=1):
        pages["video"] = where(generate(page, prompt))
        expect(page.locator(".card.completed")).to_have_count(number, timeout=CLIP_MS)
    pages["delete"] = pages["video"] + "delete/"
    page.goto(pages["video"])
    pages["shared"] = share(page)
    create_key(page)
    register_passkey(page)
    newcomer = browser.new_context(base_url=site)
    sign_up(newcomer.new_page(), "grace")
    return Furnished(context.storage_state(), newcomer.storage_state(), pages)


def where(card) -> str:
    return card.locator(".card-prompt").get_attribute("href")


# --- Taking them ------------------------------------------------------------------------------------------------------


def take_live(browser: Browser, site: str, furnished: Furnished) -> None:
    """One clip in the making, in all looks at once."""
    contexts = [new_context(browser, site, *look, state=furnished.state) for look in LOOKS]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.goto("/")
    for prompt in LIVE_PROMPTS:
        generate(pages[0], prompt, preset="Standard")
        # The card may come before the answer, which brings a new composer; a press in that moment can be lost.
        expect(pages[0].get_by_label("Prompt: what")).to_have_value("")
        pages[0].wait_for_timeout(COMPOSER_SETTLES_MS)
    pages[0].wait_for_function(WELL_UNDER_WAY, timeout=CLIP_MS)
    for page, (size, theme) in zip(pages, LOOKS, strict=True):
        shoot(page, f"dashboard-{size}-{theme}", whole=False)
    expect(pages[0].locator("[data-live]")).to_have_count(0, timeout=CLIP_MS)
    for context in contexts:
        context.close()


def take(browser: Browser, site: str, furnished: Furnished, size: str, theme: str) -> None:
    look = f"{size}-{theme}"
    with visiting(browser, site, size, theme) as page:
        for name, path in {**FOR_VISITORS, "shared": furnished.pages["shared"]}.items():
            go(page, name, path, look)
        for name in ERRORS:
            take_error(page, name, look)
    with visiting(browser, site, size, theme, state=furnished.state) as page:
        own = {name: path for name, path in furnished.pages.items() if name != "shared"}
        for name, path in {**FOR_THE_OWNER, **own}.items():
            go(page, name, path, look)
        create_key(page)
        shoot(page, f"api-keys-{look}")
    with visiting(browser, site, size, theme, state=furnished.newcomer) as page:
        go(page, "dashboard-empty", "/", look)
    for state in (None, furnished.state):
        with visiting(browser, site, size, theme, state=state, locale="ru-RU") as page:
            names = [name for name in IN_RUSSIAN if (name == "front") == (state is None)]
            for name in names:
                go(page, f"ru-{name}", IN_RUSSIAN[name], look)


def take_error(page: Page, name: str, look: str) -> None:
    """Render pages that cannot be provoked from outside, as Django would."""
    address = f"**/shown/{name}/"
    page.route(
        address, lambda route: route.fulfill(body=render_to_string(f"{name}.html"), content_type="text/html")
    )
    go(page, f"error-{name}", f"/shown/{name}/", look)
    page.unroute(address)


def go(page: Page, name: str, path: str, look: str) -> None:
    page.goto(path)
    if "video" in name or "shared" in name:
        page.wait_for_function(CAN_PLAY)
        page.wait_for_timeout(SPINNER_FADES_MS)
    if name == "api":
        expect(page.locator(".swagger-ui .info")).to_be_visible(timeout=30_000)
    shoot(page, f"{name}-{look}")


def shoot(page: Page, name: str, *, whole: bool = True) -> None:
    page.wait_for_load_state("load")
    page.evaluate(PICTURES)
    if name in SHOWN:
        page.screenshot(path=BEST / f"{name}.jpg", type="jpeg", quality=72)
    page.screenshot(path=ALL / f"{name}.jpg", type="jpeg", quality=80, full_page=whole)


@contextmanager
def visiting(browser: Browser, site: str, size: str, theme: str, **options) -> Iterator[Page]:
    context = new_context(browser, site, size, theme, **options)
    yield context.new_page()
    context.close()


def new_context(
    browser: Browser, site: str, size: str, theme: str, *, state: dict | None = None, locale: str = "en-GB"
) -> BrowserContext:
    return browser.new_context(
        base_url=site, viewport=SIZES[size], color_scheme=theme, storage_state=state, locale=locale
    )


if __name__ == "__main__":
    main()
