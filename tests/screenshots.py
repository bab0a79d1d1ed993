"""`make screenshots`: the pages at both widths and in both themes, as docs/screenshots/*.jpg, from the real stack."""

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.stack import Stack

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "screenshots"
SIZES = {"desktop": {"width": 1440, "height": 1000}, "phone": {"width": 360, "height": 780}}
THEMES = ("light", "dark")
PROMPTS = [
    "A red ball bounces on green grass",
    "A blue square slides right over sand",
    "A yellow star turns at night",
]
CLIP_MS = 180_000
# Those out of sight are loaded when somebody scrolls to them.
PICTURES_ARE_THERE = """() => [...document.images].every(
    (image) => image.complete || image.getBoundingClientRect().top > innerHeight
)"""

WELL_UNDER_WAY = "() => document.querySelector('.card.running progress')?.value > 12"
CAN_PLAY = "() => [...document.querySelectorAll('video')].every((video) => video.readyState >= 3)"
SPINNER_FADES_MS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = {"VIDEO_COOLDOWN_SECONDS": "0", "SIGNUP_CREDITS": "2000"}
    with (
        tempfile.TemporaryDirectory() as data,
        Stack(Path(data), settings) as stack,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        cookies = furnish(browser, stack.url)
        for size, viewport in SIZES.items():
            for theme in THEMES:
                take(browser, stack.url, cookies, options.folder, f"{size}-{theme}", viewport, theme)
        browser.close()
    sys.stdout.write(f"{len(list(options.folder.glob('*.jpg')))} pictures in {options.folder}\n")


def furnish(browser: Browser, url: str) -> list:
    """A person with some finished clips and a canceled one; their session."""
    context = browser.new_context(base_url=url)
    page = context.new_page()
    page.goto("/accounts/signup/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("a long enough password")
    page.get_by_role("main").get_by_role("button", name="Sign up").click()
    submit(page, "A wish that was withdrawn").get_by_role("button", name="Cancel").click()
    expect(page.locator(".card.canceled")).to_be_visible()
    for number, prompt in enumerate(PROMPTS, start=1):
        submit(page, prompt)
        expect(page.locator(".card.completed")).to_have_count(number, timeout=CLIP_MS)
    cookies = context.cookies()
    context.close()
    return cookies


def submit(page: Page, prompt: str, preset: str = "Quick"):
    page.get_by_label("Prompt").fill(prompt)
    page.locator(".chip", has_text=preset).click()
    page.get_by_role("button", name="Generate ·").click()
    card = page.locator(".card", has_text=prompt).first
    expect(card).to_be_visible()
    return card


def take(
    browser: Browser, url: str, cookies: list, folder: Path, suffix: str, viewport: dict, theme: str
) -> None:
    context = browser.new_context(base_url=url, viewport=viewport, color_scheme=theme)
    page = context.new_page()

    def shoot(name: str, path: str | None = None) -> None:
        if path is not None:
            page.goto(path)
        page.wait_for_load_state("load")
        page.wait_for_function(PICTURES_ARE_THERE)
        if name == "video":
            page.wait_for_function(CAN_PLAY)
            page.wait_for_timeout(SPINNER_FADES_MS)
        page.screenshot(path=folder / f"{name}-{suffix}.jpg", type="jpeg", quality=85)

    shoot("front", "/")
    context.add_cookies(cookies)
    page.goto("/")
    clip = page.locator(".card.completed .card-prompt").first.get_attribute("href")
    submit(page, "A green ring rolls through the rain", "Standard")
    page.wait_for_function(WELL_UNDER_WAY, timeout=CLIP_MS)
    shoot("dashboard")
    shoot("video", clip)
    shoot("credits", "/credits/")
    page.goto("/")
    expect(page.locator("[data-live]")).to_have_count(0, timeout=CLIP_MS)
    context.close()


if __name__ == "__main__":
    main()
