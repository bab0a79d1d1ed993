"""Operations of the staff on jobs, one and many: refunds, retries, moves, bulk refunds."""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import Failure, OrmQ

from accounts import ledger_check, merging, notices
from accounts.models import AuditEvent, CreditAccount, CreditTransaction, Notice, User
from accounts.staff.actor import Actor, DoneBefore, NeedsApproval, Refused
from generation import privacy
from generation.jobs import lifecycle, scheduling, submission
from generation.models import BulkRefund, BulkRefundItem, GenerationJob, GpuNode, JobAttempt
from generation.staff import bulk_refunds, jobs
from telegram_bot.models import ChatNotice, JobMessage, TelegramAccount, TelegramUpdate
from tests.staff import in_role, page, said, sent, signed_in

pytestmark = pytest.mark.django_db
MakeUser = Callable[..., User]


def balance(user: User) -> int:
    return CreditAccount.objects.get(user=user).balance


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


@pytest.fixture(autouse=True)
def _no_cooldown(settings: Any) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0


@pytest.fixture
def make_clip(finish_job: Callable[[Any], Any]) -> Callable[..., GenerationJob]:
    def make(user: User) -> GenerationJob:
        return finish_job(submission.submit(user=user, prompt="A paper boat", source="web"))

    return make


@pytest.fixture
def second(node: GpuNode) -> GpuNode:
    return GpuNode.objects.create(
        name="node-2",
        base_url="http://127.0.0.1:10",
        detected_protocol="videos",
        status="ready",
        backend="CogVideoX-tiny",
        last_seen_at=timezone.now(),
    )


def offered(client: Client, job: GenerationJob) -> set[str]:
    """The actions on a job's page, by the last part of their addresses."""
    html = client.get(page("generation_generationjob_change", job.pk)).content.decode()
    return set(re.findall(rf"/{job.pk}/(cancel|refund|retry|move)\b", html))


class TestWhatIsOffered:
    def test_only_what_is_possible_and_allowed(
        self, admin: Client, make_user: MakeUser, user: User, start_job: Callable[[Any], Any]
    ) -> None:
        job = submission.submit(user=user, prompt="One", source="web")
        assert offered(admin, job) == {"cancel"}
        attempt = start_job(job)
        assert offered(admin, job) == {"cancel", "move"}
        assert offered(signed_in(in_role(make_user, "support").user), job) == set()
        lifecycle.attempt_failed(attempt_id=attempt.pk, token=attempt.pk, code="x", message="x", error="x")
        assert offered(admin, job) == {"retry"}

    @pytest.mark.parametrize(
        ("role", "allowed"),
        [
            ("support", {"refund"}),
            ("operator", {"refund", "cancel", "retry", "move"}),
            ("finance", {"refund"}),
            ("owner", {"refund", "cancel", "retry", "move"}),
        ],
    )
    def test_what_a_role_may_not_is_refused_also_by_its_address(
        self,
        make_user: MakeUser,
        make_clip: Callable[..., GenerationJob],
        user: User,
        role: str,
        allowed: set[str],
    ) -> None:
        job = make_clip(user)
        client = signed_in(in_role(make_user, role).user)
        for action in ("refund", "cancel", "retry", "move"):
            answer = client.post(page(f"generation_generationjob_{action}", job.pk), sent(reason="x"))
            assert (answer.status_code == 403) == (action not in allowed), action


