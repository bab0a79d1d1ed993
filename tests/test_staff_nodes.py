"""Operations of the staff on nodes and content: tests step by step, keys at rest, rules, reports, removals."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.files.storage import default_storage
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.conf import Conf

from accounts.models import AuditEvent, CreditAccount, Notice, User
from accounts.models.ciphers import decrypted
from generation import sharing
from generation.errors import PromptBlocked
from generation.jobs import node_health, scheduling, submission, tasks
from generation.models import (
    BlockedPrompt,
    CanaryRun,
    DailyStats,
    GenerationJob,
    GpuNode,
    JobAttempt,
    Preset,
    Report,
)
from generation.nodes import protocol
from generation.staff import jobs, nodes, stats
from telegram_bot.models import CreditPack
from tests.other_servers import OtherServers
from tests.staff import in_role, page, said, sent, signed_in

pytestmark = pytest.mark.django_db
MakeUser = Callable[..., User]


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


def stored_key(node: GpuNode) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT api_key FROM generation_gpunode WHERE id = %s", [node.pk])
        return str(cursor.fetchone()[0])


class TestKeysAtRest:
    def test_the_database_never_holds_them_plain(self, node: GpuNode) -> None:
        assert stored_key(node).startswith("fernet:")
        assert "node-key" not in stored_key(node)
        node.refresh_from_db()
        assert node.api_key == "node-key"
        GpuNode.objects.update(api_key="another")
        assert "another" not in stored_key(node)
        GpuNode.objects.update(api_key="")
        assert stored_key(node) == ""

    def test_a_new_encryption_key_in_front_of_the_old_one_reads_both(
        self, node: GpuNode, settings: Any
    ) -> None:
        settings.ENCRYPTION_KEYS = ["new", *settings.ENCRYPTION_KEYS]
        node.refresh_from_db()
        assert node.api_key == "node-key"
        node.save()
        settings.ENCRYPTION_KEYS = ["new"]
        assert GpuNode.objects.get().api_key == "node-key"

    def test_a_lost_encryption_key_is_said_and_breaks_no_page(
        self, admin: Client, node: GpuNode, settings: Any, caplog: Any
    ) -> None:
        settings.ENCRYPTION_KEYS = ["something else"]
        assert admin.get(page("generation_gpunode_changelist")).status_code == 200
        assert "Type the key in again" in caplog.text
        assert decrypted("plain, from before") == "plain, from before"


class TestCures:
    """What check_gpu_node and the admin tell staff to do is done on the node's own page."""

    def test_a_file_host_is_allowed_and_the_canary_comes_at_once(self, admin: Client, node: GpuNode) -> None:
        later = timezone.now() + timedelta(minutes=8)
        GpuNode.objects.update(set_aside_at=timezone.now(), next_canary_at=later, failed_canaries=4)
        values = {
            "name": node.name,
            "base_url": node.base_url,
            "protocol": "auto",
            "api_key": "",
            "reason": "CDN",
        }
        wrong = admin.post(page("generation_gpunode_change", node.pk), values | {"file_hosts": "http://cdn"})
        assert "http://cdn is no name of a host." in wrong.content.decode()
        admin.post(page("generation_gpunode_change", node.pk), values | {"file_hosts": "*.example.com"})
        node.refresh_from_db()
        assert (node.file_hosts, node.failed_canaries, node.detected_protocol) == (
            "*.example.com",
            0,
            "videos",
        )
        assert node_health.claim_canary(node)

    def test_another_address_may_be_of_another_protocol(self, admin: Client, node: GpuNode) -> None:
        values = {"name": node.name, "base_url": "http://10.0.0.9", "protocol": "auto", "reason": "moved"}
        values["api_key"] = "new"
        admin.post(page("generation_gpunode_change", node.pk), values)
        node.refresh_from_db()
        assert (node.base_url, node.detected_protocol, node.status) == ("http://10.0.0.9", "", "unknown")


