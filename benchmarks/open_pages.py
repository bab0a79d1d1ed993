"""The cost of open pages: a thousand event streams beside ten, on a whole platform with real clients.

Each page is a socket that reads `/events` as a signed-in browser does. For each number of pages: how many
connections to the database LISTEN and how many there are in all, and the threads and the memory of the web processes.

    python -m benchmarks.open_pages [--pages 1000]
"""

import argparse
import json
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from videoplatform.process import Instance

PAGES_OF_ONE = 50  # what one person may have open
SETTLE_SECONDS = 3.0  # connections that served requests go back
PATIENCE_SECONDS = 120.0

PEOPLE = """
import json
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from accounts.models import User
from accounts.auth import SessionStore
cookies = []
for number in range({people}):
    user = User.objects.create_user(f"reader-{{number}}")
    session = SessionStore()
    session[SESSION_KEY], session[HASH_SESSION_KEY] = str(user.pk), user.get_session_auth_hash()
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session.save()
    cookies.append(session.session_key)
print(json.dumps(cookies))
"""
BACKENDS = """
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()")
    queries = [query for (query,) in cursor.fetchall()]
print(sum(query.startswith("LISTEN") for query in queries), len(queries))
"""


@dataclass(frozen=True)
class Cost:
    """listening, connections: to the database, of the whole platform. threads, megabytes: of the web processes."""

    listening: int
    connections: int
    threads: int
    megabytes: float

    def line(self, pages: int) -> str:
        return f"| {pages} | {self.listening} | {self.connections} | {self.threads} | {self.megabytes:.0f} |"


def web_processes(platform: Instance) -> list[psutil.Process]:
    """gunicorn's workers, without their master."""
    family = psutil.Process(platform.pid).children(recursive=True)
    web = {process.pid: process for process in family if "gunicorn" in process.cmdline()}
    return [process for process in web.values() if process.ppid() in web]


def open_page(platform: Instance, cookie: str) -> socket.socket:
    page = socket.create_connection(("127.0.0.1", platform.port), timeout=PATIENCE_SECONDS)
    head = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: sessionid={cookie}\r\n\r\n"
    page.sendall(head.encode())
    answer = page.recv(65536)
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise SystemExit(f"no stream: {answer!r}")
    return page


def cost(platform: Instance) -> Cost:
    listening, connections = map(int, platform.manage("shell", "-c", BACKENDS).split()[-2:])
    web = web_processes(platform)
    return Cost(
        listening=listening,
        connections=connections,
        threads=sum(process.num_threads() for process in web),
        megabytes=sum(process.memory_info().rss for process in web) / 2**20,
    )


def measure(platform: Instance, sizes: list[int]) -> Iterator[tuple[int, Cost]]:
    """Measure the cost of these numbers of open pages, in ascending order."""
    people = -(-sizes[-1] // PAGES_OF_ONE)
    cookies = json.loads(platform.manage("shell", "-c", PEOPLE.format(people=people)).splitlines()[-1])
    with ExitStack() as stack:
        opened = 0
        for size in sizes:
            for number in range(opened, size):
                stack.enter_context(open_page(platform, cookies[number // PAGES_OF_ONE]))
            opened = size
            time.sleep(SETTLE_SECONDS)
            yield size, cost(platform)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=1000)
    pages = parser.parse_args().pages
    # Each page is a descriptor here, and one in a web process, which inherits the limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as folder, Instance(Path(folder)) as platform:
        print("| open pages | LISTEN | connections | threads | MB |\n|---|---|---|---|---|")
        for size, found in measure(platform, [0, 10, pages]):
            print(found.line(size), flush=True)


if __name__ == "__main__":
    main()
