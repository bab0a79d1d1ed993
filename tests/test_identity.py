"""Whose an account is: addresses that others signed up with, proof before what a thief would do, and traces."""

import re
import time
import uuid
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, format_hotp_value, hotp_value
from allauth.usersessions.models import UserSession
from django.core import mail
from django.db import Error, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts import api_keys, security_log
from accounts.models import ApiKey, AuditEvent, Ban, SecurityEvent, User
from accounts.staff import operations
from accounts.staff.actor import Actor, Refused
from generation.models import GenerationJob
from telegram_bot import linking, links, users
from telegram_bot.models import LoginLink, TelegramAccount

PASSWORD = "a long enough password"
OWNER = {"REMOTE_ADDR": "192.0.2.9"}

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _mails(settings: Any) -> None:
    settings.EMAIL_HOST, settings.UNVERIFIED_SIGNUP_CREDITS = "mail.example.org", 0


def connect(account: TelegramAccount, user: User) -> None:
    row = linking.answer_in_telegram(token=linking.begin_on_web(user=user), account=account)
    linking.confirm(row, by=user)


class Thief:
    """Has signed up with the address of someone else, and left every way in that there is."""

    def __init__(self, *, verified: bool = False) -> None:
        self.browser = Client()
        fields = {"username": "ada", "email": "ada@example.org", "password1": PASSWORD}
        assert self.browser.post("/accounts/signup/", fields).status_code == 302
        self.user = User.objects.get(username="ada")
        EmailAddress.objects.filter(user=self.user).update(verified=verified)
        self.secret = api_keys.issue(user=self.user)[1]
        for kind in Authenticator.Type.values:
            Authenticator.objects.create(user=self.user, type=kind, data={})
        telegram = users.open_account(telegram_id=666)
        connect(telegram, self.user)
        links.issue_login(account=TelegramAccount.objects.get(telegram_id=666))

    def ways_in(self) -> set[str]:
        key = Client().get("/v1/videos", headers={"Authorization": f"Bearer {self.secret}"})
        found = {
            "session": self.browser.get("/account/").status_code == 200,
            "key": key.status_code == 200,
            "telegram": TelegramAccount.objects.filter(user=self.user).exists(),
            "login link": LoginLink.objects.filter(user=self.user, expires_at__gt=timezone.now()).exists(),
        } | {
            kind: Authenticator.objects.filter(user=self.user, type=kind).exists()
            for kind in Authenticator.Type.values
        }
        return {name for name, works in found.items() if works}


def last_link(path: str) -> str:
    return [found for each in mail.outbox for found in re.findall(rf"{path}[^\s]+", each.body)][-1]


def reset(name: str = "ada@example.org") -> Client:
    owner = Client(**OWNER)
    owner.post("/accounts/password/reset/", {"email": name})
    page = owner.get(last_link("/accounts/password/reset/key/"), follow=True)
    fields = {"password1": "an entirely new one", "password2": "an entirely new one"}
    answer = owner.post(page.request["PATH_INFO"], fields, follow=True)
    assert answer.resolver_match.view_name == "account_reset_password_from_key_done"
    return owner


