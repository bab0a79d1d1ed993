"""The pictures of docs/staff-guide.md, from the real stack: `python -m tests.staff_screenshots`."""

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.staff_desk import confirm, customer, hire, job_page, open_person, sign_in
from tests.stack import Stack

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "screenshots"
SIZE = {"width": 1280, "height": 900}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    settings = {"VIDEO_COOLDOWN_SECONDS": "0", "STAFF_REQUIRE_MFA": "false"}
    with (
        tempfile.TemporaryDirectory() as data,
        Stack(Path(data), settings) as stack,
        sync_playwright() as playwright,
    ):
        hire(stack)
        customer(
            stack, "carla", ["A cyan ball moves left in the desert", "A golden star flies right at night"]
        )
        [last] = customer(stack, "boris", ["A blue square slides over sand"])
        stack.manage("audit_credits")
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        take(browser, stack.url, options.folder, last)
        browser.close()
    sys.stdout.write(f"pictures in {options.folder}\n")


def take(browser: Browser, url: str, folder: Path, job: str) -> None:
    page = browser.new_context(base_url=url, viewport=SIZE, color_scheme="light").new_page()
    desk = browser.new_context(base_url=url, viewport=SIZE, color_scheme="light").new_page()
    sign_in(desk, "the-finance")
    open_person(desk, "carla")
    desk.get_by_role("link", name="Grant credits").click()
    desk.get_by_label("Amount").fill("20000")
    confirm(desk, "Grant credits", reason="Prize of the spring contest")
    sign_in(page, "the-owner")
    page.wait_for_timeout(1500)  # the chart draws itself
    shoot(page, folder, "staff-home", full=True)
    page.goto("/admin/accounts/approval/")
    page.locator("#result_list tbody a[href*='/change/']").first.click()
    shoot(page, folder, "staff-approval")
    open_person(page, "carla")
    shoot(page, folder, "staff-person")
    job_page(page, job)
    shoot(page, folder, "staff-job")
    page.goto("/admin/generation/bulkrefund/")
    page.get_by_role("link", name="Refund a bad time of a node").click()
    page.get_by_label("Node").select_option(label="default")
    page.locator("[name=until_1]").fill("23:59:59")
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_text("videos of 2 users")).to_be_visible()
    page.get_by_label("Reason").fill("A bad night of one of our machines")
    shoot(page, folder, "staff-bulk-refund-total")
    confirm(page, "Refund", reason="A bad night of one of our machines")
    page.locator("#result_list tbody a").first.click()
    expect(page.get_by_text("3 refunded, 0 waiting")).to_be_visible(timeout=60_000)
    shoot(page, folder, "staff-bulk-refund-done")


PICTURES = """() => Promise.all([...document.images].map(image => {
  image.loading = "eager";
  return image.decode().catch(() => 0);
}))"""


def shoot(page: Page, folder: Path, name: str, *, full: bool = False) -> None:
    page.evaluate(PICTURES)
    page.screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=70, full_page=full)


if __name__ == "__main__":
    main()