class TestRetry:
    def test_what_failed_is_made_again_once_and_for_nothing(
        self, make_user: MakeUser, user: User, start_job: Callable[[Any], Any], admin: Client
    ) -> None:
        job = submission.submit(user=user, prompt="One", source="telegram", seed=7)
        JobMessage.objects.create(job=job, bot_id=1, chat_id=42, reply_to=5)
        attempt = start_job(job)
        lifecycle.attempt_failed(attempt_id=attempt.pk, token=attempt.pk, code="x", message="x", error="x")
        address = page("generation_generationjob_retry", job.pk)
        assert "is made again as video_" in said(admin.post(address, sent(reason="Node"), follow=True))
        again = GenerationJob.objects.get(remixed_from=job)
        assert (again.prompt, again.seed, again.cost, again.source) == ("One", 7, 0, "staff")
        assert JobMessage.objects.get(job=again).chat_id == 42
        again = GenerationJob.objects.exclude(pk=job.pk).get()
        refusal = f"This video was made again before. The new one is {again.public_id}."
        assert refusal in admin.post(address, sent(reason="Node")).content.decode()
        assert said(admin.get(address, follow=True)) == refusal
        shown = admin.get(page("generation_generationjob_change", job.pk)).content.decode()
        assert page("generation_generationjob_change", again.pk) in shown, "what became of it"
        assert GenerationJob.objects.count() == 2
        assert balance(user) == 500
        assert not ledger_check.audit().discrepancies


class TestMove:
    def test_it_begins_afresh_on_the_other_node_and_the_first_one_is_told_to_stop(
        self, make_user: MakeUser, user: User, start_job: Callable[[Any], Any], second: GpuNode
    ) -> None:
        job = submission.submit(user=user, prompt="One", source="web")
        GpuNode.objects.filter(pk=second.pk).update(enabled=False)
        old = start_job(job)
        operator = in_role(make_user, "operator")
        with pytest.raises(Refused, match="switched off"):
            jobs.move(actor=operator, job=job, target=second, reason="x")
        GpuNode.objects.filter(pk=second.pk).update(enabled=True)
        attempt = jobs.move(actor=operator, job=job, target=second, reason="Slow")
        job.refresh_from_db()
        old.refresh_from_db()
        assert (job.state, job.current_attempt_id, job.attempt_count) == ("running", attempt.pk, 1)
        assert (old.state, old.error) == ("canceled", "moved to node-2 by staff: Slow")
        assert any("stop_on_node" in str(task.task["func"]) for task in OrmQ.objects.all())
        assert not lifecycle.begin_storing(attempt_id=old.pk, token=old.pk), "the old one comes too late"
        with pytest.raises(Refused, match="already"):
            jobs.move(actor=operator, job=job, target=second, reason="x")

    def test_what_does_not_run_says_why(self, admin: Client, user: User, second: GpuNode) -> None:
        job = submission.submit(user=user, prompt="One", source="web")
        address = page("generation_generationjob_move", job.pk)
        assert "still waits" in said(admin.get(address, follow=True))
        raced = admin.post(address, sent(reason="x", target=second.pk))
        assert "still waits" in raced.content.decode()


class TestSearch:
    def test_words_of_the_prompt_or_error_a_whole_name_or_an_id_find_a_job(
        self, admin: Client, user: User, make_user: MakeUser, start_job: Callable[[Any], Any]
    ) -> None:
        boat = submission.submit(user=user, prompt="A paper-boat, at sea", source="web")
        ship = submission.submit(user=make_user("eve"), prompt="Тихий корабль", source="web")
        attempt = start_job(boat)
        lifecycle.attempt_failed(
            attempt_id=attempt.pk, token=attempt.pk, code="x", message="Out of memory", error="x"
        )

        def found(words: str) -> set[str]:
            html = admin.get(page("generation_generationjob_changelist"), {"q": words}).content.decode()
            listed = {job.prompt: page("generation_generationjob_change", job.pk) for job in (boat, ship)}
            return {prompt for prompt, address in listed.items() if address in html}

        assert (
            found("BOAT pap") == found("out of mem") == found("ada") == found(boat.public_id) == {boat.prompt}
        )
        assert found("ТИХ") == found("eve") == {ship.prompt}
        assert found("boat корабль") == found("' | & :*") == found("ad") == set()


