"""The life of a job, called as doors, tasks and reconciler call it: what is accepted and charged, who wins a race."""

import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.db.models import ProtectedError
from django.utils import timezone

from accounts import ledger
from accounts.models import CreditTransaction
from generation.errors import (
    AccountInactive,
    CannotCancel,
    CannotDelete,
    CooldownActive,
    EmptyPrompt,
    IdempotencyConflict,
    InsufficientCredits,
    InvalidPrompt,
    InvalidSetting,
    PromptTooLong,
    UnknownPreset,
)
from generation.jobs import catalog, lifecycle, locks, scheduling, stored_files, submission
from generation.jobs.events import jobs_finished
from generation.models import GenerationJob, GpuNode, JobAttempt, Preset
from generation.staff import jobs
from tests.clips import FACTS, FILES
from tests.staff import in_role

pytestmark = pytest.mark.django_db


def submit(user: Any, prompt: str = "a red ball", preset: str | None = None, **fields: Any) -> GenerationJob:
    fields["preset"] = catalog.find_preset(preset) if preset else None
    return submission.submit(user=user, prompt=prompt, source="api", **fields)


def balance(user: Any) -> tuple[int, int]:
    user.credit_account.refresh_from_db()
    return user.credit_account.posted, user.credit_account.held


@pytest.fixture
def no_cooldown(settings: Any) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0


# --- Submit ---


def test_submit_holds_the_credits_and_copies_what_the_preset_says(user):
    job = submit(user, "  a red ball  ")
    assert (job.prompt, job.state, job.cost) == ("a red ball", "queued", 50)
    assert (job.num_frames, job.fps, job.num_inference_steps) == (16, 8, 20)
    assert balance(user) == (500, 50)


def test_the_standard_preset_costs_what_staff_set_and_a_preset_without_a_price_costs_the_setting(
    user, settings
):
    settings.VIDEO_COST = 70
    assert submit(user, preset="standard").cost == 250
    settings.VIDEO_COOLDOWN_SECONDS = 0
    assert submit(user).cost == 70


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"prompt": ""}, EmptyPrompt),
        ({"prompt": " \n\t "}, EmptyPrompt),
        ({"prompt": "x" * 201}, PromptTooLong),
        ({"prompt": "nul \x00"}, InvalidPrompt),
        ({"prompt": "half \ud800"}, InvalidPrompt),
        ({"negative_prompt": "\x00"}, InvalidPrompt),
        ({"negative_prompt": "x" * 201}, InvalidSetting),
        ({"preset": "cinema"}, UnknownPreset),
        ({"preset": "\x00"}, UnknownPreset),
        ({"seed": -1}, InvalidSetting),
        ({"seed": 2**31}, InvalidSetting),
        ({"idempotency_key": "x" * 256}, InvalidSetting),
        ({"idempotency_key": "line\nbreak"}, InvalidSetting),
    ],
)
def test_bad_input_is_refused_with_a_message_and_holds_nothing(user, fields, refusal):
    with pytest.raises(refusal) as refused:
        submit(user, **fields)
    assert refused.value.message
    assert refused.value.status == 400
    assert not GenerationJob.objects.exists()
    assert balance(user) == (500, 0)


def test_two_hundred_characters_of_any_script_are_not_too_long(user):
    assert submit(user, "🎈" * 200).prompt == "🎈" * 200


def test_too_few_credits_are_refused_in_the_words_of_every_door(make_user, settings):
    settings.SIGNUP_CREDITS = 30
    with pytest.raises(InsufficientCredits) as refused:
        submit(make_user("poor"))
    assert refused.value.message == (
        "Insufficient credits. You need 50 credits to generate a video. Your balance: 30 credits"
    )


def test_one_video_a_minute_counted_from_the_last_that_did_not_fail(user):
    first = submit(user)
    with pytest.raises(CooldownActive) as refused:
        submit(user)
    assert (
        refused.value.message
        == f"Please wait {refused.value.seconds} seconds before generating another video."
    )
    assert 55 <= refused.value.seconds <= 60
    GenerationJob.objects.filter(pk=first.pk).update(state="failed", finished_at=timezone.now())
    assert submit(user)


def test_staff_wait_for_nothing_and_pay_nothing_unless_the_setting_says_so(staff, settings):
    assert (submit(staff).cost, submit(staff).cost) == (0, 0)
    settings.STAFF_GENERATE_FREE = False
    assert submit(staff).cost == 50
    assert CreditTransaction.objects.filter(kind="reserve").count() == 3