class TestSwitches:
    @pytest.mark.parametrize("role", ["support", "finance"])
    def test_only_operators_and_owners_touch_nodes(
        self, make_user: MakeUser, node: GpuNode, role: str
    ) -> None:
        client = signed_in(in_role(make_user, role).user)
        for action in ("test", "drain", "set_aside", "bring_back"):
            assert (
                client.post(page(f"generation_gpunode_{action}", node.pk), sent(reason="x")).status_code
                == 403
            )
        assert client.post(page("generation_gpunode_change", node.pk), {"name": "x"}).status_code == 403
        node.refresh_from_db()
        assert (node.enabled, node.set_aside_at, node.name) == (True, None, "node-1")

    def test_drained_it_gets_nothing_new_until_it_is_enabled(
        self, make_user: MakeUser, node: GpuNode, user: User
    ) -> None:
        client = signed_in(in_role(make_user, "operator").user)
        submission.submit(user=user, prompt="One", source="web")
        answer = client.post(
            page("generation_gpunode_drain", node.pk), sent(reason="New driver"), follow=True
        )
        assert said(answer) == "node-1 is drained (New driver)."
        assert not scheduling.claim(1)
        raced = client.post(page("generation_gpunode_drain", node.pk), sent(reason="x"))
        assert "switched off already" in raced.content.decode()
        client.post(page("generation_gpunode_enable", node.pk), sent(reason="Done"))
        assert scheduling.claim(1)
        assert list(AuditEvent.objects.values_list("act", flat=True)) == ["node.enable", "node.drain"]

    def test_set_aside_by_hand_no_trial_brings_it_back_but_staff_do(
        self, make_user: MakeUser, node: GpuNode
    ) -> None:
        operator = in_role(make_user, "operator")
        nodes.set_aside(actor=operator, node=node, reason="Grey clips")
        node.refresh_from_db()
        assert (node.set_aside_reason, node_health.claim_canary(node)) == ("Grey clips", False)
        html = signed_in(operator.user).get(page("generation_gpunode_change", node.pk)).content.decode()
        assert re.search(r"set aside since .*: Grey clips", html)
        nodes.bring_back(actor=operator, node=node, reason="New cable")
        node.refresh_from_db()
        assert node.set_aside_at is None
        html = signed_in(operator.user).get(page("generation_gpunode_change", node.pk)).content.decode()
        assert "gets jobs" in html


def test_how_far_a_node_is_with_its_download_is_on_its_page(admin: Client, node: GpuNode) -> None:
    said = {
        "status": "starting",
        "reason": None,
        "detail": "downloading 3.4 of 21.1 GB",
        "model": "CogVideoX-5B",
    }
    node_health.record_health(node, protocol.node_health(said, "videos"))

    text = admin.get(page("generation_gpunode_change", node.pk)).content.decode()
    assert "downloading 3.4 of 21.1 GB" in text


