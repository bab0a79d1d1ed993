"""Credits to start with: once an identity, and few a day for a network."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import altcha
import pytest
from allauth.account.models import EmailAddress
from django.core import mail
from django.db import connection
from django.test import Client

from accounts import privacy
from accounts.models import CreditAccount, User
from telegram_bot import users

PASSWORD = "a long enough password"

pytestmark = pytest.mark.django_db


@pytest.fixture
def _mails(settings: Any) -> None:
    settings.EMAIL_HOST, settings.UNVERIFIED_SIGNUP_CREDITS = "mail.example.org", 0


def sign_up(name: str, *, address: str = "192.0.2.1", email: str = "") -> Client:
    client = Client(REMOTE_ADDR=address)
    fields = {"username": name, "password1": PASSWORD, "email": email}
    answer = client.post("/accounts/signup/", fields)
    assert answer.status_code == 302, answer.content.decode()
    return client


def confirm(client: Client) -> None:
    [path] = re.findall(r"/accounts/confirm-email/[^\s]+", mail.outbox[-1].body)
    client.post(path)


def balance(name: str) -> int:
    return CreditAccount.objects.get(user__username=name).balance


def said(client: Client) -> str:
    return client.get("/").content.decode()


def test_one_network_starts_five_accounts_with_credits_and_the_sixth_is_told() -> None:
    clients = [sign_up(f"farmer{n}") for n in range(7)]
    assert [balance(f"farmer{n}") for n in range(7)] == [500] * 5 + [0] * 2
    assert "Your network has had its free credits" in said(clients[5])
    assert "Your network" not in said(clients[4])
    sign_up("elsewhere", address="192.0.2.2")
    assert balance("elsewhere") == 500


def test_the_whole_service_has_a_bound_that_people_made_by_staff_do_not_count_for(
    settings: Any, make_user: Any
) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"signup_grants_of_all": (2, 86400)}
    sign_up("one")
    users.open_account(telegram_id=7)
    sign_up("three", address="192.0.2.3")
    users.open_account(telegram_id=8)
    assert [balance(name) for name in ("one", "tg_7", "three", "tg_8")] == [500, 500, 0, 0]
    make_user("by-staff")
    assert balance("by-staff") == 500


def test_telegram_again_and_again_gives_credits_once(settings: Any) -> None:
    for expected in (500, 0, 0):
        account = users.open_account(telegram_id=42)
        assert CreditAccount.objects.get(user=account.user).balance == expected
        privacy.close(user=account.user)
        # A new key closes what the old one knew, too.
        settings.ENCRYPTION_KEYS = ["another", *settings.ENCRYPTION_KEYS]


def test_with_mails_the_credits_come_with_the_confirmed_address(_mails: None) -> None:
    client = sign_up("ada", email="ada@example.org")
    assert balance("ada") == 0
    assert "once you have confirmed" in said(client)
    confirm(client)
    assert balance("ada") == 500


def test_what_an_unconfirmed_account_had_is_part_of_it(_mails: None, settings: Any) -> None:
    settings.UNVERIFIED_SIGNUP_CREDITS = 100
    client = sign_up("ada", email="ada@example.org")
    assert balance("ada") == 100
    confirm(client)
    assert balance("ada") == 500


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ada@example.org", "ADA@example.org"),
        ("ada@example.org", "ada+2@example.org"),
        ("ada@gmail.com", "a.d.a+x@googlemail.com"),
    ],
)
def test_an_address_has_them_once_however_it_is_spelt_and_closed(
    _mails: None, first: str, second: str
) -> None:
    confirm(sign_up("ada", email=first))
    privacy.close(user=User.objects.get(username="ada"))
    confirm(sign_up("again", email=second))
    assert EmailAddress.objects.get(user__username="again").verified
    assert balance("again") == 0


def test_a_second_address_of_one_account_brings_nothing(_mails: None) -> None:
    client = sign_up("ada", email="ada@example.org")
    confirm(client)
    client.post("/accounts/email/", {"email": "lovelace@example.org", "action_add": ""})
    confirm(client)
    assert EmailAddress.objects.filter(email="lovelace@example.org", verified=True).exists()
    assert balance("ada") == 500


# --- The puzzle of a sign-up ------------------------------------------------------------------------------------------


@pytest.fixture
def _puzzle(settings: Any) -> None:
    settings.SIGNUP_PROOF_OF_WORK = True


def solved(client: Client) -> str:
    puzzle = client.get("/accounts/signup/").context["form"].fields["proof"].widget.attrs["data-puzzle"]
    puzzle = json.loads(puzzle)
    found = altcha.solve_challenge_v1(
        puzzle["challenge"], puzzle["salt"], puzzle["algorithm"], puzzle["maxNumber"]
    )
    names = ("algorithm", "challenge", "salt", "signature")
    answer = {name: puzzle[name] for name in names} | {"number": found.number}
    return base64.b64encode(json.dumps(answer).encode()).decode()


def test_a_solved_puzzle_makes_one_account(_puzzle: None, client: Client) -> None:
    fields = {"username": "ada", "password1": PASSWORD, "proof": solved(client)}
    assert client.post("/accounts/signup/", fields).status_code == 302
    answer = Client().post("/accounts/signup/", fields | {"username": "again"})
    assert "check against programs" in answer.content.decode()
    assert not User.objects.filter(username="again").exists()


@pytest.mark.parametrize("proof", ["", "x", "e30=", "bnVsbA==", "W10=", "é", "eyJzYWx0IjogMX0="])
def test_no_solution_makes_no_account(_puzzle: None, client: Client, proof: str) -> None:
    answer = client.post("/accounts/signup/", {"username": "ada", "password1": PASSWORD, "proof": proof})
    assert (answer.status_code, User.objects.count()) == (200, 0)
    assert "check against programs" in answer.content.decode()


@pytest.mark.django_db(transaction=True)
def test_two_sign_ups_with_one_name_at_once_are_one_account_and_one_message(settings: Any) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"signup_grants": (0, 1), "sign_up": (0, 1)}

    def once(number: int) -> tuple[int, str]:
        client = Client()
        fields = {"username": "Ada" if number % 2 else "ada", "password1": PASSWORD}
        try:
            answer = client.post("/accounts/signup/", fields, follow=True)
            return answer.status_code, answer.content.decode()
        finally:
            connection.close()

    for _ in range(3):
        with ThreadPoolExecutor(6) as hands:
            answers = list(hands.map(once, range(6)))
        assert {status for status, _ in answers} == {200}
        assert User.objects.filter(username__iexact="ada").count() == 1
        refused = [
            page for _, page in answers if "was taken a moment ago" in page or "already exists" in page
        ]
        assert len(refused) == 5
        privacy.close(user=User.objects.get(username__iexact="ada"))


# --- Mails to addresses that may be a stranger's ----------------------------------------------------------------------


def test_a_mail_to_a_stranger_says_nothing_that_its_sender_has_chosen(_mails: None) -> None:
    sign_up("buy_now_at_evil_example", email="stranger@example.org")
    Client().post("/accounts/password/reset/", {"email": "stranger@example.org"})
    assert len(mail.outbox) == 2
    for each in mail.outbox:
        assert "evil" not in each.subject + each.body


def test_an_address_gets_few_mails_however_often_and_from_wherever_it_is_typed_in(
    _mails: None, settings: Any
) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"mail": (3, 3600)}
    sign_up("ada", email="ada@example.org")
    for n in range(6):
        Client(REMOTE_ADDR=f"192.0.2.{n}").post("/accounts/password/reset/", {"email": "Ada@example.org"})
    assert len(mail.outbox) == 3
