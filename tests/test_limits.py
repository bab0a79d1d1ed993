"""Limits on how often, and the one sign-in: through the pages, the API, and many hands at once."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse

from accounts import api_keys, auth, limits
from accounts.models import RateLimit, User

PASSWORD = "a long enough password"
SIGN_IN = "/accounts/login/"


def visitor(address: str = "192.0.2.1") -> Client:
    return Client(REMOTE_ADDR=address)


def guess(client: Client, name: str = "ada", password: str = "wrong") -> int:
    return client.post(SIGN_IN, {"login": name, "password": password}).status_code


@pytest.fixture(autouse=True)
def _few(settings: Any) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {
        "sign_in": (1000, 60),
        "guess": (3, 600),
        "guess_network": (6, 600),
        "guess_name": (8, 600),
        "guess_device": (4, 600),
    }


class TestGuesses:
    def test_one_network_guesses_a_name_three_times(self, user: User) -> None:
        thief = visitor()
        assert [guess(thief) for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = thief.post(SIGN_IN, {"login": "ada", "password": PASSWORD})
        assert (refused.status_code, int(refused["Retry-After"]) in range(150, 202)) == (429, True)
        assert guess(visitor("192.0.2.2"), password=PASSWORD) == 302, "the owner is not locked out"

    def test_many_names_from_one_network(self, user: User) -> None:
        thief = visitor()
        assert [guess(thief, f"name{n}") for n in range(8)] == [200] * 6 + [429] * 2

    def test_a_network_of_ipv6_is_a_64(self, user: User) -> None:
        codes = [guess(visitor(f"2001:db8::{n}")) for n in range(4)]
        assert codes == [200, 200, 200, 429]
        assert guess(visitor("2001:db8:0:1::1")) == 200

    def test_addresses_of_ipv4_on_a_socket_of_ipv6_are_each_their_own(self, user: User) -> None:
        assert [guess(visitor(f"::ffff:192.0.2.{n}")) for n in range(5)] == [200] * 5

    def test_all_networks_together_lock_out_strangers_but_no_known_device(self, user: User) -> None:
        own = visitor("192.0.2.99")
        assert guess(own, password=PASSWORD) == 302
        own.post("/accounts/logout/")
        assert [guess(visitor(f"192.0.2.{n}")) for n in range(10)] == [200] * 8 + [429] * 2
        assert guess(visitor("192.0.2.77"), password=PASSWORD) == 429
        assert guess(own, "ADA") == 200
        assert guess(own, password=PASSWORD) == 302

    def test_a_known_device_is_limited_as_well_and_knows_its_own_names_only(
        self, user: User, make_user: Any
    ) -> None:
        make_user("bob")
        own = visitor()
        guess(own, password=PASSWORD)
        own.post("/accounts/logout/")
        assert [guess(own) for _ in range(5)] == [200] * 4 + [429]
        assert [guess(own, "bob") for _ in range(4)] == [200] * 3 + [429]

    def test_right_passwords_are_no_guesses(self, user: User) -> None:
        for n in range(12):
            assert guess(visitor(), password=PASSWORD) == 302, n

    @pytest.mark.parametrize("cookie", ["", "x", "x:y:z", "é"])
    def test_a_forged_device_is_a_stranger(self, user: User, cookie: str) -> None:
        thief = visitor()
        thief.cookies["device"] = cookie
        assert [guess(thief) for _ in range(4)] == [200, 200, 200, 429]


@pytest.mark.django_db(transaction=True)
def test_tries_that_come_at_once_are_all_counted(settings: Any) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"form": (5, 600)}

    def once(_: int) -> bool:
        try:
            limits.take("form", "one source")
        except limits.TooOften:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as hands:
        assert sum(hands.map(once, range(40))) == 5


def test_the_allowance_comes_back_bit_by_bit_and_old_rows_go(db: None, settings: Any) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"form": (2, 600)}
    for _ in range(2):
        limits.take("form", "source")
    with pytest.raises(limits.TooOften) as error:
        limits.take("form", "source")
    assert 295 < error.value.seconds <= 301
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_ratelimit SET free_at = free_at - interval '301 s'")
    limits.take("form", "source")
    with pytest.raises(limits.TooOften):
        limits.take("form", "source")
    assert limits.prune() == 0
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_ratelimit SET free_at = free_at - interval '1 hour'")
    assert (limits.prune(), RateLimit.objects.count()) == (1, 0)


@pytest.mark.parametrize(
    ("page", "fields", "limit"),
    [
        ("/accounts/signup/", {"username": "x"}, "sign_up"),
        ("/accounts/password/reset/", {"email": "x"}, "form"),
        ("/telegram/login/forged/", {}, "sign_in"),
    ],
)
def test_forms_are_limited_by_network(db: None, settings: Any, page: str, fields: Any, limit: str) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {limit: (2, 600)}
    codes = [visitor().post(page, fields).status_code for _ in range(4)]
    assert codes[2:] == [429, 429] != codes[:2]
    assert visitor("192.0.2.2").post(page, fields).status_code != 429
    assert visitor().get(page).status_code != 429


@pytest.mark.parametrize("page", ["/accounts/reauthenticate/", "/account/delete/"])
def test_ones_own_password_is_not_guessed_by_who_has_the_session(
    browser: Client, settings: Any, page: str
) -> None:
    settings.RATE_LIMITS = settings.RATE_LIMITS | {"guess_own": (3, 600)}
    fields = {"password": "wrong", "proof": "wrong"}
    codes = [browser.post(page, fields, REMOTE_ADDR=f"192.0.2.{n}").status_code for n in range(5)]
    assert codes[3:] == [429, 429]
    assert 429 not in codes[:3]


class TestApi:
    @pytest.fixture
    def key(self, user: User) -> str:
        return api_keys.issue(user=user)[1]

    def call(self, method: str, key: str, **fields: Any) -> Any:
        return getattr(Client(), method)("/v1/videos", headers={"Authorization": f"Bearer {key}"}, **fields)

    def test_wrong_keys_are_counted_and_right_ones_go_on(self, key: str, settings: Any) -> None:
        settings.RATE_LIMITS = settings.RATE_LIMITS | {"api_wrong_key": (3, 600)}
        answers = [self.call("get", f"wrong{n}") for n in range(5)]
        assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 2
        error = answers[-1].json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(answers[-1]["Retry-After"]) > 1
        assert self.call("get", key).status_code == 200

    def test_writes_of_a_key_are_counted_whether_they_succeed_or_not(self, key: str, settings: Any) -> None:
        settings.RATE_LIMITS = settings.RATE_LIMITS | {"api_create": (3, 600)}
        codes = [
            self.call("post", key, data={}, content_type="application/json").status_code for _ in range(5)
        ]
        assert codes == [400, 400, 400, 429, 429]
        assert self.call("get", key).status_code == 200

    def test_reads_are_counted_here_and_merged_once_a_second(self, db: None, settings: Any) -> None:
        settings.RATE_LIMITS = settings.RATE_LIMITS | {"api_read": (10, 600)}
        clock = [0.0]
        one, other = (limits.Merged("api_read", clock=lambda: clock[0]) for _ in range(2))
        for process in (one, other):
            for _ in range(8):
                process.take("key")
        assert RateLimit.objects.count() == 1, "the first call of each was merged"
        clock[0] = 1.5
        for process, least in ((one, 30), (other, 500)):
            process.take("key")  # merges what was counted since, which fills the limit
            with pytest.raises(limits.TooOften) as error:
                process.take("key")
            assert least < error.value.seconds <= 601
            process.take("another key")


class TestOneSignIn:
    def test_the_admin_leads_to_the_site_and_back(self, staff: User) -> None:
        wanted = reverse("admin:generation_generationjob_changelist")
        client = Client()
        answer = client.get(wanted, follow=True)
        assert answer.resolver_match.view_name == "account_login"
        to = re.search(r'name="next" value="([^"]+)"', answer.content.decode())[1]
        entered = client.post(SIGN_IN, {"login": "grace", "password": PASSWORD, "next": to})
        assert entered.url == wanted

    def test_nothing_posted_to_the_admins_address_is_checked(self, staff: User, monkeypatch: Any) -> None:
        monkeypatch.setattr(User, "check_password", None)
        client = Client()
        for password in (PASSWORD, "wrong"):
            answer = client.post("/admin/login/", {"username": "grace", "password": password})
            assert answer.url.startswith(SIGN_IN)
        assert not client.session.keys()

    def test_a_user_without_the_right_is_told_so_and_not_sent_in_a_circle(self, browser: Client) -> None:
        assert browser.get("/admin/", follow=True).status_code == 403

    def test_another_site_is_not_where_it_leads(self, staff: User) -> None:
        client = Client()
        leads = client.get("/admin/login/", {"next": "https://evil.example/"}).url
        answer = client.post(leads, {"login": "grace", "password": PASSWORD})
        assert answer.status_code == 302
        assert "evil" not in answer.url


@pytest.mark.django_db(transaction=True)
def test_few_passwords_are_hashed_at_once_and_the_rest_is_told_to_wait(
    user: User, settings: Any, monkeypatch: Any
) -> None:
    settings.PASSWORD_HASHERS = ["accounts.auth.BoundedHasher"]
    monkeypatch.setattr(auth, "HASH_SECONDS", 0.01)
    with auth.BoundedHasher.places:
        for _ in range(settings.PASSWORD_CHECKS_AT_ONCE - 1):
            auth.BoundedHasher.places.acquire()
        try:
            pages = {
                SIGN_IN: {"login": "unknown", "password": PASSWORD},
                "/accounts/signup/": {"username": "newcomer", "password1": "another long password"},
            }
            for page, fields in pages.items():
                answer = visitor().post(page, fields)
                assert (answer.status_code, answer["Retry-After"]) == (503, "2"), page
        finally:
            for _ in range(settings.PASSWORD_CHECKS_AT_ONCE - 1):
                auth.BoundedHasher.places.release()
    assert not User.objects.filter(username="newcomer").exists()
    assert visitor().post(SIGN_IN, {"login": "unknown", "password": PASSWORD}).status_code == 200
