"""Rows are locked in one order (generation/jobs/locks.py), so transitions never wait for each other in a circle."""

import inspect
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now

from accounts import ledger, ledger_check
from accounts.models import User
from accounts.staff import operations
from accounts.staff.actor import Actor
from generation.errors import GenerationError
from generation.jobs import enqueue, lifecycle, locks, node_health, scheduling, stored_files, submission
from generation.models import GenerationJob, GpuNode, JobAttempt, Preset
from generation.nodes import NodeError, NodeHealth
from generation.staff import jobs as staff_jobs
from generation.staff import moderation
from tests.clips import FACTS, FILES

pytestmark = pytest.mark.django_db

ORDER = {
    "generation_gpunode": 1,
    "generation_jobattempt": 2,
    "generation_generationjob": 3,
    "generation_unclaimedfile": 4,
    "accounts_creditaccount": 5,
    "accounts_credittransaction": 5,  # inserting an entry moves the wallet
}
LOCKING = re.compile(
    r'UPDATE "(?P<updated>\w+)"|DELETE FROM "(?P<deleted>\w+)"|INSERT INTO "(?P<entry>accounts_credittransaction)"'
    r'|SELECT .*? FROM "(?P<selected>\w+)".* FOR (NO KEY )?UPDATE',
    re.DOTALL,
)


