"""R11: every address of the site, taken from its URL configuration, asked for by everybody who may not have it."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from allauth.mfa.models import Authenticator
from django.apps import apps
from django.conf import settings as django_settings
from django.core.management import call_command
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.regex_helper import normalize

from accounts import api_keys
from accounts.models import ApiKey, CreditTransaction, User
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode
from telegram_bot.models import JobMessage, TelegramAccount
from tests.environment import REPOSITORY
from tests.test_sse import serving

pytestmark = pytest.mark.django_db(transaction=True)

# Stands in everything that belongs to the victim, and must stand in no answer to anybody else.
SECRET = "quokka"
# All that a visitor may see. An address that is new asks for a sign-in, or is put here with open eyes.
PUBLIC = {
    "healthz",
    "metrics",
    "dashboard",
    "start",
    "api-schema",
    "api-docs",
    "admin:login",
    "admin:logout",
    "admin:jsi18n",
    "account_login",
    "account_signup",
    "account_logout",
    "account_inactive",
    "account_reset_password",
    "account_reset_password_done",
    "account_reset_password_from_key",
    "account_reset_password_from_key_done",
    "account_confirm_email",
    "account_email_verification_sent",
    "mfa_login_webauthn",  # a challenge for a passkey, the same for everybody
    "choose_language",
    "words",
    "manifest",
    "robots",
    "security_txt",
    "about",
}
# What the admin shows to staff who may see no model: themselves, and the list of what they may see.
FOR_ALL_STAFF = {
    "admin:index",
    "admin:search",
    "admin:logout",
    "admin:login",
    "admin:jsi18n",
    "admin:password_change",
    "admin:password_change_done",
}
ANY_METHOD = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
VARYING_HEADERS = {"date", "set-cookie", "expires"}
NO_JOB = uuid.UUID(int=0)


@dataclass(frozen=True)
class Address:
    """One entry of the URL configuration; `parameters` have to be filled in."""

    name: str
    template: str
    parameters: tuple[str, ...]

    @property
    def is_admin(self) -> bool:
        return self.template.startswith("/admin/")

    @property
    def is_about_a_job(self) -> bool:
        return bool({"video_id", "job_id"} & set(self.parameters)) and not self.is_admin

    def about(self, victim: "Victim", job: uuid.UUID) -> str:
        return self.template % {name: self._value(name, victim, job) for name in self.parameters}

    def _value(self, name: str, victim: "Victim", job: uuid.UUID) -> str:
        values = {
            "video_id": f"video_{job.hex}",
            "job_id": str(job) if self.is_admin else f"video_{job.hex}",
            "key_id": str(victim.key.pk),
            "object_id": victim.row_of(self.template),
            "id": str(victim.user.pk),
            "variant": "video.mp4",
            "content_type_id": "1",
            "app_label": "accounts",
            "model": "nothing",
            "url": "nothing/",
            "uidb36": "1",
            "key": "set-password",
            "pk": victim.second_step,
            "language": "en",
            "version": "0",
            "token": "not-shared",
            "signed": "not-signed",
            "shown": "waiting",
            "request_id": "1",
            "notice_id": "1",
        }
        return values[name]


def addresses() -> list[Address]:
    """Everything that a URL leads to. The streams that Django does not serve are in front of it: `generation.sse`."""
    return [*_walk(get_resolver().url_patterns, "/", (), ""), Address("events", "/events", ())]


def _walk(
    patterns: list[URLPattern | URLResolver], template: str, parameters: tuple[str, ...], space: str
) -> Iterator[Address]:
    for entry in patterns:
        form, names = normalize(entry.pattern.regex.pattern)[0]
        here, needed = template + form, (*parameters, *names)
        if isinstance(entry, URLResolver):
            yield from _walk(
                entry.url_patterns, here, needed, f"{entry.namespace}:" if entry.namespace else space
            )
        else:
            yield Address(f"{space}{entry.name}", here, needed)


@dataclass
class Victim:
    """Somebody with everything one can have here."""

    user: User
    key: ApiKey
    secret: str
    jobs: dict[str, GenerationJob]
    second_step: str

    def row_of(self, template: str) -> str:
        """A row of the model that a page of the admin is about."""
        match = re.match(r"/admin/(\w+)/(\w+)/", template)
        row = apps.get_model(match[1], match[2])._default_manager.first() if match else None
        return str(row.pk) if row else "1"

    def state(self) -> list[Any]:
        """Everything that nobody else may change."""
        jobs = GenerationJob.objects.filter(user=self.user).order_by("pk")
        return [
            list(jobs.values_list("pk", "state", "deleted_at", "video", "prompt")),
            list(ApiKey.objects.filter(user=self.user).order_by("pk").values_list("pk", "revoked_at")),
            CreditTransaction.objects.filter(account__user=self.user).count(),
            Authenticator.objects.filter(user=self.user).count(),
            User.objects.filter(pk=self.user.pk)
            .values_list("username", "email", "password", "is_active")
            .get(),
        ]


@pytest.fixture
def victim(
    make_user: Any,
    finish_job: Callable[[Any], Any],
    start_job: Callable[[Any], Any],
    media_root: Path,
    settings: Any,
) -> Victim:
    settings.VIDEO_COOLDOWN_SECONDS, settings.MEDIA_ROOT = 0, media_root
    user = make_user(f"{SECRET}-user", email=f"{SECRET}@example.org", first_name=SECRET)

    def submit(name: str) -> GenerationJob:
        return submission.submit(
            user=user, prompt=f"{SECRET} {name}", source="api", idempotency_key=f"{SECRET}-{name}"
        )

    jobs = {name: finish_job(submit(name)) for name in ("completed", "deleted")}
    lifecycle.delete(job=jobs["deleted"])
    jobs["canceled"] = lifecycle.cancel(job=submit("canceled"))
    jobs["running"] = submit("running")
    start_job(jobs["running"])
    jobs["queued"] = submit("queued")
    key, secret = api_keys.issue(user=user, name=f"{SECRET} key")
    GpuNode.objects.update(name=f"{SECRET} node", api_key=f"{SECRET}-node-key")
    TelegramAccount.objects.create(telegram_id=424242, user=user, username=SECRET, first_name=SECRET)
    JobMessage.objects.create(job=jobs["completed"], bot_id=1, chat_id=424242, last_text=SECRET)
    passkey = Authenticator.objects.create(
        user=user, type=Authenticator.Type.WEBAUTHN, data={"name": SECRET, "credential": {}}
    )
    return Victim(user, key, secret, jobs, str(passkey.pk))


@pytest.fixture(scope="module")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def site(django_db_setup: None, media_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server that `make run` starts, with the streams in front: one for all tests here."""
    places = {"MEDIA_ROOT": str(media_root), "STATIC_ROOT": str(REPOSITORY / ".data" / "static")}
    collect = (
        "import django; django.setup(); from videoplatform.bootstrap import collect_static; collect_static()"
    )
    subprocess.run([sys.executable, "-c", collect], cwd=REPOSITORY, env={**os.environ, **places}, check=True)
    # With a token: from this machine anybody could read the metrics without one.
    with serving(tmp_path_factory.mktemp("web"), METRICS_TOKEN="long", **places) as server:
        yield server.url


