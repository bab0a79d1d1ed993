"""People attack the service over its own doors, each in a bounded round; a customer uses the site meanwhile."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.attack.conftest import Target
from tests.bot_api_server import Message
from tests.chaos.bad_inputs import ODD_UPDATES
from tests.field_node import FieldNode
from tests.processes import wait_for

PASSWORD = "a long enough password"
# Requests that one attacker has under way at once. More would measure the attacker, who shares the machine.
HANDS = 6


def visitor(target: Target, address: str, **options: Any) -> httpx.Client:
    """A browser or program at an address of its own."""
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=target.url, transport=transport, timeout=30, **options)


def post_form(browser: httpx.Client, page: str, **fields: str) -> httpx.Response:
    """Fill in the form of a page; its token comes from a cookie, as in a real browser."""
    if "csrftoken" not in browser.cookies:
        browser.get(page)
    token = browser.cookies.get("csrftoken", "")
    return browser.post(page, data={"csrfmiddlewaretoken": token, **fields})


def at_once(work: Callable[[int], Any], times: int) -> list[Any]:
    with ThreadPoolExecutor(HANDS) as hands:
        return list(hands.map(work, range(times)))


def count(statuses: list[int]) -> str:
    return ", ".join(f"{statuses.count(status)} × {status}" for status in sorted(set(statuses)))


def test_guesses(target: Target, attack: Any, amount: Any) -> None:
    """Passwords are guessed for one name and over many, at both addresses that look like a sign-in."""
    guesses = amount(300, 25)
    tried = f"{guesses} wrong passwords for one name, {guesses} names with one password, {guesses} at /admin/login/"
    with attack("guesses", tried) as row, visitor(target, "127.1.0.1") as thief:
        page, admin = "/accounts/login/", "/admin/login/"
        thief.get(page)
        one = at_once(
            lambda n: post_form(thief, page, login="victim", password=f"wrong {n}").status_code, guesses
        )
        names = at_once(
            lambda n: post_form(thief, page, login=f"name{n}", password=PASSWORD).status_code, guesses
        )
        doors = at_once(
            lambda n: post_form(thief, admin, username="victim", password=PASSWORD).status_code, guesses
        )
        assert max(one + names + doors) < 500 or set(one + names + doors) <= {200, 302, 403, 405, 429, 503}
        checked = one.count(200)
        assert checked <= 30, f"{checked} guesses were checked"
        assert names.count(200) <= 60, f"{names.count(200)} guesses were checked"
        right = post_form(thief, page, login="victim", password=PASSWORD)
        assert right.status_code != 302, "even the right password is not taken from there now"
        assert "sessionid" not in thief.cookies
        with visitor(target, "127.1.0.2") as owner:
            own = post_form(owner, page, login="victim", password=PASSWORD)
            assert own.status_code == 302, "the owner is locked out"
        row.held = (
            f"one name: {count(one)}; many names: {count(names)}; the admin's address checks no password "
            f"({count(doors)}); the owner, elsewhere, signs in"
        )


def test_floods(target: Target, attack: Any, amount: Any) -> None:
    """More requests than anyone has use for: wrong keys, one right key, sign-ins at once by clients that leave."""
    requests, at_a_time = amount(1500, 80), amount(60, 10)
    tried = (
        f"{requests} requests with wrong keys, {requests} creates with one key, {at_a_time} sign-ins at once"
    )
    key = target.manage("create_api_key", "victim").strip()
    with attack("floods", tried) as row, visitor(target, "127.2.0.1") as flood:
        flood.get("/accounts/login/")

        def wrong(n: int) -> int:
            return flood.get("/v1/videos", headers={"Authorization": f"Bearer wrong{n}"}).status_code

        def create(_: int) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return flood.post("/v1/videos", json={"prompt": "a red ball"}, headers=headers).status_code

        refused, made = at_once(wrong, requests), at_once(create, requests)
        signed_in = at_once(
            lambda n: post_form(flood, "/accounts/login/", login=f"flood{n}", password="x" * 50).status_code,
            at_a_time,
        )
        assert set(refused) <= {401, 429}
        assert 429 in refused
        assert set(made) <= {200, 202, 402, 429, 503}
        assert made.count(200) + made.count(202) <= 10
        assert set(signed_in) <= {200, 429, 503}
        row.held = f"wrong keys: {count(refused)}; creates: {count(made)}; sign-ins: {count(signed_in)}"


@contextmanager
def slow_readers(target: Target, address: str, path: str, number: int) -> Iterator[list[socket.socket]]:
    """Connections that ask for a file and do not read the answer."""
    place = (urlsplit(target.url).hostname, urlsplit(target.url).port)
    with ExitStack() as open_ones:
        readers = []
        for _ in range(number):
            reader = open_ones.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.bind((address, 0))
            reader.settimeout(5)
            reader.connect(place)
            reader.sendall(f"GET {path} HTTP/1.1\r\nHost: {place[0]}\r\n\r\n".encode())
            readers.append(reader)
        yield readers


def test_slow_readers(target: Target, attack: Any, amount: Any) -> None:
    """Connections that never read what they asked for, and heads that never end."""
    number, heads = amount(200, 40), amount(200, 40)
    page = httpx.get(f"{target.url}/v1/docs", follow_redirects=True).text
    scripts = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    plain = {"Accept-Encoding": "identity"}
    sizes = {path: len(httpx.get(target.url + path, headers=plain).content) for path in scripts}
    path, size = max(sizes.items(), key=lambda item: item[1])
    tried = f"{number} connections that do not read a file of {size // 1024} kB, {heads} heads that never end"
    with attack("slow readers", tried) as row:
        before = [(web.memory_info().rss, web.num_threads()) for web in target.web_processes()]
        place = (urlsplit(target.url).hostname, urlsplit(target.url).port)
        with slow_readers(target, "127.3.0.1", path, number), ExitStack() as open_ones:
            for _ in range(heads):
                head = open_ones.enter_context(socket.socket())
                head.bind(("127.3.0.2", 0))
                head.connect(place)
                head.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
            time.sleep(amount(10, 2))
            after = [(web.memory_info().rss, web.num_threads()) for web in target.web_processes()]
        grown = sum(rss for rss, _ in after) - sum(rss for rss, _ in before)
        threads = sum(number for _, number in after) - sum(number for _, number in before)
        assert len(before) == len(after)
        assert grown < 100 * 2**20, f"{grown / 2**20:.0f} MB"
        assert threads <= 20, f"{threads} threads"
        row.held = f"web processes grew by {grown / 2**20:.0f} MB and {threads} threads"


def said(target: Target, sender: int, text: str, needle: str) -> Message:
    """Write to the bot, and wait for a message with these words."""
    before = {message.message_id for message in target.telegram.shown(sender)}
    target.telegram.say(text, sender=sender)

    def answered() -> Message | None:
        new = [m for m in target.telegram.shown(sender) if m.message_id not in before]
        return next(
            (m for m in new if needle in m.text or any(needle in str(row) for row in m.buttons)), None
        )

    return wait_for(answered, message=f"no answer to {text}: {target.telegram.shown(sender)}")


def close_account(target: Target, browser: httpx.Client, name: str) -> None:
    answer = post_form(browser, "/account/delete/", proof=name)
    assert "deleted" in answer.text, answer.text[:500]


def test_farming(target: Target, attack: Any, amount: Any) -> None:
    """Free credits are collected by new accounts: in Telegram again and again, and on the web from one address."""
    rounds, accounts = amount(5, 2), amount(41, 8)
    tried = f"/start and closing the account, {rounds} times; {accounts} web accounts from one address"
    with attack("farming", tried) as row:
        before = target.credits_made()
        for _ in range(rounds):
            said(target, 4001, "/start", "credits")
            link = said(target, 4001, "/login", "/telegram/login/")
            path = re.search(r"/telegram/login/[\w-]+/", link.text + str(link.buttons))[0]
            with visitor(target, "127.4.0.1") as browser:
                page = browser.get(path)
                name = re.search(r"<strong>([^<]+)</strong>", page.text)
                assert post_form(browser, path).status_code == 302
                close_account(target, browser, name[1])
        in_telegram = target.credits_made() - before
        assert in_telegram == 500, f"{in_telegram} credits in {rounds} rounds"

        def sign_up(n: int) -> int:
            with visitor(target, "127.4.0.2") as browser:
                fields = {"username": f"farmer{n}", "password1": PASSWORD}
                return post_form(browser, "/accounts/signup/", **fields).status_code

        statuses = [sign_up(n) for n in range(accounts)]
        on_the_web = target.credits_made() - before - in_telegram
        assert on_the_web <= 5 * 500, f"{on_the_web} credits from one address"
        assert set(statuses) <= {302, 429, 200}
        row.held = f"in Telegram 500 credits once; on the web {on_the_web} credits ({count(statuses)})"


def test_forged_callbacks(target: Target, attack: Any, amount: Any) -> None:
    """Calls that claim to come from Telegram, from a mail, from a cookie, or from another's button."""
    times = amount(200, 5)
    tried = (
        f"{times} of each: webhook calls, sign-in links, share links, mail links, sessions, payments, buttons"
    )
    with attack("forged callbacks", tried) as row, visitor(target, "127.5.0.1") as forger:
        update = {
            "update_id": 1,
            "message": {"message_id": 1, "date": 1, "text": "/start", "chat": {"id": 1}},
        }
        answers: dict[str, set[int]] = {}

        def forge(what: str, send: Callable[[int], int]) -> None:
            answers[what] = {send(n) for n in range(times)}

        header = "X-Telegram-Bot-Api-Secret-Token"
        forge(
            "webhook",
            lambda n: forger.post("/telegram/webhook", json=update, headers={header: f"{n:064}"}).status_code,
        )
        forge("sign-in link", lambda n: forger.get(f"/telegram/login/{n:043}/").status_code)
        forge("video link", lambda n: forger.get(f"/telegram/video/{n}:x:forged/").status_code)
        forge("share link", lambda n: forger.get(f"/s/{n:022}/").status_code)
        forge("mail link", lambda n: forger.get(f"/accounts/confirm-email/MTo{n}:x:y/").status_code)
        forge("reset link", lambda n: forger.get(f"/accounts/password/reset/key/{n}-x-y/").status_code)
        forge(
            "session",
            lambda n: forger.get("/account/", headers={"Cookie": f"sessionid={n:032}"}).status_code,
        )
        assert answers.pop("session") == {302}
        assert answers["webhook"] <= {403, 404, 429}
        assert not {200, 302} & set.union(
            *(answers[name] for name in ("sign-in link", "video link", "share link"))
        )
        assert "sessionid" not in forger.cookies
        before = target.credits_made()
        paid = target.sql("SELECT count(*) FROM accounts_credittransaction WHERE kind = 'purchase'")
        said(target, 5001, "/start", "credits")
        welcome = target.telegram.shown(5001)[-1]
        for n in range(amount(20, 5)):  # all of one chat, which are answered one by one
            target.telegram.press_data(welcome, f"cancel:{n:032x}", sender=5001)
            target.telegram.charge(f"forged{n}", 1, payer=5001)
        said(target, 5001, "/balance", "500")
        assert target.credits_made() - before <= 500
        assert paid == target.sql("SELECT count(*) FROM accounts_credittransaction WHERE kind = 'purchase'")
        row.held = (
            "refused: " + ", ".join(sorted(answers)) + ", sessions; a payment of no invoice buys nothing"
        )


