"""Permissions of the staff, the audit log, and that nothing is done twice."""

import csv
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
    yield_hotp_counters_from_time,
)
from django.contrib.auth.models import Group, Permission
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ, Task

from accounts import ledger, ledger_check
from accounts.models import AuditEvent, CreditAccount, CreditTransaction, User
from accounts.staff import audit_log, operations, roles
from accounts.staff.actor import DoneBefore, NeedsApproval, NotPermitted, Refused
from generation.jobs import submission
from generation.models import GenerationJob
from generation.staff import jobs
from telegram_bot.models import JobMessage
from tests.staff import in_role, page, said, sent, signed_in

pytestmark = pytest.mark.django_db
MakeUser = Callable[..., User]


def wallet(user: User) -> CreditAccount:
    return CreditAccount.objects.get(user=user)


@pytest.fixture
def clip_of_ada(user: User, finish_job: Callable[[GenerationJob], GenerationJob]) -> GenerationJob:
    return finish_job(submission.submit(user=user, prompt="A paper boat", source="web"))


class TestRoles:
    def test_they_come_with_the_service_and_every_right_they_name_exists(self) -> None:
        assert set(Group.objects.values_list("name", flat=True)) == {*roles.RIGHTS, roles.OWNER}
        known = {
            f"{app}.{name}"
            for app, name in Permission.objects.values_list("content_type__app_label", "codename")
        }
        named = frozenset.union(*roles.RIGHTS.values())
        assert named <= known
        assert Group.objects.get(name="owner").permissions.filter(codename="manage_staff").exists()

    def test_what_was_changed_by_hand_is_as_shipped_again_after_the_next_upgrade(self) -> None:
        support = Group.objects.get(name="support")
        support.permissions.set(Permission.objects.filter(codename="grant_credits"))
        roles.install()
        held = {f"{p.content_type.app_label}.{p.codename}" for p in support.permissions.all()}
        assert held == roles.RIGHTS["support"]

    @pytest.mark.parametrize(
        ("role", "may"),
        [("support", False), ("operator", False), ("finance", True), ("owner", True)],
    )
    def test_only_finance_and_owners_grant_and_adjust(
        self, make_user: MakeUser, user: User, role: str, may: bool
    ) -> None:
        actor = in_role(make_user, role)
        client = signed_in(actor.user)
        for action in ("grant_credits", "adjust_credits"):
            answer = client.post(page(f"accounts_user_{action}", user.pk), sent(amount="10", reason="x"))
            assert answer.status_code == (302 if may else 403)
        assert wallet(user).balance == (520 if may else 500)
        assert not ledger_check.audit().discrepancies

    def test_the_operation_itself_refuses_whatever_page_called_it(
        self, make_user: MakeUser, user: User
    ) -> None:
        support = in_role(make_user, "support")
        with pytest.raises(NotPermitted):
            operations.grant(actor=support, users=[user], amount=1, reason="x", once=sent()["once"])
        with pytest.raises(NotPermitted):
            operations.ban(actor=support, user=user, reason="x")
        assert not AuditEvent.objects.exists()

    def test_an_actor_without_a_role_any_more_is_refused(
        self, make_user: MakeUser, clip_of_ada: GenerationJob
    ) -> None:
        actor = in_role(make_user, "finance")
        actor.user.is_staff = False
        with pytest.raises(NotPermitted):
            jobs.refund(actor=actor, job=clip_of_ada, reason="x")


