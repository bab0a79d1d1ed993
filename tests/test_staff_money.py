"""Credits that staff give away: ceilings, a second person, nothing for oneself, and what canceled videos cost."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from accounts import ledger_check, merging
from accounts.models import Approval, AuditEvent, CreditAccount, User, UserLimits
from accounts.staff.actor import Actor
from generation.jobs import submission
from generation.models import BulkRefund, GenerationJob
from generation.staff import bulk_refunds
from tests.staff import in_role, page, said, sent, signed_in

pytestmark = pytest.mark.django_db
MakeUser = Callable[..., User]


def balance(user: User) -> int:
    return CreditAccount.objects.get(user=user).balance


@pytest.fixture(autouse=True)
def _limits(settings: Any) -> None:
    settings.GRANT_DAILY_CREDITS, settings.GRANT_APPROVAL_CREDITS = 300, 100
    settings.VIDEO_COOLDOWN_SECONDS, settings.STAFF_GENERATE_FREE = 0, False


@pytest.fixture
def finance(make_user: MakeUser) -> Actor:
    return in_role(make_user, "finance")


@pytest.fixture
def colleague(make_user: MakeUser, finance: Actor) -> Client:
    """Another one with the role finance, signed in."""
    user = make_user("second", is_staff=True)
    user.groups.set(finance.user.groups.all())
    return signed_in(user)


def give(client: Client, user: User, amount: int, *, act: str = "grant_credits", **form: Any) -> str:
    """What the page says."""
    values = sent(amount=amount, reason="Contest") | form
    answer = client.post(page(f"accounts_user_{act}", user.pk), values, follow=True)
    assert answer.status_code == 200
    return said(answer) + answer.content.decode()


def settle(client: Client, how: str = "approve") -> Any:
    address = page(f"accounts_approval_{how}", Approval.objects.latest("pk").pk)
    return client.post(address, sent(reason="Agreed"), follow=True)


class TestGifts:
    def test_one_gives_so_much_a_day_by_grants_and_adjustments_together(
        self, finance: Actor, user: User, make_user: MakeUser, settings: Any
    ) -> None:
        settings.GRANT_APPROVAL_CREDITS = 300
        client = signed_in(finance.user)
        give(client, user, 100)
        give(client, user, 50, act="adjust_credits")
        give(client, user, -400, act="adjust_credits")
        people = [user, make_user("eve")]
        form = sent(action="grant_to_all", _selected_action=[each.pk for each in people], reason="Sorry")
        answer = client.post(page("accounts_user_changelist"), form | {"amount": 76})
        assert "These are 152 credits: the-finance may give 150 more" in answer.content.decode()
        client.post(page("accounts_user_changelist"), form | sent(amount=75))
        assert "may give 0 more" in give(client, user, 1, act="adjust_credits")
        assert [balance(each) for each in people] == [325, 575]
        assert not Approval.objects.exists()
        assert "may give 0 more" not in give(signed_in(in_role(make_user, "owner").user), user, 1)

    def test_nothing_for_oneself_under_whichever_account(
        self, finance: Actor, user: User, make_user: MakeUser, colleague: Client
    ) -> None:
        chat, older = make_user("chat"), make_user("older")
        merging.merge(source=older, target=chat, reason="x", actor=chat)
        merging.merge(source=chat, target=finance.user, reason="x", actor=chat)
        client = signed_in(finance.user)
        for account in (finance.user, chat, older):
            for act in ("grant_credits", "adjust_credits"):
                assert "is your own" in give(client, account, 5, act=act)
            form = sent(price_factor="0", reason="x")
            assert (
                "is your own"
                in client.post(page("accounts_user_set_limits", account.pk), form).content.decode()
            )
        assert not UserLimits.objects.exists()
        assert not AuditEvent.objects.exists()
        second = User.objects.get(username="second")
        assert "this waits" in give(client, second, 150)
        assert "is your own" in settle(colleague).content.decode()
        assert (balance(second), Approval.objects.get().approved) == (500, None)

    def test_refunds_of_ones_own_videos_are_for_a_colleague(
        self, finance: Actor, finish_job: Callable[..., GenerationJob]
    ) -> None:
        job = finish_job(submission.submit(user=finance.user, prompt="Mine", source="web"))
        client = signed_in(finance.user)
        answer = client.post(page("generation_generationjob_refund", job.pk), sent(reason="x"))
        assert "is your own" in answer.content.decode()
        chosen = {"action": "refund_all", "_selected_action": [str(job.pk)]}
        form = sent(reason="x", jobs=1, people=1, credits=50) | chosen
        answer = client.post(page("generation_generationjob_changelist"), form)
        assert "is your own" in answer.content.decode()
        assert (balance(finance.user), BulkRefund.objects.count()) == (450, 0)

    def test_a_command_on_the_server_is_not_bound_and_is_logged(self, user: User) -> None:
        call_command("grant_credits", "ada", "1000", "--reason", "Contest")
        entry = AuditEvent.objects.get()
        assert (entry.actor, entry.address, entry.act) == (None, "command line", "user.grant")
        assert (entry.subject_name, entry.credits, entry.reason) == ("ada", 1000, "Contest")


class TestASecondPerson:
    def test_more_than_one_gives_alone_waits_until_a_colleague_approves_it(
        self, finance: Actor, user: User, colleague: Client, make_user: MakeUser
    ) -> None:
        client = signed_in(finance.user)
        give(client, user, 60)
        form = sent()
        for _twice in range(2):
            answer = give(client, user, 41, **form)
        assert "form was sent before" in answer
        waiting = Approval.objects.get()
        assert (balance(user), waiting.credits, waiting.act) == (560, 41, "user.grant")
        assert "Approvals waiting" in colleague.get(page("index")).content.decode()
        shown = colleague.get(page("accounts_approval_change", waiting.pk)).content.decode()
        assert "41 credits to each of: ada" in shown
        assert page("accounts_approval_approve", waiting.pk) in shown
        assert "asked for this yourself" in settle(client).content.decode()
        support = signed_in(in_role(make_user, "support").user)
        assert settle(support).status_code == 403
        assert page("accounts_approval_approve", waiting.pk) not in (
            support.get(page("accounts_approval_change", waiting.pk)).content.decode()
        )
        assert "user.grant, 41 credits: done (Agreed)." in said(settle(colleague))
        assert "settled already" in settle(colleague).content.decode()
        assert balance(user) == 601
        entry = AuditEvent.objects.get(act="user.grant", credits=41)
        assert (str(entry.actor), str(entry.approved_by)) == ("the-finance", "second")
        assert [str(AuditEvent.objects.get(act=f"approval.{act}").actor) for act in ("ask", "settle")] == [
            "the-finance",
            "second",
        ]
        assert "approved by second" in client.get(page("accounts_user_change", user.pk)).content.decode()
        assert not ledger_check.audit().discrepancies
        assert give(client, user, 40)
        assert balance(user) == 641, "what a colleague approved leaves what one gives alone as it was"

    def test_limits_and_rights_are_looked_at_again(
        self, finance: Actor, user: User, colleague: Client, settings: Any
    ) -> None:
        give(signed_in(finance.user), user, 200, act="adjust_credits")
        settings.GRANT_DAILY_CREDITS = 199
        assert "may give 199 more" in settle(colleague).content.decode()
        settings.GRANT_DAILY_CREDITS = 200
        finance.user.groups.clear()
        assert settle(colleague).status_code == 403
        assert (balance(user), Approval.objects.get().approved) == (500, None)

    def test_it_may_be_refused_and_expires_after_a_week(
        self, finance: Actor, user: User, colleague: Client
    ) -> None:
        client = signed_in(finance.user)
        give(client, user, 200)
        assert "refused (Agreed)" in said(settle(colleague, "refuse"))
        assert "settled already" in settle(colleague).content.decode()
        give(client, user, 200)
        Approval.objects.filter(approved=None).update(
            created_at=timezone.now() - timedelta(days=7, minutes=1)
        )
        assert "more than a week ago" in settle(colleague).content.decode()
        assert "Expired" in colleague.get(page("accounts_approval_changelist")).content.decode()
        assert balance(user) == 500

    def test_support_refunds_beyond_the_limit_when_finance_approves(
        self,
        make_user: MakeUser,
        user: User,
        finish_job: Callable[..., Any],
        colleague: Client,
        settings: Any,
    ) -> None:
        settings.REFUND_LIMIT_CREDITS = 60
        clips = [
            finish_job(submission.submit(user=user, prompt=prompt, source="web"))
            for prompt in ("1", "2", "3", "4")
        ]
        support, other = (signed_in(in_role(make_user, role).user) for role in ("support", "operator"))
        one, two, *_ = (page("generation_generationjob_refund", job.pk) for job in clips)
        support.post(one, sent(reason="Grey"))
        assert "this waits" in said(support.post(two, sent(reason="Grey"), follow=True))
        assert settle(other).status_code == 403, "who has the same limit"
        assert "done (Agreed)" in said(settle(colleague))
        assert balance(user) == 400
        node = clips[2].current_attempt.node
        window = {"node": node.pk, "since_0": "2020-01-01", "since_1": "00:00", "until_0": "2099-01-01"}
        address = f"{page('generation_bulkrefund_plan')}?" + "&".join(
            f"{name}={value}" for name, value in (window | {"until_1": "00:00"}).items()
        )
        totals = {"jobs": 2, "people": 1, "credits": 100}
        assert "this waits" in said(support.post(address, sent(reason="A bad night", **totals), follow=True))
        assert f"2 videos of 1 user, 100 credits on {node}" in Approval.objects.latest("pk").summary
        jobs = GenerationJob.objects.filter(pk__in=[clips[2].pk, clips[3].pk])
        assert "done (Agreed)" in said(settle(colleague))
        batch = BulkRefund.objects.get()
        assert (batch.node, batch.since.year, str(batch.actor)) == (node, 2020, "the-support")
        bulk_refunds.carry_on(str(batch.pk))
        assert balance(user) == 500
        assert not bulk_refunds.not_refunded(jobs).exists()

    def test_a_bulk_refund_that_has_changed_meanwhile_is_not_carried_out(
        self,
        make_user: MakeUser,
        user: User,
        finish_job: Callable[..., Any],
        colleague: Client,
        settings: Any,
    ) -> None:
        settings.REFUND_LIMIT_CREDITS = 0
        clips = [
            finish_job(submission.submit(user=user, prompt=prompt, source="web")) for prompt in ("1", "2")
        ]
        chosen = {"action": "refund_all", "_selected_action": [str(job.pk) for job in clips]}
        form = sent(reason="Grey", jobs=2, people=1, credits=100) | chosen
        support = signed_in(in_role(make_user, "support").user)
        assert "this waits" in said(
            support.post(page("generation_generationjob_changelist"), form, follow=True)
        )
        colleague.post(page("generation_generationjob_refund", clips[0].pk), sent(reason="Grey"))
        assert "changed meanwhile: 1 video of 1 user, 50 credits" in settle(colleague).content.decode()
        assert not BulkRefund.objects.exists()


class TestRights:
    @pytest.mark.parametrize(("role", "may"), [("operator", False), ("finance", True), ("owner", True)])
    def test_only_finance_and_owners_make_prices_lower_for_one_user(
        self, make_user: MakeUser, user: User, role: str, may: bool
    ) -> None:
        client = signed_in(in_role(make_user, role).user)
        address = page("accounts_user_set_limits", user.pk)
        assert client.post(address, sent(daily_clips="5", reason="x")).status_code == 302
        refused = client.post(address, sent(daily_clips="6", price_factor="0", reason="x"))
        limits = UserLimits.objects.get(user=user)
        assert (limits.daily_clips, limits.price_factor) == ((6, 0) if may else (5, None))
        assert may or "Only finance and owners" in refused.content.decode()

    def test_no_owner_changes_rights_of_their_own(self, make_user: MakeUser) -> None:
        owner = in_role(make_user, "owner")
        client, group = signed_in(owner.user), owner.user.groups.create(name="night shift")
        form = {"username": "the-owner", "is_staff": "on", "groups": [], "reason": "x"}
        assert client.post(page("accounts_user_change", owner.user.pk), form).status_code == 302
        assert owner.user.groups.count() == 2
        assert (
            client.post(page("auth_group_change", group.pk), {"name": "x", "reason": "x"}).status_code == 403
        )
        owner.user.groups.remove(group)
        assert (
            client.post(page("auth_group_change", group.pk), {"name": "x", "reason": "x"}).status_code == 302
        )

    def test_packs_of_credits_are_priced_by_owners(self, make_user: MakeUser, finance: Actor) -> None:
        assert signed_in(finance.user).get(page("telegram_bot_creditpack_add")).status_code == 403
        owner = signed_in(in_role(make_user, "owner").user)
        assert owner.get(page("telegram_bot_creditpack_add")).status_code == 200
