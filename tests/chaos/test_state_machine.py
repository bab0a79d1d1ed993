"""R9: whatever happens to jobs, in whatever order, the books and the states agree with a model in plain Python."""

import os
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from accounts import ledger
from accounts.ledger import LedgerError
from accounts.ledger_check import audit
from accounts.models import CreditTransaction, User
from generation.errors import CannotCancel, GenerationError
from generation.jobs import lifecycle, locks, scheduling, stored_files, submission
from generation.models import GenerationJob, GpuNode, JobAttempt
from tests.chaos.conftest import SEED
from tests.clips import FACTS, FILES

PEOPLE = 2
START = 500


class Books(RuleBasedStateMachine):
    """The platform, driven through its operations; beside it, what a person with pencil and paper would have."""

    def __init__(self) -> None:
        super().__init__()
        self.example = transaction.atomic()
        self.example.__enter__()
        self.people = [User.objects.create_user(uuid.uuid4().hex) for _ in range(PEOPLE)]
        GpuNode.objects.create(
            name=uuid.uuid4().hex,
            base_url=f"http://{uuid.uuid4().hex}",
            detected_protocol="videos",
            status="ready",
            capacity=3,
            last_seen_at=timezone.now() + timedelta(days=1),
        )
        self.posted = dict.fromkeys(range(PEOPLE), START)
        self.jobs: dict[uuid.UUID, tuple[int, str]] = {}  # owner, state
        self.refunded: set[uuid.UUID] = set()
        self.tries: dict[uuid.UUID, int] = {}
        self.attempts: list[JobAttempt] = []

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.example.__exit__(None, None, None)

    # --- What people and staff do ---

    @initialize()
    def begin(self) -> None:
        """Every example has something going on from the start."""
        for owner in range(PEOPLE):
            self.submit(owner)
        self.dispatch()

    @rule(owner=st.integers(0, PEOPLE - 1))
    def submit(self, owner: int) -> None:
        free = self.posted[owner] - 50 * self._holds(owner)
        try:
            with transaction.atomic():
                job = submission.submit(user=self.people[owner], prompt="a red ball", source="api")
        except GenerationError:
            assert free < 50
            return
        assert free >= 50
        self.jobs[job.pk] = (owner, "queued")
        self.tries[job.pk] = 0

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = self._any_job(data)
        owner, state = self.jobs[job_id]
        try:
            with transaction.atomic():
                lifecycle.cancel(job=GenerationJob.objects.get(pk=job_id))
        except CannotCancel:
            assert state not in ("queued", "running", "canceled")
            return
        assert state in ("queued", "running", "canceled")
        self.jobs[job_id] = (owner, "canceled")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        job_id = self._any_job(data)
        owner, state = self.jobs[job_id]
        try:
            with transaction.atomic():
                ledger.refund(reference=job_id, reason="Asked for")
        except LedgerError:
            assert state != "completed"
            return
        assert state == "completed"
        if job_id not in self.refunded:
            self.refunded.add(job_id)
            self.posted[owner] += 50

    @rule(owner=st.integers(0, PEOPLE - 1), change=st.integers(-200, 200))
    def adjust(self, owner: int, change: int) -> None:
        free = self.posted[owner] - 50 * self._holds(owner)
        try:
            with transaction.atomic():
                ledger.adjust(
                    user=self.people[owner], amount=change, reason="Corrected", actor=self.people[0]
                )
        except LedgerError:
            assert change == 0 or free + change < 0
            return
        self.posted[owner] += change

    # --- What the machinery does ---

    @precondition(lambda self: any(state == "queued" for _, state in self.jobs.values()))
    @rule()
    def dispatch(self) -> None:
        attempt = next(iter(scheduling.claim(1)), None)
        if attempt is None:
            return
        owner, state = self.jobs[attempt.job_id]
        assert state == "queued"
        self.jobs[attempt.job_id] = (owner, "running")
        self.tries[attempt.job_id] += 1
        self.attempts.append(attempt)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), step=st.integers(0, 20))
    def progress(self, data: st.DataObject, step: int) -> None:
        attempt = self._any_attempt(data)
        lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=step)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def make(self, data: st.DataObject) -> None:
        attempt = self._any_attempt(data)
        if lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk):
            self._move(attempt, "running", "storing")

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        """Also long after the job has ended: a late result."""
        attempt = self._any_attempt(data)
        stored_files.announce(FILES)
        if lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS):
            owner = self._move(attempt, "storing", "completed")
            self.posted[owner] -= 50

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        attempt = self._any_attempt(data)
        drives = self._is_current(attempt)
        locks.take(attempt_id=attempt.pk, token=attempt.pk)  # as a worker does that is to store
        lifecycle.attempt_lost(attempt_id=attempt.pk, token=attempt.pk, error="silent")
        if drives:
            owner, _ = self.jobs[attempt.job_id]
            self.jobs[attempt.job_id] = (owner, "failed" if self.tries[attempt.job_id] >= 3 else "queued")

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        attempt = self._any_attempt(data)
        drives = self._is_current(attempt)
        locks.take(attempt_id=attempt.pk, token=attempt.pk)
        lifecycle.attempt_failed(
            attempt_id=attempt.pk, token=attempt.pk, code="x", message="It broke", error="x", blame_node=False
        )
        if drives:
            self.jobs[attempt.job_id] = (self.jobs[attempt.job_id][0], "failed")

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def meddle(self, data: st.DataObject) -> None:
        """A verdict of somebody who does not hold the lease."""
        stranger = {"attempt_id": self._any_attempt(data).pk, "token": uuid.uuid4()}
        lifecycle.attempt_lost(**stranger, error="silent")
        lifecycle.attempt_failed(**stranger, code="x", message="It broke", error="x")
        lifecycle.attempt_refused(**stranger, retry_after=-1, why="busy")
        lifecycle.attempt_stopped(**stranger, stopped_at_step=1)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        attempt = self._any_attempt(data)
        if self.jobs[attempt.job_id][1] == "storing":
            return  # a node refuses a job before it makes it
        drives = self._is_current(attempt)
        lifecycle.attempt_refused(attempt_id=attempt.pk, token=attempt.pk, retry_after=-1, why="busy")
        if drives:
            self.jobs[attempt.job_id] = (self.jobs[attempt.job_id][0], "queued")
            self.tries[attempt.job_id] -= 1

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def deadline(self, data: st.DataObject) -> None:
        job_id = self._any_job(data)
        GenerationJob.objects.filter(pk=job_id).update(deadline_at=timezone.now() - timedelta(seconds=1))
        owner, state = self.jobs[job_id]
        live = state in ("queued", "running", "storing")
        assert lifecycle.expire(job_id=job_id) == live
        if live:
            self.jobs[job_id] = (owner, "failed")

    # --- What must always hold ---

    @invariant()
    def wallets_are_as_on_paper(self) -> None:
        for number, person in enumerate(self.people):
            person.credit_account.refresh_from_db()
            held = 50 * self._holds(number)
            assert (person.credit_account.posted, person.credit_account.held) == (self.posted[number], held)
            assert 0 <= held <= self.posted[number]
            deltas = person.credit_account.transactions.values_list("posted_delta", "held_delta")
            assert sum(p for p, _ in deltas) == self.posted[number]
            assert sum(h for _, h in deltas) == held

    @invariant()
    def jobs_are_as_on_paper(self) -> None:
        assert dict(GenerationJob.objects.filter(pk__in=self.jobs).values_list("pk", "state")) == {
            job_id: state for job_id, (_, state) in self.jobs.items()
        }

    @invariant()
    def every_ended_job_has_one_resolution(self) -> None:
        over = {j for j, (_, state) in self.jobs.items() if state in ("completed", "failed", "canceled")}
        resolutions = CreditTransaction.objects.filter(
            kind__in=["capture", "release"], reference__in=self.jobs
        )
        assert sorted(resolutions.values_list("reference", flat=True)) == sorted(over)

    # --- Helpers ---

    def _holds(self, owner: int) -> int:
        return sum(
            o == owner and state in ("queued", "running", "storing") for o, state in self.jobs.values()
        )

    def _any_job(self, data: st.DataObject) -> uuid.UUID:
        return data.draw(st.sampled_from(list(self.jobs)))

    def _any_attempt(self, data: st.DataObject) -> JobAttempt:
        """Also one that ended long ago: late news must change nothing. The newest is the likeliest."""
        return data.draw(st.sampled_from([*self.attempts, *self.attempts[-1:] * len(self.attempts)]))

    def _is_current(self, attempt: JobAttempt) -> bool:
        """The attempt is open and its job is still its own."""
        job = GenerationJob.objects.get(pk=attempt.job_id)
        return job.current_attempt_id == attempt.pk and job.is_live and job.current_attempt.state == "open"

    def _move(self, attempt: JobAttempt, before: str, after: str) -> int:
        owner, state = self.jobs[attempt.job_id]
        assert state == before
        self.jobs[attempt.job_id] = (owner, after)
        return owner


@pytest.mark.django_db
def test_the_books_agree_with_a_model_whatever_happens(
    amount: Any, score: Any, settings_for_the_machine: None
) -> None:
    examples, steps = amount(1000, 25), amount(50, 50)
    row = score(
        "R9",
        test="hypothesis state machine against a model",
        load=f"{examples} examples of up to {steps} steps: submit, dispatch, progress, store, cancel, refund, adjust",
        faults="lost, failed, refused and late attempts, deadlines, in any order",
        bar="Σ entries = balances, 0 ≤ held ≤ posted, every ended job has exactly one capture or release",
    )
    run_state_machine_as_test(
        seed(SEED)(Books),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # A negative control only wants to see it fail; the shortest way there is for people.
            phases=[Phase.generate] if os.environ.get("SABOTAGE") else settings.default.phases,
            database=None,
        ),
    )
    assert not audit().discrepancies
    row.result = f"{examples} examples held"
    row.passed = True


@pytest.fixture
def settings_for_the_machine(settings: Any, caplog: Any) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    settings.LOGGING_CONFIG = None
    caplog.set_level("ERROR")
