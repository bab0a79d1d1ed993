"""A person with a real browser, or in a chat, before the whole stack: one platform for all, and one Chromium a file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.bot_api_server import BotApiServer
from tests.stack import Stack

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
COOLDOWN_SECONDS = 2
STANDARD_STEPS = 300
# Playwright's own list of what it switches off, which this one takes the place of; and the suggestions below the
# address bar, which are two hidden pages in each window and cost more than the page that is looked at.
DISABLED = (
    "AimEnabled",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsFirstBalancedModeAutoEnable",
    "HttpsUpgrades",
    "LensOverlay",
    "MediaRouter",
    "NetworkTimeServiceQuerying",
    "OptimizationHints",
    "PaintHolding",
    "PreconnectToSearch",
    "ThirdPartyStoragePartitioning",
    "WebUIOmniboxAimPopup",
    "WebUIOmniboxFullPopup",
    "WebUIOmniboxPopup",
)
# Waiting ends as soon as there is what is waited for; a busy machine may take its time.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="package")
def telegram() -> Iterator[BotApiServer]:
    with BotApiServer() as server:
        yield server


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, telegram: BotApiServer) -> Iterator[Stack]:
    """Start what `make run` starts, with a node and a bot. Each test acts there with users of its own."""
    settings = {
        **telegram.environment,
        "VIDEO_COOLDOWN_SECONDS": str(COOLDOWN_SECONDS),
        "NODE_HEALTH_SECONDS": "1",
        "STAFF_REQUIRE_MFA": "true",
        # Its clips are noise, and made in a tenth of the time of the demonstration model's.
        "GPU_NODE_MODEL": "tiny-random",
        "GPU_NODE_MAX_STEPS": "1000",
        "WEB_PROCESSES": "2",  # as it is run; requests that come at the same time meet in different processes
    }
    with Stack(tmp_path_factory.mktemp("browser"), settings) as running:
        # Enough steps for a bar to be seen moving.
        update = "UPDATE generation_preset SET num_inference_steps = %s WHERE name = 'standard'"
        running.sql(update, STANDARD_STEPS)
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One for each file: while Playwright runs, Django takes its thread for an asynchronous one and refuses to speak to
    the database, also in tests of other files that come after.
    """
    if not CHROMIUM.exists():
        missing = f"there is no Chromium at {CHROMIUM}"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(f"REQUIRE_BROWSER=1, but {missing}", pytrace=False)
        pytest.skip(missing)
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", f"--disable-features={','.join(DISABLED)}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


def is_complaint(message: ConsoleMessage) -> bool:
    """Not the refusals that a test provokes, nor what is said of a stream or a server that was cut off."""
    provoked = (
        "status of 422",
        "status of 404",
        "net::ERR_",
        "[object Event]",
        "htmx:sendError",
        "htmx:afterRequest",
    )
    return message.type == "error" and not any(words in message.text for words in provoked)


@pytest.fixture
def new_page(stack: Stack, chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Pages in a context of their own, as of another person; what their consoles complain about fails the test.

    Nothing is animated in them unless a test asks for it: without a GPU, that takes a good part of a core.
    """
    contexts, complaints = [], []

    def make(**options) -> Page:
        context = chromium.new_context(base_url=stack.url, **{"reduced_motion": "reduce"} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not complaints
