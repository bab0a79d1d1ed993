"""Two wallets that become one: what moves, what stays, what follows later, and the way back."""

import contextlib
import uuid
from collections import Counter
from typing import Any

import pytest
from django.db import transaction
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts import ledger, merging
from accounts.ledger import InsufficientBalance, LedgerError
from accounts.ledger_check import audit
from accounts.models import CreditTransaction, WalletMerge

pytestmark = pytest.mark.django_db


def free(user: Any) -> int:
    user.credit_account.refresh_from_db()
    return user.credit_account.balance


def made(user: Any, *, cost: int = 50) -> uuid.UUID:
    """A video that was paid for."""
    job = uuid.uuid4()
    ledger.reserve(user=user, amount=cost, reference=job, reason="Held")
    ledger.capture(reference=job, reason="Done")
    return job


def problems() -> list[str]:
    """Run the ledger check without the parts about jobs and payments, which do not exist here."""
    nothing_here = ("which is no job", "of which no payment is known")
    return [sentence for sentence in audit().discrepancies if not sentence.endswith(nothing_here)]


@pytest.fixture
def chat(make_user):
    return make_user("chat")


@pytest.fixture
def web(make_user):
    return make_user("web")


def join(source: Any, target: Any) -> WalletMerge:
    return merging.merge(source=source, target=target, reason="One person", actor=target)


def test_what_was_given_and_bought_moves_and_the_second_sign_up_grant_stays(chat, web, staff):
    ledger.grant(user=chat, amount=40, reason="A prize", actor=staff)
    ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    row = join(chat, web)
    assert (row.moved, row.stayed) == (140, 500)
    assert (free(chat), free(web)) == (500, 640)
    assert {entry.kind for entry in CreditTransaction.objects.filter(pk__gt=row.after_entry)} == {"transfer"}


def test_what_was_spent_is_thought_of_as_the_sign_up_credits(chat, web):
    made(chat, cost=450)
    ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    assert join(chat, web).moved == 100
    assert (free(chat), free(web)) == (50, 600)


def test_nothing_but_sign_up_credits_moves_nothing(chat, web):
    row = join(chat, web)
    assert (row.moved, free(chat), free(web)) == (0, 500, 500)


def test_a_sign_up_grant_moves_to_somebody_who_never_had_one_and_only_once(settings, make_user):
    settings.SIGNUP_CREDITS = 0
    web = make_user("web")
    settings.SIGNUP_CREDITS = 500
    first, second = make_user("first"), make_user("second")
    assert join(first, web).moved == 500
    assert join(second, web).moved == 0
    assert free(web) == 500


def test_what_is_new_moves_after_the_sign_up_grant_has_moved(settings, make_user):
    settings.SIGNUP_CREDITS = 0
    web = make_user("web")
    settings.SIGNUP_CREDITS = 500
    chat = make_user("chat")
    join(chat, web)
    ledger.purchase(user=chat, amount=30, external_id="charge", reason="Stars")
    again = join(chat, web)
    assert (again.moved, again.stayed) == (30, 0)


def test_merging_again_after_parting_moves_only_what_is_new(chat, web):
    ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    join(chat, web)
    assert join(chat, web).moved == 0
    ledger.purchase(user=chat, amount=30, external_id="another", reason="Stars")
    assert join(chat, web).moved == 30
    assert (free(chat), free(web)) == (500, 630)


def test_nothing_is_merged_while_credits_are_held(chat, web):
    ledger.reserve(user=web, amount=50, reference=uuid.uuid4(), reason="Held")
    for source, target in ((chat, web), (web, chat)):
        with pytest.raises(merging.CreditsAreHeld):
            join(source, target)


def test_a_refund_of_an_old_video_follows_the_credits(chat, web):
    job = made(chat)
    join(chat, web)
    ledger.refund(reference=job, reason="Ugly")
    assert (free(chat), free(web)) == (450, 550)


def test_a_refund_of_an_old_purchase_is_taken_from_where_the_credits_are_now(chat, web):
    bought = ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    join(chat, web)
    refund = ledger.purchase_refund(purchase=bought, reason="Asked for")
    assert (free(chat), free(web)) == (500, 500)
    ledger.compensate(refund=refund, reason="Telegram refused")
    assert (free(chat), free(web)) == (500, 600)
    made(web, cost=550)
    with pytest.raises(InsufficientBalance):
        ledger.purchase_refund(purchase=bought, reason="Asked for")
    assert problems() == []