def test_what_was_paid_before_two_accounts_became_one_is_refunded_to_the_one(
    make_user: MakeUser, make_clip: Callable[..., GenerationJob], user: User
) -> None:
    chat = make_user("chat")
    one, two = make_clip(chat), make_clip(chat)
    merging.merge(source=chat, target=user, reason="One person", actor=user)
    privacy.hand_over(source=chat, target=user)
    before = balance(user)
    owner = in_role(make_user, "owner")
    one.refresh_from_db()
    jobs.refund(actor=owner, job=one, reason="Grey")
    charged = bulk_refunds.not_refunded(GenerationJob.objects.filter(pk=two.pk))
    total = bulk_refunds.total_of(charged)
    batch = bulk_refunds.start(actor=owner, jobs=charged, expected=total, reason="Grey", once=sent()["once"])
    bulk_refunds.carry_on(str(batch.pk))
    assert balance(user) == before + 100
    assert bulk_refunds.progress(batch)["refunded"] == 1
    with pytest.raises(Refused, match="refunded before"):
        jobs.refund(actor=owner, job=one, reason="Grey")
    assert not ledger_check.audit().discrepancies


class TestTheList:
    @pytest.fixture
    def clips(
        self, user: User, make_clip: Callable[..., GenerationJob], make_user: MakeUser
    ) -> list[GenerationJob]:
        """One that was refunded, one that was not."""
        given_back, kept = make_clip(user), make_clip(user)
        jobs.refund(actor=in_role(make_user, "support"), job=given_back, reason="Grey")
        return [given_back, kept]

    def shown(self, client: Client, **filters: str) -> dict[str, str]:
        """The rows of the list, by job."""
        html = client.get(page("generation_generationjob_changelist"), filters).content.decode()
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
        found = ((re.search(r"generationjob/([0-9a-f-]{36})/change", row), row) for row in rows)
        return {match[1]: row for match, row in found if match}

    def test_it_shows_the_node_and_what_was_refunded_and_finds_these(
        self, admin: Client, clips: list[GenerationJob]
    ) -> None:
        given_back, kept = (str(job.pk) for job in clips)
        rows = self.shown(admin)
        assert "node-1" in rows[given_back]
        assert "refunded" in rows[given_back]
        assert "refunded" not in rows[kept]
        assert set(self.shown(admin, refunded="yes")) == {given_back}
        assert set(self.shown(admin, refunded="no")) == {kept}

    def test_it_takes_the_same_few_queries_however_many_there_are(
        self, admin: Client, user: User, clips: list[GenerationJob], make_clip: Callable[..., GenerationJob]
    ) -> None:
        def queries() -> int:
            with CaptureQueriesContext(connection) as made:
                self.shown(admin)
            return len(made)

        queries()
        few = queries()
        for _more in range(3):
            make_clip(user)
        assert queries() == few < 20