def test_a_banned_person_cannot_submit_even_with_a_stale_object(user):
    type(user).objects.filter(pk=user.pk).update(is_active=False)
    with pytest.raises(AccountInactive):
        submit(user)


def test_the_same_key_is_the_same_job_and_another_request_with_it_is_refused(user):
    first = submit(user, idempotency_key="k")
    assert submit(user, idempotency_key="k").pk == first.pk
    with pytest.raises(IdempotencyConflict):
        submit(user, "another prompt", idempotency_key="k")
    assert balance(user) == (500, 50)


def test_a_refusal_is_not_remembered_under_its_key(user):
    with pytest.raises(EmptyPrompt):
        submit(user, "", idempotency_key="k")
    assert submit(user, "now with words", idempotency_key="k")


def test_keys_of_two_people_are_their_own(user, make_user):
    assert submit(user, idempotency_key="k").pk != submit(make_user("bob"), idempotency_key="k").pk


# --- The way to a clip ---


def test_a_completed_job_is_charged_in_the_same_moment(user, finish_job):
    job = finish_job(submit(user))
    assert (job.state, job.generation_ms, job.stored_frames) == ("completed", 28300, 16)
    assert balance(user) == (450, 0)
    assert job.attempts.get().state == "succeeded"


def test_a_result_that_comes_after_the_end_is_discarded_and_never_charged(user, start_job):
    attempt = start_job(submit(user))
    lifecycle.cancel(job=attempt.job)
    stored_files.announce(FILES)
    assert not lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    assert not lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS)
    assert balance(user) == (500, 0)
    attempt.refresh_from_db()
    assert attempt.state == "canceled"


def test_a_lost_attempt_queues_the_job_again_until_three_were_made(user, start_job):
    job = submit(user)
    for number in (1, 2):
        attempt = start_job(job)
        lifecycle.attempt_lost(attempt_id=attempt.pk, token=attempt.pk, error="404")
        job.refresh_from_db()
        assert (job.state, job.attempt_count) == ("queued", number)
    attempt = start_job(job)
    lifecycle.attempt_lost(attempt_id=attempt.pk, token=attempt.pk, error="404")
    job.refresh_from_db()
    assert (job.state, job.error_code) == ("failed", "node_lost")
    assert balance(user) == (500, 0)


def test_an_old_attempt_cannot_move_a_job_that_went_on_without_it(user, start_job):
    job = submit(user)
    old = start_job(job)
    lifecycle.attempt_lost(attempt_id=old.pk, token=old.pk, error="silent")
    new = start_job(job)
    assert not lifecycle.record_progress(attempt_id=old.pk, token=old.pk, step=5)
    assert not lifecycle.begin_storing(attempt_id=old.pk, token=old.pk)
    lifecycle.attempt_failed(attempt_id=old.pk, token=old.pk, code="x", message="x", error="x")
    assert lifecycle.record_progress(attempt_id=new.pk, token=new.pk, step=7)
    job.refresh_from_db()
    assert (job.state, job.step) == ("running", 7)


def test_only_the_holder_of_the_lease_moves_an_attempt(user, start_job):
    attempt = start_job(submit(user))
    thief = uuid.uuid4()
    assert not locks.take(attempt_id=attempt.pk, token=thief)
    assert not lifecycle.record_progress(attempt_id=attempt.pk, token=thief, step=5)
    JobAttempt.objects.filter(pk=attempt.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert locks.take(attempt_id=attempt.pk, token=thief)
    assert not lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=5)