@dataclass
class Visitor:
    """Somebody who asks. A session and a key at once: each door takes the one it knows."""

    name: str
    client: httpx.Client

    @property
    def methods_in_short(self) -> tuple[str, ...]:
        """In a short round, only those with a session that works try to change something."""
        return ("GET", "POST") if self.name in ("another user", "staff without rights") else ("GET",)

    def ask(self, method: str, path: str) -> httpx.Response:
        """Forms and bodies are as good as they can be, so that only the rights are in the way."""
        body = (
            {"json": {"prompt": "something else"}}
            if path.startswith("/v1/")
            else {"data": {"prompt": "x", "reason": "x"}}
        )
        content = body if method in ("POST", "PUT", "PATCH") else {}
        with self.client.stream(method, path, **content) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return answer  # one's own events, of which there are none; the stream itself never ends
            answer.read()
            return answer


def session_of(user: User) -> str:
    client = Client()
    client.force_login(user)
    return client.cookies[django_settings.SESSION_COOKIE_NAME].value


@pytest.fixture
def visitors(site: str, victim: Victim, make_user: Any) -> Iterator[dict[str, Visitor]]:
    other, inactive = make_user("mallory"), make_user("zoe")
    actor = make_user("actor", is_staff=True)
    revoked, revoked_secret = api_keys.issue(user=victim.user)
    api_keys.revoke(key=revoked)
    credentials = {
        "anonymous": (None, None),
        "another user": (session_of(other), api_keys.issue(user=other)[1]),
        "revoked key": (None, revoked_secret),
        "inactive user": (session_of(inactive), api_keys.issue(user=inactive)[1]),
        "staff without rights": (session_of(actor), api_keys.issue(user=actor)[1]),
    }
    User.objects.filter(pk=inactive.pk).update(is_active=False)
    token = "t" * 32
    opened = {}
    for name, (session, key) in credentials.items():
        headers = {"X-CSRFToken": token} | ({"Authorization": f"Bearer {key}"} if key else {})
        cookies = {"csrftoken": token} | ({django_settings.SESSION_COOKIE_NAME: session} if session else {})
        opened[name] = Visitor(
            name, httpx.Client(base_url=site, headers=headers, cookies=cookies, timeout=30)
        )
    yield opened
    for visitor in opened.values():
        visitor.client.close()