@contextmanager
def watched_locks() -> Iterator[list[str]]:
    """The tables in which rows are locked, in the order of their first lock."""
    taken: list[str] = []

    def note(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        found = LOCKING.match(str(sql))
        if found and context["cursor"].rowcount > 0:
            table = next(name for name in found.groups() if name and not name.startswith("NO KEY"))
            if table in ORDER and table not in taken:
                taken.append(table)
        return result

    with connection.execute_wrapper(note):
        yield taken


# --- Each operation, from a state in which it has something to do -----------------------------------------------------


@pytest.fixture
def world(settings: Any, user: Any, node: GpuNode, finish_job: Any) -> Any:
    """Jobs in every state, on a node that has failed before."""
    settings.VIDEO_COOLDOWN_SECONDS = 0
    settings.NODE_FAILURES_TO_SET_ASIDE = 1000
    GpuNode.objects.update(capacity=10)
    return World(user, node, finish_job)


class World:
    def __init__(self, user: Any, node: GpuNode, finish_job: Any) -> None:
        self.user, self.node, self.finish_job = user, node, finish_job

    def submit(self) -> GenerationJob:
        return submission.submit(user=self.user, prompt="a red ball", source="api")

    def submit_again(self, job: GenerationJob) -> GenerationJob:
        with transaction.atomic():
            wallets = {self.user.pk: ledger.lock_account(user=self.user)}
            return submission.submit_again([job], wallets=wallets)[0]

    def running(self) -> JobAttempt:
        self.submit()
        [attempt] = scheduling.claim(1)
        GpuNode.objects.update(consecutive_failures=1)
        return attempt

    def storing(self) -> JobAttempt:
        attempt = self.running()
        assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
        stored_files.announce(FILES)
        return attempt

    def refused_elsewhere(self) -> JobAttempt:
        """A job on this node that another one has refused."""
        self.node.pk, known = None, self.node.pk
        self.node.name, self.node.base_url = "refuses", "http://127.0.0.1:11"
        self.node.save(force_insert=True)
        refused = self.running()
        JobAttempt.objects.filter(pk=refused.pk).update(node=self.node)
        lifecycle.attempt_rejected(attempt_id=refused.pk, token=refused.pk, why="no such field")
        GpuNode.objects.filter(pk=self.node.pk).update(enabled=False)
        [attempt] = scheduling.claim(1)
        assert attempt.node_id == known
        return attempt

    def finished(self) -> GenerationJob:
        return self.finish_job(self.submit())  # type: ignore[no-any-return]

    def overdue(self) -> GenerationJob:
        attempt = self.running()
        GenerationJob.objects.update(deadline_at=Now() - timedelta(seconds=1))
        return attempt.job

    def failed(self) -> GenerationJob:
        attempt = self.running()
        mine = {"attempt_id": attempt.pk, "token": attempt.pk}
        lifecycle.attempt_failed(**mine, code="c", message="m", error="e")
        return attempt.job

    def second_node(self) -> GpuNode:
        self.node.pk, self.node.name, self.node.base_url = None, "second", "http://127.0.0.1:11"
        self.node.save(force_insert=True)
        return self.node

    @property
    def act(self) -> dict[str, Any]:
        """How an act of staff is called."""
        User.objects.filter(pk=self.user.pk).update(is_staff=True, is_superuser=True)
        return {"actor": Actor(User.objects.get(pk=self.user.pk), "127.0.0.1"), "reason": "x"}

    def set_aside(self) -> GpuNode:
        GpuNode.objects.update(set_aside_at=Now(), next_canary_at=Now() - timedelta(seconds=1))
        return self.node


CLIP = ("videos/b.mp4", "posters/b.jpg")
# What prepares, and what is then watched.
OPERATIONS: dict[str, tuple[Callable[[World], Any], Callable[[World, Any], Any]]] = {
    "submission.submit": (lambda w: None, lambda w, _: w.submit()),
    "submission.submit_again": (World.finished, lambda w, job: w.submit_again(job)),
    "enqueue.store": (World.storing, lambda w, a: enqueue.store(attempt_id=a.pk)),
    "lifecycle.attempt_posted": (
        World.running,
        lambda w, a: lifecycle.attempt_posted(attempt_id=a.pk, token=a.pk, remote_id="r"),
    ),
    "lifecycle.request_sent": (
        World.running,
        lambda w, a: lifecycle.request_sent(attempt_id=a.pk, token=a.pk),
    ),
    "lifecycle.record_progress": (
        World.running,
        lambda w, a: lifecycle.record_progress(attempt_id=a.pk, token=a.pk, step=3),
    ),
    "lifecycle.note_silence": (
        World.running,
        lambda w, a: lifecycle.note_silence(attempt_id=a.pk, token=a.pk, seconds=1),
    ),
    "lifecycle.begin_storing": (
        World.running,
        lambda w, a: lifecycle.begin_storing(attempt_id=a.pk, token=a.pk),
    ),
    "lifecycle.complete": (
        World.storing,
        lambda w, a: lifecycle.complete(attempt_id=a.pk, files=FILES, facts=FACTS),
    ),
    "lifecycle.attempt_refused": (
        World.running,
        lambda w, a: lifecycle.attempt_refused(attempt_id=a.pk, token=a.pk, retry_after=1, why="busy"),
    ),
    "lifecycle.attempt_rejected": (
        World.running,
        lambda w, a: lifecycle.attempt_rejected(attempt_id=a.pk, token=a.pk, why="no such field"),
    ),
    "lifecycle.attempt_lost": (
        World.running,
        lambda w, a: lifecycle.attempt_lost(attempt_id=a.pk, token=a.pk, error="gone", pause=1),
    ),
    "lifecycle.attempt_failed": (
        World.running,
        lambda w, a: lifecycle.attempt_failed(attempt_id=a.pk, token=a.pk, code="c", message="m", error="e"),
    ),
    "lifecycle.attempt_stopped": (
        World.running,
        lambda w, a: lifecycle.attempt_stopped(attempt_id=a.pk, token=a.pk, stopped_at_step=2),
    ),
    "lifecycle.cancel": (World.running, lambda w, a: lifecycle.cancel(job=a.job)),
    "lifecycle.expire": (World.overdue, lambda w, job: lifecycle.expire(job_id=job.pk)),
    "lifecycle.delete": (World.finished, lambda w, job: lifecycle.delete(job=job)),
    "lifecycle.cancel_each": (
        lambda w: [w.running(), w.running(), w.submit()],
        lambda w, _: lifecycle.cancel_each(jobs=w.user.jobs.all(), reason="banned"),
    ),
    "lifecycle.refund": (
        World.finished,
        lambda w, job: lifecycle.refund(job=job, reason="ugly", actor=w.user),
    ),
    "enqueue.dispatch": (lambda w: None, lambda w, _: enqueue.dispatch()),
    "enqueue.remove_files": (lambda w: None, lambda w, _: enqueue.remove_files()),
    "enqueue.add_up": (lambda w: None, lambda w, _: enqueue.add_up()),
    "scheduling.claim": (lambda w: [w.submit(), w.submit()], lambda w, _: scheduling.claim()),
    "node_health.sync_environment_node": (
        lambda w: None,
        lambda w, _: node_health.sync_environment_node(),
    ),
    "node_health.record_health": (
        World.set_aside,
        lambda w, node: node_health.record_health(
            node, NodeHealth(ready=True, status="ready", protocol="videos")
        ),
    ),
    "node_health.record_failure": (
        World.set_aside,
        lambda w, node: node_health.record_failure(node, NodeError("gone")),
    ),
    "node_health.count_failure": (
        World.running,
        lambda w, a: node_health.count_failure(locks.held(attempt_id=a.pk, token=a.pk), error="e"),
    ),
    "node_health.blame_refusers": (
        World.refused_elsewhere,
        lambda w, a: node_health.blame_refusers(locks.held(attempt_id=a.pk, token=a.pk)),
    ),
    "node_health.have_canaries_made": (
        lambda w: None,
        lambda w, _: node_health.have_canaries_made([w.node.pk]),
    ),
    "node_health.count_success": (World.running, lambda w, a: node_health.count_success(attempt_id=a.pk)),
    "node_health.claim_canary": (World.set_aside, lambda w, node: node_health.claim_canary(node)),
    "node_health.bring_back": (World.set_aside, lambda w, node: node_health.bring_back(node)),
    "node_health.note_failed_canary": (
        World.set_aside,
        lambda w, node: node_health.note_failed_canary(node, ValueError("no")),
    ),
    "locks.take": (World.running, lambda w, a: locks.take(attempt_id=a.pk, token=a.pk)),
    "locks.drop": (World.running, lambda w, a: locks.drop(attempt_id=a.pk, token=a.pk)),
    "locks.drop_all": (World.running, lambda w, a: locks.drop_all(token=a.pk)),
    "stored_files.announce": (lambda w: None, lambda w, _: stored_files.announce(CLIP)),
    "stored_files.claim": (lambda w: stored_files.announce(CLIP), lambda w, _: stored_files.claim(CLIP)),
    "stored_files.let_go": (lambda w: None, lambda w, _: stored_files.let_go(CLIP)),
    "stored_files.discard": (lambda w: stored_files.announce(CLIP), lambda w, _: stored_files.discard(CLIP)),
    "stored_files.remove_due": (lambda w: stored_files.let_go(CLIP), lambda w, _: stored_files.remove_due()),
}
# Acts of staff on a selection, and on one.
ACTS: dict[str, tuple[Callable[[World], Any], Callable[[World, Any], Any]]] = {
    "staff.jobs.cancel_each": (
        lambda w: [w.running().job, w.submit()],
        lambda w, jobs: staff_jobs.cancel_each(jobs, **w.act),
    ),
    "staff.jobs.retry_each": (
        lambda w: [w.failed(), w.failed()],
        lambda w, jobs: staff_jobs.retry_each(jobs, **w.act),
    ),
    "staff.jobs.move_each": (
        lambda w: ([w.running().job, w.running().job], w.second_node()),
        lambda w, prepared: staff_jobs.move_each(*prepared, **w.act),
    ),
    "staff.jobs.refund": (
        lambda w: (w.finished(), User.objects.create(username="staff", is_staff=True, is_superuser=True)),
        lambda w, found: staff_jobs.refund(found[0], actor=Actor(found[1], "127.0.0.1"), reason="x"),
    ),
    "staff.moderation.remove": (World.finished, lambda w, job: moderation.remove(job, **w.act)),
}
# These write nothing by themselves: they read, or are parts of the operations above.
PARTS = {
    "submission.same_again",
    "submission.check_prompt",
    "submission.check_seed",
    "submission.matching",
    "node_health.endpoint_of",
    "node_health.examine",
    "node_health.are_proven",
    "node_health.last_good",
    "lifecycle.entries_of",
    "lifecycle.receipt",
    "scheduling.others_for",
    "scheduling.could_move",
    "scheduling.open_attempts",
    "scheduling.queue_positions",
    "locks.held",
    "locks.lock_jobs",
    "locks.kept",
    "locks.until",
    "stored_files.due",
    "stored_files.all_of",
    "stored_files.new_names",
    "stored_files.store",
    "stored_files.held",
}


def test_no_operation_is_left_out() -> None:
    def public(module: ModuleType) -> set[str]:
        short = module.__name__.rpartition(".")[2]
        own = [
            name for name, thing in inspect.getmembers(module, inspect.isfunction) if not name.startswith("_")
        ]
        return {
            f"{short}.{name}"
            for name in own
            if inspect.getmodule(inspect.unwrap(vars(module)[name])) is module
        }

    everything = set().union(
        *map(public, (submission, lifecycle, enqueue, scheduling, node_health, locks, stored_files))
    )
    assert everything == OPERATIONS.keys() | PARTS


@pytest.mark.parametrize("operation", [*OPERATIONS, *ACTS])
def test_an_operation_locks_rows_in_the_one_order(world: World, operation: str) -> None:
    prepare, run = (OPERATIONS | ACTS)[operation]
    prepared = prepare(world)
    with watched_locks() as taken:
        run(world, prepared)
    ranks = [ORDER[table] for table in taken]
    assert ranks == sorted(ranks), f"{operation} locks {' → '.join(taken)}"


def test_the_watch_sees_locks_of_every_kind(world: World) -> None:
    attempt = world.storing()
    with watched_locks() as taken:
        lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS)
    assert sorted({ORDER[table] for table in taken}) == [1, 2, 3, 4, 5]