class TestStaffAmongThemselves:
    @pytest.fixture
    def actor(self, make_user: MakeUser) -> Client:
        """A member of the staff who may change and ban users, and nothing else."""
        user = make_user("actor", is_staff=True)
        user.user_permissions.set(
            Permission.objects.filter(codename__in=["view_user", "change_user", "ban_user"])
        )
        return signed_in(user)

    def test_without_the_right_to_no_password_of_other_staff_is_changed(
        self, actor: Client, make_user: MakeUser
    ) -> None:
        other = make_user("other", is_staff=True)
        form = {"password1": "another long password", "password2": "another long password"}
        address = page("auth_user_password_change", other.pk)
        assert actor.post(address, form).status_code == 403
        assert actor.post(page("accounts_user_change", other.pk), {"email": "mine@x.org"}).status_code == 403
        other.refresh_from_db()
        assert other.check_password("a long enough password")

    def test_without_the_right_to_no_user_becomes_staff_or_gets_a_role(
        self, actor: Client, user: User
    ) -> None:
        owner = Group.objects.get(name="owner")
        me = User.objects.get(username="actor")
        for person in (user, me):
            form = {
                "username": person.username,
                "is_staff": "on",
                "is_superuser": "on",
                "groups": [owner.pk],
                "user_permissions": [Permission.objects.get(codename="manage_staff").pk],
            }
            actor.post(page("accounts_user_change", person.pk), form)
        user.refresh_from_db()
        assert not user.is_staff
        assert not user.groups.exists()
        assert not me.groups.exists()
        assert not me.user_permissions.filter(codename="manage_staff").exists()

    def test_without_the_right_to_no_staff_are_banned_and_no_actor_bans_themselves(
        self, actor: Client, make_user: MakeUser
    ) -> None:
        other = make_user("other", is_staff=True)
        assert actor.post(page("accounts_user_ban", other.pk), sent(reason="x")).status_code == 403
        owner = in_role(make_user, "owner")
        with pytest.raises(Refused, match="yourself"):
            operations.ban(actor=owner, user=owner.user, reason="x")
        operations.ban(actor=owner, user=other, reason="Left us")
        other.refresh_from_db()
        assert not other.is_active

    def test_an_owner_makes_staff_and_it_is_recorded(self, make_user: MakeUser, user: User) -> None:
        client = signed_in(in_role(make_user, "owner").user)
        support = Group.objects.get(name="support")
        form = {"username": "ada", "is_staff": "on", "groups": [support.pk], "is_superuser": "on"}
        assert client.post(page("accounts_user_change", user.pk), form).status_code == 200, "and why?"
        form["reason"] = "New in our team"
        assert client.post(page("accounts_user_change", user.pk), form).status_code == 302
        user.refresh_from_db()
        assert (user.is_staff, user.is_superuser) == (True, False)
        act = AuditEvent.objects.get(act="user.change")
        assert act.after == {"is_staff": True, "groups": ["support"]}
        assert act.before == {"is_staff": False, "groups": []}
        assert act.reason == "New in our team"

    def test_shipped_roles_are_not_edited(self, make_user: MakeUser) -> None:
        client = signed_in(in_role(make_user, "owner").user)
        for group in Group.objects.all():
            assert client.post(page("auth_group_change", group.pk), {"name": "x"}).status_code == 403
        assert client.get(page("auth_group_add")).status_code == 200


class TestAuditLog:
    def test_sql_cannot_change_it_either(self, make_user: MakeUser, user: User) -> None:
        audit_log.Operation(in_role(make_user, "owner"), "user.note", "By phone").record(user)
        for statement in (
            "UPDATE accounts_auditevent SET reason = 'other'",
            "DELETE FROM accounts_auditevent",
            "TRUNCATE accounts_auditevent",
        ):
            with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(statement)
        assert AuditEvent.objects.count() == 1

    def test_an_operation_that_records_nothing_is_undone(self, make_user: MakeUser, user: User) -> None:
        @audit_log.operation("accounts.ban_user", "user.rename")
        def rename(op: audit_log.Operation, user: User) -> None:
            User.objects.filter(pk=user.pk).update(first_name=op.reason)

        with pytest.raises(RuntimeError, match="no entry in the audit log"):
            rename(user, actor=in_role(make_user, "owner"), reason="Eve")
        user.refresh_from_db()
        assert user.first_name == ""

    def test_it_is_shown_with_its_subject_and_not_edited(
        self, admin: Client, user: User, staff: User
    ) -> None:
        admin.post(page("accounts_user_grant_credits", user.pk), sent(amount="5", reason="Sorry <b>"))
        act = AuditEvent.objects.get()
        listed = admin.get(page("accounts_auditevent_changelist")).content.decode()
        assert page("accounts_user_change", user.pk) in listed
        assert "Sorry &lt;b&gt;" in admin.get(page("accounts_user_change", user.pk)).content.decode()
        assert admin.get(page("accounts_auditevent_change", act.pk)).status_code == 200
        assert admin.post(page("accounts_auditevent_change", act.pk), {"reason": "x"}).status_code == 403
        assert admin.post(page("accounts_auditevent_delete", act.pk), {"post": "yes"}).status_code == 403

    def test_behind_a_proxy_it_is_the_address_that_the_proxy_saw(
        self, admin: Client, user: User, settings: Any
    ) -> None:
        settings.BEHIND_PROXY = True
        forged = {"X-Forwarded-For": "6.6.6.6, 198.51.100.4"}
        address = page("accounts_user_grant_credits", user.pk)
        admin.post(address, sent(amount="5", reason="x"), headers=forged)
        assert AuditEvent.objects.get().address == "198.51.100.4"

    def test_passwords_stay_out_of_it(self, admin: Client, user: User) -> None:
        form = {"password1": "another long password", "password2": "another long password"}
        address = page("auth_user_password_change", user.pk)
        assert "Reason" in admin.get(address).content.decode()
        assert admin.post(address, form | {"reason": "Lost it"}).status_code == 302
        act = AuditEvent.objects.get(reason="Lost it")
        assert "password" in str(act.after)
        assert "another long" not in str(act.after)


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