VERDICTS = {
    "made": lambda token: lifecycle.begin_storing(**token),
    "rejected": lambda token: lifecycle.attempt_rejected(**token, why="no"),
    "refused": lambda token: lifecycle.attempt_refused(**token, retry_after=60, why="429"),
    "lost": lambda token: lifecycle.attempt_lost(**token, error="silent", pause=60),
    "failed": lambda token: lifecycle.attempt_failed(**token, code="x", message="x", error="x"),
    "stopped": lambda token: lifecycle.attempt_stopped(**token, stopped_at_step=3),
}


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_a_verdict_that_comes_after_the_lease_went_on_changes_nothing(user, start_job, node, verdict):
    """A dispatcher or a worker that slept too long, while somebody else drives the attempt."""
    attempt = start_job(submit(user))
    JobAttempt.objects.filter(pk=attempt.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert locks.take(attempt_id=attempt.pk, token=uuid.uuid4())
    verdict({"attempt_id": attempt.pk, "token": attempt.pk})
    attempt.refresh_from_db()
    node.refresh_from_db()
    assert (attempt.state, attempt.job.state, attempt.job.attempt_count) == ("open", "running", 1)
    assert (node.consecutive_failures, node.leave_alone_until) == (0, None)
    assert balance(user) == (500, 50)


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_open_pages_hear_when_the_gpu_is_done_with_a_canceled_job(user, start_job, monkeypatch, verdict):
    """They say that it is stopping until then, whatever its last word is."""
    attempt = start_job(submit(user))
    lifecycle.cancel(job=attempt.job)
    told = []
    monkeypatch.setattr("generation.jobs.events.publish", told.append)
    verdict({"attempt_id": attempt.pk, "token": attempt.pk})
    attempt.refresh_from_db()
    assert attempt.state != "open"
    assert [job.id for job in told] == [attempt.job_id]


def test_a_busy_node_does_not_count_as_an_attempt_and_is_left_alone(user, start_job, node):
    job = submit(user)
    attempt = start_job(job)
    lifecycle.attempt_refused(attempt_id=attempt.pk, token=attempt.pk, retry_after=7, why="429")
    job.refresh_from_db()
    assert (job.state, job.attempt_count) == ("queued", 0)
    assert not scheduling.claim(1)
    GpuNode.objects.update(leave_alone_until=timezone.now())
    assert scheduling.claim(1)


def test_a_moved_attempt_that_is_refused_leaves_the_number_of_attempts_as_it_was(
    user, start_job, node, second_node, make_user
):
    GpuNode.objects.filter(pk=second_node.pk).update(enabled=False)
    attempt = start_job(submit(user))
    GpuNode.objects.filter(pk=second_node.pk).update(enabled=True)
    moved = jobs.move(
        actor=in_role(make_user, "operator"), job=attempt.job, target=second_node, reason="Slow"
    )
    lifecycle.attempt_refused(attempt_id=moved.pk, token=moved.pk, retry_after=7, why="429")
    job = GenerationJob.objects.get()
    assert (job.state, job.attempt_count) == ("queued", 1)


def test_a_definite_failure_ends_the_job_and_tells_why(user, start_job):
    attempt = start_job(submit(user))
    lifecycle.attempt_failed(
        attempt_id=attempt.pk,
        token=attempt.pk,
        code="generation_failed",
        message="Out of memory",
        error="CUDA",
    )
    attempt.job.refresh_from_db()
    assert (attempt.job.state, attempt.job.error_message) == ("failed", "Out of memory")
    assert balance(user) == (500, 0)


# --- The ends ---


def test_cancel_gives_the_credits_back_at_once_and_asks_the_node_to_stop(user, start_job):
    attempt = start_job(submit(user))
    job = lifecycle.cancel(job=attempt.job, actor=user)
    attempt.refresh_from_db()
    assert (job.state, balance(user)) == ("canceled", (500, 0))
    assert (attempt.state, attempt.cancel_requested_at is not None) == ("open", True)
    assert lifecycle.cancel(job=job).state == "canceled"
    lifecycle.attempt_stopped(attempt_id=attempt.pk, token=attempt.pk, stopped_at_step=7)
    attempt.refresh_from_db()
    assert (attempt.state, attempt.stopped_at_step) == ("canceled", 7)


def test_a_job_that_is_being_stored_or_is_over_cannot_be_canceled(user, start_job):
    attempt = start_job(submit(user))
    lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    with pytest.raises(CannotCancel, match="being stored"):
        lifecycle.cancel(job=attempt.job)
    stored_files.announce(FILES)
    lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS)
    with pytest.raises(CannotCancel, match="already finished"):
        lifecycle.cancel(job=attempt.job)
    assert balance(user) == (450, 0)


@pytest.mark.parametrize("state", ["queued", "running", "storing"])
def test_the_deadline_ends_every_live_state_and_charges_nothing(user, start_job, state):
    job = submit(user)
    if state != "queued":
        attempt = start_job(job)
    if state == "storing":
        lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    assert not lifecycle.expire(job_id=job.pk)
    GenerationJob.objects.update(deadline_at=timezone.now() - timedelta(seconds=1))
    assert lifecycle.expire(job_id=job.pk)
    job.refresh_from_db()
    assert (job.state, job.error_code, balance(user)) == ("failed", "timed_out", (500, 0))
    if state == "storing":
        stored_files.announce(FILES)
        assert not lifecycle.complete(attempt_id=attempt.pk, files=FILES, facts=FACTS)
        assert balance(user) == (500, 0)


def test_a_ban_cancels_what_is_live(user):
    job = submit(user)
    user.is_active = False
    user.save()
    job.refresh_from_db()
    assert (job.state, balance(user)) == ("canceled", (500, 0))


