"""The django-q2 cluster, made to fail fast.

As it comes, a SIGKILL of an idle worker wedges the whole cluster for good, because the dead process held
the queue's read lock (django-q2 #23), and a SIGKILL of the sentinel or of the main process leaves orphans
that go on working. Here every process of the cluster watches those it depends on: when one dies hard, the
whole process group goes down at once and the supervisor starts a new one. Tasks are safe to repeat and the
job table is the truth, so nothing is lost.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from django.dispatch import receiver
from django_q import cluster as django_q_cluster
from django_q.cluster import Cluster, Sentinel
from django_q.signals import post_spawn

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
# Supervisors kill after 8 to 10 s. A task that takes longer is done again by the next worker.
STOP_SECONDS = 7.0
# What a sentinel does to a worker whose task is over its time, and to any child at a normal stop.
EXPECTED_EXITS = (0, -signal.SIGTERM)


def run() -> None:
    """Run the cluster until SIGTERM or SIGINT; returns after a clean stop, never returns after a hard
    death or when tasks are not done STOP_SECONDS after the signal.

    The caller must lead its process group (`lead_process_group`), for the whole group is killed on a hard
    death.
    """
    # The cluster starts its sentinel by this name, and has no setting for it.
    django_q_cluster.Sentinel = FailFastSentinel
    main = Cluster()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_in_time(main))
    main.start()
    _wait_for_sentinel(main.sentinel)


def _stop_in_time(main: Cluster) -> Callable[[int, FrameType | None], None]:
    """A signal handler: the cluster's own waits for its tasks as long as they take."""

    def handle(number: int, frame: FrameType | None) -> None:
        patience = threading.Timer(STOP_SECONDS, _fail_fast, [f"tasks still run after {STOP_SECONDS:g} s"])
        patience.daemon = True
        patience.start()
        main.sig_handler(number, frame)

    return handle


def lead_process_group() -> None:
    """Make the calling process the leader of a group of its own, so that a hard death takes nothing else
    along.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


class FailFastSentinel(Sentinel):
    """A sentinel whose children and parent are watched from a thread of its own.

    The guard loop cannot do it: it takes the timer lock of each worker, which a killed worker may have held.
    """

    def start(self) -> None:
        self._children: dict[int, BaseProcess] = {}
        # A SIGTERM for the whole group must not end the sentinel before it has stopped its children in order.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _die_with_parent(self.parent_pid)
        threading.Thread(target=self._watch_children, daemon=True, name="watch-children").start()
        super().start()

    def spawn_process(self, target: Callable[..., Any], *args: Any) -> BaseProcess:
        # Workers are recognised by their target and have a hook of their own (post_spawn), so they are not
        # wrapped.
        wrapped = target if target is django_q_cluster.worker else _Watched(target)
        process: BaseProcess = super().spawn_process(wrapped, *args)
        self._children[process.sentinel] = process
        return process

    def _watch_children(self) -> None:
        while True:
            for handle in connection.wait(list(self._children), timeout=WATCH_SECONDS):
                process = self._children.pop(handle)  # type: ignore[arg-type]
                exitcode = _exitcode(process)
                if exitcode not in EXPECTED_EXITS:
                    _fail_fast(f"{process.name} (pid {process.pid}) died with {exitcode}")


def _exitcode(process: BaseProcess) -> int | None:
    """Of a process that has ended.

    Another thread may be reaping it in this moment, so the code can be a little late.
    """
    for _ in range(100):
        if process.exitcode is not None:
            break
        time.sleep(0.01)
    return process.exitcode


class _Watched:
    """A child's target that ends with its sentinel."""

    def __init__(self, target: Callable[..., Any]) -> None:
        self.target = target

    def __call__(self, *args: Any) -> None:
        _begin_child()
        self.target(*args)


@receiver(post_spawn, dispatch_uid="generation.cluster.begin_child")
def _begin_child(**_: Any) -> None:
    # How the sentinel ends a worker whose task is over its time.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent(os.getppid())


def _wait_for_sentinel(sentinel: BaseProcess) -> None:
    """In the main thread: were it elsewhere, the main process could end as if all were well before it is looked at."""
    connection.wait([sentinel.sentinel])
    exitcode = _exitcode(sentinel)
    if exitcode != 0:
        _fail_fast(f"the sentinel (pid {sentinel.pid}) died with {exitcode}")


def _die_with_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        _fail_fast(f"the parent of pid {os.getpid()} is gone")

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def _fail_fast(why: str) -> None:
    """End the whole group with SIGKILL: after a hard death no lock that these processes share can be
    trusted.
    """
    logger.critical("%s: the worker stops as a whole, to be started anew", why)
    logging.shutdown()
    os.killpg(os.getpgrp(), signal.SIGKILL)