def test_what_is_new_in_the_old_wallet_stays_its_own(chat, web):
    join(chat, web)
    bought = ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    ledger.purchase_refund(purchase=bought, reason="Asked for")
    assert (free(chat), free(web)) == (500, 500)


def test_credits_that_moved_twice_are_found(chat, web, make_user):
    job, third = made(chat), make_user("third")
    join(chat, web)
    join(web, third)
    ledger.refund(reference=job, reason="Ugly")
    assert free(third) == 550


def test_undoing_brings_back_what_moved_and_what_followed(chat, web, staff):
    job = made(chat)
    ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    row = join(chat, web)
    ledger.refund(reference=job, reason="Ugly")
    merging.undo(merge=row, reason="Two people after all", actor=staff)
    assert (free(chat), free(web)) == (600, 500)
    with pytest.raises(merging.CannotUndo):
        merging.undo(merge=row, reason="Again", actor=staff)
    assert problems() == []


def test_undoing_is_refused_when_the_credits_were_spent_or_moved_on(chat, web, make_user, staff):
    ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    first = join(chat, web)
    made(web, cost=550)
    with pytest.raises(InsufficientBalance):
        merging.undo(merge=first, reason="Mistake", actor=staff)
    second = join(web, make_user("third"))
    with pytest.raises(merging.CannotUndo):
        merging.undo(merge=first, reason="Mistake", actor=staff)
    merging.undo(merge=second, reason="Mistake", actor=staff)
    ledger.grant(user=web, amount=100, reason="Spent in good faith", actor=staff)
    merging.undo(merge=first, reason="Mistake", actor=staff)
    assert (free(chat), free(web)) == (600, 50)
    assert problems() == []


def test_a_merge_the_other_way_after_an_undone_one_is_no_discrepancy(chat, web, staff):
    merging.undo(merge=join(chat, web), reason="Mistake", actor=staff)
    ledger.purchase(user=web, amount=1, external_id="charge", reason="Stars")
    again = join(web, chat)
    assert problems() == []
    merging.undo(merge=again, reason="Mistake", actor=staff)
    assert problems() == []


def test_two_merges_of_the_same_wallets_are_no_discrepancy_when_both_are_undone(chat, web, staff):
    ledger.purchase(user=chat, amount=1, external_id="charge", reason="Stars")
    first, second = join(chat, web), join(chat, web)
    merging.undo(merge=second, reason="Mistake", actor=staff)
    assert problems() == []
    merging.undo(merge=first, reason="Mistake", actor=staff)
    assert problems() == []


def test_a_refund_after_the_newer_of_two_merges_was_undone_is_no_discrepancy(chat, web, staff):
    job = made(chat)
    _, second = join(chat, web), join(chat, web)
    merging.undo(merge=second, reason="Mistake", actor=staff)
    ledger.refund(reference=job, reason="Ugly")
    assert problems() == []


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("after", ["nothing", "the same way", "the other way"])
def test_an_undo_that_brings_nothing_back_is_found_whatever_was_merged_before_and_after_it(
    chat, web, staff, monkeypatch, before, after
):
    for _ in range(before):
        join(chat, web)
    ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    row = join(chat, web)
    with monkeypatch.context() as patch:
        patch.setattr(merging, "net_moved", lambda row: 0)
        merging.undo(merge=row, reason="Mistake", actor=staff)
    if after != "nothing":
        join(*((chat, web) if after == "the same way" else (web, chat)))
    assert problems() == [f"merge {row.pk} was undone, but 100 credits have not come back"]


def test_a_refund_that_followed_two_merges_comes_back_with_each(chat, web, make_user, staff):
    job, third = made(chat), make_user("third")
    first, second = join(chat, web), join(web, third)
    ledger.refund(reference=job, reason="Ugly")
    merging.undo(merge=second, reason="Mistake", actor=staff)
    assert (free(chat), free(web), free(third)) == (450, 550, 500)
    merging.undo(merge=first, reason="Mistake", actor=staff)
    assert (free(chat), free(web), free(third)) == (500, 500, 500)


def test_a_purchase_refunded_after_two_merges_is_paid_once(chat, web, make_user, staff):
    third = make_user("third")
    bought = ledger.purchase(user=chat, amount=100, external_id="charge", reason="Stars")
    first, second = join(chat, web), join(web, third)
    ledger.purchase_refund(purchase=bought, reason="Asked for")
    merging.undo(merge=second, reason="Mistake", actor=staff)
    merging.undo(merge=first, reason="Mistake", actor=staff)
    assert (free(chat), free(web), free(third)) == (500, 500, 500)