def test_hostile_node(target: Target, attack: Any, amount: Any) -> None:
    """A node that lies, hangs, redirects to where it must not and sends what is no video."""
    faults = [
        "redirect",
        "download_redirect",
        "huge_json",
        "endless",
        "traversal",
        "unplayable",
        "html200",
        "hang",
    ]
    faults = faults[: amount(8, 2)]
    key = target.manage("create_api_key", "customer").strip()
    headers = {"Authorization": f"Bearer {key}"}
    tried = "a node that does, one after the other: " + ", ".join(faults)
    with FieldNode.start() as hostile, attack("hostile node", tried) as row:
        script = (
            "from generation.models import GpuNode;"
            f"GpuNode.objects.create(name='hostile', base_url={hostile.url!r}, api_key={hostile.key!r})"
        )
        target.manage("shell", "--no-imports", "-c", script)
        with visitor(target, "127.6.0.1", headers=headers) as api:
            videos = []
            for fault in faults:
                hostile.set_fault(fault)
                target.sql(
                    "UPDATE generation_gpunode SET leave_alone_until = NULL, set_aside_at = NULL, next_canary_at = NULL"
                )
                target.sql("UPDATE generation_generationjob SET created_at = created_at - interval '1 hour'")
                answer = api.post("/v1/videos", json={"prompt": f"under {fault}"})
                assert answer.status_code < 300, answer.text
                videos.append(answer.json()["id"])
            wait_for(
                lambda: all(
                    api.get(f"/v1/videos/{video}").json()["status"] in ("completed", "failed")
                    for video in videos
                ),
                seconds=amount(300, 100),
                message="a job is stuck",
                every=1.0,
            )
            ends = [api.get(f"/v1/videos/{video}").json()["status"] for video in videos]
        target.manage("audit_credits")
        asked = [line for line in hostile.requests() if "169.254" in str(line)]
        assert asked == []
        made, failed = ends.count("completed"), ends.count("failed")
        row.held = f"{made} videos were made elsewhere, {failed} failed and cost nothing"
    target.sql("UPDATE generation_gpunode SET enabled = false WHERE name = 'hostile'")


def test_hostile_update(target: Target, attack: Any, amount: Any) -> None:
    """Updates that no honest client sends, in numbers, and one person who writes without end."""
    rounds, messages = amount(20, 1), amount(500, 10)
    tried = f"{rounds * len(ODD_UPDATES)} malformed updates, {messages} commands of one person, 4 MB of text"
    with attack("hostile update", tried) as row:
        for _ in range(rounds):
            for update in ODD_UPDATES:
                target.telegram.push(update)
        target.telegram.say("x" * 4_000_000, sender=7001)
        for n in range(messages):
            target.telegram.say("/balance" if n % 2 else "/video " + "x" * 300, sender=7001)
        begun = time.monotonic()
        said(target, 7002, "/balance", "credits")
        seconds = time.monotonic() - begun
        assert psutil.pid_exists(target.pid_of("bot"))
        row.held = f"the bot answered another person within {seconds:.1f} s"
