"""The admin, page by page, as staff use it."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin import sites
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import api_keys, ledger
from accounts.models import AuditEvent, CreditAccount, CreditTransaction, User
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode, Preset
from telegram_bot.models import JobMessage, TelegramAccount, TelegramUpdate
from tests.environment import REPOSITORY
from tests.staff import page, said, sent, signed_in

pytestmark = pytest.mark.django_db


def test_django_has_nothing_to_say_against_the_pages() -> None:
    assert sites.site.check(None) == []


def test_a_process_that_serves_no_pages_does_not_load_them() -> None:
    code = (
        "import django, sys; django.setup(); print([name for name in sys.modules if name.endswith('.admin')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert [name for name in ran.stdout.split("'") if name.startswith(("accounts", "generation"))] == []


MODELS = [
    User,
    CreditTransaction,
    GenerationJob,
    GpuNode,
    Preset,
    JobMessage,
    TelegramAccount,
    TelegramUpdate,
]


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


def actor(make_user: Callable[..., User], *permissions: str, name: str = "actor") -> Client:
    """Staff with these rights and no others."""
    user = make_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return signed_in(user)


def fields_of(client: Client, address: str) -> dict[str, Any]:
    """The form at an address, unchanged but for the reason that it asks for."""
    form = client.get(address).context["adminform"].form
    values = {name: form[name].value() for name in form.fields} | {"reason": "Because"}
    return {
        name: "on" if value is True else value for name, value in values.items() if value not in (None, False)
    }


def wallet(user: User) -> CreditAccount:
    return CreditAccount.objects.get(user=user)


@pytest.fixture
def job(user: User) -> GenerationJob:
    return submission.submit(user=user, prompt="A paper boat <b>", source="web")


class TestAccess:
    def test_only_staff_come_in(self, user: User) -> None:
        assert signed_in(user).get(page("index")).status_code == 302
        assert Client().get(page("index")).status_code == 302

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
    def test_each_list_opens(self, admin: Client, job: GenerationJob, node: GpuNode, model: Any) -> None:
        name = f"{model._meta.app_label}_{model._meta.model_name}_changelist"
        assert admin.get(page(name), {"q": "boat"}).status_code in (200, 302)
        assert admin.get(page(name)).status_code == 200

    def test_the_head_of_a_page_says_where_one_is_in_the_words_of_the_menu(
        self, admin: Client, user: User, job: GenerationJob
    ) -> None:
        def head(address: str) -> list[str]:
            html = admin.get(address).content.decode()
            return re.findall(r'class="align-middle [^"]*truncate[^"]*">([^<]*)<', html)

        assert head(page("accounts_user_changelist")) == ["Users"]
        assert head(page("accounts_user_change", user.pk)) == ["Users", "ada"]
        assert head(page("generation_generationjob_changelist")) == ["Jobs"]
        assert head(page("accounts_walletmerge_changelist")) == ["Joined accounts"]

    def test_without_rights_there_is_nothing_to_see(
        self, make_user: Callable[..., User], job: GenerationJob
    ) -> None:
        client = actor(make_user)
        for kind in (
            "accounts_user",
            "accounts_credittransaction",
            "generation_generationjob",
            "generation_gpunode",
        ):
            assert client.get(page(f"{kind}_changelist")).status_code == 403
        assert client.get(page("generation_generationjob_video", job.pk)).status_code == 403


class TestUsers:
    def test_the_page_shows_wallet_and_history(self, admin: Client, user: User) -> None:
        ledger.grant(user=user, amount=25, reason="Sorry <3")
        html = admin.get(page("accounts_user_change", user.pk)).content.decode()
        assert "525 credits free, 0 held" in html
        assert "Sorry &lt;3" in html
        everything = (
            f"{page('accounts_credittransaction_changelist')}?account__id__exact={user.credit_account.pk}"
        )
        assert everything in html
        assert admin.get(everything).status_code == 200

    def test_credits_are_granted_with_a_reason_and_an_actor(
        self, admin: Client, user: User, staff: User
    ) -> None:
        address = page("accounts_user_grant_credits", user.pk)
        assert "Grant credits" in admin.get(page("accounts_user_change", user.pk)).content.decode()
        assert "500 credits free" in admin.get(address).content.decode()
        assert wallet(user).balance == 500
        response = admin.post(address, sent(amount="100", reason="Contest"), follow=True)
        assert said(response) == "Gave ada 100 credits (Contest). The balance is 600."
        entry = CreditTransaction.objects.latest("id")
        assert (entry.amount, entry.reason, entry.actor) == (100, "Contest", staff)
        act = AuditEvent.objects.get()
        assert (act.actor, act.act, act.reason, act.credits) == (staff, "user.grant", "Contest", 100)
        assert (act.before, act.after, act.address) == ({"balance": 500}, {"balance": 600}, "127.0.0.1")

    @pytest.mark.parametrize(
        "values",
        [
            {"amount": "0", "reason": "x"},
            {"amount": "-5", "reason": "x"},
            {"amount": "9" * 30, "reason": "x"},
            {"amount": "many", "reason": "x"},
            {"amount": "5", "reason": " "},
            {"amount": "5", "reason": "a\x00b"},
            {"amount": "5"},
        ],
    )
    def test_an_impossible_grant_is_asked_again(
        self, admin: Client, user: User, values: dict[str, str]
    ) -> None:
        assert admin.post(page("accounts_user_grant_credits", user.pk), sent(**values)).status_code == 200
        assert wallet(user).balance == 500

    def test_granting_needs_the_right_to(self, make_user: Callable[..., User], user: User) -> None:
        client = actor(make_user, "view_user", "change_user")
        address = page("accounts_user_grant_credits", user.pk)
        assert "grant-credits" not in client.get(page("accounts_user_change", user.pk)).content.decode()
        assert client.post(address, sent(amount="100", reason="x")).status_code == 403
        assert wallet(user).balance == 500

    def test_a_link_from_elsewhere_grants_nothing(self, staff: User, user: User) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(staff)
        response = client.post(page("accounts_user_grant_credits", user.pk), sent(amount="1", reason="x"))
        assert response.status_code == 403

    def test_a_ban_cancels_what_is_live_and_keys_stop_working(
        self, admin: Client, user: User, job: GenerationJob
    ) -> None:
        _, secret = api_keys.issue(user=user)
        response = admin.post(page("accounts_user_ban", user.pk), sent(reason="Spam"), follow=True)
        assert said(response) == "ada is banned (Spam)."
        job.refresh_from_db()
        assert (job.state, wallet(user).held) == ("canceled", 0)
        assert Client().get("/v1/videos", headers={"Authorization": f"Bearer {secret}"}).status_code == 403
        assert "banned since" in response.content.decode()
        assert "by grace: Spam" in response.content.decode()
        again = admin.post(page("accounts_user_ban", user.pk), sent(reason="Spam"))
        assert "ada is banned already." in again.content.decode()
        asked = admin.get(page("accounts_user_ban", user.pk), follow=True)
        assert said(asked) == "ada is banned already."

    def test_a_new_user_gets_a_wallet(self, admin: Client) -> None:
        form = {
            "username": "eve",
            "password1": "a long enough password",
            "password2": "a long enough password",
            "usable_password": "true",
            "reason": "Asked by phone",
        }
        assert admin.post(page("accounts_user_add"), form).status_code == 302
        assert wallet(User.objects.get(username="eve")).balance == 500

    def test_no_user_is_deleted(self, admin: Client, user: User) -> None:
        assert admin.post(page("accounts_user_delete", user.pk), {"post": "yes"}).status_code == 403
        admin.post(
            page("accounts_user_changelist"),
            {"action": "delete_selected", "_selected_action": user.pk, "post": "yes"},
        )
        assert User.objects.filter(pk=user.pk).exists()

    def test_only_superusers_make_superusers(
        self, make_user: Callable[..., User], user: User, staff: User
    ) -> None:
        client = actor(make_user, "view_user", "change_user")
        form = fields_of(client, page("accounts_user_change", user.pk))
        client.post(page("accounts_user_change", user.pk), form | {"is_superuser": "on", "is_staff": "on"})
        user.refresh_from_db()
        assert (user.is_superuser, user.is_staff) == (False, False)
        assert client.get(page("auth_user_password_change", staff.pk)).status_code == 403
        assert client.post(page("accounts_user_change", staff.pk), form).status_code == 403

    def test_the_list_takes_the_same_queries_however_many_there_are(
        self, admin: Client, make_user: Callable[..., User]
    ) -> None:
        def queries() -> int:
            with CaptureQueriesContext(connection) as made:
                admin.get(page("accounts_user_changelist"))
            return len(made)

        make_user("u0")
        few = queries()
        for number in range(1, 8):
            make_user(f"u{number}")
        assert queries() == few


def test_a_list_offers_all_only_where_some_are_left_out(admin: Client, job: GenerationJob) -> None:
    jobs = page("generation_generationjob_changelist")
    assert "Show all" not in admin.get(jobs).content.decode()
    assert "Show all" in admin.get(jobs, {"q": "nothing like it"}).content.decode()


def test_a_list_that_is_not_counted_to_its_end_says_so(
    admin: Client, make_user: Callable[..., User], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.admin.base.MOST_COUNTED", 3)
    users = page("accounts_user_changelist")
    make_user("ada")
    assert "or more users" not in admin.get(users).content.decode()
    for number in range(3):
        make_user(f"u{number}")
    foot = " ".join(admin.get(users).content.decode().split())
    assert "3 or more users: the first 3 are listed. Filter or search to see others." in foot


class TestLedger:
    def test_entries_can_be_seen_and_not_touched(self, admin: Client, job: GenerationJob) -> None:
        entry = CreditTransaction.objects.get(kind="reserve")
        address = page("accounts_credittransaction_change", entry.pk)
        html = admin.get(address).content.decode()
        assert page("generation_generationjob_change", job.pk) in html
        assert admin.post(address, {"reason": "changed"}).status_code == 403
        assert admin.get(page("accounts_credittransaction_add")).status_code == 403
        assert (
            admin.post(page("accounts_credittransaction_delete", entry.pk), {"post": "yes"}).status_code
            == 403
        )
        bulk = {"action": "delete_selected", "_selected_action": entry.pk, "post": "yes"}
        admin.post(page("accounts_credittransaction_changelist"), bulk)
        entry.refresh_from_db()
        assert entry.reason == "Held for a video"


class TestApiKeys:
    def test_a_key_is_revoked_and_never_shown(self, admin: Client, user: User) -> None:
        key, secret = api_keys.issue(user=user, name="laptop")
        html = admin.get(page("accounts_apikey_change", key.pk)).content.decode()
        assert "laptop" in html
        assert secret not in html
        assert key.digest not in html
        address = page("accounts_apikey_revoke", key.pk)
        assert admin.get(address).status_code == 200
        assert api_keys.verify(secret) is not None
        assert "Revoked the key" in said(admin.post(address, sent(reason="Leaked"), follow=True))
        assert api_keys.verify(secret) is None
        again = admin.get(address, follow=True)
        assert said(again) == "This key was revoked before."
        assert address not in again.content.decode(), "what is impossible is not offered"
        assert "revoked before" in admin.post(address, sent(reason="Leaked")).content.decode()

    def test_revoking_needs_the_right_to(self, make_user: Callable[..., User], user: User) -> None:
        key, secret = api_keys.issue(user=user)
        client = actor(make_user, "view_apikey")
        assert client.post(page("accounts_apikey_revoke", key.pk), sent(reason="x")).status_code == 403
        assert api_keys.verify(secret) is not None


class TestJobs:
    def test_a_job_is_found_by_the_id_that_people_send(self, admin: Client, job: GenerationJob) -> None:
        for term in (job.public_id, "paper boat", "ada"):
            html = admin.get(page("generation_generationjob_changelist"), {"q": term}).content.decode()
            assert page("generation_generationjob_change", job.pk) in html

    def test_the_page_shows_attempts_and_plays_the_clip(
        self, admin: Client, job: GenerationJob, finish_job: Callable[[GenerationJob], GenerationJob]
    ) -> None:
        finish_job(job)
        html = admin.get(page("generation_generationjob_change", job.pk)).content.decode()
        assert re.search(r"node-1</a> · Succeeded, step \d+<br>opened ", html)
        assert "A paper boat &lt;b&gt;" in html
        assert "reserved 50, captured 50, released 0, refunded 0" in html
        [video] = re.findall(r'<video src="([^"]+)"', html)
        response = admin.get(video, headers={"Range": "bytes=4-7"})
        assert (response.status_code, response.getvalue()) == (206, b"ftyp")
        [poster] = re.findall(r'poster="([^"]+)"', html)
        assert admin.get(poster)["Content-Type"] == "image/jpeg"

    def test_a_job_cannot_be_edited_or_deleted(self, admin: Client, job: GenerationJob) -> None:
        assert (
            admin.post(page("generation_generationjob_change", job.pk), {"state": "completed"}).status_code
            == 403
        )
        assert admin.post(page("generation_generationjob_delete", job.pk), {"post": "yes"}).status_code == 403

    def test_staff_cancel_with_a_reason(
        self, admin: Client, staff: User, job: GenerationJob, user: User
    ) -> None:
        address = page("generation_generationjob_cancel", job.pk)
        assert "50 credits are given back" in admin.get(address).content.decode()
        assert admin.post(address, sent(reason="")).status_code == 200
        job.refresh_from_db()
        assert job.state == "queued"
        response = admin.post(address, sent(reason="Node is being moved"), follow=True)
        assert "50 credits were given back." in said(response)
        job.refresh_from_db()
        release = CreditTransaction.objects.get(kind="release")
        assert (job.state, release.actor, release.reason) == ("canceled", staff, "Node is being moved")
        assert wallet(user).balance == 500

    def test_what_has_ended_cannot_be_canceled_and_it_is_said_why(
        self, admin: Client, job: GenerationJob
    ) -> None:
        lifecycle.cancel(job=job)
        response = admin.get(page("generation_generationjob_cancel", job.pk), follow=True)
        assert said(response) == "This video is canceled already, so there is nothing to cancel."

    def test_a_job_that_ends_while_staff_think_is_not_canceled(
        self, admin: Client, job: GenerationJob, start_job: Callable[[GenerationJob], Any]
    ) -> None:
        attempt = start_job(job)
        address = page("generation_generationjob_cancel", job.pk)
        assert admin.get(address).status_code == 200
        lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
        response = admin.post(address, sent(reason="x"), follow=True)
        assert "This video can no longer be canceled: it is being stored." in response.content.decode()

    def test_staff_refund_once(
        self,
        admin: Client,
        staff: User,
        user: User,
        job: GenerationJob,
        finish_job: Callable[[GenerationJob], GenerationJob],
    ) -> None:
        finish_job(job)
        address = page("generation_generationjob_refund", job.pk)
        assert "gets back the 50 credits" in admin.get(address).content.decode()
        response = admin.post(address, sent(reason="Blurry"), follow=True)
        assert said(response) == f"Refunded {job.public_id}: 50 credits to ada (Blurry)."
        entry = CreditTransaction.objects.get(kind="refund")
        assert (entry.actor, wallet(user).balance) == (staff, 500)
        again = admin.post(address, sent(reason="Blurry"), follow=True)
        assert "The 50 credits of this video were refunded before." in again.content.decode()
        assert wallet(user).balance == 500

    def test_what_was_not_charged_cannot_be_refunded(self, admin: Client, job: GenerationJob) -> None:
        address = page("generation_generationjob_refund", job.pk)
        assert "cancel it" in said(admin.get(address, follow=True))
        lifecycle.cancel(job=job)
        assert (
            said(admin.get(address, follow=True))
            == "This video was not charged, so there is nothing to refund."
        )

    def test_looking_gives_no_right_to_act(self, make_user: Callable[..., User], job: GenerationJob) -> None:
        changer = actor(make_user, "view_generationjob", "change_generationjob", name="changer")
        assert (
            changer.post(page("generation_generationjob_refund", job.pk), sent(reason="x")).status_code == 403
        )
        looker = actor(make_user, "view_generationjob", name="looker")
        assert (
            looker.post(page("generation_generationjob_cancel", job.pk), sent(reason="x")).status_code == 403
        )
        assert looker.get(page("generation_generationjob_change", job.pk)).status_code == 200

    @pytest.mark.parametrize("action", ["cancel", "refund", "change"])
    def test_a_job_that_does_not_exist(self, admin: Client, action: str) -> None:
        missing = "00000000-0000-0000-0000-000000000000"
        assert admin.get(page(f"generation_generationjob_{action}", missing)).status_code in (302, 404)
        assert admin.get(page(f"generation_generationjob_{action}", "nonsense")).status_code in (302, 404)


class TestNodes:
    def test_the_key_goes_in_and_never_comes_out(self, admin: Client, node: GpuNode) -> None:
        address = page("generation_gpunode_change", node.pk)
        assert "node-key" not in admin.get(address).content.decode()
        form = fields_of(admin, address)
        assert admin.post(address, form).status_code == 302
        node.refresh_from_db()
        assert node.api_key == "node-key"
        admin.post(address, form | {"api_key": "another"})
        node.refresh_from_db()
        assert node.api_key == "another"
        admin.post(address, form | {"forget_api_key": "on"})
        node.refresh_from_db()
        assert node.api_key == ""
        assert not LogEntry.objects.filter(change_message__contains="another").exists()

    @pytest.mark.parametrize(
        "url", ["ftp://x", "http://user:secret@host", "http://host/?a=1", "host", "javascript:x"]
    )
    def test_a_strange_address_is_refused(self, admin: Client, node: GpuNode, url: str) -> None:
        address = page("generation_gpunode_change", node.pk)
        assert admin.post(address, fields_of(admin, address) | {"base_url": url}).status_code == 200
        node.refresh_from_db()
        assert node.base_url == "http://127.0.0.1:9"

    def test_the_address_of_the_environments_node_is_not_edited(self, admin: Client, node: GpuNode) -> None:
        GpuNode.objects.update(from_environment=True)
        address = page("generation_gpunode_change", node.pk)
        admin.post(address, fields_of(admin, address) | {"base_url": "http://elsewhere:1"})
        node.refresh_from_db()
        assert node.base_url == "http://127.0.0.1:9"


class TestPresets:
    def test_another_default_takes_it_from_the_one_that_was(self, admin: Client) -> None:
        standard = Preset.objects.get(name="standard")
        address = page("generation_preset_change", standard.pk)
        assert admin.post(address, fields_of(admin, address) | {"is_default": "on"}).status_code == 302
        assert [preset.name for preset in Preset.objects.filter(is_default=True)] == ["standard"]

    def test_more_frames_than_the_model_makes_are_refused(self, admin: Client) -> None:
        address = page("generation_preset_change", Preset.objects.get(name="quick").pk)
        assert admin.post(address, fields_of(admin, address) | {"num_frames": "50"}).status_code == 200
        assert Preset.objects.get(name="quick").num_frames == 16
