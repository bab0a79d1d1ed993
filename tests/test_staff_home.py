"""The staff's home page: right numbers, links to the rows, and few queries."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_q.models import OrmQ

from accounts.ledger_check import audit_and_keep
from accounts.models import AuditEvent, AuditRun, User
from generation.jobs import lifecycle, submission
from generation.models import DailyStats, GenerationJob, GpuNode, JobAttempt
from generation.staff import stats
from tests.staff import in_role, page, said, sent, signed_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


def stats_of(html: str) -> dict[str, str]:
    """The value of each stat, by its title."""
    found = re.findall(r'<span class="block text-sm">([^<]*)</span>\s*<strong[^>]*>([^<]*)</strong>', html)
    return dict(found)


def test_it_shows_the_state_of_the_service_and_each_number_leads_to_its_rows(
    admin: Client, user: User, finish_job: Callable[[Any], Any], settings: Any
) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    done = finish_job(submission.submit(user=user, prompt="One", source="web"))
    lifecycle.refund(job=done, reason="x", actor=user)
    submission.submit(user=user, prompt="Two", source="web")
    audit_and_keep()
    html = admin.get(page("index")).content.decode()
    value = stats_of(html)
    assert (value["In the queue"], value["Being made"], value["The books"]) == ("1", "0", "right")
    assert (value["Success today"], value["Active users today"]) == ("100.0 %", "1")
    assert (value["Credits captured"], value["Credits refunded"]) == ("50", "50")
    assert value["Credits granted"] == "1,000"  # two people were welcomed
    assert "node-1" in html
    links = set(re.findall(r'href="(/admin/[^"]+/\?[^"]+)"', html))
    assert len(links) >= 10
    for link in links:
        assert admin.get(link.replace("&amp;", "&")).status_code == 200, link


@pytest.mark.parametrize("end", ["still silent", "canceled by its user", "past its deadline", "refused"])
def test_a_node_that_hung_or_refused_is_no_full_success(
    admin: Client, user: User, finish_job: Callable[[Any], Any], start_job: Any, settings: Any, end: str
) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    finish_job(submission.submit(user=user, prompt="One", source="web"))
    assert "100.0 % of 1" in admin.get(page("index")).content.decode()
    attempt = start_job(submission.submit(user=user, prompt="Two", source="web"))
    mine = {"attempt_id": attempt.pk, "token": attempt.pk}
    if end == "refused":
        lifecycle.attempt_rejected(**mine, why="No such field")
    elif end == "past its deadline":
        GenerationJob.objects.filter(pk=attempt.job_id).update(deadline_at=datetime.now(UTC) - timedelta(1))
        assert lifecycle.expire(job_id=attempt.job_id)
        lifecycle.attempt_stopped(**mine, stopped_at_step=3)
    else:
        assert lifecycle.note_silence(**mine, seconds=9)
    if end == "canceled by its user":
        lifecycle.cancel(job=attempt.job)
        lifecycle.attempt_stopped(**mine, stopped_at_step=None)
    assert "50.0 % of 2" in admin.get(page("index")).content.decode()


def test_it_takes_few_queries_and_the_same_for_many_nodes(admin: Client, node: GpuNode) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as made:
            admin.get(page("index"))
        return len(made)

    queries()
    few = queries()
    for number in range(5):
        GpuNode.objects.create(name=f"n{number}", base_url=f"http://127.0.0.1:{number + 10}")
    assert queries() == few < 20


def test_days_that_are_over_are_added_up_once_and_stay(user: User, finish_job: Callable[[Any], Any]) -> None:
    job = finish_job(submission.submit(user=user, prompt="One", source="web"))
    when = datetime.now(UTC) - timedelta(days=3)
    GenerationJob.objects.filter(pk=job.pk).update(created_at=when - timedelta(seconds=40), finished_at=when)
    JobAttempt.objects.update(opened_at=when, closed_at=when)
    assert when.date() not in {row.day for row in stats.latest()}, "that is done in the background"
    stats.keep()
    rows = {row.day: row for row in stats.latest()}
    assert (rows[when.date()].completed, rows[when.date()].people) == (1, 1)
    assert stats.median_seconds([rows[when.date()]]) == pytest.approx(40, rel=0.03)
    assert DailyStats.objects.get(day=when.date()).completed == 1
    GenerationJob.objects.filter(pk=job.pk).update(finished_at=datetime.now(UTC))
    stats.keep()
    again = {row.day: row for row in stats.latest()}
    assert again[when.date()].completed == 1, "it was kept"
    assert again[datetime.now(UTC).date()].completed == 1, "today is counted afresh"
    assert stats.success_rate(again.values()) == 1


def test_without_the_right_to_see_jobs_it_has_no_stats(make_user: Callable[..., User]) -> None:
    trainee = signed_in(make_user("trainee", is_staff=True))
    assert not stats_of(trainee.get(page("index")).content.decode())
    support = signed_in(in_role(make_user, "support").user)
    assert stats_of(support.get(page("index")).content.decode())


def test_wrong_books_are_an_alarm_on_it(admin: Client) -> None:
    AuditRun.objects.create(seconds=1, accounts=1, entries=1, found=2, discrepancies=["a", "b"])
    html = admin.get(page("index")).content.decode()
    assert stats_of(html)["The books"] == "2 wrong"
    assert (
        "<li>a</li>"
        in admin.get(page("accounts_auditrun_change", AuditRun.objects.get().pk)).content.decode()
    )


def test_finance_has_the_books_added_up_at_the_touch_of_a_button(
    admin: Client, make_user: Callable[..., User], user: User
) -> None:
    address = page("accounts_auditrun_run_now")
    support = signed_in(in_role(make_user, "support").user)
    assert support.post(address, sent(reason="x")).status_code == 403
    usual = admin.get(address).context["form"].initial["reason"]
    assert not OrmQ.objects.exists(), "a link alone begins nothing"
    form = sent(reason=usual)
    assert "are being added up" in said(admin.post(address, form, follow=True))
    admin.post(address, form)
    assert [task.task["func"] for task in OrmQ.objects.all()] == ["accounts.ledger_check.audit_and_keep"]
    assert AuditEvent.objects.get(act="books.audit").reason == usual


def test_a_person_is_found_by_their_telegram_id(admin: Client, user: User) -> None:
    from telegram_bot.models import TelegramAccount

    TelegramAccount.objects.create(telegram_id=4242, user=user)
    html = admin.get(page("accounts_user_changelist"), {"q": "4242"}).content.decode()
    assert page("accounts_user_change", user.pk) in html
    assert (
        page("accounts_user_change", user.pk)
        not in admin.get(page("accounts_user_changelist"), {"q": "424"}).content.decode()
    )