class TestOnce:
    def test_a_form_that_is_sent_twice_grants_once(self, admin: Client, user: User) -> None:
        form = sent(amount="40", reason="Contest")
        address = page("accounts_user_grant_credits", user.pk)
        admin.post(address, form, follow=True)
        again = admin.post(address, form, follow=True)
        assert said(again) == DoneBefore.__doc__
        assert wallet(user).balance == 540
        assert admin.post(address, sent(amount="40", reason="Contest")).status_code == 302
        assert wallet(user).balance == 580

    def test_a_selection_is_granted_whole_and_once(self, admin: Client, make_user: MakeUser) -> None:
        people = [make_user(f"p{number}") for number in range(3)]
        chosen = {"action": "grant_to_all", "_selected_action": [user.pk for user in people]}
        address = page("accounts_user_changelist")
        asked = admin.post(address, chosen).content.decode()
        assert "To each of 3 users: " in asked
        form = sent(amount="7", reason="Outage") | chosen
        assert "Gave each of 3 users 7 credits (Outage)." in said(admin.post(address, form, follow=True))
        admin.post(address, form)
        assert [wallet(user).balance for user in people] == [507, 507, 507]

    def test_an_adjustment_that_one_cannot_afford_changes_no_balance(
        self, admin: Client, make_user: MakeUser
    ) -> None:
        rich, poor = make_user("rich"), make_user("poor")
        ledger.grant(user=rich, amount=500, reason="x")
        form = sent(amount="-600", reason="x", action="adjust_all", _selected_action=[rich.pk, poor.pk])
        answer = admin.post(page("accounts_user_changelist"), form)
        assert "poor has only 500 credits free. No balance was changed." in answer.content.decode()
        assert wallet(rich).balance == 1000
        form |= sent(amount="-100")
        assert admin.post(page("accounts_user_changelist"), form).status_code == 302
        assert (wallet(rich).balance, wallet(poor).balance) == (900, 400)

    def test_a_clip_is_refunded_once_by_whoever_comes_first(
        self, make_user: MakeUser, clip_of_ada: GenerationJob, user: User
    ) -> None:
        jobs.refund(actor=in_role(make_user, "support"), job=clip_of_ada, reason="Blurry")
        with pytest.raises(Refused, match="refunded before"):
            jobs.refund(actor=in_role(make_user, "owner"), job=clip_of_ada, reason="Blurry")
        assert CreditTransaction.objects.filter(kind="refund").count() == 1
        assert wallet(user).balance == 500


class TestDoneAgain:
    """Failed background work that is repeated by actors who may, and recorded."""

    @pytest.mark.parametrize(("role", "may"), [("support", False), ("operator", True)])
    def test_a_task_that_failed(self, make_user: MakeUser, role: str, may: bool) -> None:
        now = timezone.now()
        failed = {"id": "1", "name": "n", "func": "generation.jobs.tasks.dispatch", "result": "boom"}
        Task.objects.create(**failed, started=now, stopped=now, success=False)
        client = signed_in(in_role(make_user, role).user)
        address = page("django_q_failure_changelist")
        assert "boom" in client.get(address).content.decode()
        form = sent(reason="It was the network", action="run_again", _selected_action=["1"])
        client.post(address, form)
        client.post(address, form)
        assert OrmQ.objects.count() == may
        assert Task.objects.exists() != may
        assert AuditEvent.objects.filter(act="task.run_again", reason="It was the network").count() == may

    def test_a_delivery_that_failed(self, make_user: MakeUser, clip_of_ada: GenerationJob) -> None:
        failed = JobMessage.objects.create(
            job=clip_of_ada, bot_id=1, chat_id=42, reply_to=5, state="failed", error="blocked"
        )
        client = signed_in(in_role(make_user, "support").user)
        form = sent(reason="They unblocked us", action="deliver_again", _selected_action=[failed.pk])
        answer = client.post(page("telegram_bot_jobmessage_changelist"), form, follow=True)
        assert "Done for 1 of 1 (They unblocked us)." in said(answer)
        failed.refresh_from_db()
        assert failed.state == "pending"
        assert AuditEvent.objects.get(act="delivery.again").before == {"error": "blocked"}


class TestRefundLimit:
    def test_support_refunds_up_to_the_limit_in_a_day_and_finance_beyond_it(
        self, make_user: MakeUser, user: User, finish_job: Callable[[Any], Any], settings: Any
    ) -> None:
        settings.REFUND_LIMIT_CREDITS, settings.VIDEO_COOLDOWN_SECONDS = 60, 0
        first, second = (
            finish_job(submission.submit(user=user, prompt=prompt, source="web")) for prompt in ("One", "Two")
        )
        support = in_role(make_user, "support")
        jobs.refund(actor=support, job=first, reason="x")
        with pytest.raises(NeedsApproval, match="this waits"):
            jobs.refund(actor=support, job=second, reason="x")
        jobs.refund(actor=in_role(make_user, "finance"), job=second, reason="x")
        assert wallet(user).balance == 500


