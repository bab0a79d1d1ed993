"""A person found by anything that staff are given, and the page that says what staff come for."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts import api_keys, ledger
from accounts.models import User
from accounts.staff import operations
from accounts.staff.actor import Actor
from generation import sharing
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode
from generation.staff import jobs, moderation
from telegram_bot.models import JobMessage, StarPayment, TelegramAccount
from tests.staff import in_role, page, signed_in

pytestmark = pytest.mark.django_db
MakeUser = Callable[..., User]


@pytest.fixture(autouse=True)
def _no_cooldown(settings: Any) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0


@pytest.fixture
def admin(staff: User) -> Client:
    return signed_in(staff)


@pytest.fixture
def carla(make_user: MakeUser) -> User:
    user = make_user("carla", email="carla@example.org", first_name="Carla", last_name="Mendes")
    EmailAddress.objects.create(user=user, email="carla.old@example.com")
    TelegramAccount.objects.create(telegram_id=4242, user=user, username="carlam", first_name="Carlita")
    return user


@pytest.fixture
def video(carla: User, finish_job: Callable[[Any], Any]) -> GenerationJob:
    return finish_job(submission.submit(user=carla, prompt="A paper boat", source="telegram"))


def sections(html: str) -> dict[str, str]:
    """The parts of a user's page in their order, by name."""
    return dict(re.findall(r'<section aria-label="([^"]+)"(.*?)</section>', html, re.DOTALL))


class TestSearch:
    def find(self, client: Client, text: str) -> list[str]:
        """Where one press of Enter leads: straight to the page, or to those that are listed."""
        answer = client.get(page("find"), {"q": text})
        if answer.status_code == 302:
            return [answer.url]
        listed = re.search(r'<ul class="staff-found".*?</ul>', answer.content.decode(), re.DOTALL)
        return re.findall(r'href="([^"]+)"', listed[0]) if listed else []

    def test_a_user_is_found_by_anything_they_give(
        self, admin: Client, make_user: MakeUser, carla: User
    ) -> None:
        make_user("eve", email="eve@example.org")
        home = admin.get(page("index")).content.decode()
        assert f'action="{page("find")}"' in home
        for text in (
            "carla", " CARLA ", "carla@example.org", "Carla@Example.ORG", "carla.old@example.com", "Carla Mendes",
            "mendes", "4242", "@carlam", "t.me/carlam", "Carlita",
        ):  # fmt: skip
            assert self.find(admin, text) == [page("accounts_user_change", carla.pk)], text
        assert len(self.find(admin, "example.org")) == 2
        for text in ("unheard-of", "424", "\x00", "' OR 1=1 --", "9" * 40):
            assert self.find(admin, text) == []

    def test_a_video_is_found_by_each_of_its_ids_and_links(self, admin: Client, video: GenerationJob) -> None:
        link = sharing.share(job=video)
        attempt = video.attempts.get()
        for text in (
            video.public_id,
            video.public_id.upper(),
            str(video.pk),
            video.pk.hex,
            f"http://localhost:8000/videos/{video.public_id}/",
            f"http://localhost:8000/s/{link.token}/",
            link.token,
            attempt.pk.hex,
        ):
            assert self.find(admin, text) == [page("generation_generationjob_change", video.pk)], text

    def test_receipts_payments_keys_and_nodes_are_found(
        self, admin: Client, carla: User, node: GpuNode
    ) -> None:
        entry = ledger.purchase(user=carla, amount=250, external_id="imported:17", reason="Bought")
        payment = StarPayment.objects.create(
            bot_id=1,
            charge_id="stxB1cD9",
            telegram_id=4242,
            user=carla,
            payload="x",
            stars=100,
            purchase=entry,
        )
        key, secret = api_keys.issue(user=carla)
        for text, kind, row in (
            ("stxB1cD9", "telegram_bot_starpayment", payment),
            ("Receipt: stxB1cD9", "telegram_bot_starpayment", payment),
            ("imported:17", "accounts_credittransaction", entry),
            (secret, "accounts_apikey", key),
            (key.prefix, "accounts_apikey", key),
            ("node-1", "generation_gpunode", node),
        ):
            assert self.find(admin, text) == [page(f"{kind}_change", row.pk)], text

    def test_the_palette_finds_the_same(self, admin: Client, carla: User, video: GenerationJob) -> None:
        StarPayment.objects.create(
            bot_id=1, charge_id="stxCASE", telegram_id=4242, user=carla, payload="x", stars=1, state="unknown"
        )
        for text, wanted in (
            ("carla@example.org", page("accounts_user_change", carla.pk)),
            (video.public_id, page("generation_generationjob_change", video.pk)),
            ("stxCASE", "/admin/telegram_bot/starpayment/"),
        ):
            html = admin.get(page("search"), {"s": text, "extended": "1"}).content.decode()
            assert f'href="{wanted}' in html, text

    def test_what_a_role_may_not_see_is_not_found(
        self, make_user: MakeUser, carla: User, video: GenerationJob
    ) -> None:
        trainee = signed_in(make_user("trainee", is_staff=True))
        for text in ("carla", "4242", video.public_id):
            assert trainee.get(page("find"), {"q": text}).status_code == 403
            assert text not in trainee.get(page("search"), {"s": text, "extended": "1"}).content.decode()
        assert page("find") not in trainee.get(page("index")).content.decode()
        support = signed_in(in_role(make_user, "support").user)
        assert self.find(support, "4242") == [page("accounts_user_change", carla.pk)]
        assert Client().get(page("find"), {"q": "carla"}).url.startswith("/admin/login/")
        assert signed_in(carla).get(page("find"), {"q": "carla"}).status_code == 302

    def test_nothing_found_says_so_and_offers_the_words_of_prompts(self, admin: Client) -> None:
        html = admin.get(page("find"), {"q": "whale <b>"}).content.decode()
        assert "fits “whale &lt;b&gt;”" in html
        assert f"{page('generation_generationjob_changelist')}?q=whale%20%3Cb%3E" in html


