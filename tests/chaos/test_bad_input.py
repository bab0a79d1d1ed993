"""R10: bad input through every door: no answer of 5xx, every refusal says why, and nothing is held for one."""

import contextlib
import http.client
import json
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import hypothesis
import schemathesis
from schemathesis import GenerationMode

from tests import web
from tests.chaos.bad_inputs import (
    COMMANDS,
    MESSAGES,
    ODD_SENDERS,
    ODD_UPDATES,
    Input,
    admin_inputs,
    api_inputs,
    web_inputs,
    wire_inputs,
)
from tests.chaos.conftest import SEED
from tests.chaos.platform import Platform
from tests.processes import wait_for

PATIENCE = 20.0
PASSWORD = "a long enough password"
TROUBLE = "Something went wrong"  # what the bot says where a web server says 500


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    body: bytes


@dataclass
class Wire:
    """Sends bytes that no client library would send."""

    url: str
    extra: tuple[str, ...] = ()  # who asks
    sent: int = 0
    complaints: list[str] = field(default_factory=list)

    def send(self, asked: Input) -> Answer:
        where = urlsplit(self.url)
        names = {line.partition(":")[0].lower() for line in asked.headers}
        lines = [f"{asked.method} {asked.target} HTTP/1.1", *asked.headers]
        lines += [] if "host" in names else [f"Host: {where.netloc}"]
        lines += [line for line in self.extra if line.partition(":")[0].lower() not in names]
        if not names & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(asked.body)}")
        head = "\r\n".join([*lines, "Connection: close"]).encode("latin-1") + b"\r\n\r\n"
        with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as connection:
            # It may have answered already, without reading all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(head + asked.body)
            answer = http.client.HTTPResponse(connection, method=asked.method)
            answer.begin()
            return Answer(answer.status, answer.getheader("Content-Type") or "", answer.read())

    def attack(self, asked: Input) -> None:
        """Send it, and note what is wrong with the answer."""
        self.sent += 1
        try:
            complaint = judge(asked, self.send(asked))
        except (OSError, http.client.HTTPException) as error:
            complaint = f"no answer: {error!r}"
        if complaint:
            self.complaints.append(f"{complaint}  <-  {asked}")


def judge(asked: Input, answer: Answer) -> str | None:
    """Name what is wrong with the answer; None when nothing is."""
    if answer.status >= 500:
        return f"{answer.status} {answer.body[:100]!r}"
    if answer.status < 400 or not asked.parsed or asked.method == "HEAD":
        return None
    if asked.is_api:
        return (
            None
            if has_code_and_message(answer.body)
            else f"{answer.status} without a reason: {answer.body[:100]!r}"
        )
    # Only a program asks with another method than the page's own form, and gets the status alone.
    is_page = answer.status == 405 or "html" in answer.kind or asked.target.startswith("/events")
    return None if is_page else f"{answer.status} is no page but {answer.kind}: {answer.body[:100]!r}"