class TestMany:
    def test_what_runs_is_moved_and_what_waits_passed_over(
        self, admin: Client, user: User, start_job: Callable[[Any], Any], second: GpuNode
    ) -> None:
        GpuNode.objects.filter(pk=second.pk).update(enabled=False)
        running = submission.submit(user=user, prompt="One", source="web")
        start_job(running)
        GpuNode.objects.filter(pk=second.pk).update(enabled=True)
        waiting = submission.submit(user=user, prompt="Two", source="web")
        chosen = {"action": "move_all", "_selected_action": [str(running.pk), str(waiting.pk)]}
        form = sent(reason="Slow", target=second.pk) | chosen
        answer = admin.post(page("generation_generationjob_changelist"), form, follow=True)
        assert "Done for 1 of 2 (Slow). This video still waits" in said(answer)
        running.refresh_from_db()
        assert running.current_attempt is not None
        assert running.current_attempt.node == second

    def test_a_form_that_is_sent_twice_says_so_and_not_that_it_was_impossible(
        self, admin: Client, user: User, start_job: Callable[[Any], Any], make_clip: Callable[..., Any]
    ) -> None:
        done, failed = make_clip(user), submission.submit(user=user, prompt="Two", source="web")
        attempt = start_job(failed)
        lifecycle.attempt_failed(attempt_id=attempt.pk, token=attempt.pk, code="x", message="x", error="x")
        for action, job in (("refund", done), ("retry", failed)):
            form = sent(reason="Sorry")
            address = page(f"generation_generationjob_{action}", job.pk)
            admin.post(address, form, follow=True)
            assert said(admin.post(address, form, follow=True)) == DoneBefore.__doc__
        other = submission.submit(user=user, prompt="Three", source="web")
        chosen = {"action": "cancel_all", "_selected_action": [str(other.pk)]}
        form = sent(reason="Moving") | chosen
        for _twice in range(2):
            answer = admin.post(page("generation_generationjob_changelist"), form, follow=True)
            assert said(answer) == "Done for 1 of 1 (Moving)."
        assert AuditEvent.objects.filter(act="job.cancel").count() == 1

    def test_cancel_passes_over_what_has_ended_and_says_why(
        self, admin: Client, user: User, make_clip: Callable[..., GenerationJob]
    ) -> None:
        done = make_clip(user)
        live = submission.submit(user=user, prompt="Two", source="web")
        chosen = {"action": "cancel_all", "_selected_action": [str(done.pk), str(live.pk)]}
        address = page("generation_generationjob_changelist")
        assert "Possible for 1 of 2 chosen" in admin.post(address, chosen).content.decode()
        answer = admin.post(address, sent(reason="Moving") | chosen, follow=True)
        assert "Done for 1 of 2 (Moving). This video is completed already" in said(answer)
        live.refresh_from_db()
        assert live.state == "canceled"

    def test_a_selection_is_refunded_in_the_background(
        self, admin: Client, make_user: MakeUser, make_clip: Callable[..., GenerationJob]
    ) -> None:
        people = [make_user("p1"), make_user("p2")]
        clips = [make_clip(user) for user in people]
        chosen = {"action": "refund_all", "_selected_action": [str(job.pk) for job in clips]}
        address = page("generation_generationjob_changelist")
        assert "2 videos of 2 users, 100 credits." in admin.post(address, chosen).content.decode()
        form = sent(reason="Grey", jobs=2, people=2, credits=100) | chosen
        assert "2 videos are being refunded" in said(admin.post(address, form, follow=True))
        bulk_refunds.carry_on(str(BulkRefund.objects.get().pk))
        assert [balance(user) for user in people] == [500, 500]


