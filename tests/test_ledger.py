"""The ledger through its functions: what each move does to the wallet, and what is refused."""

import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import ledger
from accounts.ledger import AlreadyResolved, InsufficientBalance, InvalidAmount, NotFound
from accounts.models import CreditTransaction

pytestmark = pytest.mark.django_db


def wallet(user: Any) -> tuple[int, int]:
    """Posted and held credits, read from the database."""
    user.credit_account.refresh_from_db()
    return user.credit_account.posted, user.credit_account.held


def test_a_new_user_has_the_sign_up_credits_and_one_entry_that_says_why(user):
    assert wallet(user) == (500, 0)
    (entry,) = user.credit_account.transactions.all()
    assert (entry.kind, entry.amount, entry.balance_after, entry.reason) == (
        "grant",
        500,
        500,
        "Welcome credits",
    )


def test_a_user_gets_no_entry_when_there_are_no_sign_up_credits(settings, make_user):
    settings.SIGNUP_CREDITS = 0
    assert wallet(make_user()) == (0, 0)


def test_reserve_holds_and_capture_charges(user):
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=50, reference=job, reason="Held")
    assert wallet(user) == (500, 50)
    entry = ledger.capture(reference=job, reason="Done")
    assert wallet(user) == (450, 0)
    assert entry.balance_after == 450


def test_release_gives_the_hold_back(user):
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=50, reference=job, reason="Held")
    ledger.release(reference=job, reason="Failed")
    assert wallet(user) == (500, 0)


def test_resolving_twice_the_same_way_is_one_entry_and_the_other_way_is_refused(user):
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=50, reference=job, reason="Held")
    first = ledger.capture(reference=job, reason="Done")
    assert ledger.capture(reference=job, reason="Done again").pk == first.pk
    with pytest.raises(AlreadyResolved):
        ledger.release(reference=job, reason="No")
    assert wallet(user) == (450, 0)


def test_a_free_job_has_a_hold_and_a_capture_of_nothing(user):
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=0, reference=job, reason="Free")
    ledger.capture(reference=job, reason="Done")
    assert wallet(user) == (500, 0)
    with pytest.raises(NotFound):
        ledger.refund(reference=job, reason="Nothing was paid")


def test_a_part_is_captured_and_the_rest_given_back(user, staff):
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=50, reference=job, reason="Held")
    for _twice in range(2):
        assert ledger.capture(reference=job, reason="Canceled", amount=20).charged == 20
    assert ledger.refund(reference=job, reason="Sorry", actor=staff).amount == 20
    assert wallet(user) == (500, 0)


def test_refund_is_whole_and_once(user, staff):
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=50, reference=job, reason="Held")
    ledger.capture(reference=job, reason="Done")
    first = ledger.refund(reference=job, reason="Ugly", actor=staff)
    assert ledger.refund(reference=job, reason="Ugly", actor=staff).pk == first.pk
    assert wallet(user) == (500, 0)


def test_what_is_held_cannot_be_spent_again(user):
    ledger.reserve(user=user, amount=480, reference=uuid.uuid4(), reason="Held")
    with pytest.raises(InsufficientBalance) as refusal:
        ledger.reserve(user=user, amount=50, reference=uuid.uuid4(), reason="Held")
    assert (refusal.value.needed, refusal.value.balance) == (50, 20)


def test_a_purchase_is_credited_once_and_refunded_only_from_what_is_free(user):
    bought = ledger.purchase(user=user, amount=100, external_id="charge-1", reason="Stars")
    assert ledger.purchase(user=user, amount=100, external_id="charge-1", reason="Stars").pk == bought.pk
    assert wallet(user) == (600, 0)
    ledger.reserve(user=user, amount=550, reference=uuid.uuid4(), reason="Held")
    with pytest.raises(InsufficientBalance):
        ledger.purchase_refund(purchase=bought, reason="Asked back")


def test_a_transfer_is_two_entries_that_sum_to_nothing(user, make_user, staff):
    other = make_user("bob")
    ledger.transfer(source=user, target=other, amount=200, reason="Merged", actor=staff)
    assert wallet(user) == (300, 0)
    assert wallet(other) == (700, 0)
    assert sum(CreditTransaction.objects.filter(kind="transfer").values_list("posted_delta", flat=True)) == 0


@pytest.mark.parametrize("amount", [0, -5])
def test_grants_must_be_positive(user, amount):
    with pytest.raises(InvalidAmount):
        ledger.grant(user=user, amount=amount, reason="Nothing")


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["grant", "reserve", "capture", "release", "refund", "adjust"]),
        st.integers(min_value=0, max_value=5),
        st.integers(min_value=-300, max_value=300),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_whatever_is_tried_in_whatever_order_the_entries_sum_to_the_balance(moves, make_user):
    """Against a model of a wallet in plain Python: same balances, same refusals."""
    user = make_user(uuid.uuid4().hex)
    posted, holds, paid = 500, {}, {}
    jobs = [uuid.uuid4() for _ in range(6)]
    seen: set[uuid.UUID] = set()
    for kind, number, amount in moves:
        job, free = jobs[number], posted - sum(holds.values())
        try:
            if kind == "grant":
                ledger.grant(user=user, amount=amount, reason="x")
                assert amount > 0
                posted += amount
            elif kind == "adjust":
                ledger.adjust(user=user, amount=amount, reason="x", actor=user)
                assert amount != 0
                assert free + amount >= 0
                posted += amount
            elif kind == "reserve" and job not in seen:
                ledger.reserve(user=user, amount=amount, reference=job, reason="x")
                assert 0 <= amount <= free
                holds[job] = amount
                seen.add(job)
            elif kind == "capture":
                ledger.capture(reference=job, reason="x")
                if job in holds:
                    paid[job] = holds.pop(job)
                    posted -= paid[job]
                assert job in paid
            elif kind == "release":
                ledger.release(reference=job, reason="x")
                assert job in seen
                assert job not in paid
                holds.pop(job, None)
            elif kind == "refund":
                ledger.refund(reference=job, reason="x")
                assert paid[job] != 0
                posted += max(paid[job], 0)
                paid[job] = -1
        except InsufficientBalance:
            assert amount > free or (kind == "adjust" and free + amount < 0)
        except InvalidAmount:
            assert amount <= 0
        except NotFound:
            assert job not in seen or not paid.get(job)
        except AlreadyResolved:
            assert job in seen
        assert wallet(user) == (posted, sum(holds.values()))
    totals = user.credit_account.transactions.values_list("posted_delta", "held_delta")
    assert (sum(p for p, _ in totals), sum(h for _, h in totals)) == wallet(user)
