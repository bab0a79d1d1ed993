"""A customer who goes on using the site while others attack it."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

EVERY_SECONDS = 0.1
MOST_TIMES_SLOWER = 3.0  # the bar: the median under attack beside the median of quiet
NOTICEABLE_SECONDS = 0.1  # below this, whatever it is a multiple of, a page feels as if it came at once


@dataclass
class Stay:
    """What the customer met: seconds of each page that came, and what came in place of the others."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("inf")


class Customer:
    """Loads the dashboard of a signed-in account, each time on a connection of its own, from an address of its own."""

    def __init__(self, url: str, session: str) -> None:
        self._url, self._session = url, session
        self.quiet = Stay()

    @contextmanager
    def on_the_site(self) -> Iterator[Stay]:
        stay, leaving = Stay(), threading.Event()
        thread = threading.Thread(target=self._use, args=(stay, leaving))
        thread.start()
        try:
            yield stay
        finally:
            leaving.set()
            thread.join()

    def _use(self, stay: Stay, leaving: threading.Event) -> None:
        headers = {"Cookie": f"sessionid={self._session}", "Connection": "close"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=20) as browser:
            while not leaving.wait(EVERY_SECONDS):
                begun = time.perf_counter()
                try:
                    answer = browser.get("/")
                except httpx.HTTPError as error:
                    stay.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    stay.seconds.append(time.perf_counter() - begun)
                else:
                    stay.failures.append(f"{answer.status_code}")

    def look_around(self, seconds: float) -> None:
        """Measure the site while it has peace."""
        with self.on_the_site() as self.quiet:
            time.sleep(seconds)

    def compare(self, stay: Stay) -> str:
        """Say in words how the site was meanwhile."""
        quiet, then = self.quiet.median * 1000, stay.median * 1000
        words = (
            f"{quiet:.0f} ms quiet, {then:.0f} ms meanwhile (× {then / quiet:.1f}, {len(stay.seconds)} pages)"
        )
        return words + (f", {len(stay.failures)} failed: {stay.failures[0]}" if stay.failures else "")

    def was_served(self, stay: Stay) -> bool:
        bar = max(self.quiet.median * MOST_TIMES_SLOWER, NOTICEABLE_SECONDS)
        return not stay.failures and len(stay.seconds) > 3 and stay.median <= bar