def is_refused(answer: httpx.Response) -> bool:
    to_sign_in = answer.status_code == 302 and "/login/" in answer.headers["location"]
    return to_sign_in or answer.status_code in (401, 403, 404, 405, 410)


def complaints_about(
    visitor: Visitor, address: Address, method: str, answer: httpx.Response
) -> Iterator[str]:
    """Name what an answer gives away, or lets the visitor do."""
    told = f"{visitor.name} {method} {address.template}: {answer.status_code}"
    if answer.status_code >= 500:
        yield told
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        shown = answer.text + str(answer.headers)
        if SECRET in shown.lower():
            yield f"{told} shows what is somebody else's: …{shown[max(0, shown.lower().find(SECRET) - 60) :][:120]!r}"
    nobody = visitor.name in ("anonymous", "revoked key", "inactive user")
    stranger = nobody or (address.is_admin and visitor.name != "staff without rights")
    if stranger and address.name not in PUBLIC and not is_refused(answer):
        yield f"{told} is not refused"
    for_staff = address.is_admin and address.name not in FOR_ALL_STAFF
    # OPTIONS tells nothing but the methods there are.
    if visitor.name == "staff without rights" and for_staff and answer.is_success and method != "OPTIONS":
        yield f"{told} is shown to staff who may see nothing"


def anonymised(answer: httpx.Response, job: uuid.UUID) -> tuple[int, dict[str, str], str]:
    """Everything about an answer but the id that was asked for, which is the client's own."""

    def plain(text: str) -> str:
        return text.replace(job.hex, "ID").replace(str(job), "ID")

    headers = {name: plain(value) for name, value in answer.headers.items() if name not in VARYING_HEADERS}
    return answer.status_code, headers, plain(answer.text)


def test_nobody_gets_what_is_not_theirs(
    victim: Victim, visitors: dict[str, Visitor], amount: Callable[[int, int], int], score: Callable[..., Any]
) -> None:
    everything = addresses()
    row = score(
        "R11",
        test="every address by everybody who may not have it",
        load=f"{len(everything)} addresses × {len(visitors)} visitors × up to {amount(len(ANY_METHOD), 2)} methods",
        faults=", ".join(visitors),
        bar="nothing leaks, nothing changes; the admin is for staff, each page for those who may see it",
    )
    before, jobs = victim.state(), GenerationJob.objects.exclude(user=victim.user)
    found, asked = [], 0
    for visitor in visitors.values():
        for address in everything:
            for method in ANY_METHOD if amount(1, 0) else visitor.methods_in_short:
                if address.name in ("account_logout", "admin:logout", "submit") and method == "POST":
                    continue  # would end the visitor's own session; a clip of one's own is theirs
                answer = visitor.ask(method, address.about(victim, victim.jobs["completed"].pk))
                found += complaints_about(visitor, address, method, answer)
                asked += 1
    assert not found, "\n".join([f"{len(found)} leaks", *found])
    assert victim.state() == before, "somebody changed what is not theirs"
    assert all(job.remixed_from_id is None for job in jobs)
    call_command("audit_credits")
    row.result = f"{asked} requests: nothing leaked, nothing changed"
    row.passed = True


