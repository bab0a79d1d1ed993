"""Hosts whose clocks are wrong: what processes judge between them goes by PostgreSQL's clock alone."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone
from django_q.conf import Conf
from django_q.signing import SignedPackage

from generation.errors import CooldownActive
from generation.jobs import catalog, lifecycle, locks, node_health, scheduling, submission
from generation.jobs.queue import NotifiedBroker
from generation.models import GenerationJob, GpuNode, JobAttempt, RunningTotal
from generation.nodes import NodeHealth
from generation.reconciler import _overdue_jobs, _unfollowed_attempts
from telegram_bot import linking, links
from telegram_bot.models import ChatNotice, JobMessage, LinkRequest, LoginLink, TelegramUpdate
from telegram_bot.receiving import inbox
from telegram_bot.sending import outbox
from telegram_bot.users import open_account
from videoplatform.metrics import PlatformCollector

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)
Host = Callable[[timedelta], Any]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Run the block on a host whose clock is fast, by an hour with `host(HOUR)`."""
    right = timezone.now

    @contextmanager
    def on_host(wrong_by: timedelta) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(timezone, "now", lambda: right() + wrong_by)
            yield

    return on_host


@pytest.fixture(params=[HOUR, -HOUR], ids=["fast", "slow"])
def off(request: pytest.FixtureRequest) -> timedelta:
    return request.param  # type: ignore[no-any-return]


def submit(user: Any) -> GenerationJob:
    return submission.submit(user=user, prompt="a red ball", source="api")


def could_be_claimed() -> bool:
    with transaction.atomic():
        found = bool(scheduling.claim(1))
        transaction.set_rollback(True)
    return found


def test_a_lease_that_is_held_is_nobody_elses_and_one_that_ran_out_is_anybodys(user, start_job, host, off):
    attempt = start_job(submit(user))
    with host(off):
        assert not locks.take(attempt_id=attempt.pk, token=uuid.uuid4())
        assert _unfollowed_attempts([]) == []
    JobAttempt.objects.update(lease_expires_at=Now() - timedelta(seconds=1))
    with host(off):
        assert [found.pk for found in _unfollowed_attempts([])] == [attempt.pk]
        assert locks.take(attempt_id=attempt.pk, token=uuid.uuid4())
    assert not locks.take(attempt_id=attempt.pk, token=uuid.uuid4())
    with host(off):
        locks.drop(attempt_id=attempt.pk, token=JobAttempt.objects.get().lease_token)
    assert locks.take(attempt_id=attempt.pk, token=uuid.uuid4())


def test_a_deadline_is_as_long_as_it_should_be_wherever_it_was_set_and_is_looked_at(user, host, off):
    with host(off):
        job = submit(user)
    assert timedelta(minutes=29) < job.deadline_at - timezone.now() < timedelta(minutes=31)
    assert abs(job.created_at - timezone.now()) < timedelta(minutes=1)
    with host(off):
        assert _overdue_jobs() == []
        assert not lifecycle.expire(job_id=job.pk)
    GenerationJob.objects.update(deadline_at=Now() - timedelta(seconds=1))
    with host(off):
        assert _overdue_jobs() == [job.pk]
        assert lifecycle.expire(job_id=job.pk)
    job.refresh_from_db()
    assert abs(job.finished_at - timezone.now()) < timedelta(minutes=1)


def test_a_node_that_was_just_heard_of_gets_work_and_one_that_was_not_gets_none(user, node, host, off):
    submit(user)
    with host(off):
        node_health.record_health(node, NodeHealth(ready=True, status="ready", protocol="videos", capacity=1))
    with host(off):
        assert could_be_claimed()
        GpuNode.objects.update(last_seen_at=Now() - timedelta(minutes=5))
        assert not scheduling.claim(1)


def test_a_node_is_left_alone_for_as_long_as_it_asked(user, start_job, host, off):
    attempt = start_job(submit(user))
    with host(off):
        lifecycle.attempt_refused(attempt_id=attempt.pk, token=attempt.pk, retry_after=60, why="busy")
    assert not could_be_claimed()
    GpuNode.objects.update(leave_alone_until=Now() - timedelta(seconds=1))
    with host(off):
        assert could_be_claimed()