class TestManyRows:
    """Acts on a whole selection: what is asked takes the same queries for many rows as for few."""

    def ask_and_do(
        self, admin: Client, kind: str, rows: list[Any], action: str, **form: Any
    ) -> tuple[int, int]:
        chosen = {"action": action, "_selected_action": [str(row.pk) for row in rows]}
        counts = []
        for values in (chosen, sent(reason="x", **form) | chosen):
            with CaptureQueriesContext(connection) as made:
                admin.post(page(f"{kind}_changelist"), values)
            counts.append(len(made))
        return counts[0], counts[1]

    def test_credits_of_many_are_granted_and_adjusted_in_the_queries_of_few(
        self, admin: Client, make_user: MakeUser
    ) -> None:
        people = [make_user(f"p{number}") for number in range(12)]
        for action, amount in (("grant_to_all", 7), ("adjust_all", -7)):
            few = self.ask_and_do(admin, "accounts_user", people[:2], action, amount=amount)
            many = self.ask_and_do(admin, "accounts_user", people[2:], action, amount=amount)
            assert many == few
        assert {balance(user) for user in people} == {500}
        assert AuditEvent.objects.filter(act="user.grant", credits=7).count() == 12
        assert not ledger_check.audit().discrepancies

    def test_jobs_are_moved_made_again_and_canceled_in_the_queries_of_few(
        self, admin: Client, make_user: MakeUser, second: GpuNode
    ) -> None:
        people = [make_user(f"p{number}") for number in range(11)]
        kind = "generation_generationjob"
        submitted = [submission.submit(user=one, prompt="One", source="telegram") for one in people * 5]
        JobMessage.objects.bulk_create(
            JobMessage(job=job, bot_id=1, chat_id=7, status_message_id=5) for job in submitted
        )
        GpuNode.objects.update(capacity=100)
        GpuNode.objects.filter(pk=second.pk).update(enabled=False)
        assert len(scheduling.claim()) == 55
        GpuNode.objects.filter(pk=second.pk).update(enabled=True)
        made = {"move_all": submitted, "retry_all": submitted}
        for action, ends in (("move_all", "running"), ("retry_all", "failed"), ("cancel_all", "canceled")):
            rows = made.get(action) or list(GenerationJob.objects.filter(source="staff"))
            if action == "retry_all":
                lifecycle._fail(GenerationJob.objects.all(), code="x", message="x")
            form = {"target": second.pk} if action == "move_all" else {}
            few = self.ask_and_do(admin, kind, rows[:5], action, **form)
            many = self.ask_and_do(admin, kind, rows[5:], action, **form)
            assert many == few, action
            assert max(few) < 70, action
            changed = GenerationJob.objects.filter(pk__in=[job.pk for job in rows], state=ends)
            assert changed.count() == 55, action
        assert not JobAttempt.objects.filter(state="open").exclude(node=second).exists()
        assert {balance(user) for user in people} == {500}
        again = JobMessage.objects.filter(job__source="staff")
        assert again.filter(chat_id=7, next_attempt_at__isnull=False).count() == 55
        assert AuditEvent.objects.filter(act__startswith="job.").count() == 3 * 55
        assert not ledger_check.audit().discrepancies

    @pytest.mark.parametrize(
        "kind", ["telegram_bot_telegramupdate", "telegram_bot_jobmessage", "django_q_failure"]
    )
    def test_what_failed_is_done_again_in_the_queries_of_few(
        self, admin: Client, user: User, kind: str
    ) -> None:
        now, numbers = timezone.now(), range(55)
        if kind == "telegram_bot_telegramupdate":
            rows: list[Any] = [
                TelegramUpdate(bot_id=1, update_id=number, raw="{}", state="failed") for number in numbers
            ]
            action, left = "handle_again", TelegramUpdate.objects.filter(state="failed")
        elif kind == "telegram_bot_jobmessage":
            chain = [submission.submit(user=user, prompt="One", source="telegram")]
            while len(chain) < 55:
                chain += submission.submit_again(chain[-1:], wallets={user.pk: user.credit_account})
            rows = [JobMessage(job=job, bot_id=1, chat_id=7, state="failed") for job in chain]
            action, left = "deliver_again", JobMessage.objects.filter(state="failed")
        else:
            facts = {
                "func": "generation.jobs.tasks.dispatch",
                "started": now,
                "stopped": now,
                "success": False,
            }
            rows = [Failure(id=f"{number}", name="n", **facts) for number in numbers]
            action, left = "run_again", Failure.objects.all()
        rows = type(rows[0]).objects.bulk_create(rows)
        few = self.ask_and_do(admin, kind, rows[:5], action)
        many = self.ask_and_do(admin, kind, rows[5:], action)
        assert many == few
        assert not left.exists()
        assert AuditEvent.objects.count() == 55
        assert OrmQ.objects.count() == (55 if action == "run_again" else 0)