class TestPage:
    @pytest.fixture
    def html(self, admin: Client, staff: User, carla: User, video: GenerationJob) -> str:
        actor = Actor(user=staff, address="127.0.0.1")
        failed = submission.submit(user=carla, prompt="A red kite", source="web")
        lifecycle._fail(GenerationJob.objects.filter(pk=failed.pk), code="x", message="Out of memory")
        submission.submit(user=carla, prompt="Two otters", source="api")
        JobMessage.objects.create(job=video, bot_id=1, chat_id=-77, state="failed", error="kicked")
        jobs.refund(video, actor=actor, reason="Blurry <i>")
        operations.grant([carla], 25, actor=actor, reason="Sorry")
        api_keys.issue(user=carla, name="laptop")
        return str(admin.get(page("accounts_user_change", carla.pk)).content.decode())

    def test_it_begins_with_what_staff_come_for_and_djangos_fields_are_below(self, html: str) -> None:
        parts = sections(html)
        assert list(parts) == ["Wallet", "Videos", "Chats", "API keys", "Timeline"]
        assert html.index('aria-label="Timeline"') < html.index('name="username"')
        assert "475 credits free, 50 held" in parts["Wallet"]
        assert "@carlam" in parts["Chats"]
        assert "-77" in parts["Chats"]
        assert "kicked" in parts["Chats"]
        assert "laptop" in parts["API keys"]

    def test_each_entry_of_the_wallet_leads_to_its_video(self, admin: Client, html: str, carla: User) -> None:
        rows = re.findall(r"<tr><td>.*?</tr>", sections(html)["Wallet"], re.DOTALL)
        assert len(rows) == carla.credit_account.transactions.count()
        of_videos = [row for row in rows if not re.search("Grant", row)]
        assert len(of_videos) >= 5
        for row in of_videos:
            [address] = re.findall(r'href="(/admin/generation/generationjob/[^"]+)"', row)
            assert admin.get(address).status_code == 200
        assert "Blurry &lt;i&gt;" in html

    def test_videos_have_posters_states_reasons_and_what_they_cost_in_the_end(
        self, admin: Client, html: str, video: GenerationJob
    ) -> None:
        videos = re.findall(r"<li>(.*?)</li>", sections(html)["Videos"], re.DOTALL)
        waiting, failed, done = videos
        assert f'src="{page("generation_generationjob_poster", video.pk)}"' in done
        assert re.search(r"charged 0 .*refunded", done, re.DOTALL)
        assert "Refund " not in done, "it was refunded"
        assert "Out of memory" in failed
        assert "50 held" in waiting
        assert "1 queued, 1 completed, 1 failed" in sections(html)["Videos"]

    def test_the_timeline_tells_all_of_it_the_latest_first(self, html: str) -> None:
        lines = re.findall(r'<time datetime="([^"]+)">.*?<span>(.*?)</span></li>', sections(html)["Timeline"])
        moments = [moment for moment, _ in lines]
        assert moments == sorted(moments, reverse=True)
        text = " ".join(line for _, line in lines)
        for words in ("Joined", "Asked for", "Completed", "Out of memory", "Grant +25", "Refund +50", "laptop",
                      "job.refund", "Could not deliver", "First seen on Telegram"):  # fmt: skip
            assert words in text, words

    def test_a_part_that_the_role_may_not_see_is_not_there(
        self, make_user: MakeUser, carla: User, video: GenerationJob
    ) -> None:
        looker = make_user("looker", is_staff=True)
        looker.user_permissions.set(Permission.objects.filter(codename="view_user"))
        html = signed_in(looker).get(page("accounts_user_change", carla.pk)).content.decode()
        assert list(sections(html)) == ["Wallet", "Timeline"]
        assert "A paper boat" not in html

    def test_it_takes_the_same_queries_however_much_there_is(
        self, admin: Client, carla: User, video: GenerationJob
    ) -> None:
        def queries() -> int:
            with CaptureQueriesContext(connection) as made:
                admin.get(page("accounts_user_change", carla.pk))
            return len(made)

        queries()
        few = queries()
        for number in range(6):
            job = submission.submit(user=carla, prompt=f"Clip {number}", source="web")
            lifecycle._fail(GenerationJob.objects.filter(pk=job.pk), code="x", message="x")
            api_keys.issue(user=carla)
        assert queries() <= few