def test_somebody_elses_video_is_the_same_404_as_none(
    victim: Victim, visitors: dict[str, Visitor], amount: Callable[[int, int], int], score: Callable[..., Any]
) -> None:
    states = list(victim.jobs) if amount(1, 0) else ["completed", "queued"]
    methods = ANY_METHOD if amount(1, 0) else ("GET", "POST", "DELETE")
    about_a_job = [address for address in addresses() if address.is_about_a_job]
    assert {address.name for address in about_a_job} >= {
        "api-events",
        "api-remix",
        "video_file",
        "poster_file",
    }
    row = score(
        "R11",
        test="another user's video, by API, site and stream",
        load=f"{len(about_a_job)} addresses, a video that is {', '.join(states)}",
        faults=", ".join(visitors),
        bar="status, headers and body are those of a video that never was",
    )
    before, compared = victim.state(), 0
    for visitor in visitors.values():
        for address in about_a_job:
            for method in methods:
                none = anonymised(visitor.ask(method, address.about(victim, NO_JOB)), NO_JOB)
                for state in states:
                    job = victim.jobs[state].pk
                    theirs = anonymised(visitor.ask(method, address.about(victim, job)), job)
                    assert theirs == none, f"{visitor.name} {method} {address.template} of a {state} video"
                    compared += 1
    compared += _compare_mentions(victim, visitors["another user"])
    assert victim.state() == before
    row.result = f"{compared} pairs of answers, all equal"
    row.passed = True


def _compare_mentions(victim: Victim, visitor: Visitor) -> int:
    """Ids in queries and forms instead of the path; how many pairs were compared."""
    job, entry = (
        victim.jobs["completed"].pk,
        CreditTransaction.objects.filter(account__user=victim.user).latest("id").pk,
    )
    pairs = [
        (f"/v1/videos?after=video_{job.hex}", f"/v1/videos?after=video_{NO_JOB.hex}"),
        (f"/v1/credits?after={entry}", f"/v1/credits?after={2**62}"),
        (f"/?remix=video_{job.hex}", f"/?remix=video_{NO_JOB.hex}"),
        (f"/?remix={job}", f"/?remix={NO_JOB}"),
    ]
    for theirs, none in pairs:
        first, second = visitor.ask("GET", theirs), visitor.ask("GET", none)
        assert first.status_code == 404
        assert anonymised(first, job) == anonymised(second, NO_JOB), theirs
    return len(pairs)


def test_an_idempotency_key_is_ones_own(victim: Victim, visitors: dict[str, Visitor]) -> None:
    mine = visitors["another user"].client.post(
        "/v1/videos",
        json={"prompt": f"{SECRET} completed"},
        headers={"Idempotency-Key": f"{SECRET}-completed"},
    )
    assert mine.status_code == 200
    assert mine.json()["id"] != victim.jobs["completed"].public_id


def test_nobody_hears_of_somebody_elses_video(victim: Victim, visitors: dict[str, Visitor]) -> None:
    """The victim's video is canceled and then one's own: only the second is told, by either door."""
    visitor = visitors["another user"]
    mine = visitor.client.post("/v1/videos", json={"prompt": "mine"}).json()["id"]
    with visitor.client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        heard = [next(line for line in lines if mine.removeprefix("video_") in line)]
        lifecycle.cancel(job=victim.jobs["queued"])
        lifecycle.cancel(job=GenerationJob.objects.get(pk=uuid.UUID(mine.removeprefix("video_"))))
        for line in lines:
            heard.append(line)
            if "Canceled" in line:
                break
    told = "\n".join(heard)
    assert "canceled" in told
    assert SECRET not in told
    assert not any(job.pk.hex in told for job in victim.jobs.values())


def test_what_is_private_is_kept_by_no_shared_cache(victim: Victim, site: str) -> None:
    job = f"video_{victim.jobs['completed'].pk.hex}"
    cookies = {django_settings.SESSION_COOKIE_NAME: session_of(victim.user)}
    with httpx.Client(base_url=site, cookies=cookies) as owner:
        assert SECRET in owner.get("/").text  # what the tests above look for is there to be seen
        for path in (
            "/",
            "/credits/",
            "/api-keys/",
            f"/videos/{job}/",
            f"/videos/{job}/video.mp4",
            f"/videos/{job}/poster.jpg",
        ):
            answer = owner.get(path)
            assert answer.status_code == 200, path
            assert "private" in answer.headers["cache-control"], path
            assert answer.headers["x-frame-options"] == "DENY", path
            assert answer.headers["x-content-type-options"] == "nosniff", path
