"""The commands `audit_credits`, `grant_credits` and `create_api_key`."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from accounts import api_keys, ledger
from accounts.models import CreditAccount, User
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob
from tests.emptying import GUARDED_TABLES

pytestmark = pytest.mark.django_db


def run(name: str, *arguments: Any) -> str:
    out = io.StringIO()
    call_command(name, *arguments, stdout=out, stderr=out)
    return out.getvalue()


class TestGrantCredits:
    def test_the_balance_grows_and_the_reason_is_kept(self, user: User) -> None:
        told = run("grant_credits", "ada", "100", "--reason", "Contest")
        assert "+100" in told
        assert "600" in told
        entry = user.credit_account.transactions.first()
        assert (entry.kind, entry.amount, entry.reason, entry.actor) == ("grant", 100, "Contest", None)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nobody", "100", "--reason", "x"],
            ["ada", "0", "--reason", "x"],
            ["ada", "--reason", "x", "--", "-5"],
            ["ada", "many", "--reason", "x"],
            ["ada", "100", "--reason", " "],
            ["ada", "100", "--reason", "\udcff"],
            ["ada", "9" * 30, "--reason", "x"],
            ["\udcff", "100", "--reason", "x"],
            ["ada", "100"],
        ],
    )
    def test_what_cannot_be_granted_is_refused_with_a_message(self, user: User, arguments: list[str]) -> None:
        with pytest.raises(CommandError) as refused:
            run("grant_credits", *arguments)
        assert str(refused.value)
        assert CreditAccount.objects.get(user=user).balance == 500


class TestCreateApiKey:
    def test_the_key_alone_is_printed_and_it_works(self, user: User) -> None:
        [secret] = run("create_api_key", "ada").splitlines()
        key = api_keys.verify(secret)
        assert key is not None
        assert key.user == user

    def test_unknown_and_banned_users_get_none(self, user: User) -> None:
        with pytest.raises(CommandError, match="nobody"):
            run("create_api_key", "nobody")
        user.is_active = False
        user.save()
        with pytest.raises(CommandError, match="active"):
            run("create_api_key", "ada")


class TestAuditCredits:
    @pytest.fixture
    def books(
        self,
        user: User,
        settings: Any,
        make_user: Callable[..., User],
        finish_job: Callable[[GenerationJob], GenerationJob],
    ) -> dict[str, GenerationJob]:
        """A job of each fate, a refund and a transfer."""
        settings.VIDEO_COOLDOWN_SECONDS = 0
        charged = finish_job(submit(user))
        refunded = finish_job(submit(user))
        lifecycle.refund(job=refunded, reason="Blurry", actor=user)
        canceled = lifecycle.cancel(job=submit(user))
        ledger.transfer(source=user, target=make_user("bob"), amount=10, reason="Gift", actor=user)
        return {"charged": charged, "refunded": refunded, "canceled": canceled, "live": submit(user)}

    def test_books_that_are_right(self, books: dict[str, GenerationJob]) -> None:
        told = run("audit_credits")
        assert "2 accounts" in told
        assert "0 discrepancies" in told

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            ("UPDATE accounts_creditaccount SET posted = posted + 1 WHERE user_id = %(user)s", "posted"),
            ("UPDATE accounts_creditaccount SET held = held - 1 WHERE user_id = %(user)s", "held"),
            (
                "UPDATE accounts_credittransaction SET posted_after = posted_after + 1 WHERE kind = 'refund'",
                "after it",
            ),
            (
                "DELETE FROM accounts_credittransaction WHERE kind = 'transfer' AND posted_delta > 0",
                "transfer",
            ),
            (
                "DELETE FROM accounts_credittransaction WHERE kind = 'capture' AND reference = %(charged)s",
                "completed",
            ),
            ("DELETE FROM accounts_credittransaction WHERE kind = 'release'", "canceled"),
            ("UPDATE generation_generationjob SET cost = 7 WHERE id = %(charged)s", "costs 7"),
            (
                "UPDATE accounts_credittransaction SET reference = gen_random_uuid() WHERE kind = 'release'",
                "resolves",
            ),
            (
                "UPDATE generation_generationjob SET state = 'failed', finished_at = now() WHERE id = %(live)s",
                "is failed",
            ),
            (
                "UPDATE accounts_credittransaction SET reference = gen_random_uuid()"
                " WHERE kind = 'reserve' AND reference = %(live)s",
                "no job",
            ),
        ],
    )
    def test_damage_behind_the_guards_is_found(
        self, books: dict[str, GenerationJob], user: User, damage: str, told: str
    ) -> None:
        facts = {"user": user.pk} | {name: job.pk for name, job in books.items()}
        with connection.cursor() as cursor:
            # The owner of the tables could do this: no guard runs.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            for table in GUARDED_TABLES:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            cursor.execute(damage, facts)
            assert cursor.rowcount == 1
        out = io.StringIO()
        with pytest.raises(CommandError):
            call_command("audit_credits", stdout=out, stderr=out)
        assert told in out.getvalue()


def submit(user: User) -> GenerationJob:
    return submission.submit(user=user, prompt="A paper boat in the rain", source="web")