class TestTakingBack:
    def test_a_reset_leaves_nothing_that_was_made_under_the_unconfirmed_address(self) -> None:
        thief = Thief()
        assert len(thief.ways_in()) == 7
        owner = reset()
        assert thief.ways_in() == set()
        assert "no longer work" in mail.outbox[-1].body
        assert owner.post("/accounts/login/", {"login": "ada", "password": "an entirely new one"}).url == "/"

    def test_who_reads_the_mail_of_a_confirmed_address_still_needs_the_second_step(self) -> None:
        thief = Thief(verified=True)
        owner = reset()
        assert thief.ways_in() == {"totp", "recovery_codes"}
        entry = {"login": "ada", "password": "an entirely new one"}
        assert owner.post("/accounts/login/", entry).url.startswith("/accounts/2fa/authenticate/")

    def test_the_first_confirmation_elsewhere_does_the_same(self) -> None:
        thief = Thief()
        owner = Client(**OWNER)
        owner.post(last_link("/accounts/confirm-email/"))
        assert thief.ways_in() == set()
        assert "no longer work" in mail.outbox[-1].body

    def test_the_own_confirmation_keeps_what_is_ones_own_and_ends_other_sessions(self) -> None:
        own = Thief()
        other = Client()
        other.force_login(own.user)
        UserSession.objects.create(user=own.user, session_key=other.session.session_key, ip="192.0.2.8")
        own.browser.post(last_link("/accounts/confirm-email/"))
        assert len(own.ways_in()) == 7
        assert other.get("/account/").status_code == 302

    def test_a_later_address_takes_no_keys_away(self) -> None:
        own = Thief(verified=True)
        added = own.browser.post("/accounts/email/", {"email": "new@example.org", "action_add": ""})
        assert added.url == "/accounts/email/"
        Client().post(last_link("/accounts/confirm-email/"))
        assert "key" in own.ways_in()
        assert "session" not in own.ways_in()

    def test_an_account_without_an_address_is_not_touched(self, browser: Client, user: User) -> None:
        api_keys.issue(user=user)
        reset_form = {
            "oldpassword": PASSWORD,
            "password1": "an entirely new one",
            "password2": "an entirely new one",
        }
        browser.post("/accounts/password/change/", reset_form)
        assert ApiKey.objects.filter(user=user, revoked_at=None).exists()

    def test_guesses_of_others_do_not_keep_the_owner_out_after_a_reset(self, settings: Any) -> None:
        settings.RATE_LIMITS = settings.RATE_LIMITS | {"guess_name": (3, 3600)}
        thief = Thief()
        thief.browser.post("/accounts/logout/")
        for n in range(5):
            Client(REMOTE_ADDR=f"192.0.2.{n}").post("/accounts/login/", {"login": "ada", "password": "x"})
        entry = {"login": "ada", "password": "an entirely new one"}
        assert reset().post("/accounts/login/", entry).status_code == 302


class TestProof:
    """What a thief of a session would do first asks for the password, or a code, again."""

    POSTS = (
        ("/api-keys/", {"name": "mine"}),
        ("/account/export/", {}),
        ("/accounts/email/", {"email": "thief@example.org", "action_add": ""}),
        ("/telegram/connect/", {}),
        ("/account/delete/", {"proof": "ada"}),
    )

    @pytest.fixture
    def stolen(self, user: User, settings: Any) -> Client:
        """A session that was begun an hour ago."""
        settings.TELEGRAM_BOT_TOKEN = "1:x"
        client = Client()
        client.post("/accounts/login/", {"login": "ada", "password": PASSWORD})
        session = client.session
        session["account_authentication_methods"] = [
            record | {"at": record["at"] - 3600} for record in session["account_authentication_methods"]
        ]
        session.save()
        return client

    @pytest.mark.parametrize(("page", "fields"), POSTS)
    def test_an_old_session_is_asked_first(self, stolen: Client, page: str, fields: Any) -> None:
        answer = stolen.post(page, fields)
        assert answer.status_code == 302
        assert answer.url.startswith("/accounts/reauthenticate/")
        assert not ApiKey.objects.exists()
        assert not EmailAddress.objects.exists()
        assert User.objects.get(username="ada").is_active

    def test_what_was_asked_for_is_done_after_the_password(self, stolen: Client) -> None:
        asks = stolen.post("/api-keys/", {"name": "mine", "key_id": str(uuid.uuid4())}).url
        assert stolen.get(asks).status_code == 200
        wrong = stolen.post(asks, {"password": "wrong"})
        assert (wrong.status_code, ApiKey.objects.count()) == (200, 0)
        done = stolen.post(asks, {"password": PASSWORD})
        assert "vk_" in done.content.decode()
        assert ApiKey.objects.count() == 1

    def test_the_account_is_closed_after_the_password_and_its_traces_go(
        self, stolen: Client, user: User
    ) -> None:
        asks = stolen.post("/account/delete/", {"proof": "ada"}, REMOTE_ADDR="192.0.2.8").url
        stolen.post(asks, {"password": "wrong"}, REMOTE_ADDR="192.0.2.8")
        assert SecurityEvent.objects.get(what="sign-in failed").address == "192.0.2.8"
        done = stolen.post(asks, {"password": PASSWORD}, REMOTE_ADDR="192.0.2.8")
        assert "Your account is deleted" in done.content.decode()
        assert User.objects.get(pk=user.pk).anonymised_at
        left = SecurityEvent.objects.filter(user=user).values_list("what", "address", "detail")
        assert set(left) == {("account closed", "192.0.2.8", ""), ("signed out", "192.0.2.8", "")}

    def test_a_fresh_sign_in_is_proof(self, user: User) -> None:
        client = Client()
        client.post("/accounts/login/", {"login": "ada", "password": PASSWORD})
        assert client.post("/api-keys/", {"name": "mine"}).status_code == 200
        assert (
            client.post("/accounts/email/", {"email": "a@example.org", "action_add": ""}).status_code == 302
        )
        assert EmailAddress.objects.exists()

    def test_who_has_only_telegram_signs_in_there_again(self) -> None:
        user = users.open_account(telegram_id=42).user
        client = Client()
        client.force_login(user)
        answer = client.post("/api-keys/", {"name": "mine"}, follow=True)
        assert "by /login in the chat" in answer.content.decode()
        assert not ApiKey.objects.exists()
        answer = client.post("/accounts/password/set/", {"password1": "x" * 9}, follow=True)
        user.refresh_from_db()
        assert not user.has_usable_password()
        link = links.issue_login(account=TelegramAccount.objects.get(user=user))
        again = Client()
        again.post(f"/telegram/login/{link}/")
        assert again.post("/api-keys/", {"name": "mine"}).status_code == 200
        assert ApiKey.objects.exists()


