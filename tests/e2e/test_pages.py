"""Automatic checks of every page: accessibility, the content security policy, origin, weight, width."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.template.loader import render_to_string
from playwright.sync_api import Browser, BrowserContext, Locator, Request, Route, expect

from tests.stack import Stack
from tests.visitor import CLIP_MS, IN_THE_BOOKS, add_authenticator, generate, register_passkey, share, sign_up

pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(400)]

FIRST_LOAD_BYTES = 100_000
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}
WEIGHED = ("document", "script", "stylesheet")
GRAVE = ("serious", "critical")
RUN_AXE = """(options) => axe.run(document, options).then(({ violations }) =>
    violations.map(({ id, impact, nodes }) => [id, impact, nodes.slice(0, 3).map(({ target }) => target)]))"""
AXE_OPTIONS = {"resultTypes": ["violations"], "preload": False, "iframes": False}
# What differs between the themes.
ONLY_COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
REPORT_VIOLATIONS = """document.addEventListener("securitypolicyviolation", (event) =>
    console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`))"""

VISITOR_PAGES = [
    "/",
    "/about/",
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
    "/credits/",
    "/credits/?before=1",
    "/api-keys/",
    "/account/",
    "/account/delete/",
    "/accounts/email/",
    "/accounts/password/change/",
    "/accounts/logout/",
    "/accounts/reauthenticate/",
    "/accounts/sessions/",
    "/accounts/2fa/",
    "/accounts/2fa/totp/activate/",
    "/accounts/2fa/webauthn/",
    "/accounts/2fa/webauthn/add/",
    "/accounts/2fa/recovery-codes/",
    "/accounts/2fa/recovery-codes/generate/",
]
MISSING = ("/nowhere/",)
# What the browser writes of a page that is meant to answer 404, and of the event stream of a page that is left.
EXPECTED = ("status of 404 ()", "status of 404 (Not Found)", "[object Event]")
ERROR_PAGES = ["400", "403", "403_csrf", "413", "429", "500", "503"]


# A page full of clips, copies of one there is; they cost nothing, so the books stay right.
FILL_GALLERY = f"""{IN_THE_BOOKS}
import uuid
from generation.models import GenerationJob
job = GenerationJob.objects.get(user__username="everypage", state="canceled")
job.idempotency_key, job.current_attempt, job.cost = None, None, 0
job.state, job.error_message = "failed", "Video generation timed out (>90s)"
for number in range(40):
    job.pk, job.prompt = uuid.uuid4(), f"An older prompt, number {{number}}, of about usual length"
    job.save(force_insert=True)
    book(job)
"""


@dataclass
class Owner:
    """A user with a gallery full of clips, a passkey and a shared link; `state` is their browser's cookies."""

    state: dict
    pages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def site(stack: Stack) -> str:
    """By this name, because passkeys are for names and not for numbers."""
    return stack.url.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def owner(stack: Stack, site: str, chromium: Browser) -> Owner:
    context = chromium.new_context(base_url=site)
    page = context.new_page()
    sign_up(page, "everypage")
    clip = where(generate(page, "A red ball on green grass"))
    expect(page.locator(".card.completed")).to_have_count(1, timeout=CLIP_MS)
    unwanted = generate(page, "Never mind")
    unwanted.get_by_role("button", name="Cancel").click()
    expect(page.locator(".card.canceled")).to_have_count(1)
    canceled = where(unwanted)
    stack.manage("shell", "-c", FILL_GALLERY)
    page.goto(clip)
    shared = share(page)
    register_passkey(page)
    sections = [clip, f"{clip}delete/", canceled, shared, f"{shared}report/"]
    state = context.storage_state()
    context.close()
    return Owner(state, [*OWN_PAGES, *sections])


def where(card: Locator) -> str:
    return card.locator(".card-prompt").get_attribute("href")


class Inspector:
    """Looks at one page after another in one tab that caches nothing; `complaints` is everything that it noticed."""

    def __init__(self, site: str, context: BrowserContext) -> None:
        self.site, self.page = site, context.new_page()
        self.complaints: list[str] = []
        self._path, self._bytes = "", 0
        devices = context.new_cdp_session(self.page)
        devices.send("Network.enable")
        devices.send("Network.setCacheDisabled", {"cacheDisabled": True})
        self.page.add_init_script(REPORT_VIOLATIONS)
        self.page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("request", self._check_origin)
        self.page.on("requestfinished", self._weigh)

    def look(self, path: str, *, answer: str | None = None, closely: bool = True) -> None:
        """answer: HTML to show at this path, with the headers of a page that does not exist."""
        self._path, self._bytes = path, 0
        self.page.set_viewport_size(DESKTOP)
        if answer is not None:
            self.page.route("**" + path, lambda route: self._fulfil(route, answer))
        arrived = self.page.goto(path, wait_until="load")
        if arrived.status >= 400 and not path.endswith(MISSING):
            self._note(f"answers {arrived.status}")
        if self.page.url != self.site + path:
            self._note(f"leads to {self.page.url}")
        if closely:
            self.page.evaluate(Axe().axe_script)
            self._axe("light", {})
            self._axe("dark", ONLY_COLOURS)
        self._measure()

    def _note(self, words: str) -> None:
        self.complaints.append(f"{self._path}: {words}")

    def _check_origin(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.site).netloc:
            self._note(f"asks {request.url}")

    def _fulfil(self, route: Route, answer: str) -> None:
        headers = route.fetch().headers
        route.fulfill(status=200, headers=headers, body=answer, content_type="text/html")

    def _weigh(self, request: Request) -> None:
        if request.resource_type in WEIGHED:
            self._bytes += request.sizes()["responseBodySize"]

    def _measure(self) -> None:
        self.page.set_viewport_size(PHONE)
        if (width := self.page.evaluate("() => document.documentElement.scrollWidth")) != PHONE["width"]:
            self._note(f"is {width} pixels wide on a phone")
        if self._bytes > FIRST_LOAD_BYTES:
            self._note(f"loads {self._bytes} bytes of HTML, CSS and JavaScript")
        if not self._bytes:
            self._note("was not weighed")

    def _axe(self, theme: str, options: dict) -> None:
        # Without transitions: a color on its way from one theme to the other has the contrast of neither.
        self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        for rule, impact, places in self.page.evaluate(RUN_AXE, AXE_OPTIONS | options):
            if impact in GRAVE:
                self._note(f"{theme}: {rule} ({impact}) at {json.dumps(places)}")


@pytest.fixture
def inspector(site: str, chromium: Browser) -> Iterator[Callable[..., Inspector]]:
    """Make inspectors, one a user; at the end of the test all complaints together are its failure."""
    contexts, inspectors = [], []

    def make(*, state: dict | None = None, locale: str = "en-GB") -> Inspector:
        contexts.append(chromium.new_context(base_url=site, storage_state=state, locale=locale))
        inspectors.append(Inspector(site, contexts[-1]))
        return inspectors[-1]

    yield make
    for context in contexts:
        context.close()
    told = [words for each in inspectors for words in each.complaints if not words.endswith(EXPECTED)]
    assert not told, "\n".join(told)


FLAWED = """<!doctype html><html><head><title>Flawed</title></head><body><h1>Flawed</h1>
<p style="color: #ccc; background: #fff">Faint</p><img src="https://example.org/x.png"><input name="nameless">
<script>document.body.dataset.ran = "yes"</script><pre>%s</pre></body></html>""" % ("wide" * 200)


def test_what_is_wrong_with_a_page_is_noticed(site, chromium):
    context = chromium.new_context(base_url=site)
    inspector = Inspector(site, context)
    inspector.look("/shown/flawed/", answer=FLAWED)
    assert not inspector.page.evaluate("() => document.body.dataset.ran"), "the policy let a script in"
    told = "\n".join(inspector.complaints)
    for words in ("CSP: style-src", "CSP: script-src", "CSP: img-src", "asks https://example.org/x.png"):
        assert words in told
    for words in ("image-alt (critical)", "label (critical)", "html-has-lang (serious)", "pixels wide"):
        assert words in told
    context.close()


def test_pages_for_visitors_and_about_errors(inspector):
    visitor = inspector()
    for path in VISITOR_PAGES:
        visitor.look(path)
    for name in ERROR_PAGES:
        visitor.look(f"/shown/{name}/", answer=render_to_string(f"{name}.html"))


def test_pages_of_ones_own(inspector, owner):
    """The gallery is full: nothing weighs more."""
    person = inspector(state=owner.state)
    for path in owner.pages:
        person.look(path)


def test_pages_in_russian(inspector, owner):
    """Longer words, other letters: enough of them to see what breaks."""
    person = inspector(state=owner.state, locale="ru-RU")
    for path in ("/", "/account/", "/credits/", "/api-keys/", "/accounts/2fa/", "/account/delete/"):
        person.look(path, closely=False)
    inspector(locale="ru-RU").look("/", closely=False)


def test_the_policy_is_on_and_has_no_holes(stack, site, chromium):
    context = chromium.new_context(base_url=site)
    for path in ("/", "/accounts/login/", "/nowhere/", "/healthz", "/static/base.css"):
        policy = context.request.get(path).headers.get("content-security-policy", "")
        assert "default-src 'none'" in policy or path.startswith("/static/"), path
        assert "unsafe" not in policy, path
    bundle = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
    assert context.request.get(bundle).status == 200
    assert context.request.get(f"{bundle}.map").status == 404, "source maps are not shipped"
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto("/v1/docs")
    expect(page.locator("#swagger-ui .opblock").first).to_be_visible()
    page.locator("#swagger-ui .opblock").first.click()
    assert not complaints
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


def test_a_missing_passkey_shows_a_message(site, chromium):
    page = chromium.new_context(base_url=site).new_page()
    add_authenticator(page)
    page.goto("/accounts/login/")
    page.get_by_role("button", name="Use a passkey").click()
    expect(page.get_by_role("alert")).to_contain_text("canceled, or it took too long")
    page.context.close()
