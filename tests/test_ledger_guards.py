# ruff: noqa: E501  (a table of attacks reads best with one a line)
"""The ledger's guards, attacked in raw SQL: whatever a script, a shell or a bug tries, the database refuses it."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connection, transaction

from accounts import ledger, merging
from accounts.models import CreditTransaction
from generation.database import listen_parameters

pytestmark = pytest.mark.django_db

INSERT = """
INSERT INTO accounts_credittransaction
    (account_id, kind, posted_delta, held_delta, posted_after, held_after, reference, resolves_id, counterpart_id,
     external_id, actor_id, reason, created_at)
VALUES (%(account)s, %(kind)s, %(posted)s, %(held)s, 0, 0, %(reference)s, %(resolves)s, %(counterpart)s,
        %(external)s, NULL, %(reason)s, now())
"""
NOTHING: dict[str, Any] = {
    "posted": 0, "held": 0, "reference": None, "resolves": None, "counterpart": None, "external": None, "reason": "attack",
}  # fmt: skip


@pytest.fixture
def books(user, make_user) -> dict[str, Any]:
    """Two wallets; on the first a captured job, a held job and a purchase."""
    other = make_user("mallory")
    captured, held = uuid.uuid4(), uuid.uuid4()
    ledger.reserve(user=user, amount=50, reference=captured, reason="Held")
    ledger.capture(reference=captured, reason="Done")
    ledger.reserve(user=user, amount=50, reference=held, reason="Held")
    ledger.purchase(user=user, amount=100, external_id="charge-1", reason="Stars")
    refunded = ledger.purchase(user=user, amount=70, external_id="charge-2", reason="Stars")
    refund = ledger.purchase_refund(purchase=refunded, reason="Asked for")
    taken_back = ledger.purchase(user=user, amount=30, external_id="charge-3", reason="Stars")
    refused = ledger.purchase_refund(purchase=taken_back, reason="Asked for")
    ledger.compensate(refund=refused, reason="Telegram refused")
    merging.merge(source=make_user("eve"), target=other, reason="One person", actor=other)
    entries = {e.kind + str(e.reference or ""): e.pk for e in CreditTransaction.objects.order_by("pk")}
    return {
        "mine": user.credit_account.pk,
        "theirs": other.credit_account.pk,
        "captured": captured,
        "held": held,
        "hold": entries[f"reserve{held}"],
        "old_hold": entries[f"reserve{captured}"],
        "capture": entries[f"capture{captured}"],
        "purchase": CreditTransaction.objects.get(external_id="charge-1").pk,
        "refunded": refunded.pk,
        "refund": refund.pk,
        "taken_back": taken_back.pk,
        "refused": refused.pk,
    }


def attempt(sql: str, parameters: dict[str, Any] | None = None) -> None:
    """Run as a client would: a transaction of its own, with deferred checks made at its end."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


STATEMENTS = {
    "edit an entry": "UPDATE accounts_credittransaction SET posted_delta = 1000 WHERE kind = 'grant'",
    "edit a reason": "UPDATE accounts_credittransaction SET reason = 'nothing to see'",
    "delete an entry": "DELETE FROM accounts_credittransaction WHERE id = %(capture)s",
    "truncate the ledger": "TRUNCATE accounts_credittransaction CASCADE",
    "truncate the wallets": "TRUNCATE accounts_creditaccount CASCADE",
    "raise a balance": "UPDATE accounts_creditaccount SET posted = posted + 1000 WHERE id = %(mine)s",
    "free what is held": "UPDATE accounts_creditaccount SET held = 0 WHERE id = %(mine)s",
    "give a wallet away": "UPDATE accounts_creditaccount SET user_id = user_id + 1000 WHERE id = %(mine)s",
    "delete a wallet": "DELETE FROM accounts_creditaccount WHERE id = %(theirs)s",
    "undo a merge in the past": "UPDATE accounts_walletmerge SET undone_at = now(), undone_by_id = actor_id, moved = 0, stayed = 7",
    "undo a merge by nobody": "UPDATE accounts_walletmerge SET undone_at = now()",
    "turn a merge round": "UPDATE accounts_walletmerge SET source_id = target_id, target_id = source_id",
    "forget a merge": "DELETE FROM accounts_walletmerge",
    "forget all merges": "TRUNCATE accounts_walletmerge",
    "open a full wallet": "INSERT INTO accounts_creditaccount (user_id, posted, held) "
    "SELECT user_id + 1000, 1000, 0 FROM accounts_creditaccount WHERE id = %(mine)s",
}