# --- And all of them at once ------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_transitions_of_the_same_jobs_at_once_never_block_each_other(world: World) -> None:
    """Two nodes, one wallet, eight threads that do whatever comes: no deadlock, and the job table stays sane."""
    seed = random.randrange(10**6)
    failures: list[BaseException] = []

    def act(number: int) -> None:
        chance = random.Random(seed + number)
        try:
            for _ in range(25):
                _anything(world, chance)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=act, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures, f"seed {seed}: {failures}"
    assert not [thread for thread in threads if thread.is_alive()]
    stray = JobAttempt.objects.filter(state="open").exclude(job__state__in=["running", "storing"])
    assert not stray.filter(cancel_requested_at=None).exists()


def _anything(world: World, chance: random.Random) -> None:
    attempts = list(JobAttempt.objects.filter(state="open").select_related("job")[:4])
    attempt = chance.choice(attempts) if attempts else None
    try:
        if attempt is None or chance.random() < 0.3:
            world.submit()
            scheduling.claim(1)
        else:
            _transition(world, attempt, chance)
    except GenerationError:
        return  # refused, because another was faster or the wallet is empty
    except OperationalError as error:
        raise AssertionError(str(error)) from error


def _transition(world: World, attempt: JobAttempt, chance: random.Random) -> None:
    files = stored_files.announce
    mine = {"attempt_id": attempt.pk, "token": attempt.pk}
    chance.choice(
        [
            lambda: lifecycle.record_progress(**mine, step=chance.randrange(20)),
            lambda: lifecycle.begin_storing(**mine),
            lambda: (files(FILES), lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS)),
            lambda: lifecycle.attempt_lost(attempt_id=attempt.pk, token=attempt.pk, error="gone", pause=0.01),
            lambda: lifecycle.attempt_failed(
                attempt_id=attempt.pk, token=attempt.pk, code="c", message="m", error="e"
            ),
            lambda: lifecycle.attempt_refused(
                attempt_id=attempt.pk, token=attempt.pk, retry_after=0.01, why="busy"
            ),
            lambda: lifecycle.cancel(job=attempt.job),
            lambda: lifecycle.cancel_each(jobs=world.user.jobs.all(), reason="banned"),
            lambda: (
                attempt.job.is_live
                or lifecycle.attempt_stopped(attempt_id=attempt.pk, token=attempt.pk, stopped_at_step=None)
            ),
        ]
    )()


