"""django-q2's queue and cluster: woken by NOTIFY, first in, first out, and made to fail fast.

As it comes, the ORM broker sleeps between polls of an empty queue (+100 ms on average), and faster polls cost idle CPU.
Waiting on LISTEN gives the latency of the fast poll at a fraction of the cost (benchmarks/dispatch_latency.py).

The two tasks of every job are read off the job table itself: a dispatch is due while jobs are queued, a store while a
file waits and its lease is free. So there is at most one pending dispatch, and one store for each attempt, whatever is
lost, repeated or late. A dispatch has a worker process of its own, so that it never waits for files that come slowly,
nor they for it.

As it comes, a SIGKILL of an idle worker wedges the whole cluster for good, because the dead process held the queue's
read lock (django-q2 #23), and a SIGKILL of the sentinel or of the main process leaves orphans that go on working. Here
every process of the cluster watches those it depends on: when one dies hard, the whole process group goes down at once
and the supervisor starts a new one. Tasks are safe to repeat and the job table is the truth, so nothing is lost.
"""

import contextlib
import logging
import math
import os
import queue
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import psycopg
from django.db import connections
from django.db.models import Exists, Q, QuerySet, Value
from django.db.models.functions import Now
from django.dispatch import receiver
from django.utils import timezone
from django_q import cluster as django_q_cluster
from django_q.brokers.orm import ORM
from django_q.cluster import Cluster, Sentinel
from django_q.conf import Conf
from django_q.models import Failure, OrmQ
from django_q.queues import Queue
from django_q.signals import post_spawn
from django_q.signing import SignedPackage
from django_q.tasks import async_task

from accounts.staff.audit_log import Operation, Outcome, operation
from generation.database import check_hearing, listen_parameters
from generation.jobs import locks
from generation.models import GenerationJob, JobAttempt

logger = logging.getLogger(__name__)

CHANNEL = "django_q_task"
# Payloads of the two that have no row in the queue.
DISPATCH, STORE = "generation.jobs.tasks.dispatch", "generation.jobs.tasks.store"
# One wait: the pusher looks at its stop event in between, and a lost wake-up costs no more than this.
WAIT_SECONDS = 1.0
# The same while all workers are busy, after which one may be free; each has its next task already.
BUSY_SECONDS = 0.1
# The first ones may be taken by another host in the same moment.
CANDIDATES = 8
# A task that was handed to the workers is taken up by then, or another one is made.
HANDED_OVER_SECONDS = 10.0
WATCH_SECONDS = 0.5
# Supervisors kill after 8 to 10 s. A task that takes longer is done again by the next worker.
STOP_SECONDS = 7.0
# From a sentinel to a worker whose task is over its time, and to any child at a normal stop.
EXPECTED_EXITS = (0, -signal.SIGTERM)


class Tasks:
    """Queue that the pusher fills. Sends dispatches to a worker of their own, where at most one waits."""

    def __init__(self, tasks: Queue, dispatches: Queue) -> None:
        self._tasks, self._dispatches = tasks, dispatches

    def put(self, task: dict[str, Any]) -> None:
        if task["func"] == DISPATCH and task["ack_id"] is None:
            # One that waits has not looked yet: it will see what this one would.
            with contextlib.suppress(queue.Full):
                self._dispatches.put_nowait(task)
        else:
            self._tasks.put(task)

    def full(self) -> bool:
        return bool(self._tasks.full())