def test_a_silence_is_as_long_as_it_is(user, start_job, host, off):
    attempt = start_job(submit(user))
    with host(off):
        silence = lifecycle.note_silence(attempt_id=attempt.pk, token=attempt.pk, seconds=20)
    assert silence == pytest.approx(20, abs=5)
    JobAttempt.objects.update(silent_since=Now() - timedelta(seconds=100))
    with host(-off):
        silence = lifecycle.note_silence(attempt_id=attempt.pk, token=attempt.pk, seconds=1)
    assert silence == pytest.approx(100, abs=5)


def test_a_file_that_is_to_be_stored_is_asked_for_when_its_time_has_come(user, start_job, host, off):
    attempt = start_job(submit(user))
    with host(off):
        lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
        assert locks.take(attempt_id=attempt.pk, token=uuid.uuid4())
        assert NotifiedBroker()._take_store() == []
    JobAttempt.objects.update(lease_expires_at=Now() - timedelta(seconds=1))
    with host(off):
        [(no_row, package)] = NotifiedBroker()._take_store()
    assert no_row is None
    assert SignedPackage.loads(package)["args"] == (str(attempt.pk),)


def test_the_cooldown_is_a_minute_for_every_host(user, host, off):
    with host(off):
        submit(user)
    with host(-off), pytest.raises(CooldownActive) as refused:
        submit(user)
    assert 55 <= refused.value.seconds <= 60


def test_a_canary_is_due_when_it_is(node, host, off):
    GpuNode.objects.update(set_aside_at=Now(), next_canary_at=Now() + timedelta(seconds=60))
    with host(off):
        assert not node_health.claim_canary(node)
    GpuNode.objects.update(next_canary_at=Now() - timedelta(seconds=1))
    with host(off):
        assert node_health.claim_canary(node)
    assert not node_health.claim_canary(node)


@pytest.mark.django_db(transaction=True)
def test_a_task_of_a_host_with_another_clock_is_taken_at_once_and_once(host, off):
    broker = NotifiedBroker(list_key=Conf.CLUSTER_NAME)
    with host(off):
        broker.enqueue("from afar")
    assert [payload for _, payload in broker._take()] == ["from afar"]
    with host(off):
        assert broker._take() == []


# --- The bot --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_result_is_sent_when_its_time_has_come_wherever_its_job_ended(user, host, off):
    with host(off):
        job = submit(user)
        row = JobMessage.objects.create(job=job, bot_id=1, chat_id=1)
        lifecycle.cancel(job=job)
    assert list(JobMessage.due()) == [row]
    with host(off):
        [due] = JobMessage.due()
        assert due == row
        assert due.age < timedelta(minutes=1)
        row.put_off(seconds=60, error="busy")
        assert not JobMessage.due()
    assert not JobMessage.due()
    JobMessage.objects.update(next_attempt_at=Now() - timedelta(seconds=1))
    with host(off):
        assert list(JobMessage.due()) == [row]


@pytest.mark.django_db(transaction=True)
def test_a_notice_is_sent_at_once_and_again_when_its_time_has_come(settings, host, off):
    settings.TELEGRAM_BOT_TOKEN = "1:for-tests-only"
    with host(off):
        outbox.tell(chat_id=1, text="Hello")
    [row] = ChatNotice.due()
    with host(off):
        assert list(ChatNotice.due()) == [row]
        row.put_off(seconds=60, error="busy")
        assert not ChatNotice.due()
    assert not ChatNotice.due()


def test_an_update_has_waited_as_long_as_it_has(host, off):
    with host(off):
        [stored] = inbox.store(1, [{"update_id": 5}])
    assert stored.waited < 60
    TelegramUpdate.objects.update(received_at=Now() - timedelta(seconds=100))
    with host(off):
        [stored] = inbox.store(1, [{"update_id": 5}])
    assert stored.waited == pytest.approx(100, abs=30)


def test_links_between_the_chat_and_the_web_live_as_long_as_they_say(host, off):
    account = open_account(telegram_id=77)
    with host(off):
        linking.begin_in_telegram(account=account)
        links.issue_login(account=account)
    for model, life in ((LinkRequest, linking.LIFE), (LoginLink, links.LOGIN_LIFE)):
        left = model.objects.get().expires_at - timezone.now()
        assert life - timedelta(minutes=1) < left <= life


def test_what_metrics_keep_ends_before_now_whatever_a_host_takes_for_now(host, off):
    with host(off):
        list(PlatformCollector().collect())
    kept = RunningTotal.objects.values_list("until", flat=True)
    assert len(kept) == 2
    assert all(abs(timezone.now() - catalog.SETTLED - until) < timedelta(minutes=1) for until in kept)