class TestBulkRefund:
    @pytest.fixture
    def night(
        self, make_user: MakeUser, make_clip: Callable[..., GenerationJob]
    ) -> tuple[list[User], list[GenerationJob]]:
        people = [make_user("p1"), make_user("p2")]
        return people, [make_clip(people[0]), make_clip(people[0]), make_clip(people[1])]

    def start(self, actor: Any, node: GpuNode, **changes: Any) -> BulkRefund:
        now = timezone.now()
        window = {"node": node, "since": now - timedelta(hours=1), "until": now + timedelta(hours=1)}
        charged = bulk_refunds.charged_on(**window)
        values = {
            "actor": actor,
            "jobs": charged,
            "expected": bulk_refunds.total_of(charged),
            "reason": "Bad night",
        }
        return bulk_refunds.start(**values | window | {"once": sent()["once"]} | changes)

    def test_the_desk_looks_first_then_refunds_everything_once_and_tells_everybody(
        self, admin: Client, node: GpuNode, night: tuple[list[User], list[GenerationJob]], settings: Any
    ) -> None:
        settings.TELEGRAM_BOT_TOKEN = "1:x"
        people, _ = night
        TelegramAccount.objects.create(telegram_id=42, user=people[0])
        now = timezone.now()
        window = {"node": node.pk}
        for name, when in (("since", now - timedelta(hours=2)), ("until", now + timedelta(hours=1))):
            window |= {f"{name}_0": f"{when:%Y-%m-%d}", f"{name}_1": f"{when:%H:%M:%S}"}
        desk = page("generation_bulkrefund_begin")
        from_its_page = admin.get(page("generation_gpunode_refund_bad_time", node.pk), follow=True)
        assert f'<option value="{node.pk}" selected>' in from_its_page.content.decode()
        assert admin.get(desk, {"of": "nonsense"}).status_code == 200
        proposed = admin.get(desk).context["form"].initial
        assert proposed["since"] < GenerationJob.objects.latest("finished_at").finished_at < proposed["until"]
        long_ago = {**window, "since_0": "2020-01-01", "until_0": "2020-01-02"}
        assert "It made no video in that time" in admin.get(desk, long_ago).content.decode()
        dry = admin.get(desk, window, follow=True)
        assert "3 videos of 2 users, 150 credits." in dry.content.decode()
        assert not CreditTransaction.objects.filter(kind="refund").exists()
        address = dry.redirect_chain[-1][0]
        form = sent(reason="Bad night", jobs=3, people=2, credits=150)
        assert "3 videos are being refunded, 150 credits." in said(admin.post(address, form, follow=True))
        assert (
            DoneBefore.__doc__ in said(admin.post(address, form, follow=True))
            or BulkRefund.objects.count() == 1
        )
        batch = BulkRefund.objects.get()
        address = page("generation_bulkrefund_change", batch.pk)
        assert "<span data-live>" in admin.get(address).content.decode()
        for _again in range(2):
            bulk_refunds.carry_on(str(batch.pk))
        assert [balance(user) for user in people] == [500, 500]
        assert CreditTransaction.objects.filter(kind="refund").count() == 3
        batch.refresh_from_db()
        assert batch.state == "done"
        messages = {notice.user_id: notices.text_of(notice) for notice in Notice.objects.all()}
        assert messages[people[0].pk] == "We gave you back 100 credits for 2 videos: Bad night"
        assert messages[people[1].pk] == "We gave you back 50 credits for 1 video: Bad night"
        [in_chat] = ChatNotice.objects.all()
        assert (in_chat.chat_id, "100 credits for 2 videos" in in_chat.text) == (42, True)
        html = admin.get(address).content.decode()
        assert "data-live" not in html
        assert "3 refunded, 0 waiting, 0 passed over" in html
        assert not ledger_check.audit().discrepancies

    def test_the_pages_of_whom_and_what_it_reached_name_it(
        self,
        admin: Client,
        make_user: MakeUser,
        node: GpuNode,
        night: tuple[list[User], list[GenerationJob]],
    ) -> None:
        people, clips = night
        batch = self.start(in_role(make_user, "finance"), node)
        own = jobs.cancel(
            actor=in_role(make_user, "operator"),
            job=submission.submit(user=people[0], prompt="Two", source="web"),
            reason="By hand",
        )
        link, by_hand = page("generation_bulkrefund_change", batch.pk), own.public_id
        for address in (
            page("accounts_user_change", people[0].pk),
            page("accounts_user_change", people[1].pk),
            page("generation_generationjob_change", clips[0].pk),
        ):
            html = admin.get(address).content.decode()
            assert re.search(rf'the-finance · batch\.refund · <a href="{link}".*Bad night', html), address
        html = admin.get(page("accounts_user_change", people[0].pk)).content.decode()
        assert re.search(rf"the-operator · job\.cancel · .*{by_hand}.*state .* → canceled · By hand", html)
        for address in (
            page("accounts_user_change", make_user("eve").pk),
            page("generation_generationjob_change", own.pk),
        ):
            assert link not in admin.get(address).content.decode()

    def test_what_was_refunded_meanwhile_is_passed_over(
        self, make_user: MakeUser, node: GpuNode, night: tuple[list[User], list[GenerationJob]]
    ) -> None:
        people, clips = night
        owner = in_role(make_user, "owner")
        batch = self.start(owner, node)
        jobs.refund(actor=owner, job=clips[0], reason="By hand")
        bulk_refunds.carry_on(str(batch.pk))
        assert bulk_refunds.progress(batch) == {"waiting": 0, "refunded": 2, "passed_over": 1}
        assert balance(people[0]) == 500

    def test_a_task_that_died_half_way_is_gone_on_with(
        self,
        make_user: MakeUser,
        node: GpuNode,
        night: tuple[list[User], list[GenerationJob]],
        monkeypatch: Any,
    ) -> None:
        batch = self.start(in_role(make_user, "owner"), node)
        refund, calls = lifecycle.refund, []

        def dies_at_the_second(**values: Any) -> None:
            calls.append(values)
            if len(calls) == 2:
                raise ConnectionError("the worker died")
            refund(**values)

        monkeypatch.setattr(lifecycle, "refund", dies_at_the_second)
        with pytest.raises(ConnectionError), transaction.atomic():
            bulk_refunds.carry_on(str(batch.pk))
        monkeypatch.undo()
        before = OrmQ.objects.count()
        bulk_refunds.wake_stalled()
        assert OrmQ.objects.count() == before, "it is not stalled yet"
        BulkRefund.objects.update(moved_at=timezone.now() - timedelta(minutes=2))
        bulk_refunds.wake_stalled()
        assert OrmQ.objects.count() == before + 1
        bulk_refunds.carry_on(str(batch.pk))
        assert CreditTransaction.objects.filter(kind="refund").count() == 3
        assert not ledger_check.audit().discrepancies

    @pytest.mark.parametrize("error", [RuntimeError("the books say no"), OperationalError("deadlock")])
    def test_one_refund_that_raises_keeps_no_other_waiting_and_is_decided_about_again(
        self,
        admin: Client,
        node: GpuNode,
        staff: User,
        night: tuple[list[User], list[GenerationJob]],
        monkeypatch: Any,
        error: Exception,
    ) -> None:
        _, clips = night
        batch = self.start(Actor(user=staff, address="127.0.0.1"), node)
        refund = lifecycle.refund

        def raises_for_the_first(*, job: GenerationJob, **values: Any) -> None:
            if job.pk == clips[0].pk:
                raise error
            refund(job=job, **values)

        monkeypatch.setattr(lifecycle, "refund", raises_for_the_first)
        for _woken in range(bulk_refunds.MOST_TRIES + 1):
            with suppress(OperationalError):
                bulk_refunds.carry_on(str(batch.pk))
        monkeypatch.undo()
        batch.refresh_from_db()
        assert batch.state == BulkRefund.State.DONE
        assert bulk_refunds.progress(batch) == {"waiting": 0, "refunded": 2, "passed_over": 0}
        assert "Done, 1 failed" in admin.get(page("generation_bulkrefund_changelist")).content.decode()
        html = admin.get(page("generation_bulkrefund_change", batch.pk)).content.decode()
        assert clips[0].public_id in html
        assert str(error) in html
        address = page("generation_bulkrefund_again", batch.pk)
        assert address in html
        asked = admin.get(address)
        assert "1 video of 1 user, 50 credits" in asked.content.decode()
        form = sent(reason="The books are mended", **asked.context["form"].initial)
        admin.post(address, form)
        bulk_refunds.carry_on(str(BulkRefund.objects.exclude(pk=batch.pk).get().pk))
        assert CreditTransaction.objects.filter(kind="refund").count() == 3
        asked_again = admin.get(address, follow=True)
        assert (
            "nothing left to refund" in asked_again.content.decode()
            or "0 videos" in asked_again.content.decode()
        )

    def test_beyond_the_limit_only_finance_and_owners_decide(
        self, make_user: MakeUser, node: GpuNode, night: tuple[list[User], list[GenerationJob]], settings: Any
    ) -> None:
        settings.REFUND_LIMIT_CREDITS = 149
        for role in ("support", "operator"):
            with pytest.raises(NeedsApproval, match="this waits"):
                self.start(in_role(make_user, role), node)
        assert not BulkRefund.objects.exists()
        self.start(in_role(make_user, "finance"), node)
        assert BulkRefundItem.objects.count() == 3

    def test_a_plan_that_has_changed_is_shown_again(
        self, make_user: MakeUser, node: GpuNode, night: tuple[list[User], list[GenerationJob]]
    ) -> None:
        owner = in_role(make_user, "owner")
        with pytest.raises(Refused, match="changed meanwhile: 3 videos of 2 users, 150 credits"):
            self.start(owner, node, expected=bulk_refunds.Total(jobs=2, people=2, credits=100))
        assert not AuditEvent.objects.exists()