def has_code_and_message(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return all(isinstance(error.get(name), str) and error[name] for name in ("code", "message"))


# --- Telegram -------------------------------------------------------------------------------------------------------


def attack_the_bot(platform: Platform) -> tuple[int, list[str]]:
    """Each from a person of their own, all at once; the number of inputs, and the people who got no good answer."""
    telegram = platform.telegram
    for update in ODD_UPDATES:
        telegram.push(update)
    asked = {500_000 + number: text for number, text in enumerate(MESSAGES)}
    for sender, text in asked.items():
        telegram.say(text, sender=sender)
    for number, facts in enumerate(ODD_SENDERS):
        asked[600_000 + number] = f"/start from {facts!a:.40}"
        telegram.say("/start", sender=600_000 + number, **facts)
    wait_for(
        lambda: all(telegram.shown(sender) for sender in asked),
        seconds=90,
        message="somebody was not answered",
    )
    said = {sender: " ".join(message.text for message in telegram.shown(sender)) for sender in asked}
    complaints = [f"bot: {asked[sender]!a:.60} -> {text}" for sender, text in said.items() if TROUBLE in text]
    return len(asked) + len(ODD_UPDATES), complaints


# --- Commands ---------------------------------------------------------------------------------------------------------

RUN_COMMANDS = """
import io, json, os
from django.core.management import CommandError, call_command
broken = []
for words in json.loads(os.environ["COMMANDS"]):
    try:
        call_command(*words, stdout=io.StringIO(), stderr=io.StringIO())
        broken.append([words, "was not refused"])
    except CommandError as error:
        if not str(error).strip():
            broken.append([words, "no reason"])
    except BaseException as error:
        broken.append([words, repr(error)[:200]])
print("BROKEN" + json.dumps(broken))
"""


def attack_the_commands(platform: Platform) -> list[str]:
    """All in one process: what is no CommandError would be a traceback for the person at the terminal."""
    platform.environment["COMMANDS"] = json.dumps(COMMANDS)
    try:
        told = platform.manage("shell", "-v", "0", "-c", RUN_COMMANDS)
    finally:
        del platform.environment["COMMANDS"]
    return [f"command {words!a:.100}: {why}" for words, why in json.loads(told.rpartition("BROKEN")[2])]


# --- The tests --------------------------------------------------------------------------------------------------------


def signed_up(platform: Platform, name: str) -> tuple[str, ...]:
    """The headers of a new person's browser."""
    with httpx.Client(base_url=platform.url, timeout=PATIENCE) as browser:
        browser.get("/accounts/signup/")
        form = {"username": name, "password1": PASSWORD, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        assert browser.post("/accounts/signup/", data=form).status_code == 302, platform.log_tail()
        cookies = dict(browser.cookies)
    return (
        f"Cookie: {'; '.join(f'{k}={v}' for k, v in cookies.items())}",
        f"X-CSRFToken: {cookies['csrftoken']}",
    )


def what_was_accepted(platform: Platform) -> list[tuple[Any, ...]]:
    """Every job and every movement of credits but the gifts for signing up, and what plain words to the bot ordered:
    to it they are a prompt.
    """
    jobs = "SELECT {} FROM generation_generationjob WHERE source {} 'telegram'"
    moved = (
        "SELECT count(*) FROM accounts_credittransaction "
        "WHERE kind <> 'grant' AND (reference IS NULL OR reference NOT IN ({}))"
    )
    return platform.sql(f"SELECT ({jobs.format('count(*)', '<>')}), ({moved.format(jobs.format('id', '='))})")


def test_bad_input_is_refused_with_a_reason_at_every_door(
    platform_under_fire: Platform, amount: Callable[[int, int], int], rng: random.Random, score: Any
) -> None:
    platform = platform_under_fire
    row = score(
        "R10",
        test="bad input through REST, site, admin, bot and commands",
        load="each input once, in random order",
        faults="NUL, surrogates, wrong types, deep nesting, 10 MB, odd charsets, forged headers, hardly HTTP",
        bar="at least 250 inputs, 0 answers of 5xx, each 4xx has code and message, nothing held",
    )
    person, staff = signed_up(platform, f"mallory{SEED}"), signed_up(platform, f"grace{SEED}")
    platform.sql(
        "UPDATE accounts_user SET is_staff = true, is_superuser = true WHERE username = %s", f"grace{SEED}"
    )
    platform.wait_until_idle(seconds=60)
    before = what_was_accepted(platform)
    wires = []
    key = (f"Authorization: Bearer {platform.keys[0]}",)
    for inputs, who in ((api_inputs, key), (wire_inputs, ()), (web_inputs, person), (admin_inputs, staff)):
        wire = Wire(platform.url, who)
        everything = list(inputs())
        for asked in rng.sample(everything, amount(len(everything), len(everything) // 3)):
            wire.attack(asked)
        wires.append(wire)
    bot_inputs, complaints = attack_the_bot(platform)
    complaints += [complaint for wire in wires for complaint in wire.complaints] + attack_the_commands(
        platform
    )
    assert not complaints, "\n".join([f"{len(complaints)} bad answers", *complaints])
    assert what_was_accepted(platform) == before, "something was held for what was refused"
    platform.check_books()
    inputs_sent = sum(wire.sent for wire in wires) + bot_inputs + len(COMMANDS)
    assert inputs_sent >= 250
    row.result = f"{inputs_sent} inputs, 0 answers of 5xx, each refusal with its reason, nothing held"
    row.passed = True


def test_whatever_the_schema_allows_or_forbids_is_answered(
    platform_under_fire: Platform, amount: Callable[[int, int], int], score: Any
) -> None:
    platform, examples = platform_under_fire, amount(60, 3)
    row = score(
        "R10",
        test="schemathesis on /v1/schema against the running platform",
        load=f"{examples} good and {examples} bad requests for each operation",
        faults="whatever hypothesis thinks of",
        bar="0 answers of 5xx, each 4xx has code and message",
    )
    ended = an_ended_video(platform)
    schema, sent = schemathesis.openapi.from_url(f"{platform.url}/v1/schema"), 0
    for found in schema.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            sent += fuzz(platform, found.ok(), mode, examples=examples, ended=ended)
    cancel_what_was_made(platform)
    platform.check_books()
    row.result = f"{sent} requests, 0 answers of 5xx, each refusal with its reason"
    row.passed = True


def an_ended_video(platform: Platform) -> str:
    """So that requests about a video are not all about none. Its event stream ends at once."""
    video = platform.submit(0, key=f"ended-{SEED}")
    web.post(f"{platform.url}/v1/videos/{video}/cancel", headers=bearer(platform), timeout=PATIENCE)
    wait_for(lambda: platform.status(video) in ("failed", "completed"))
    return video


def bearer(platform: Platform) -> dict[str, str]:
    return {"Authorization": f"Bearer {platform.keys[0]}"}


def fuzz(platform: Platform, operation: Any, mode: GenerationMode, *, examples: int, ended: str) -> int:
    """Requests for one operation; how many were sent."""
    sent = 0

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def attack(case: schemathesis.Case) -> None:
        nonlocal sent
        sent += 1
        if sent % 2 and "video_id" in (case.path_parameters or {}) and case.method != "DELETE":
            case.path_parameters["video_id"] = ended
        answer = case.call(headers=bearer(platform), timeout=PATIENCE)
        assert answer.status_code < 500, f"{answer.status_code} {case.as_curl_command()}"
        if answer.status_code >= 400 and case.method != "HEAD":
            assert has_code_and_message(answer.content), f"{answer.content[:200]!r} {case.as_curl_command()}"

    attack()
    return sent


def cancel_what_was_made(platform: Platform) -> None:
    """The requests that were good have made jobs."""
    made = platform.sql("SELECT id FROM generation_generationjob WHERE finished_at IS NULL")
    for (job,) in made:
        web.post(
            f"{platform.url}/v1/videos/video_{job.hex}/cancel", headers=bearer(platform), timeout=PATIENCE
        )
    platform.wait_until_idle(seconds=120)