class TestSecurityLog:
    def events(self, **about: Any) -> list[str]:
        return list(SecurityEvent.objects.filter(**about).order_by("pk").values_list("what", flat=True))

    def test_it_tells_of_sign_ins_and_of_what_is_done_after_them(self, user: User, caplog: Any) -> None:
        caplog.set_level("INFO", logger="security")
        client = Client(
            headers={"User-Agent": "Mozilla/5.0 (Windows NT 10.0) Firefox/140.0"}, REMOTE_ADDR="192.0.2.7"
        )
        client.post("/accounts/login/", {"login": "ada", "password": "wrong"})
        client.post("/accounts/login/", {"login": "ada", "password": PASSWORD})
        client.post("/api-keys/", {"name": "mine"})
        client.post(f"/api-keys/{ApiKey.objects.get().pk}/revoke/")
        client.post("/account/export/")
        client.post(
            "/accounts/password/change/",
            {
                "oldpassword": PASSWORD,
                "password1": "an entirely new one",
                "password2": "an entirely new one",
            },
        )
        client.post("/accounts/logout/")
        assert self.events(user=user, address="192.0.2.7") == [
            "sign-in failed",
            "signed in",
            "API key made",
            "API key revoked",
            "data exported",
            "password changed",
            "signed out",
        ]
        assert f"signed in user={user.pk} address=192.0.2.7" in caplog.text

    def test_a_wrong_password_is_the_users_by_name_and_by_confirmed_address(self, user: User) -> None:
        EmailAddress.objects.create(user=user, email="ada@example.org", verified=True, primary=True)
        for login in ("ADA", "Ada@example.org", "eve@example.org"):
            Client().post("/accounts/login/", {"login": login, "password": "wrong"})
        assert list(SecurityEvent.objects.order_by("pk").values_list("user", "detail")) == [
            (user.pk, "ADA"),
            (user.pk, "Ada@example.org"),
            (None, "eve@example.org"),
        ]

    def test_names_that_are_nobodys_and_what_would_break_a_line(self, caplog: Any) -> None:
        caplog.set_level("INFO", logger="security")
        Client().post("/accounts/login/", {"login": "eve\nroot signed in", "password": "x"})
        [event] = SecurityEvent.objects.all()
        assert (event.user, event.what) == (None, "sign-in failed")
        assert [line for line in caplog.text.splitlines() if line.startswith("root")] == []

    def test_wrong_keys_are_an_entry_an_hour(self) -> None:
        for n in range(5):
            Client().get("/v1/videos", headers={"Authorization": f"Bearer wrong{n}"})
        assert self.events() == ["wrong API key"]

    def test_it_cannot_be_changed(self, user: User) -> None:
        SecurityEvent.objects.create(what="signed in", user=user)
        for statement in ("UPDATE accounts_securityevent SET what = 'x'", "TRUNCATE accounts_securityevent"):
            with pytest.raises(Error), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(statement)

    def test_it_is_kept_for_its_days(self, user: User, settings: Any) -> None:
        SecurityEvent.objects.create(what="signed in", user=user)
        assert security_log.prune() == 0
        settings.SECURITY_LOG_DAYS = -1
        assert security_log.prune() == 1

    def test_users_see_their_own_and_staff_all(
        self, browser: Client, user: User, staff: User, make_user: Any
    ) -> None:
        SecurityEvent.objects.create(what="second step failed", user=user, address="192.0.2.7")
        assert "Second step failed" in browser.get("/account/").content.decode()
        boss = Client()
        boss.force_login(staff)
        page = reverse("admin:accounts_securityevent_changelist")
        assert "second step failed" in boss.get(page, {"q": "192.0.2.7"}).content.decode()
        person = reverse("admin:accounts_user_change", args=[user.pk])
        assert "second step failed" in boss.get(person).content.decode()
        helper = Client()
        helper.force_login(make_user("helper", is_staff=True))
        assert helper.get(page).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_who_looks_at_a_private_video_is_in_the_audit_log_once_an_hour(
    user: User, staff: User, submit: Any, finish_job: Any
) -> None:
    job: GenerationJob = finish_job(submit("A private fox"))
    boss = Client()
    boss.force_login(staff)
    page = reverse("admin:generation_generationjob_change", args=[job.pk])
    for _ in range(2):
        assert boss.get(page).status_code == 200
        boss.get(reverse("admin:generation_generationjob_video", args=[job.pk]))
    entry = AuditEvent.objects.get(act="look")
    assert (entry.actor, entry.subject_id) == (staff, str(job.pk))
    assert "look" in boss.get(page).content.decode()