ENTRIES = {
    "capture twice": {"kind": "capture", "posted": -50, "held": -50, "reference": "captured", "resolves": "old_hold"},
    "release what was captured": {"kind": "release", "held": -50, "reference": "captured", "resolves": "old_hold"},
    "capture more than was held": {"kind": "capture", "posted": -70, "held": -70, "reference": "held", "resolves": "hold"},
    "charge more than was held": {"kind": "capture", "posted": -51, "held": -50, "reference": "held", "resolves": "hold"},
    "capture less than was held": {"kind": "capture", "posted": -1, "held": -1, "reference": "held", "resolves": "hold"},
    "release and keep": {"kind": "release", "held": -20, "reference": "held", "resolves": "hold"},
    "hold one job twice": {"kind": "reserve", "held": 50, "reference": "held"},
    "resolve another's hold": {"account": "theirs", "kind": "release", "held": -50, "reference": "held", "resolves": "hold"},
    "resolve a hold for another job": {"kind": "release", "held": -50, "reference": "captured", "resolves": "hold"},
    "capture a purchase": {"kind": "capture", "posted": -100, "held": -100, "reference": "held", "resolves": "purchase"},
    "refund another's capture": {"account": "theirs", "kind": "refund", "posted": 50, "reference": "captured", "resolves": "capture"},
    "refund more than was paid": {"kind": "refund", "posted": 500, "reference": "captured", "resolves": "capture"},
    "refund a hold": {"kind": "refund", "posted": 50, "reference": "held", "resolves": "hold"},
    "refund nothing in particular": {"kind": "refund", "posted": 50, "reference": "held"},
    "hold more than there is": {"kind": "reserve", "held": 100_000, "reference": "new"},
    "hold less than nothing": {"kind": "reserve", "held": -50, "reference": "new"},
    "overdraw by adjusting": {"kind": "adjust", "posted": -100_000},
    "adjust what is held": {"kind": "adjust", "posted": 5, "held": -50},
    "grant less than nothing": {"kind": "grant", "posted": -10},
    "credit a charge twice": {"kind": "purchase", "posted": 100, "external": "charge-1"},
    "purchase without a charge": {"kind": "purchase", "posted": 100},
    "take a purchase back in part": {"kind": "purchase_refund", "posted": -10, "resolves": "purchase"},
    "purchase with an empty charge": {"kind": "purchase", "posted": 100, "external": ""},
    "purchase for less than nothing": {"kind": "purchase", "posted": -100, "external": "charge-9"},
    "refund a purchase twice": {"kind": "purchase_refund", "posted": -70, "resolves": "refunded"},
    "refund a purchase from another wallet": {"account": "theirs", "kind": "purchase_refund", "posted": -100, "resolves": "purchase"},
    "take a grant back as a purchase": {"kind": "purchase_refund", "posted": -50, "resolves": "capture"},
    "take a refund back in part": {"kind": "adjust", "posted": 10, "resolves": "refund"},
    "take a refund back with interest": {"kind": "adjust", "posted": 700, "resolves": "refund"},
    "take a refund back twice": {"kind": "adjust", "posted": 30, "resolves": "refused"},
    "take a refund back into another wallet": {"account": "theirs", "kind": "adjust", "posted": 70, "resolves": "refund"},
    "give a purchase back by adjusting": {"kind": "adjust", "posted": 100, "resolves": "purchase"},
    "take by adjusting a refund": {"kind": "adjust", "posted": -70, "resolves": "refund"},
    "transfer to oneself": {"kind": "transfer", "posted": 500, "reference": "new", "counterpart": "mine"},
    "transfer without a pair": {"kind": "transfer", "posted": 500, "counterpart": "theirs"},
    "half a transfer": {"kind": "transfer", "posted": 500, "reference": "new", "counterpart": "theirs"},
    "an unknown kind": {"kind": "gift", "posted": 500},
    "no reason": {"kind": "grant", "posted": 500, "reason": ""},
}  # fmt: skip


@pytest.mark.parametrize("attack", STATEMENTS)
def test_a_statement_that_would_falsify_the_books_is_refused(books, attack):
    with pytest.raises(DatabaseError):
        attempt(STATEMENTS[attack], books)


@pytest.mark.parametrize("attack", ENTRIES)
def test_an_entry_that_would_falsify_the_books_is_refused(books, attack):
    names = {**books, "new": uuid.uuid4()}
    values = {"account": "mine", **ENTRIES[attack]}
    parameters = NOTHING | {key: names.get(value, value) for key, value in values.items()}
    with pytest.raises(DatabaseError):
        attempt(INSERT, parameters)