def test_a_live_video_cannot_be_deleted_and_an_ended_one_keeps_its_row(user, finish_job):
    job = submit(user)
    with pytest.raises(CannotDelete):
        lifecycle.delete(job=job)
    lifecycle.delete(job=finish_job(job))
    job.refresh_from_db()
    assert job.deleted_at is not None
    assert balance(user) == (450, 0)


def test_listeners_hear_of_an_end_inside_its_transaction(user, finish_job):
    heard = []

    def listen(jobs: list[GenerationJob], **_: Any) -> None:
        heard.append((jobs[0].state, CreditTransaction.objects.filter(kind="capture").exists()))

    jobs_finished.connect(listen)
    try:
        finish_job(submit(user))
    finally:
        jobs_finished.disconnect(listen)
    assert heard == [("completed", True)]


# --- Who is next ---


def test_the_queue_is_fair_fewest_running_first_then_oldest(no_cooldown, user, make_user, node):
    GpuNode.objects.update(capacity=3)
    bob = make_user("bob")
    mine = [submit(user), submit(user)]
    his = submit(bob)
    order = [scheduling.claim(1)[0].job_id for _ in range(3)]
    assert order == [mine[0].pk, his.pk, mine[1].pk]


def test_a_node_gets_one_job_more_than_it_runs_and_its_slot_is_free_while_a_file_is_stored(
    no_cooldown, user, node
):
    for _ in range(4):
        submit(user)
    [first], [second] = scheduling.claim(1), scheduling.claim(1)
    assert not scheduling.claim(1)
    lifecycle.begin_storing(attempt_id=first.pk, token=first.pk)
    assert scheduling.claim(1)
    assert second.node == node


def test_a_field_node_gets_one_request_at_a_time_and_only_what_it_can_finish_in_time(no_cooldown, user, node):
    GpuNode.objects.update(detected_protocol="generate_video")
    long, short, waiting = submit(user, preset="standard"), submit(user), submit(user)
    assert scheduling.claim(1)[0].job_id == short.pk
    assert not scheduling.claim(1)
    assert {long.state, waiting.state} == {"queued"}


@pytest.mark.parametrize(("milliseconds", "gets_it"), [(80_000, True), (100_000, False)])
def test_a_field_node_is_judged_by_its_slowest_of_the_last_clips(
    no_cooldown, user, node, finish_job, milliseconds, gets_it
):
    for _ in range(2):
        finish_job(submit(user))
    GpuNode.objects.update(detected_protocol="generate_video")
    JobAttempt.objects.filter(pk=JobAttempt.objects.first().pk).update(generation_ms=milliseconds)
    submit(user)
    assert bool(scheduling.claim(1)) == gets_it


@pytest.mark.parametrize(
    "change",
    [
        {"enabled": False},
        {"status": "starting"},
        {"status": "unreachable"},
        {"last_seen_at": None},
        {"leave_alone_until": timezone.now() + timedelta(hours=1)},
        {"detected_protocol": ""},
    ],
)
def test_a_node_that_cannot_take_work_gets_none(user, node, change):
    submit(user)
    GpuNode.objects.update(**change)
    assert not scheduling.claim(1)


def test_a_job_that_names_a_model_or_a_size_runs_only_where_it_is_served(no_cooldown, user, node):
    GpuNode.objects.update(sizes=["96x64"])
    elsewhere = [submit(user, model="CogVideoX-5B"), submit(user, size="720x480")]
    here = submit(user, model="CogVideoX-tiny", size="96x64")
    assert scheduling.claim(1)[0].job_id == here.pk
    assert not scheduling.claim(1)
    GpuNode.objects.update(backend="CogVideoX-5B", sizes=["720x480"], capacity=3)
    assert [scheduling.claim(1)[0].job_id for _ in range(2)] == [job.pk for job in elsewhere]


def test_the_least_loaded_node_is_next(no_cooldown, user, node):
    other = GpuNode.objects.create(
        name="node-2",
        base_url="http://127.0.0.1:10",
        detected_protocol="videos",
        status="ready",
        last_seen_at=timezone.now(),
    )
    for _ in range(4):
        submit(user)
    nodes = [scheduling.claim(1)[0].node_id for _ in range(4)]
    assert sorted(nodes) == [node.pk, node.pk, other.pk, other.pk]
    assert nodes[0] != nodes[1]


# --- Moving from a node that is silent ---


