"""The delay from a commit to the start of its task: our NotifiedBroker against django-q2's own ORM broker.

Both clusters run at the same time on one embedded PostgreSQL in a temporary folder, and tasks go to them in turn, after
pauses of random length, so that neither the machine nor the phase of the poll favours one. What each costs while there
is nothing to do is measured before, one after the other.

    python -m benchmarks.dispatch_latency [--tasks 100] [--idle-seconds 20]
"""

import argparse
import os
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.2  # django-q2's default
START_SECONDS = 120.0
SETTLE_SECONDS = 3.0
PAUSES = (0.05, 0.45)
LISTENER = "BENCHMARK_LISTENER"
BROKERS = {
    "NotifiedBroker": {"broker_class": "generation.jobs.queue.NotifiedBroker"},
    "ORM, poll 0.2 s": {"broker_class": "django_q.brokers.orm.ORM", "poll": POLL_SECONDS},
}


@dataclass
class Result:
    """Of one broker: milliseconds from commit to start; share of a core taken while idle, with PostgreSQL's part."""

    milliseconds: list[float] = field(default_factory=list)
    idle: float = 0.0

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.milliseconds, n=100, method="inclusive")[percent - 1]


def note(task: str) -> None:
    """The task: say when it started. CLOCK_MONOTONIC is one clock for all processes of a machine."""
    started = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{task} {started!r}".encode(), ("127.0.0.1", int(os.environ[LISTENER])))


# --- A cluster, in a process of its own -------------------------------------------------------------------------------
def set_up_django(name: str) -> None:
    """Settings of the platform; the queue is called `name` and carried by the broker of that name."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "videoplatform.settings"
    import django
    from django.conf import settings

    settings.Q_CLUSTER = settings.Q_CLUSTER | BROKERS[name] | {"cluster_name": name, "workers": 1}
    django.setup()


def serve(name: str) -> None:
    """Run the cluster until SIGTERM."""
    set_up_django(name)
    from generation.jobs import queue

    queue.run()


@contextmanager
def running(name: str) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "benchmarks.dispatch_latency", "--serve", name]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


# --- What is measured -------------------------------------------------------------------------------------------------
class Bench:
    """Hands tasks to the clusters and hears when they start."""

    def __init__(self, listener: socket.socket, server: psutil.Process) -> None:
        self._listener, self._server = listener, server
        self._number = 0

    def latency(self, name: str) -> float:
        """Seconds from just before the commit of one task until it runs."""
        from django.db import transaction
        from django.utils.module_loading import import_string
        from django_q.tasks import async_task

        self._number += 1
        task = str(self._number)
        broker = import_string(BROKERS[name]["broker_class"])(list_key=name)
        with transaction.atomic():
            async_task("benchmarks.dispatch_latency.note", task, broker=broker)
            committed = time.monotonic()
        while True:
            said, started = self._listener.recv(200).decode().split()
            if said == task:
                return float(started) - committed

    def idle(self, cluster: psutil.Process, seconds: float) -> float:
        """Share of one core that the cluster, and PostgreSQL for it, take while nothing happens."""
        time.sleep(SETTLE_SECONDS)
        before = cpu_seconds(cluster) + cpu_seconds(self._server)
        time.sleep(seconds)
        return (cpu_seconds(cluster) + cpu_seconds(self._server) - before) / seconds


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all below it."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(used.user + used.system for used in times)


def measure(bench: Bench, *, tasks: int, idle_seconds: float) -> dict[str, Result]:
    results = {name: Result() for name in BROKERS}
    for name, result in results.items():
        with running(name) as cluster:
            bench.latency(name)  # it is up
            result.idle = bench.idle(cluster, idle_seconds)
    first, second = BROKERS
    with running(first), running(second):
        for name in BROKERS:
            bench.latency(name)
        for _ in range(tasks):
            for name, result in results.items():
                time.sleep(random.uniform(*PAUSES))
                result.milliseconds.append(1000 * bench.latency(name))
    return results


# --- The table --------------------------------------------------------------------------------------------------------
def table(results: dict[str, Result]) -> str:
    rows = [
        ("start p50 (ms)", *(result.percentile(50) for result in results.values())),
        ("start p95 (ms)", *(result.percentile(95) for result in results.values())),
        ("start p99 (ms)", *(result.percentile(99) for result in results.values())),
        ("idle CPU (% of a core)", *(100 * result.idle for result in results.values())),
    ]
    head = "| | " + " | ".join(results) + " | ratio |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {what} | {one:.1f} | {other:.1f} | {one / other:.2f} |" for what, one, other in rows
    )


def run(*, tasks: int, idle_seconds: float) -> None:
    from videoplatform import embedded_postgres

    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(START_SECONDS)
        # Nothing of the person's own installation.
        os.environ |= {"DATA_DIR": folder, "DATABASE_URL": "", "SECRET_KEY": secrets.token_hex()}
        os.environ |= {"LOG_LEVEL": "WARNING", LISTENER: str(listener.getsockname()[1])}
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user when this one is root
        set_up_django(next(iter(BROKERS)))
        from django.core.management import call_command
        from django.db import connections

        with embedded_postgres.hold(Path(folder)) as server:
            call_command("migrate", verbosity=0)
            results = measure(Bench(listener, server), tasks=tasks, idle_seconds=idle_seconds)
            connections.close_all()
    print(f"{tasks} tasks each, in turn; {os.cpu_count()} cores; Python {sys.version.split()[0]}\n")
    print(table(results))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch_latency")
    parser.add_argument("--tasks", type=int, default=100, help="for each broker")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--serve", choices=list(BROKERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        run(tasks=arguments.tasks, idle_seconds=arguments.idle_seconds)


if __name__ == "__main__":
    main()