def test_a_refund_in_sql_counts_once(books):
    refund = NOTHING | {
        "account": books["mine"], "kind": "refund", "posted": 50, "reference": books["captured"], "resolves": books["capture"],
    }  # fmt: skip
    attempt(INSERT, refund)
    with pytest.raises(DatabaseError):
        attempt(INSERT, refund)


def test_a_refund_that_was_taken_back_may_be_followed_by_another_in_sql_too(books):
    """The control of the attacks on refunds: this one is honest, and passes once."""
    again = NOTHING | {
        "account": books["mine"], "kind": "purchase_refund", "posted": -30, "resolves": books["taken_back"],
    }  # fmt: skip
    attempt(INSERT, again)
    with pytest.raises(DatabaseError):
        attempt(INSERT, again)


def test_what_an_entry_claims_as_its_balance_is_not_believed(books, user):
    """The control: an honest entry passes, and the database itself works out the balance after it."""
    attempt(INSERT, NOTHING | {"account": books["mine"], "kind": "grant", "posted": 7})
    entry = CreditTransaction.objects.latest("id")
    user.credit_account.refresh_from_db()
    assert (
        (entry.posted_after, entry.held_after)
        == (587, 50)
        == (user.credit_account.posted, user.credit_account.held)
    )


# --- The role that serves ---------------------------------------------------------------------------------------------


@pytest.fixture
def serving(books: dict[str, Any], settings: Any) -> Iterator["psycopg.Connection[Any]"]:
    """A connection with the rights of a web process."""
    parameters = listen_parameters() | {"user": settings.SERVING_ROLE}
    with psycopg.connect(**parameters, autocommit=True) as connection:
        yield connection


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts_creditaccount SET posted = posted + 1",
        "UPDATE accounts_creditaccount SET held = 0",
        "DELETE FROM accounts_creditaccount",
        "UPDATE accounts_credittransaction SET reason = 'mine'",
        "DELETE FROM accounts_credittransaction",
        "DELETE FROM accounts_walletmerge",
        "UPDATE accounts_auditevent SET reason = 'mine'",
        "DELETE FROM accounts_auditevent",
        "UPDATE accounts_securityevent SET what = 'mine'",
        "DELETE FROM django_migrations",
        "TRUNCATE accounts_credittransaction CASCADE",
        "TRUNCATE accounts_notice",
        "ALTER TABLE accounts_creditaccount DISABLE TRIGGER ALL",
        "ALTER TABLE accounts_creditaccount DROP CONSTRAINT account_posted_not_negative",
        "DROP TRIGGER guard_balance ON accounts_creditaccount",
        "DROP TABLE accounts_notice",
        "CREATE TABLE mine (n int)",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION accounts_guard_balance() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER mine BEFORE INSERT ON accounts_notice FOR EACH ROW EXECUTE FUNCTION accounts_apply_entry()",
        "SET session_replication_role = replica",
        "SET ROLE videoplatform",
        "SET ROLE postgres",
        "COPY accounts_notice FROM PROGRAM 'id'",
        "SELECT pg_read_file('/etc/passwd')",
        "CREATE DATABASE mine",
    ],
)
def test_the_serving_role_reaches_no_guard(serving: "psycopg.Connection[Any]", statement: str) -> None:
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
        serving.execute(statement)


@pytest.mark.django_db(transaction=True)
def test_the_serving_role_does_its_work(serving: "psycopg.Connection[Any]", books: dict[str, Any]) -> None:
    before = serving.execute(
        "SELECT posted FROM accounts_creditaccount WHERE id = %s FOR UPDATE", [books["mine"]]
    )
    [(posted,)] = before.fetchall()
    serving.execute(INSERT, NOTHING | {"account": books["mine"], "kind": "grant", "posted": 7})
    after = serving.execute("SELECT posted FROM accounts_creditaccount WHERE id = %s", [books["mine"]])
    assert after.fetchall() == [(posted + 7,)]


TRIGGER_OF_AN_ATTACKER = """
CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE accounts_creditaccount SET posted = posted + 1000000; RETURN NEW; END $$;
CREATE TRIGGER mine BEFORE INSERT ON accounts_ratelimit FOR EACH ROW EXECUTE FUNCTION mine();
INSERT INTO accounts_ratelimit (key, free_at) VALUES ('x', now());
"""


def test_a_balance_that_another_trigger_moves_is_refused_where_one_role_does_both(
    books: dict[str, Any],
) -> None:
    with pytest.raises(DatabaseError, match="newest entry"):
        attempt(TRIGGER_OF_AN_ATTACKER)
