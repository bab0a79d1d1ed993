"""django-q2's queue and cluster: woken by NOTIFY, first in, first out, and made to fail fast.

As it comes, the ORM broker sleeps between polls of an empty queue (+100 ms on average), and faster polls cost idle CPU.
Waiting on LISTEN gives the latency of the fast poll at a fraction of the cost (benchmarks/dispatch_latency.py).

As it comes, a SIGKILL of an idle worker wedges the whole cluster for good, because the dead process held the queue's
read lock (django-q2 #23), and a SIGKILL of the sentinel or of the main process leaves orphans that go on working. Here
every process of the cluster watches those it depends on: when one dies hard, the whole process group goes down at once
and the supervisor starts a new one. Tasks are safe to repeat and the job table is the truth, so nothing is lost.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import psycopg
from django.db import connections
from django.db.models.functions import Now
from django.dispatch import receiver
from django_q import cluster as django_q_cluster
from django_q.brokers.orm import ORM
from django_q.cluster import Cluster, Sentinel
from django_q.conf import Conf
from django_q.models import Failure
from django_q.signals import post_spawn
from django_q.tasks import async_task

from accounts.staff.audit_log import Operation, operation
from generation.database import check_hearing, listen_parameters

logger = logging.getLogger(__name__)

CHANNEL = "django_q_task"
# One wait: the pusher looks at its stop event in between, and a lost wake-up costs no more than this.
WAIT_SECONDS = 1.0
WATCH_SECONDS = 0.5
# Supervisors kill after 8 to 10 s. A task that takes longer is done again by the next worker.
STOP_SECONDS = 7.0
# From a sentinel to a worker whose task is over its time, and to any child at a normal stop.
EXPECTED_EXITS = (0, -signal.SIGTERM)


class NotifiedBroker(ORM):
    """The ORM broker, with another wait and with PostgreSQL's clock, not the host's: a task put in by a host with
    a fast clock would wait until the others' clocks are there.
    """

    _listener: psycopg.Connection[Any] | None = None
    _listener_pid = 0

    def enqueue(self, task: str) -> int:
        """Insert and notify in the caller's transaction: both happen when it commits, or neither."""
        key: int = self.get_connection().create(key=self.list_key, payload=task, lock=Now()).pk
        with connections[Conf.ORM].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")
        return key

    def dequeue(self) -> list[tuple[int, str]] | None:
        self._listen()
        return self._take() or self._wait_and_take()

    def _take(self) -> list[tuple[int, str]]:
        """Claim up to `bulk` tasks, oldest first, each by moving its lock; one whose lock has moved is another's."""
        queue = self.get_connection()
        waiting = queue.filter(key=self.list_key, lock__lt=Now()).order_by("id")[: Conf.BULK]
        return [
            (task.pk, task.payload)
            for task in waiting
            if queue.filter(id=task.id, lock=task.lock).update(lock=Now() + timedelta(seconds=Conf.RETRY))
        ]

    def _wait_and_take(self) -> list[tuple[int, str]] | None:
        assert self._listener is not None
        try:
            for _ in self._listener.notifies(timeout=WAIT_SECONDS, stop_after=1):
                pass
        except psycopg.OperationalError:
            logger.warning("the queue's listener lost PostgreSQL")
            self._listener = None
            raise
        return self._take() or None

    def _listen(self) -> None:
        """Open one connection a process, after the fork: a connection must never be shared across one."""
        if self._listener is not None and self._listener_pid == os.getpid() and not self._listener.closed:
            return
        self._listener = psycopg.connect(**listen_parameters(), autocommit=True)
        self._listener_pid = os.getpid()
        self._listener.execute(f"LISTEN {CHANNEL}")


def run() -> None:
    """Run the cluster until SIGTERM or SIGINT.

    It returns after a clean stop. After a hard death, or when tasks are not done STOP_SECONDS after the signal, the
    whole process group is killed: the calling process leads one of its own from here on, so nothing else dies with it.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    check_hearing()
    # The cluster starts its sentinel by this name, and has no setting for it.
    django_q_cluster.Sentinel = FailFastSentinel
    main = Cluster()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_stop_in_time, main))
    main.start()
    # In the main thread: from another one, the process could end as if all were well before the code is read.
    _watch(main.sentinel, (0,))


def _stop_in_time(main: Cluster, number: int, frame: FrameType | None) -> None:
    """Handle a signal. The cluster's own handler waits for its tasks as long as they take."""
    patience = threading.Timer(STOP_SECONDS, _fail_fast, [f"tasks still run after {STOP_SECONDS:g} s"])
    patience.daemon = True
    patience.start()
    main.sig_handler(number, frame)


class FailFastSentinel(Sentinel):
    """A sentinel whose children and parent are each watched from a thread.

    The guard loop cannot do it: it takes the timer lock of each worker, which a killed worker may have held.
    """

    def start(self) -> None:
        # A SIGTERM for the whole group must not end the sentinel before it has stopped its children in order.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _die_with_parent(self.parent_pid)
        super().start()

    def spawn_process(self, target: Callable[..., Any], *args: Any) -> BaseProcess:
        # Workers are recognised by their target and have a hook of their own (post_spawn), so they are not wrapped.
        wrapped = target if target is django_q_cluster.worker else partial(_watched, target)
        process: BaseProcess = super().spawn_process(wrapped, *args)
        # From the first moment: until a dead cluster is ended it takes tasks, which then wait for their retry.
        threading.Thread(
            target=_watch, args=[process, EXPECTED_EXITS], daemon=True, name="watch-child"
        ).start()
        return process


def _watch(process: BaseProcess, expected: Collection[int]) -> None:
    connection.wait([process.sentinel])
    exitcode = _exitcode(process)
    if exitcode not in expected:
        _fail_fast(f"{process.name} (pid {process.pid}) died with {exitcode}")


def _exitcode(process: BaseProcess) -> int | None:
    """Read the exit code of a process that has ended. Another thread may be reaping it, so it can be a little late."""
    for _ in range(100):
        if process.exitcode is not None:
            break
        time.sleep(0.01)
    return process.exitcode


def _watched(target: Callable[..., Any], *args: Any) -> None:
    _begin_child()
    target(*args)


@receiver(post_spawn, dispatch_uid="generation.jobs.queue.begin_child")
def _begin_child(**_: Any) -> None:
    # The sentinel ends a worker with it whose task is over its time.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent(os.getppid())


def _die_with_parent(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        _fail_fast(f"the parent of pid {os.getpid()} is gone")

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def _fail_fast(why: str) -> None:
    """End the whole group with SIGKILL: after a hard death no lock that these processes share can be trusted."""
    logger.critical("%s: the worker stops as a whole, to be started anew", why)
    logging.shutdown()
    os.killpg(os.getpgrp(), signal.SIGKILL)


@operation("django_q.change_failure", "task.run_again")
def run_again(op: Operation, task: Failure) -> None:
    """Queue a failed task anew; the failure is deleted, and if it fails again it comes back."""
    op.record(task, before={"task": task.func, "error": str(task.result)[:500]})
    if Failure.objects.filter(pk=task.pk).delete()[0]:
        async_task(task.func, *task.args or (), **task.kwargs or {})
