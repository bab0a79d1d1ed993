"""Several of the staff, or one with a nervous hand, at the very same moment: connections and locks of their own."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.db import connection

from accounts import ledger_check
from accounts.models import AuditEvent, CreditAccount, CreditTransaction, User
from accounts.staff import operations
from accounts.staff.actor import Actor, DoneBefore, Refused
from generation.jobs import submission
from generation.models import BulkRefund, Report
from generation.staff import bulk_refunds, jobs, moderation
from tests.staff import in_role

pytestmark = pytest.mark.django_db(transaction=True)
HANDS = 6


def at_once(act: Callable[[int], object]) -> list[object]:
    """Call `act` in several threads begun together; the result of each, or its refusal."""
    ready = Barrier(HANDS)

    def run(number: int) -> object:
        try:
            ready.wait()
            return act(number)
        except Refused as refusal:
            return refusal
        finally:
            connection.close()

    with ThreadPoolExecutor(HANDS) as hands:
        return list(hands.map(run, range(HANDS)))


def test_one_clip_is_refunded_once_one_form_granted_once_one_bulk_refund_carried_out_once(
    make_user: Callable[..., User], user: User, finish_job: Callable[[Any], Any], settings: Any
) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    first, second = (
        finish_job(submission.submit(user=user, prompt=prompt, source="web")) for prompt in ("One", "Two")
    )
    owner = in_role(make_user, "owner")
    actors = [
        owner,
        *(Actor(make_user(f"o{n}", is_staff=True, is_superuser=True), "::1") for n in range(HANDS - 1)),
    ]

    results = at_once(lambda number: jobs.refund(actor=actors[number], job=first, reason="Grey"))
    assert sorted(map(str, results)).count("50") == 1
    assert sum("refunded before" in str(result) for result in results) == HANDS - 1

    once = uuid.uuid4()
    results = at_once(
        lambda _: operations.grant(actor=owner, users=[user], amount=40, reason="Contest", once=once)
    )
    assert sum(isinstance(result, DoneBefore) for result in results) == HANDS - 1

    charged = bulk_refunds.not_refunded(type(second).objects.filter(pk=second.pk))
    total = bulk_refunds.total_of(charged)
    again = uuid.uuid4()
    results = at_once(
        lambda _: bulk_refunds.start(actor=owner, jobs=charged, expected=total, reason="Night", once=again)
    )
    assert sum(isinstance(result, BulkRefund) for result in results) == 1
    at_once(lambda _: bulk_refunds.carry_on(str(BulkRefund.objects.get().pk)))

    assert CreditTransaction.objects.filter(kind="refund").count() == 2
    assert AuditEvent.objects.filter(act="user.grant").count() == 1
    assert CreditAccount.objects.get(user=user).balance == 540
    assert not ledger_check.audit().discrepancies


def test_gifts_at_the_same_moment_stay_below_the_ceiling_of_a_day(
    make_user: Callable[..., User], user: User, settings: Any
) -> None:
    settings.GRANT_DAILY_CREDITS = 100
    owner = in_role(make_user, "owner")
    results = at_once(lambda _: operations.grant(actor=owner, users=[user], amount=40, reason="Contest"))
    assert sum(isinstance(result, Refused) for result in results) == HANDS - 2
    assert CreditAccount.objects.get(user=user).balance == 580


def test_reports_of_one_video_that_several_dismiss_are_settled_once(
    make_user: Callable[..., User], submit: Callable[..., Any]
) -> None:
    job, owner = submit(), in_role(make_user, "owner")
    for number in range(HANDS):
        moderation.report(job=job, about="other", words="", address=f"192.0.2.{number}")
    reports = list(Report.objects.all())
    results = at_once(lambda number: moderation.dismiss(reports[number], actor=owner, reason="Fine"))
    assert sum("settled before" in str(result) for result in results) == HANDS - 1
    assert not Report.objects.filter(outcome="").exists()