class NotifiedBroker(ORM):
    """The ORM broker, with another wait, with the tasks that the job table asks for, and with PostgreSQL's clock, not
    the host's: a task put in by a host with a fast clock would wait until the others' clocks are there.
    """

    # Set in the pusher's process (FailFastSentinel.spawn_pusher).
    tasks: Tasks | None = None
    _listener: psycopg.Connection[Any] | None = None
    _listener_pid = 0
    _dispatch_due = False
    _store_next = False
    _looked_at = -math.inf

    def enqueue(self, task: str) -> int:
        """Insert and notify in the caller's transaction: both happen when it commits, or neither."""
        return self.insert([task])[0]

    def insert(self, tasks: Collection[str]) -> list[int]:
        rows = [OrmQ(key=self.list_key, payload=task, lock=Now()) for task in tasks]
        self.get_connection().bulk_create(rows)
        with connections[Conf.ORM].cursor() as cursor:
            cursor.execute(f"NOTIFY {CHANNEL}")
        return [row.pk for row in rows]

    def dequeue(self) -> list[tuple[int | None, str]] | None:
        """Claim what is due, at most one task besides a dispatch: more would keep the pusher from the next dispatch."""
        self._hear(seconds=0)
        return self._due() or self._wait_for_due() or None

    def _wait_for_due(self) -> list[tuple[int | None, str]]:
        self._hear(seconds=BUSY_SECONDS if self._is_busy() else WAIT_SECONDS)
        return self._due()

    def _is_busy(self) -> bool:
        return self.tasks is not None and self.tasks.full()

    def _due(self) -> list[tuple[int | None, str]]:
        due: list[tuple[int | None, str]] = []
        if self._dispatch_due or self._is_late():
            self._dispatch_due = False
            due.append((None, _package(DISPATCH)))
        if not self._is_busy():
            # In turns: staff's tasks do not wait for all files, nor files for all of theirs.
            self._store_next = not self._store_next
            first, second = (
                (self._take_store, self._take) if self._store_next else (self._take, self._take_store)
            )
            due += first() or second()
        return due

    def _is_late(self) -> bool:
        """Look at the jobs once a second: a wake-up may be lost, and a node may be free again."""
        if time.monotonic() - self._looked_at < WAIT_SECONDS:
            return False
        self._looked_at = time.monotonic()
        self.get_connection()  # drops a dead connection
        return _jobs_waiting().exists()

    def _take(self) -> list[tuple[int | None, str]]:
        """Claim the oldest task by moving its lock; one whose lock has moved is another's."""
        rows = self.get_connection()
        for row in rows.filter(key=self.list_key, lock__lt=Now()).order_by("id")[:CANDIDATES]:
            if rows.filter(id=row.id, lock=row.lock).update(lock=Now() + timedelta(seconds=Conf.RETRY)):
                return [(row.pk, row.payload)]
        return []

    def _take_store(self) -> list[tuple[int | None, str]]:
        """Claim the file that has waited longest, by the lease of its attempt.

        Of those that hung before, one at a time, and after all others: they may hang again.
        """
        storing = JobAttempt.objects.filter(
            state=JobAttempt.State.OPEN, job__state=GenerationJob.State.STORING
        )
        in_hand = storing.filter(silent_since__isnull=False, lease_expires_at__gte=Now())
        files = _files_to_store().alias(hung=Q(silent_since__isnull=False))
        waiting = files.filter(Q(hung=False) | ~Exists(in_hand)).order_by("hung", "lease_expires_at")
        for attempt_id in waiting.values_list("pk", flat=True)[:CANDIDATES]:
            mine = JobAttempt.objects.filter(pk=attempt_id, lease_expires_at__lt=Now())
            if mine.update(lease_token=None, lease_expires_at=locks.until(HANDED_OVER_SECONDS)):
                return [(None, _package(STORE, str(attempt_id)))]
        return []

    def _hear(self, *, seconds: float) -> None:
        """Wait so long for a notification; all that are there are heard."""
        listener = self._listen()
        try:
            for heard in listener.notifies(timeout=seconds, stop_after=1):
                self._dispatch_due = self._dispatch_due or heard.payload == DISPATCH
        except psycopg.OperationalError:
            logger.warning("the queue's listener lost PostgreSQL")
            self._listener = None
            raise

    def _listen(self) -> "psycopg.Connection[Any]":
        """Open one connection a process, after the fork: a connection must never be shared across one."""
        if self._listener is None or self._listener_pid != os.getpid() or self._listener.closed:
            self._listener = psycopg.connect(**listen_parameters(), autocommit=True)
            self._listener_pid = os.getpid()
            self._listener.execute(f"LISTEN {CHANNEL}")
        return self._listener


class Collected(NotifiedBroker):
    """A broker that keeps tasks until they are inserted together, in one query."""

    def __init__(self) -> None:
        super().__init__()
        self.packages: list[str] = []

    def enqueue(self, task: str) -> int:
        self.packages.append(task)
        return 0


def waiting() -> int:
    """Count the tasks that no worker has done: rows, files to store, and a dispatch while jobs are queued."""
    parts = (OrmQ.objects.order_by(), _files_to_store().order_by(), _jobs_waiting().order_by()[:1])
    rows, *others = (part.annotate(one=Value(1)).values("one") for part in parts)
    number: int = rows.union(*others, all=True).count()
    return number


def _jobs_waiting() -> "QuerySet[GenerationJob]":
    return GenerationJob.objects.filter(state=GenerationJob.State.QUEUED)


def _files_to_store() -> "QuerySet[JobAttempt]":
    free = JobAttempt.objects.filter(state=JobAttempt.State.OPEN, lease_expires_at__lt=Now())
    return free.filter(job__state=GenerationJob.State.STORING)


def _package(function: str, *arguments: str) -> str:
    """Make a task without a row. A second failure of the same takes the place of the first among the failed tasks."""
    name = "-".join((function.rpartition(".")[2], *arguments))
    task = {"id": uuid.uuid5(uuid.NAMESPACE_OID, name).hex, "name": name, "func": function, "args": arguments}
    package: str = SignedPackage.dumps(task | {"kwargs": {}, "started": timezone.now()})
    return package


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

        self._dispatches = Queue(maxsize=1)
        self._dispatcher: BaseProcess | None = None
        self.pool_size += 1
        super().start()

    def stop(self) -> None:
        """Stop the dispatcher, too, which takes nothing from the queue of the others."""
        self._dispatches.put("STOP")
        super().stop()

    def spawn_worker(self) -> None:
        """Start the dispatcher where there is none, else a worker for all other tasks."""
        missing = self._dispatcher not in self.pool
        tasks = self._dispatches if missing else self.task_queue
        process = self.spawn_process(
            django_q_cluster.worker, tasks, self.result_queue, django_q_cluster.Value("f", -1), self.timeout
        )
        if missing:
            self._dispatcher = process

    def spawn_pusher(self) -> BaseProcess:
        self.broker.tasks = Tasks(self.task_queue, self._dispatches)
        return self.spawn_process(django_q_cluster.pusher, self.broker.tasks, self.event_out, self.broker)

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
def run_again(op: Operation, tasks: Sequence[Failure]) -> Outcome[Failure]:
    """Queue failed tasks anew; the failures are deleted, and if they fail again they come back."""
    chosen = Failure.objects.filter(pk__in=[task.pk for task in tasks])
    found = op.possible(chosen, lambda _: None)
    op.record_each([(task, {"task": task.func, "error": str(task.result)[:500]}, {}) for task in found])
    tasks_again = Collected()
    for task in found:
        async_task(task.func, *task.args or (), **(task.kwargs or {}) | {"broker": tasks_again})
    tasks_again.insert(tasks_again.packages)
    chosen.filter(pk__in=[task.pk for task in found]).delete()
    return op.outcome(found)
