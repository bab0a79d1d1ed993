"""The worker's fail-fast: whichever of its processes is killed, the whole group ends, and a new one works on."""

import os
import signal
import time
from typing import Any

import psutil
import pytest
from django.db import transaction
from django_q.models import OrmQ
from django_q.tasks import async_task

from generation.jobs import submission
from generation.models import GenerationJob
from tests.processes import Processes, still_alive, wait_for

pytestmark = pytest.mark.django_db(transaction=True)

# Workers are forked first, then the monitor and the pusher (django_q.cluster.Sentinel.spawn_cluster).
ROLES = ("dispatcher", "idle worker", "monitor", "pusher")


def family(main_pid: int) -> tuple[psutil.Process, list[psutil.Process]]:
    """The sentinel and its children, oldest first, once all five are there."""
    main = psutil.Process(main_pid)

    def look() -> tuple[psutil.Process, list[psutil.Process]] | None:
        for sentinel in main.children():
            children = sorted(sentinel.children(), key=lambda child: child.pid)
            if len(children) == 5:
                return sentinel, children
        return None

    return wait_for(look)


def pick(role: str, main_pid: int) -> psutil.Process:
    sentinel, children = family(main_pid)
    if role == "main":
        return psutil.Process(main_pid)
    if role == "sentinel":
        return sentinel
    return children[{"dispatcher": 0, "idle worker": 1, "monitor": 3, "pusher": 4}[role]]


def done(user: Any) -> Any:
    """Something the worker visibly does: it takes a task out of the queue."""
    async_task("generation.jobs.tasks.dispatch")
    return lambda: not OrmQ.objects.exists()


@pytest.mark.parametrize("role", [*ROLES, "sentinel", "main"])
def test_a_sigkill_of_any_part_ends_the_whole_group_and_a_new_worker_goes_on(
    processes: Processes, user, role
):
    worker = processes.start("run_worker")
    victim = pick(role, worker.pid)
    everyone = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    wait_for(done(user))
    time.sleep(
        0.3
    )  # so that the workers wait for work again, holding the queue's lock: the wedge of django-q2 #23
    victim.send_signal(signal.SIGKILL)
    assert worker.wait(10) == -signal.SIGKILL
    assert still_alive(everyone) == []
    processes.start("run_worker")
    wait_for(done(user), seconds=15)


def test_a_worker_ends_in_order_when_asked_and_leaves_nobody_behind(processes: Processes, user):
    worker = processes.start("run_worker")
    family(worker.pid)
    everyone = psutil.Process(worker.pid).children(recursive=True)
    assert processes.stop("run_worker") == 0
    assert still_alive(everyone, seconds=5) == []


def test_a_sigterm_to_the_whole_group_ends_it_too(processes: Processes, user):
    worker = processes.start("run_worker")
    family(worker.pid)
    everyone = psutil.Process(worker.pid).children(recursive=True)
    os.killpg(worker.pid, signal.SIGTERM)
    assert worker.wait(15) in (0, -signal.SIGKILL)
    assert still_alive(everyone, seconds=5) == []


def test_tasks_that_were_queued_in_a_rolled_back_transaction_never_run(user):
    with pytest.raises(RuntimeError), transaction.atomic():
        submission.submit(user=user, prompt="a red ball", source="api")
        raise RuntimeError
    assert not OrmQ.objects.exists()
    assert not GenerationJob.objects.exists()