class TestLimits:
    def test_they_hold_at_submit_in_the_words_of_every_door(
        self, admin: Client, user: User, finish_job: Callable[[Any], Any]
    ) -> None:
        form = sent(daily_clips="2", concurrent_jobs="1", price_factor="0.5", reason="Trial")
        answer = admin.post(page("accounts_user_set_limits", user.pk), form, follow=True)
        assert "limits of ada are set (Trial)" in said(answer)
        assert "price factor: 0.5" in answer.content.decode()
        job = submission.submit(user=user, prompt="One", source="web")
        assert job.cost == 25
        with pytest.raises(Exception, match="made at a time"):
            submission.submit(user=user, prompt="Two", source="api")
        finish_job(job)
        finish_job(submission.submit(user=user, prompt="Two", source="web"))
        with pytest.raises(
            Exception, match=r"2 videos made in 24 hours\. The next one is possible in 24 hours"
        ):
            submission.submit(user=user, prompt="Three", source="telegram")
        assert balance(user) == 450
        act = AuditEvent.objects.get(act="user.limit")
        assert act.after["daily_clips"] == 2

    def test_support_sets_none(self, make_user: MakeUser, user: User) -> None:
        client = signed_in(in_role(make_user, "support").user)
        assert client.post(page("accounts_user_set_limits", user.pk), sent(reason="x")).status_code == 403


class TestNotices:
    def test_they_are_shown_until_they_are_closed_by_their_owner(
        self, user: User, make_user: MakeUser
    ) -> None:
        notice = notices.tell(user=user, kind="refund", videos=1, credits=50, reason="Grey <b>")
        client, other = signed_in(user), signed_in(make_user("eve"))
        assert "We gave you back 50 credits for 1 video: Grey &lt;b&gt;" in client.get("/").content.decode()
        assert "gave you back" not in other.get("/").content.decode()
        other.post(f"/notices/{notice.pk}/close/")
        assert "gave you back" in client.get("/").content.decode()
        assert client.post(f"/notices/{notice.pk}/close/", {"next": "https://elsewhere/"}).url == "/"
        assert "gave you back" not in client.get("/").content.decode()