ROUNDS = 200


@pytest.mark.django_db(transaction=True)
def test_bulk_acts_of_staff_and_the_ends_of_jobs_at_once_never_block_each_other(
    world: World, make_user: Callable[..., Any], staff: Any
) -> None:
    """Each round at the same moment: three jobs of two wallets are canceled in one act, one of them is stored or
    fails, and both wallets are granted credits in another act.
    """
    people, actor = [make_user("b"), world.user], Actor(staff, "127.0.0.1")
    model = world.submit()
    lifecycle.cancel(job=model)
    rounds = [[_copy(model, owner) for owner in (*people, world.user)] for _ in range(ROUNDS)]
    everything = [job for jobs in rounds for job in jobs]
    with transaction.atomic():
        wallets = {wallet.user_id: wallet for wallet in ledger.lock_accounts(users=people)}
        submission._queue(everything, wallets, reason="Held")
        attempts = scheduling.open_attempts([(job, world.node) for job in everything])
    attempt_of = {attempt.job_id: attempt.pk for attempt in attempts}
    stored = {jobs[-1].pk for jobs in rounds[::2]}
    GenerationJob.objects.filter(pk__in=stored).update(state="storing")
    begin, failures = threading.Barrier(3), []

    def cancel(jobs: list[GenerationJob]) -> None:
        with transaction.atomic():  # as a page of the admin
            staff_jobs.cancel_each(jobs, actor=actor, reason="x")

    def end(jobs: list[GenerationJob]) -> None:
        attempt = attempt_of[jobs[-1].pk]
        if jobs[-1].pk in stored:
            stored_files.announce(FILES)
            assert lifecycle.complete(attempt_id=attempt, files=FILES, facts=FACTS)
        else:
            lifecycle.attempt_failed(attempt_id=attempt, token=attempt, code="c", message="m", error="e")

    def grant(_: list[GenerationJob]) -> None:
        operations.grant(people, actor=actor, amount=1, reason="x")

    def run(act: Callable[[list[GenerationJob]], None]) -> None:
        try:
            for jobs in rounds:
                begin.wait(60)
                act(jobs)
        except BaseException as error:
            failures.append(error)
            begin.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(act,)) for act in (cancel, end, grant)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures, failures
    assert not GenerationJob.objects.filter(finished_at=None).exists()
    assert GenerationJob.objects.filter(state="completed").count() == ROUNDS / 2
    assert not ledger_check.audit().discrepancies


def _copy(job: GenerationJob, owner: Any) -> GenerationJob:
    settings = {name: getattr(job, name) for name in Preset.COPIED}
    return GenerationJob(**submission.same_again(job), **settings, user=owner, cost=0, source="api")