class TestSecondFactor:
    @pytest.fixture(autouse=True)
    def _required(self, settings: Any) -> None:
        settings.STAFF_REQUIRE_MFA = True

    def test_staff_without_one_are_sent_to_set_it_up(self, admin: Client) -> None:
        answer = admin.get(page("index"), follow=True)
        assert answer.redirect_chain[0][0].startswith("/accounts/2fa/")
        assert "two-step sign-in" in said(answer)

    @pytest.mark.django_db(transaction=True)  # allauth tells of the new second step after the commit
    def test_the_first_sign_in_is_three_screens_and_ends_where_one_wanted_to_be(self, staff: User) -> None:
        wanted = page("generation_generationjob_changelist")
        EmailAddress.objects.create(user=staff, email="grace@example.org", verified=False)
        newcomer = Client()
        assert newcomer.get(wanted, follow=True).resolver_match.view_name == "account_login"
        entry = {"login": "grace", "password": "a long enough password", "next": wanted}
        set_up = newcomer.post("/accounts/login/", entry, follow=True)
        assert set_up.resolver_match.view_name == "mfa_activate_totp", "the password was given a moment ago"
        assert "two-step sign-in" in said(set_up)
        codes = yield_hotp_counters_from_time()
        code = format_hotp_value(hotp_value(set_up.context["form"].secret, next(codes)))
        kept = newcomer.post(reverse("mfa_activate_totp"), {"code": code}, follow=True)
        assert kept.resolver_match.view_name == "mfa_view_recovery_codes"
        [onward] = re.findall(r'href="([^"]+)">Continue to the admin<', kept.content.decode())
        assert (onward, newcomer.get(onward).status_code) == (wanted, 200)
        assert "Continue" not in newcomer.get(reverse("mfa_view_recovery_codes")).content.decode()

    def test_a_session_that_is_not_fresh_is_asked_for_the_password(self, admin: Client) -> None:
        answer = admin.get(page("index"), follow=True)
        assert answer.resolver_match.view_name == "account_reauthenticate"

    def test_whoever_has_one_must_have_used_it(self, admin: Client, staff: User) -> None:
        TOTP.activate(staff, generate_totp_secret())
        answer = admin.get(page("index"))
        assert (answer.status_code, answer.url.partition("?")[0]) == (302, "/accounts/2fa/reauthenticate/")
        session = admin.session
        session["account_authentication_methods"] = [{"method": "mfa", "at": 0}]
        session["account_authentication_methods_user"] = str(staff.pk)
        session.save()
        assert admin.get(page("index")).status_code == 200


class TestExport:
    def test_finance_says_why_and_exports_what_the_filters_show(
        self, make_user: MakeUser, user: User
    ) -> None:
        ledger.adjust(user=user, amount=-5, reason='=HYPERLINK("x")', actor=user)
        client = signed_in(in_role(make_user, "finance").user)
        listed = client.get(page("accounts_credittransaction_changelist"), {"kind__exact": "adjust"})
        address = f"{page('accounts_credittransaction_export')}?kind__exact=adjust"
        assert address in listed.content.decode()
        assert "1 transaction, as the list" in client.get(address).content.decode()
        assert "This field is required" in client.post(address, sent(reason=" ")).content.decode()
        assert not AuditEvent.objects.exists()
        form = sent(reason="Taxes")
        for _twice in range(2):
            answer = client.post(address, form)
            header, line = csv.reader(io.StringIO(b"".join(answer).decode()))
        values = dict(zip(header, line, strict=True))
        assert (values["user"], values["amount"], values["balance_after"]) == ("ada", "-5", "495")
        assert values["reason"].startswith("'=")
        act = AuditEvent.objects.get(act="transactions.export")
        assert (act.after, act.reason) == ({"kind__exact": "adjust"}, "Taxes")

    def test_what_cannot_be_exported_is_said_on_the_list(self, make_user: MakeUser, user: User) -> None:
        client = signed_in(in_role(make_user, "finance").user)
        address = page("accounts_credittransaction_export")
        nothing = client.get(address, {"kind__exact": "adjust"}, follow=True)
        assert "there is nothing to export" in said(nothing)
        assert client.get(address, {"kind__nonsense": "adjust"}, follow=True).status_code == 200
        assert not AuditEvent.objects.exists()

    def test_support_exports_nothing(self, make_user: MakeUser) -> None:
        client = signed_in(in_role(make_user, "support").user)
        address = page("accounts_credittransaction_export")
        assert client.get(address).status_code == 403
        assert client.post(address, sent(reason="x")).status_code == 403
        assert address not in client.get(page("accounts_credittransaction_changelist")).content.decode()