class TestBans:
    def test_every_door_says_why(self, user: User, staff: User, browser: Client) -> None:
        secret = api_keys.issue(user=user)[1]
        operations.ban(user, actor=Actor(staff, "192.0.2.1"), reason="Spam <b>again</b>")
        entry = {"login": "ada", "password": PASSWORD}
        page = Client().post("/accounts/login/", entry, follow=True)
        assert "Spam &lt;b&gt;again&lt;/b&gt;" in page.content.decode()
        assert (
            "Spam"
            not in Client().post("/accounts/login/", entry | {"password": "x"}, follow=True).content.decode()
        )
        answer = Client().get("/v1/videos", headers={"Authorization": f"Bearer {secret}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "account_inactive")
        assert "Spam" in answer.json()["error"]["message"]

    def test_lifting_a_ban_wakes_no_joined_account(self, user: User, staff: User) -> None:
        account = users.open_account(telegram_id=42)
        sleeping = account.user
        connect(account, user)
        sleeping.refresh_from_db()
        assert not sleeping.is_active
        with pytest.raises(Refused, match="joined"):
            operations.lift_ban(sleeping, actor=Actor(staff, "192.0.2.1"), reason="Please")
        assert not User.objects.get(pk=sleeping.pk).is_active

    def test_parting_wakes_no_banned_account(self, user: User, staff: User) -> None:
        account = users.open_account(telegram_id=42)
        sleeping = account.user
        connect(account, user)
        Ban.objects.create(user=sleeping, reason="Spam", by=staff)
        linking.part(account=TelegramAccount.objects.get(telegram_id=42))
        assert not User.objects.get(pk=sleeping.pk).is_active


class TestSecretsAtRest:
    """What an authenticator app and the recovery codes are made from."""

    @pytest.fixture
    def kept(self, user: User) -> str:
        TOTP.activate(user, "JBSWY3DPEHPK3PXP")
        RecoveryCodes.activate(user)
        with connection.cursor() as cursor:
            cursor.execute("SELECT string_agg(data::text, ' ') FROM mfa_authenticator")
            return str(cursor.fetchone()[0])

    def test_they_are_encrypted_and_work(self, kept: str, user: User) -> None:
        app = Authenticator.objects.get(user=user, type="totp")
        assert "JBSWY3DPEHPK3PXP" not in kept
        assert kept.count("fernet:") == 2
        assert app.wrap().validate_code(
            format_hotp_value(hotp_value("JBSWY3DPEHPK3PXP", int(time.time()) // 30))
        )
        codes = Authenticator.objects.get(user=user, type="recovery_codes").wrap().get_unused_codes()
        assert len(codes) == 10

    @pytest.mark.parametrize(
        ("page", "lookup"),
        [
            ("mfa_authenticator", "data__secret__startswith"),
            ("mfa_authenticator", "data__contains"),
            ("accounts_apikey", "digest__startswith"),
            ("generation_gpunode", "api_key__startswith"),
            ("telegram_bot_linkrequest", "digest__gt"),
            ("accounts_user", "password__startswith"),
            ("accounts_apikey", "user__password__startswith"),
        ],
    )
    def test_no_filter_in_an_address_reads_them_letter_by_letter(
        self, staff: User, page: str, lookup: str
    ) -> None:
        boss = Client()
        boss.force_login(staff)
        assert boss.get(reverse(f"admin:{page}_changelist"), {lookup: "a"}).status_code == 400