@pytest.fixture
def second_node(node):
    return GpuNode.objects.create(
        name="node-2",
        base_url="http://127.0.0.1:10",
        detected_protocol="videos",
        status="ready",
        backend=node.backend,
        last_seen_at=timezone.now(),
    )


def test_a_job_can_move_to_an_idle_node_that_can_make_it(user, start_job, second_node):
    GpuNode.objects.filter(pk=second_node.pk).update(enabled=False)
    attempt = start_job(submit(user))
    assert not scheduling.could_move(attempt)
    GpuNode.objects.filter(pk=second_node.pk).update(enabled=True)
    assert scheduling.could_move(attempt)
    GenerationJob.objects.update(model="CogVideoX-tiny")
    GpuNode.objects.filter(pk=second_node.pk).update(backend="another")
    assert not scheduling.could_move(attempt)


def test_a_job_stays_where_it_is_when_others_are_at_work_or_it_was_its_last_attempt(
    no_cooldown, user, node, second_node, settings
):
    for _ in range(2):
        submit(user)
    [attempt], [elsewhere] = scheduling.claim(1), scheduling.claim(1)
    assert attempt.node != elsewhere.node
    assert not scheduling.could_move(attempt), "the other node has a slot, but nothing idle"
    lifecycle.attempt_failed(
        attempt_id=elsewhere.pk, token=elsewhere.pk, code="generation_failed", message="", error=""
    )
    assert scheduling.could_move(attempt)
    settings.JOB_MAX_ATTEMPTS = 1
    assert not scheduling.could_move(attempt), "moving would end it, waiting may not"
    settings.JOB_MAX_ATTEMPTS = 3
    lifecycle.cancel(job=attempt.job)
    assert not scheduling.could_move(attempt), "it is only waited for until it has stopped"


# --- Races, with real threads and real transactions ---


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own, all at the same moment; what each returned or raised."""
    results: list[Any] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            results.append(work())
        except Exception as error:
            results.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.django_db(transaction=True)
def test_sixteen_twins_with_one_key_are_one_job(user):
    results = at_once(*[lambda: submit(user, idempotency_key="k").pk] * 16)
    assert len(set(results)) == 1
    assert len(results) == 16
    assert balance(user) == (500, 50)


@pytest.mark.django_db(transaction=True)
def test_sixteen_submits_on_one_wallet_accept_exactly_what_it_can_pay(no_cooldown, user):
    results = at_once(*[lambda: submit(user).pk] * 16)
    assert sum(isinstance(r, uuid.UUID) for r in results) == 10
    assert sum(isinstance(r, InsufficientCredits) for r in results) == 6
    assert balance(user) == (500, 500)


@pytest.mark.django_db(transaction=True)
def test_eight_dispatchers_never_claim_a_job_twice_nor_overfill_a_node(no_cooldown, user, node):
    GpuNode.objects.update(capacity=4)
    for _ in range(8):
        submit(user)
    claimed = [a.job_id for found in at_once(*[partial(scheduling.claim, 1)] * 8) for a in found]
    while more := scheduling.claim(1):
        claimed.append(more[0].job_id)
    assert len(claimed) == len(set(claimed)) == 5


@pytest.mark.django_db(transaction=True)
def test_cancel_and_complete_at_once_end_in_exactly_one_of_them(no_cooldown, user, node):
    def finish(attempt: JobAttempt) -> bool:
        stored_files.announce(FILES)
        return lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk) and lifecycle.complete(
            attempt_id=attempt.pk, files=FILES, facts=FACTS
        )

    for _ in range(6):
        job = submit(user)
        [attempt] = scheduling.claim(1)
        results = at_once(*[partial(finish, attempt), partial(lifecycle.cancel, job=job)] * 2)
        assert not [r for r in results if isinstance(r, Exception) and not isinstance(r, CannotCancel)]
        job.refresh_from_db()
        kinds = list(
            CreditTransaction.objects.filter(reference=job.pk).order_by("pk").values_list("kind", flat=True)
        )
        assert kinds == ["reserve", {"completed": "capture", "canceled": "release"}[job.state]]


def test_a_preset_with_jobs_cannot_be_deleted_by_mistake(user):
    submit(user)
    with pytest.raises(ProtectedError):
        Preset.objects.get(name="quick").delete()


def test_a_refund_is_once_and_needs_a_charge(user, staff, finish_job):
    job = finish_job(submit(user))
    lifecycle.refund(job=job, reason="Ugly", actor=staff)
    lifecycle.refund(job=job, reason="Ugly", actor=staff)
    assert balance(user) == (500, 0)
    assert ledger.refund(reference=job.pk, reason="x").actor == staff