NUMBER = st.integers(min_value=0, max_value=2)
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["buy", "spend", "ugly", "join", "part", "give back", "refused", "grant"]),
        NUMBER,
        NUMBER,
        st.integers(min_value=1, max_value=300),
    ),
    max_size=25,
)


class World:
    """Three people, one without sign-up credits, and the credits that each would have without any merge."""

    def __init__(self, make_user: Any) -> None:
        self.people = []
        for welcome in (500, 500, 0):
            with override_settings(SIGNUP_CREDITS=welcome):
                self.people.append(make_user(uuid.uuid4().hex))
        self.own = {person.pk: free(person) for person in self.people}
        self.jobs: list[tuple[uuid.UUID, int, int]] = []
        self.purchases: list[CreditTransaction] = []
        self.refunds: list[CreditTransaction] = []

    def act(self, what: str, one: int, other: int, amount: int) -> None:
        person, another = self.people[one], self.people[other]
        if what == "buy":
            self.purchases.append(
                ledger.purchase(user=person, amount=amount, external_id=uuid.uuid4().hex, reason="x")
            )
            self.own[person.pk] += amount
        elif what == "grant":
            ledger.grant(user=person, amount=amount, reason="x")
            self.own[person.pk] += amount
        elif what == "spend":
            self.jobs.append((made(person, cost=amount), amount, person.pk))
            self.own[person.pk] -= amount
        elif what == "ugly" and self.jobs:
            job, cost, payer = self.jobs.pop(amount % len(self.jobs))
            ledger.refund(reference=job, reason="x")
            self.own[payer] += cost
        elif what == "join" and one != other:
            join(person, another)
        elif what == "part":
            self.part(amount)
        elif what == "give back" and self.purchases:
            self.give_back(self.purchases[amount % len(self.purchases)])
        elif what == "refused" and self.refunds:
            refund = self.refunds.pop()
            ledger.compensate(refund=refund, reason="x")
            self.own[refund.account.user_id] -= refund.posted_delta

    def part(self, number: int) -> None:
        rows = list(WalletMerge.objects.filter(undone_at=None, source__user__in=self.people))
        if rows:
            before = [free(person) for person in self.people]
            row = rows[number % len(rows)]
            back = merging.net_moved(row)
            merging.undo(merge=row, reason="x", actor=self.people[0])
            moved = {row.source.user_id: back, row.target.user_id: -back}
            assert [free(p) for p in self.people] == [
                was + moved.get(p.pk, 0) for was, p in zip(before, self.people, strict=True)
            ]
            assert problems() == []

    def give_back(self, purchase: CreditTransaction) -> None:
        if ledger.standing_refund(purchase) is None:
            self.refunds.append(ledger.purchase_refund(purchase=purchase, reason="x"))
            self.own[purchase.account.user_id] -= purchase.posted_delta

    def check(self) -> None:
        """Nothing appears or vanishes, and between two wallets without a merge nothing has moved."""
        assert sum(free(person) for person in self.people) == sum(self.own.values())
        joined = WalletMerge.objects.filter(undone_at=None).values_list("source", "target")
        pairs = {frozenset(pair) for pair in joined}
        moved: Counter[tuple[int, int | None]] = Counter()
        for entry in CreditTransaction.objects.filter(kind="transfer", account__user__in=self.people):
            if frozenset((entry.account_id, entry.counterpart_id)) not in pairs:
                moved[entry.account_id, entry.counterpart_id] += entry.posted_delta
        assert not any(moved.values())

    def undo_all(self) -> None:
        """With enough credits every merge can be undone, and then each has what is their own."""
        for person in self.people:
            ledger.grant(user=person, amount=10_000, reason="x")
        for row in WalletMerge.objects.filter(undone_at=None, source__user__in=self.people).order_by("-pk"):
            merging.undo(merge=row, reason="x", actor=self.people[0])
        assert {p.pk: free(p) - 10_000 for p in self.people} == self.own


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS)
def test_whatever_is_merged_bought_refunded_and_undone_no_credit_appears_or_vanishes(acts, make_user):
    with transaction.atomic():
        world = World(make_user)
        for act in acts:
            with contextlib.suppress(LedgerError):  # that nothing happened then is what follows
                world.act(*act)
            world.check()
        assert problems() == []
        world.undo_all()
        assert problems() == []
        transaction.set_rollback(True)  # each example begins with empty books
