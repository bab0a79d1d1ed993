"""django-q2's ORM broker, woken by NOTIFY instead of sleeping between polls, and first in, first out.

As it comes it sleeps `poll` seconds on an empty queue (+100 ms on average); polling faster costs idle CPU.
Waiting on LISTEN gives the latency of the fast poll at a fraction of the cost
(benchmarks/dispatch_latency.py).
"""

import logging
import os
from datetime import timedelta
from typing import Any

import psycopg
from django.db import connections
from django.db.models.functions import Now
from django_q.brokers.orm import ORM
from django_q.conf import Conf

from generation.database import listen_parameters

logger = logging.getLogger(__name__)

CHANNEL = "django_q_task"
# How long one wait lasts: the pusher looks at its stop event in between, and a lost wake-up costs no more
# than this.
WAIT_SECONDS = 1.0


class NotifiedBroker(ORM):
    """The same table and the same guarantees. How an idle pusher waits is different, and whose clock it goes by:
    PostgreSQL's, for a task that a host with a fast clock put in would wait until the others' clocks are there.
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
        """Up to `bulk` tasks, oldest first, each claimed by moving its lock: who finds it moved was too
        late.
        """
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
        """One connection a process, opened after the fork: a connection must never be shared across one."""
        if self._listener is not None and self._listener_pid == os.getpid() and not self._listener.closed:
            return
        self._listener = psycopg.connect(**listen_parameters(), autocommit=True)
        self._listener_pid = os.getpid()
        self._listener.execute(f"LISTEN {CHANNEL}")