class TestLists:
    def test_jobs_show_poster_reason_and_what_was_charged(
        self, admin: Client, staff: User, carla: User, video: GenerationJob
    ) -> None:
        failed = submission.submit(user=carla, prompt="A red kite", source="web")
        lifecycle._fail(GenerationJob.objects.filter(pk=failed.pk), code="x", message="Out of <memory>")
        html = admin.get(page("generation_generationjob_changelist")).content.decode()
        of_failed, of_clip = re.findall(r"<tr class=\"data-row.*?</tr>", html, re.DOTALL)
        charged = re.compile(r'class="field-charge[^"]*"[^>]*>(.*?)</td>', re.DOTALL)
        assert "Out of &lt;memory&gt;" in of_failed
        assert charged.findall(of_failed)[0].strip() == "0", "the price was 50, nothing was charged"
        assert f'src="{page("generation_generationjob_poster", video.pk)}"' in of_clip
        assert re.search(r'<img [^>]*width="72" height="48"', of_clip), (
            "its place is there before the picture"
        )
        assert charged.findall(of_clip)[0].strip() == "50"
        jobs.refund(video, actor=Actor(user=staff, address="127.0.0.1"), reason="x")
        html = admin.get(page("generation_generationjob_changelist")).content.decode()
        assert charged.findall(html)[1].strip().startswith("0 ")

    def test_they_take_the_same_queries_however_many_rows_there_are(
        self, admin: Client, make_user: MakeUser, finish_job: Callable[[Any], Any]
    ) -> None:
        kinds = ("generation_generationjob", "generation_report", "accounts_credittransaction",
                 "telegram_bot_jobmessage", "accounts_auditevent")  # fmt: skip

        def queries() -> list[int]:
            counts = []
            for kind in kinds:
                with CaptureQueriesContext(connection) as made:
                    assert admin.get(page(f"{kind}_changelist")).status_code == 200
                counts.append(len(made))
            return counts

        def add(name: str) -> None:
            user = make_user(name)
            job = finish_job(submission.submit(user=user, prompt=name, source="web"))
            JobMessage.objects.create(job=job, bot_id=1, chat_id=user.pk)
            moderation.report(job=job, about="other", words="x", address="127.0.0.1")
            operations.grant(
                [user], 5, actor=Actor(user=User.objects.get(username="grace"), address="::1"), reason="x"
            )

        add("p0")
        queries()
        few = queries()
        for number in range(1, 5):
            add(f"p{number}")
        assert queries() == few

    def test_pages_speak_as_people_do(
        self, admin: Client, staff: User, carla: User, video: GenerationJob, node: GpuNode
    ) -> None:
        """No name of a column, no JSON, no bare None or dash where a word is known."""
        GpuNode.objects.update(sizes=["480x320", "720x480"])
        operations.set_limits(carla, daily_clips=3, price_factor=None, actor=Actor(staff, "::1"), reason="x")
        JobMessage.objects.create(job=video, bot_id=1, chat_id=4242)
        pages = {
            address: self.words(admin.get(address).content.decode())
            for model in admin.get(page("index")).context["available_apps"]
            for each in model["models"]
            for address in self.addresses(each)
        }
        assert len(pages) > 25
        wrong = re.compile(
            r"\b(Num |Fps\b|Url\b|Is default|None\b|\w+ at\b$|[a-z]+_[a-z_]+$)|\[['\"]|\{['\"]|\[\]|\{\}"
        )
        found = {(address, line) for address, lines in pages.items() for line in lines if wrong.search(line)}
        assert not found
        presets = " ".join(pages[page("generation_preset_changelist")])
        assert "50, the default" in presets
        assert "480×320, 720×480" in " ".join(pages[page("generation_gpunode_change", node.pk)])

    def addresses(self, each: dict[str, Any]) -> list[str]:
        row = each["model"]._default_manager.order_by("pk").last()
        change = f"{each['model']._meta.label_lower.replace('.', '_')}_change"
        return [each["admin_url"], *([page(change, row.pk)] if row else [])]

    def words(self, html: str) -> list[str]:
        main = html.partition('id="main"')[2].partition("<script src")[0]
        icons = r'<span class="[^"]*material-symbols.*?</span>'
        text = re.sub(rf"<(script|style|select)\b.*?</\1>|{icons}|<[^>]+>", "\n", main, flags=re.DOTALL)
        return [line.strip() for line in text.splitlines() if line.strip()]