class TestWhatItCosts:
    def test_a_clip_costs_the_hours_it_took_and_those_that_came_to_nothing(
        self, make_user: MakeUser, node: GpuNode, user: User, finish_job: Callable[[Any], Any], settings: Any
    ) -> None:
        settings.VIDEO_COOLDOWN_SECONDS = 0
        first = finish_job(submission.submit(user=user, prompt="One", source="web"))
        finish_job(submission.submit(user=user, prompt="Two", source="web"))
        now = timezone.now()
        JobAttempt.objects.update(posted_at=now - timedelta(hours=1), closed_at=now, generation_ms=1_800_000)
        GpuNode.objects.update(cost_per_hour=Decimal("2.40"))
        node.refresh_from_db()
        jobs.refund(actor=in_role(make_user, "owner"), job=first, reason="x")
        account = stats.of_node(node)
        assert (account.clips, account.hours, account.cost_per_clip) == (2, 1.0, Decimal("1.2000"))
        assert account.refund_rate == 0.5

    def test_days_that_are_over_are_added_up_once_and_later_refunds_still_count(
        self, make_user: MakeUser, node: GpuNode, user: User, finish_job: Callable[[Any], Any], settings: Any
    ) -> None:
        settings.VIDEO_COOLDOWN_SECONDS = 0
        old = finish_job(submission.submit(user=user, prompt="One", source="web"))
        before = datetime.now(UTC) - timedelta(days=3)
        hour = {"posted_at": before - timedelta(hours=1), "closed_at": before, "generation_ms": None}
        JobAttempt.objects.update(**hour)
        GenerationJob.objects.update(finished_at=before)
        stats.keep()
        JobAttempt.objects.update(generation_ms=7_200_000)
        finish_job(submission.submit(user=user, prompt="Two", source="web"))
        JobAttempt.objects.exclude(job=old).update(generation_ms=1_800_000)
        assert stats.of_node(node) == stats.NodeStats(clips=2, hours=1.5, cost_per_clip=None, refund_rate=0.0)
        jobs.refund(actor=in_role(make_user, "owner"), job=old, reason="x")
        assert stats.of_node(node).refund_rate == 0.5
        other = GpuNode.objects.create(name="other", base_url="http://127.0.0.1:10")
        assert stats.of_node(other) == stats.NodeStats(0, 0.0, None, None)

    def test_days_kept_before_nodes_were_counted_are_counted_now_and_later_kept(
        self, node: GpuNode, user: User, finish_job: Callable[[Any], Any]
    ) -> None:
        finish_job(submission.submit(user=user, prompt="One", source="web"))
        JobAttempt.objects.update(closed_at=datetime.now(UTC) - timedelta(days=3))
        stats.keep()
        DailyStats.objects.update(nodes=None)
        assert stats.of_node(node).clips == 1
        stats.keep()
        assert not DailyStats.objects.filter(nodes__isnull=True).exists()
        assert stats.of_node(node).clips == 1

    def test_what_is_older_than_thirty_days_does_not_count(
        self, node: GpuNode, user: User, finish_job: Callable[[Any], Any]
    ) -> None:
        finish_job(submission.submit(user=user, prompt="One", source="web"))
        JobAttempt.objects.update(closed_at=datetime.now(UTC) - timedelta(days=31))
        stats.keep()
        assert stats.of_node(node).clips == 0

    def test_its_page_asks_for_each_thing_once(self, admin: Client, node: GpuNode) -> None:
        nodes.note_canary(node, None)
        with CaptureQueriesContext(connection) as made:
            html = admin.get(page("generation_gpunode_change", node.pk)).content.decode()
        assert "0 clips in 0.0 minutes of work" in html
        assert "made and played" in html
        asked = [query["sql"] for query in made]
        assert sum("generation_canaryrun" in sql for sql in asked) == 2, "the last test, and the canary clips"
        assert sum("accounts_auditevent" in sql for sql in asked) == 1
        assert len(asked) < 20

    def test_the_list_asks_about_all_nodes_together(self, admin: Client, node: GpuNode) -> None:
        def shown() -> tuple[int, dict[str, bool]]:
            with CaptureQueriesContext(connection) as made:
                answer = admin.get(page("generation_gpunode_changelist"))
            return len(made), {each.name: each.is_healthy for each in answer.context["cl"].result_list}

        shown()
        few, _ = shown()
        GpuNode.objects.create(name="silent", base_url="http://127.0.0.1:10", status="ready")
        GpuNode.objects.create(name="new", base_url="http://127.0.0.1:11")
        many, healthy = shown()
        assert many == few
        assert [name for name, is_healthy in healthy.items() if is_healthy] == ["node-1"]


