"""Credits that staff give away: ceilings, a second person, nothing for oneself, and what canceled videos cost."""

import re
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
from generation.errors import DailyLimitReached
from generation.jobs import lifecycle, submission
from generation.models import BulkRefund, GenerationJob, JobAttempt
from generation.staff import bulk_refunds, jobs
from generation.web.presenters import cards
from telegram_bot.texts.jobs import ended, generating
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


@pytest.fixture
def clips(user: User, finish_job: Callable[..., Any]) -> list[GenerationJob]:
    """Four of the user's, charged with 50 credits each."""
    prompts = ("One", "Two", "Three", "Four")
    return [finish_job(submission.submit(user=user, prompt=prompt, source="web")) for prompt in prompts]


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

    def test_nothing_for_oneself_under_any_account(
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
        clips: list[GenerationJob],
        colleague: Client,
        settings: Any,
    ) -> None:
        settings.REFUND_LIMIT_CREDITS = 60
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
        clips: list[GenerationJob],
        colleague: Client,
        settings: Any,
    ) -> None:
        settings.REFUND_LIMIT_CREDITS = 0
        chosen = {"action": "refund_all", "_selected_action": [str(job.pk) for job in clips[:2]]}
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


class TestCanceled:
    """A video that is canceled when most of it is made."""

    @pytest.fixture
    def nearly(self, user: User, start_job: Callable[..., Any], settings: Any) -> GenerationJob:
        """15 of 20 steps are made, and cancels cost something from 60 % on."""
        settings.CANCEL_CHARGE_AFTER_PERCENT = 60
        attempt = start_job(submission.submit(user=user, prompt="A paper boat", source="web"))
        assert lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=15)
        return attempt.job

    TERMS = "From 60% of the steps on, a cancel costs the share of the price that is made."

    def test_it_costs_its_share_and_says_so_before_and_after(
        self, browser: Client, user: User, nearly: GenerationJob
    ) -> None:
        shown = browser.get(f"/videos/{nearly.public_id}/").content.decode()
        assert f'hx-confirm="{self.TERMS}"' in shown
        assert self.TERMS in Client().get("/").content.decode()
        assert self.TERMS in Client().get("/v1/schema").content.decode()
        browser.post(f"/videos/{nearly.public_id}/cancel/")
        nearly.refresh_from_db()
        assert (nearly.state, nearly.cancel_fee, balance(user)) == ("canceled", 37, 463)
        assert CreditAccount.objects.get(user=user).held == 0
        after = browser.get(f"/videos/{nearly.public_id}/").content.decode()
        assert "Canceled. 37 credits were charged." in after
        assert "No credits were deducted" not in after
        assert "50 credits released" not in after
        assert lifecycle.receipt(nearly) == {"reserved": 50, "captured": 37, "released": 0, "refunded": 0}
        assert not ledger_check.audit().discrepancies

    def test_the_bot_says_so_too(self, nearly: GenerationJob, user: User, settings: Any) -> None:
        def status() -> str:
            return generating(cards([nearly])[0], expected_seconds=30)

        assert status().endswith(self.TERMS)
        assert ended(lifecycle.cancel(job=nearly, actor=user)).endswith("37 credits were charged.")
        settings.CANCEL_CHARGE_AFTER_PERCENT = 0
        assert "cancel" not in status()

    def test_staff_give_back_what_it_cost(self, nearly: GenerationJob, user: User, finance: Actor) -> None:
        lifecycle.cancel(job=nearly, actor=user)
        client = signed_in(finance.user)
        address = page("generation_generationjob_refund", nearly.pk)
        assert "the 37 credits" in client.get(address).content.decode()
        assert "37 credits to ada" in said(client.post(address, sent(reason="Sorry"), follow=True))
        assert balance(user) == 500
        assert AuditEvent.objects.get(act="job.refund").credits == 37
        assert not ledger_check.audit().discrepancies

    @pytest.mark.parametrize("how", ["earlier", "by staff", "switched off"])
    def test_otherwise_it_costs_nothing(
        self, browser: Client, user: User, nearly: GenerationJob, staff: User, settings: Any, how: str
    ) -> None:
        if how == "earlier":
            GenerationJob.objects.update(step=11)
        if how == "switched off":
            settings.CANCEL_CHARGE_AFTER_PERCENT = 0
            for address in ("/", f"/videos/{nearly.public_id}/", "/v1/schema"):
                assert "of the steps on" not in browser.get(address).content.decode()
        if how == "by staff":
            jobs.cancel(nearly, actor=Actor(staff, "::1"), reason="Maintenance")
        else:
            browser.post(f"/videos/{nearly.public_id}/cancel/")
        nearly.refresh_from_db()
        assert (nearly.state, balance(user)) == ("canceled", 500)
        assert "Canceled. No credits were deducted." in (
            browser.get(f"/videos/{nearly.public_id}/").content.decode()
        )
        assert not ledger_check.audit().discrepancies

    def test_books_that_charge_another_amount_are_found(self, nearly: GenerationJob, user: User) -> None:
        lifecycle.cancel(job=nearly, actor=user)
        GenerationJob.objects.update(cancel_fee=36)
        assert len(ledger_check.audit().discrepancies) == 1

    @pytest.mark.parametrize(
        ("began", "counts"),
        [("waits", False), ("waits on the node", False), ("steps", True), ("stopped", True), ("field", True)],
    )
    def test_it_counts_in_the_videos_of_a_day_once_a_gpu_had_begun(
        self, user: User, start_job: Callable[..., Any], began: str, counts: bool
    ) -> None:
        UserLimits.objects.create(user=user, daily_clips=1)
        job = submission.submit(user=user, prompt="One", source="web")
        if began != "waits":
            attempt = start_job(job)
            mine = {"attempt_id": attempt.pk, "token": attempt.pk}
            lifecycle.attempt_posted(**mine, remote_id="1")
            if began == "steps":
                lifecycle.record_progress(**mine, step=1)
            if began == "field":
                JobAttempt.objects.update(protocol="generate_video")
        lifecycle.cancel(job=job, actor=user)
        if began == "stopped":
            lifecycle.attempt_stopped(**mine, stopped_at_step=2)
        if not counts:
            submission.submit(user=user, prompt="Two", source="web")
            return
        with pytest.raises(DailyLimitReached):
            submission.submit(user=user, prompt="Two", source="web")


def test_what_price_factors_give_away_is_on_the_home_page(
    finance: Actor, user: User, finish_job: Callable[..., Any]
) -> None:
    UserLimits.objects.create(user=user, price_factor="0.3")
    assert finish_job(submission.submit(user=user, prompt="One", source="web")).cost == 15
    UserLimits.objects.update(price_factor="2")
    finish_job(submission.submit(user=user, prompt="Two", source="web"))
    UserLimits.objects.update(price_factor="0")
    lifecycle.cancel(job=submission.submit(user=user, prompt="Three", source="web"))
    html = signed_in(finance.user).get(page("index")).content.decode()
    assert re.search(r"Discounts</span>\s*<strong[^>]*>35</strong>", html)
    assert f"{page('accounts_auditevent_changelist')}?act__exact=user.limit" in html
