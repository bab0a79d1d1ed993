"""Every page of the site, looked at by machines: accessibility, the content security policy, origin, weight, width."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.template.loader import render_to_string
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from tests.stack import Stack
from tests.visitor import CLIP_MS, add_authenticator, generate, register_passkey, share, sign_up

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(400)]

FIRST_LOAD_BYTES = 100_000
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}
WEIGHED = ("document", "script", "stylesheet")
GRAVE = ("serious", "critical")
# Rules that say what WCAG 2.2 A and AA ask for, and axe's best practices.
ONLY_COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
REPORT_VIOLATIONS = """document.addEventListener("securitypolicyviolation", (event) =>
    console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`))"""

VISITOR_PAGES = [
    "/",
    "/accounts/login/",
    "/accounts/signup/",
    "/accounts/inactive/",
    "/accounts/password/reset/",
    "/accounts/password/reset/done/",
    "/accounts/password/reset/key/1-gone/",
    "/accounts/password/reset/key/done/",
    "/accounts/confirm-email/gone/",
    "/accounts/confirm-email/",
    "/nowhere/",
]
OWN_PAGES = [
    "/",
    "/?prompt=A+red+fox",
    "/?page=7",
    "/credits/",
    "/credits/?before=1",
    "/api-keys/",
    "/account/",
    "/account/delete/",
    "/accounts/email/",
    "/accounts/password/change/",
    "/accounts/logout/",
    "/accounts/sessions/",
    "/accounts/2fa/",
    "/accounts/2fa/totp/activate/",
    "/accounts/2fa/webauthn/",
    "/accounts/2fa/webauthn/add/",
    "/accounts/2fa/recovery-codes/",
    "/accounts/2fa/recovery-codes/generate/",
]
MISSING = ("/nowhere/",)
ERROR_PAGES = ["400", "403", "403_csrf", "413", "429", "500", "503"]


@dataclass
class Owner:
    """Somebody with clips, a passkey and a shared link; `state` is their browser's cookies."""

    state: dict
    pages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def site(stack: Stack) -> str:
    """By this name, because passkeys are for names and not for numbers."""
    return stack.url.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def owner(site: str, chromium: Browser) -> Owner:
    context = chromium.new_context(base_url=site)
    page = context.new_page()
    sign_up(page, "everypage")
    clip = where(generate(page, "A red ball on green grass"))
    expect(page.locator(".card.completed")).to_have_count(1, timeout=CLIP_MS)
    unwanted = generate(page, "Never mind")
    unwanted.get_by_role("button", name="Cancel").click()
    expect(page.locator(".card.canceled")).to_have_count(1)
    canceled = where(unwanted)
    page.goto(clip)
    shared = share(page)
    register_passkey(page)
    sections = [clip, f"{clip}delete/", canceled, shared]
    state = context.storage_state()
    context.close()
    return Owner(state, [*OWN_PAGES, *sections])


def where(card: Locator) -> str:
    return card.locator(".card-prompt").get_attribute("href")


@dataclass
class Visit:
    """One page, loaded into an empty cache, and everything that was noticed about it."""

    path: str
    page: Page
    complaints: list[str] = field(default_factory=list)
    bytes_loaded: int = 0

    def note(self, words: str) -> None:
        self.complaints.append(f"{self.path}: {words}")

    def open(self, site: str, answer: str | None = None) -> None:
        """answer: HTML to show at this path, with the headers of a page that does not exist."""
        origin = urlsplit(site).netloc
        self.page.on("console", lambda message: self.note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.note(str(error)))
        self.page.on(
            "request",
            lambda request: None if own(request.url, origin) else self.note(f"asks {request.url}"),
        )
        self.page.on("requestfinished", self._weigh)
        self.page.add_init_script(REPORT_VIOLATIONS)
        if answer is not None:
            self.page.route("**" + self.path, lambda route: self._fulfil(route, answer))
        arrived = self.page.goto(self.path, wait_until="load")
        if arrived.status >= 400 and not self.path.endswith(MISSING):
            self.note(f"answers {arrived.status}")
        if self.page.url != site + self.path:
            self.note(f"leads to {self.page.url}")

    def _fulfil(self, route: Route, answer: str) -> None:
        headers = route.fetch().headers
        route.fulfill(status=200, headers=headers, body=answer, content_type="text/html")

    def _weigh(self, request) -> None:
        if request.resource_type in WEIGHED:
            self.bytes_loaded += request.sizes()["responseBodySize"]

    def look_closely(self) -> None:
        self.axe("light", {})
        self.axe("dark", ONLY_COLOURS)
        self.measure()

    def measure(self) -> None:
        self.page.set_viewport_size(PHONE)
        if (width := self.page.evaluate("() => document.documentElement.scrollWidth")) != PHONE["width"]:
            self.note(f"is {width} pixels wide on a phone")
        if self.bytes_loaded > FIRST_LOAD_BYTES:
            self.note(f"loads {self.bytes_loaded} bytes of HTML, CSS and JavaScript")
        if not self.bytes_loaded:
            self.note("was not weighed")

    def axe(self, theme: str, options: dict) -> None:
        # Without transitions: a color on its way from one theme to the other has the contrast of neither.
        self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        found = Axe().run(self.page, options={"resultTypes": ["violations"], **options}).response
        for violation in found["violations"]:
            if violation["impact"] in GRAVE:
                places = [node["target"] for node in violation["nodes"][:3]]
                self.note(f"{theme}: {violation['id']} ({violation['impact']}) at {json.dumps(places)}")


def own(url: str, origin: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob") or parts.netloc == origin


@pytest.fixture
def visit(site: str, chromium: Browser) -> Iterator:
    """Look at a page; at the end of the test all complaints together are its failure."""
    visits: list[Visit] = []

    def look(
        path: str, *, state: dict | None = None, locale: str = "en-GB", answer: str | None = None
    ) -> None:
        context: BrowserContext = chromium.new_context(
            base_url=site, storage_state=state, locale=locale, viewport=DESKTOP
        )
        visit = Visit(path, context.new_page())
        visit.open(site, answer)
        visits.append(visit)
        if locale == "en-GB":
            visit.look_closely()
        else:
            visit.measure()
        context.close()

    yield look
    complaints = [words for one in visits for words in one.complaints]
    # The browser itself writes an error for a page that answers 404, which that page is meant to do.
    complaints = [words for words in complaints if "status of 404" not in words]
    assert visits
    assert not complaints, "\n".join(complaints)


FLAWED = """<!doctype html><html><head><title>Flawed</title></head><body><h1>Flawed</h1>
<p style="color: #ccc; background: #fff">Faint</p><img src="https://example.org/x.png"><input name="nameless">
<script>document.body.dataset.ran = "yes"</script><pre>%s</pre></body></html>""" % ("wide" * 200)


def test_what_is_wrong_with_a_page_is_noticed(site, chromium):
    context = chromium.new_context(base_url=site, viewport=DESKTOP)
    flawed = Visit("/shown/flawed/", context.new_page())
    flawed.open(site, FLAWED)
    flawed.look_closely()
    assert not flawed.page.evaluate("() => document.body.dataset.ran"), "the policy let a script in"
    told = "\n".join(flawed.complaints)
    for words in ("CSP: style-src", "CSP: script-src", "CSP: img-src", "asks https://example.org/x.png"):
        assert words in told
    for words in ("image-alt (critical)", "label (critical)", "html-has-lang (serious)", "pixels wide"):
        assert words in told
    context.close()


def test_pages_for_visitors(visit):
    for path in VISITOR_PAGES:
        visit(path)


def test_pages_about_errors(visit):
    for name in ERROR_PAGES:
        visit(f"/shown/{name}/", answer=render_to_string(f"{name}.html"))


def test_pages_of_ones_own(visit, owner):
    for path in owner.pages:
        visit(path, state=owner.state)


def test_pages_in_russian(visit, owner):
    """Longer words, other letters: enough of them to see what breaks."""
    for path in ("/", "/account/", "/credits/", "/api-keys/", "/accounts/2fa/", "/account/delete/"):
        visit(path, state=owner.state, locale="ru-RU")
    visit("/", locale="ru-RU")


def test_the_policy_is_on_and_has_no_holes(stack, site, chromium):
    context = chromium.new_context(base_url=site)
    for path in ("/", "/accounts/login/", "/nowhere/", "/healthz", "/static/base.css"):
        policy = context.request.get(path).headers.get("content-security-policy", "")
        assert "default-src 'none'" in policy or path.startswith("/static/"), path
        assert "unsafe" not in policy, path
    context.close()


def test_a_passkey_is_added_and_then_signs_in_without_a_password(site, chromium):
    context = chromium.new_context(base_url=site)
    page = context.new_page()
    sign_up(page, "passkeyholder")
    register_passkey(page)
    page.goto("/accounts/2fa/webauthn/")
    expect(page.get_by_role("main")).to_contain_text("passkey")
    page.goto("/accounts/logout/")
    page.get_by_role("main").get_by_role("button", name="Sign out").click()
    page.get_by_role("link", name="Sign in").click()
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.locator("#balance")).to_have_text("500 credits")
    context.close()


def test_a_passkey_that_is_not_there_is_told_in_words(site, chromium):
    page = chromium.new_context(base_url=site).new_page()
    add_authenticator(page)
    page.goto("/accounts/login/")
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.get_by_role("alert")).to_contain_text("canceled, or it took too long")
    page.context.close()