class TestTrials:
    @pytest.mark.django_db(transaction=True)
    def test_a_node_that_cannot_be_reached_fails_at_the_first_step(
        self, admin: Client, node: GpuNode
    ) -> None:
        address = page("generation_gpunode_test", node.pk)
        usual = admin.get(address).context["form"].initial["reason"]
        assert usual, "a test proposes a reason"
        assert "This field is required" in admin.post(address, sent(reason="")).content.decode()
        answer = admin.post(address, sent(reason=usual), follow=True)
        assert "It answers and takes our key" in answer.content.decode()
        assert AuditEvent.objects.get(act="node.test").reason == usual
        row = CanaryRun.objects.get()
        assert row.passed is None
        nodes.run_test(row.pk)
        row.refresh_from_db()
        assert [step["state"] for step in row.steps] == ["failed", "waiting", "waiting"]
        assert row.passed is False
        nodes.run_test(row.pk)
        assert "✗" in admin.get(page("generation_gpunode_change", node.pk)).content.decode()

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("way", ["hangs", "stops", "silent"])
    def test_a_test_of_a_node_that_hangs_ends_before_its_task_is_ended_and_says_why(
        self, admin: Client, node: GpuNode, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        monkeypatch.setattr(Conf, "TIMEOUT", nodes.SPARE_SECONDS + 2)
        admin.post(page("generation_gpunode_test", node.pk), sent(reason="x"))
        with OtherServers() as servers:
            GpuNode.objects.update(base_url=servers.url(way))
            nodes.run_test(CanaryRun.objects.get().pk)
        row = CanaryRun.objects.get()
        assert (row.passed, row.ended_at is not None) == (False, True)
        html = admin.get(page("generation_gpunode_change", node.pk)).content.decode()
        assert "It took longer than 2 s. The node may be busy with other videos." in html
        assert "running" not in [step["state"] for step in row.steps]

    def test_what_became_of_trial_clips_stays_on_the_page(self, admin: Client, node: GpuNode) -> None:
        nodes.note_canary(node, ValueError("CUDA error"))
        nodes.note_canary(node, None)
        html = admin.get(page("generation_gpunode_change", node.pk)).content.decode()
        assert "CUDA error" in html
        assert "made and played" in html


class TestRules:
    @pytest.mark.parametrize(
        ("kind", "text", "prompt", "blocked"),
        [
            ("words", "secret word", "A Secret  WORD, please", True),
            ("words", "ass", "A grassy assembly", False),
            ("words", "тест", "Это Тест!", True),
            ("words", "badword", "b\u200ba\u00addword", True),
            ("words", "badword", "\uff42\uff41\uff44\uff57\uff4f\uff52\uff44", True),
            ("pattern", r"nude|naked", "A NAKED truth", True),
            ("pattern", r"^a cat$", "a cat and a dog", False),
        ],
    )
    def test_words_and_patterns(self, kind: str, text: str, prompt: str, blocked: bool) -> None:
        BlockedPrompt.objects.create(kind=kind, text=text)
        assert bool(submission.matching(prompt)) == blocked

    def test_no_pattern_takes_long(self) -> None:
        BlockedPrompt.objects.create(kind="pattern", text=r"(a+)+$")
        began = time.monotonic()
        assert not submission.matching("a" * 5000 + "b")
        assert time.monotonic() - began < 5  # a backtracking matcher would not end in a lifetime

    def test_a_blocked_prompt_costs_nothing_and_every_door_says_so(self, user: User) -> None:
        BlockedPrompt.objects.create(text="dragon", explanation="No dragons here.")
        message = "No dragons here. No credits were deducted."
        with pytest.raises(PromptBlocked, match=message):
            submission.submit(user=user, prompt="A dragon", source="telegram")
        from accounts import api_keys

        _, key = api_keys.issue(user=user)
        answer = Client().post(
            "/v1/videos",
            {"prompt": "A dragon"},
            content_type="application/json",
            headers={"Authorization": f"Bearer {key}"},
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_policy_violation")
        assert answer.json()["error"]["message"] == message
        web = signed_in(user).post("/videos/", {"prompt": "A dragon", "preset": "quick"})
        assert message in web.content.decode()
        assert CreditAccount.objects.get(user=user).balance == 500
        assert not GenerationJob.objects.exists()

    def test_the_test_box_says_which_rule_it_is(self, make_user: MakeUser) -> None:
        client = signed_in(in_role(make_user, "operator").user)
        form = {"kind": "pattern", "text": "drag(on", "explanation": "", "enabled": "on", "reason": "x"}
        refused = client.post(page("generation_blockedprompt_add"), form)
        assert "no pattern that can be used" in refused.content.decode()
        client.post(page("generation_blockedprompt_add"), form | {"text": "drag(on|s)"})
        tried = client.post(page("generation_blockedprompt_try_out"), {"prompt": "Two dragons"})
        assert "Blocked by" in tried.content.decode()
        assert (
            "No rule is against it"
            in client.post(page("generation_blockedprompt_try_out"), {"prompt": "A cat"}).content.decode()
        )
        assert AuditEvent.objects.get(act="blockedprompt.add").after["text"] == "drag(on|s)"
        rules = page("generation_blockedprompt_changelist")
        chosen = {
            "action": "delete_selected",
            "_selected_action": BlockedPrompt.objects.get().pk,
            "post": "yes",
        }
        assert "please say why" in client.post(rules, chosen, follow=True).content.decode()
        assert BlockedPrompt.objects.exists()
        client.post(rules, chosen | {"reason": "Dragons are welcome"})
        assert not BlockedPrompt.objects.exists()
        assert AuditEvent.objects.get(act="blockedprompt.delete").reason == "Dragons are welcome"


class TestReports:
    @pytest.fixture
    def shared(self, user: User, finish_job: Callable[[Any], Any]) -> tuple[GenerationJob, str]:
        job = finish_job(submission.submit(user=user, prompt="A paper boat", source="web"))
        return job, sharing.share(job=job).token

    def test_from_the_shared_page_to_the_removed_video(
        self, make_user: MakeUser, user: User, shared: tuple[GenerationJob, str]
    ) -> None:
        job, token = shared
        visitor = Client()
        assert f"/s/{token}/report/" in visitor.get(f"/s/{token}/").content.decode()
        assert visitor.post(f"/s/{token}/report/", {"about": "nonsense"}).status_code == 200
        assert not Report.objects.exists()
        for _twice in range(2):
            thanks = visitor.post(f"/s/{token}/report/", {"about": "person", "words": "It is me <b>"})
        assert "We look at every report" in thanks.content.decode()
        report = Report.objects.get()
        support = signed_in(in_role(make_user, "support").user)
        read = support.get(page("generation_report_change", report.pk)).content.decode()
        assert "It is me &lt;b&gt;" in read
        assert f"It shows a real person: {job.public_id}" in read
        assert page("generation_generationjob_poster", job.pk) in read
        assert support.post(page("generation_report_remove", report.pk), sent(reason="x")).status_code == 403
        client = signed_in(in_role(make_user, "operator").user)
        answer = client.post(
            page("generation_report_remove", report.pk), sent(reason="A real person"), follow=True
        )
        assert "is removed (A real person). Its owner is notified." in said(answer)
        report.refresh_from_db()
        job.refresh_from_db()
        assert (report.outcome, job.deleted_at is not None) == ("removed", True)
        assert visitor.get(f"/s/{token}/").status_code == 404
        assert Notice.objects.get().facts == {"prompt": "A paper boat", "reason": "A real person"}
        tasks.remove_files()
        assert not default_storage.exists(job.video.name)
        again = client.post(page("generation_generationjob_remove_video", job.pk), sent(reason="x"))
        assert "removed before" in again.content.decode()

    def test_a_dismissed_report_leaves_the_video(
        self, admin: Client, shared: tuple[GenerationJob, str]
    ) -> None:
        _, token = shared
        Client().post(f"/s/{token}/report/", {"about": "other"})
        report = Report.objects.get()
        admin.post(page("generation_report_dismiss", report.pk), sent(reason="Nothing wrong"))
        report.refresh_from_db()
        assert report.outcome == "dismissed"
        assert Client().get(f"/s/{token}/").status_code == 200


def test_a_preset_shows_what_was_changed_and_by_whom(make_user: MakeUser) -> None:
    client = signed_in(in_role(make_user, "finance").user)
    preset = Preset.objects.get(name="standard")
    form = {
        "name": "standard",
        "label": "Standard",
        "num_frames": 49,
        "fps": 8,
        "num_inference_steps": 50,
        "cost": 300,
        "position": 1,
        "enabled": "on",
        "reason": "Power costs more",
    }
    assert client.post(page("generation_preset_change", preset.pk), form).status_code == 302
    html = client.get(page("generation_preset_change", preset.pk)).content.decode()
    assert "cost 250 → 300 · Power costs more" in html
    assert "the-finance" in html


def test_a_credit_pack_shows_what_was_changed_too(make_user: MakeUser) -> None:
    pack = CreditPack.objects.create(name="Starter", credits=100, stars=50)
    client = signed_in(in_role(make_user, "owner").user)
    form = {"name": "Starter", "credits": 120, "stars": 50, "position": 0, "for_sale": "on"}
    form["reason"] = "Summer"
    address = page("telegram_bot_creditpack_change", pack.pk)
    assert client.post(address, form).status_code == 302
    assert "credits 100 → 120" in client.get(address).content.decode()
    assert signed_in(in_role(make_user, "operator").user).post(address, form).status_code == 403


class TestKeysAndAddresses:
    def form(self, node: GpuNode, **changed: Any) -> dict[str, Any]:
        fields = {"name": node.name, "base_url": node.base_url, "protocol": node.protocol, "reason": "Moved"}
        return fields | {"cost_per_hour": "", "file_hosts": "", "enabled": "on"} | changed

    @pytest.mark.parametrize("rights", [["view_gpunode"], ["view_gpunode", "change_gpunode"]])
    def test_the_key_is_shown_to_nobody(self, node: GpuNode, make_user: Any, rights: list[str]) -> None:
        helper = make_user("helper", is_staff=True)
        helper.user_permissions.set(Permission.objects.filter(codename__in=rights))
        client = Client()
        client.force_login(helper)
        html = client.get(page("generation_gpunode_change", node.pk)).content.decode()
        assert "node-key" not in html
        assert re.search(r">\s*set\s*<", html)

    def test_another_address_needs_the_key_again(self, admin: Client, node: GpuNode) -> None:
        address = page("generation_gpunode_change", node.pk)
        for elsewhere in ("http://127.0.0.1:10", "https://127.0.0.1:9", "http://localhost:9"):
            answer = admin.post(address, self.form(node, base_url=elsewhere))
            assert "type the key of the node there" in answer.content.decode()
        node.refresh_from_db()
        assert node.base_url == "http://127.0.0.1:9"
        assert (
            admin.post(address, self.form(node, base_url="http://127.0.0.1:10", api_key="new")).status_code
            == 302
        )
        node.refresh_from_db()
        assert (node.base_url, node.api_key) == ("http://127.0.0.1:10", "new")
        assert admin.post(address, self.form(node, file_hosts="files.example.org")).status_code == 302

    @pytest.mark.parametrize(
        "elsewhere",
        ["http://169.254.169.254", "http://[::ffff:169.254.169.254]", "http://[fe80::1]", "http://100.100.100.200",
         "http://2852039166", "http://[fd00:ec2::254]", "http://168.63.129.16"],
    )  # fmt: skip
    def test_no_node_is_where_a_cloud_keeps_its_keys(
        self, admin: Client, node: GpuNode, elsewhere: str
    ) -> None:
        form = self.form(node, base_url=elsewhere, api_key="new")
        answer = admin.post(page("generation_gpunode_change", node.pk), form)
        assert "where no node may be" in answer.content.decode()

    def test_private_networks_are_a_setting(self, admin: Client, node: GpuNode, settings: Any) -> None:
        settings.NODE_PRIVATE_NETWORKS = False
        form = self.form(node, base_url="http://10.1.2.3:8081", api_key="new")
        answer = admin.post(page("generation_gpunode_change", node.pk), form)
        assert "where no node may be" in answer.content.decode()
