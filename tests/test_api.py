"""The REST API over HTTP."""

import io
import json
import uuid
from collections.abc import Callable
from typing import Any

import av
import pytest
from django.core.files.storage import default_storage
from django.db import OperationalError, connection
from django.test import Client
from django.urls import get_resolver

from accounts import api_keys, ledger
from accounts.models import CreditAccount
from generation.jobs import lifecycle, submission
from generation.models import GenerationJob, GpuNode, Preset

pytestmark = pytest.mark.django_db

PROMPT = "A paper boat in the rain"


class Api:
    """A client with one key. Every answer but a file must be JSON."""

    def __init__(self, key: str | None) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = Client(headers=headers, raise_request_exception=False)

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"/v1/{path}", query)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.client.post(
            f"/v1/{path}", json.dumps(body), content_type="application/json", headers=headers or None
        )

    def form(self, path: str, body: dict[str, Any]) -> Any:
        return self.client.post(f"/v1/{path}", body)

    def delete(self, path: str) -> Any:
        return self.client.delete(f"/v1/{path}")


@pytest.fixture
def api(user: Any) -> Api:
    return Api(api_keys.issue(user=user)[1])


@pytest.fixture
def no_cooldown(settings: Any) -> None:
    settings.VIDEO_COOLDOWN_SECONDS = 0


def submit(user: Any, prompt: str = PROMPT, **options: Any) -> GenerationJob:
    return submission.submit(user=user, prompt=prompt, source="api", **options)


def wallet(user: Any) -> CreditAccount:
    """Read the wallet again; the one on the user's object may be older."""
    return CreditAccount.objects.get(user=user)


def refusal(response: Any, status: int) -> dict[str, Any]:
    """The error of a response, in the one shape that all of them have."""
    assert response.status_code == status, response.content
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "param", "type"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


class TestWho:
    def test_without_a_key_nothing_is_answered(self) -> None:
        response = Api(None).get("videos")
        assert refusal(response, 401)["type"] == "authentication_error"
        assert response["WWW-Authenticate"].startswith("Bearer")

    @pytest.mark.parametrize(
        "header",
        [
            "Bearer wrong",
            "Bearer ",
            "Basic dXNlcjpwYXNz",
            "Bearer ключ".encode().decode("latin-1"),
            "\x00",
            "x",
        ],
    )
    def test_a_wrong_header_is_refused(self, header: str) -> None:
        response = Client(raise_request_exception=False).get("/v1/videos", headers={"Authorization": header})
        refusal(response, 401)

    def test_a_revoked_key_is_refused(self, user: Any) -> None:
        row, secret = api_keys.issue(user=user)
        assert Api(secret).get("videos").status_code == 200
        api_keys.revoke(key=row)
        refusal(Api(secret).get("videos"), 401)

    def test_the_key_of_a_banned_person_is_refused(self, user: Any, api: Api) -> None:
        user.is_active = False
        user.save()
        assert refusal(api.get("videos"), 403)["code"] == "account_inactive"

    def test_a_session_of_the_website_is_no_key(self, user: Any) -> None:
        client = Client()
        client.force_login(user)
        assert client.get("/v1/videos").status_code == 401


class TestCreate:
    def test_a_video_is_accepted_and_its_credits_are_held(self, api: Api, user: Any, node: GpuNode) -> None:
        node.sizes = ["96x64"]
        node.save()
        response = api.post("videos", {"prompt": f"  {PROMPT} "})
        assert response.status_code == 200
        body = response.json()
        job = GenerationJob.objects.get()
        assert body == {
            "id": f"video_{job.id.hex}",
            "object": "video",
            "status": "queued",
            "progress": 0,
            "created_at": int(job.created_at.timestamp()),
            "completed_at": None,
            "expires_at": None,
            "model": "CogVideoX-tiny",
            "prompt": PROMPT,
            "seconds": "2",
            "size": "96x64",
            "error": None,
            "remixed_from_video_id": None,
            "preset": "quick",
            "seed": job.seed,
            "negative_prompt": "",
            "cost": 50,
            "step": 0,
            "steps": 20,
            "queue_position": 1,
            "expected_seconds": 30,
            "source": "api",
        }
        assert (job.user, wallet(user).balance, wallet(user).held) == (user, 450, 50)

    def test_a_form_says_the_same_as_json(self, api: Api) -> None:
        response = api.form(
            "videos", {"prompt": PROMPT, "seconds": "6", "seed": "7", "negative_prompt": "blurry"}
        )
        body = response.json()
        assert (body["preset"], body["seconds"], body["seed"], body["negative_prompt"]) == (
            "standard",
            "6",
            7,
            "blurry",
        )

    @pytest.mark.parametrize(
        ("seconds", "preset"), [("2", "quick"), ("6", "standard"), (6, "standard"), (None, "quick")]
    )
    def test_the_length_chooses_the_preset(self, api: Api, seconds: Any, preset: str) -> None:
        assert api.post("videos", {"prompt": PROMPT, "seconds": seconds}).json()["preset"] == preset

    def test_of_two_presets_of_one_length_staffs_first_is_chosen(self, api: Api) -> None:
        Preset.objects.create(name="fine", label="Fine", num_frames=16, fps=8, position=9)
        assert api.post("videos", {"prompt": PROMPT, "seconds": "2"}).json()["preset"] == "quick"

    @pytest.mark.parametrize("seconds", ["4", "2.0", 4, 10**3000, True, [], {}, "\x00", "\ud800"])
    def test_other_lengths_are_refused(self, api: Api, seconds: Any) -> None:
        assert refusal(api.post("videos", {"prompt": PROMPT, "seconds": seconds}), 400)["param"] in (
            "seconds",
            None,
        )

    def test_an_unknown_length_names_those_on_offer(self, api: Api) -> None:
        error = refusal(api.post("videos", {"prompt": PROMPT, "seconds": "8"}), 400)
        assert error["message"] == 'seconds must be "2" or "6".'

    def test_a_preset_and_another_length_contradict_each_other(self, api: Api) -> None:
        error = refusal(api.post("videos", {"prompt": PROMPT, "seconds": "6", "preset": "quick"}), 400)
        assert (error["param"], error["message"]) == ("seconds", 'The preset quick makes "2" seconds.')

    def test_the_model_that_nodes_run_may_be_named(self, api: Api, node: GpuNode) -> None:
        assert api.post("videos", {"prompt": PROMPT, "model": node.backend}).status_code == 200

    def test_a_model_of_openai_is_refused_and_what_there_is_is_named(self, api: Api, node: GpuNode) -> None:
        error = refusal(api.post("videos", {"prompt": PROMPT, "model": "sora-2"}), 400)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert error["message"] == "There is no such model. On offer: CogVideoX-tiny."

    def test_the_size_that_nodes_make_may_be_named_and_no_other(self, api: Api, node: GpuNode) -> None:
        refusal(api.post("videos", {"prompt": PROMPT, "size": "96x64"}), 400)
        node.sizes = ["96x64", "48x32"]
        node.save()
        error = refusal(api.post("videos", {"prompt": PROMPT, "size": "1280x720"}), 400)
        assert (error["param"], error["message"]) == ("size", "size must be 96x64.")
        assert api.post("videos", {"prompt": PROMPT, "size": "96x64"}).status_code == 200

    @pytest.mark.parametrize(
        ("body", "code", "param"),
        [
            ({}, "empty_prompt", "prompt"),
            ({"prompt": None}, "empty_prompt", "prompt"),
            ({"prompt": " \n"}, "empty_prompt", "prompt"),
            ({"prompt": "\u200b\u3164\u2800"}, "empty_prompt", "prompt"),
            ({"prompt": "x" * 201}, "prompt_too_long", "prompt"),
            ({"prompt": "a\x00b"}, "invalid_prompt", "prompt"),
            ({"prompt": "a\ud800b"}, "invalid_prompt", "prompt"),
            ({"prompt": 5}, "invalid_request", "prompt"),
            ({"prompt": ["a"]}, "invalid_request", "prompt"),
            ({"prompt": {"a": 1}}, "invalid_request", "prompt"),
            ({"prompt": PROMPT, "preset": "huge"}, "unknown_preset", "preset"),
            ({"prompt": PROMPT, "preset": "a\x00"}, "unknown_preset", "preset"),
            ({"prompt": PROMPT, "preset": 1}, "invalid_request", "preset"),
            ({"prompt": PROMPT, "seed": -1}, "invalid_request", "seed"),
            ({"prompt": PROMPT, "seed": 2**31}, "invalid_request", "seed"),
            ({"prompt": PROMPT, "seed": 10**200}, "invalid_request", "seed"),
            ({"prompt": PROMPT, "seed": "seven"}, "invalid_request", "seed"),
            ({"prompt": PROMPT, "seed": True}, "invalid_request", "seed"),
            ({"prompt": PROMPT, "negative_prompt": "x" * 201}, "invalid_request", "negative_prompt"),
            ({"prompt": PROMPT, "model": "\ud800"}, "model_not_found", "model"),
            ({"prompt": PROMPT, "size": "\x00"}, "invalid_request", "size"),
            ({"prompt": PROMPT, "num_frames": 81}, "invalid_request", "num_frames"),
            ({"prompt": PROMPT, "ключ": 1}, "invalid_request", None),
            ({"prompt": PROMPT, "\ud800": 1}, "invalid_request", None),
            ({"prompt": PROMPT, "input_reference": "x"}, "invalid_request", "input_reference"),
            ([], "invalid_request", None),
            ([{"prompt": PROMPT}], "invalid_request", None),
            ("prompt", "invalid_request", None),
            (None, "invalid_request", None),
            (17, "invalid_request", None),
        ],
    )
    def test_bad_input_is_refused_and_costs_nothing(
        self, api: Api, user: Any, body: Any, code: str, param: str | None
    ) -> None:
        error = refusal(api.post("videos", body), 400)
        assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
        assert not GenerationJob.objects.exists()
        assert wallet(user).held == 0

    @pytest.mark.parametrize(
        ("send", "value"),
        [("post", None), ("post", ""), ("post", " \t"), ("form", ""), ("form", " ")],
    )
    def test_fields_that_are_null_or_empty_count_as_left_out(
        self, api: Api, node: GpuNode, no_cooldown: None, send: str, value: Any
    ) -> None:
        names = ["model", "seconds", "size", "preset", "seed", "negative_prompt", "input_reference", "user"]
        body = dict.fromkeys(names, value) | {"prompt": PROMPT}
        made = getattr(api, send)("videos", body)
        assert (made.status_code, made.json()["preset"], made.json()["negative_prompt"]) == (200, "quick", "")
        remix = getattr(api, send)(f"videos/{made.json()['id']}/remix", body)
        assert (remix.status_code, remix.json()["seed"]) == (200, made.json()["seed"])
        error = refusal(getattr(api, send)("videos", body | {"prompt": value or ""}), 400)
        assert (error["code"], error["param"]) == ("empty_prompt", "prompt")

    @pytest.mark.parametrize(
        ("kind", "mark"),
        [
            ("application/json", b"\xef\xbb\xbf"),
            ("", b""),
            ("text/json; charset=utf-8", b""),
            ("application/vnd.api+json", b""),
        ],
    )
    def test_json_may_have_a_byte_order_mark_and_another_name_or_none(
        self, api: Api, node: GpuNode, kind: str, mark: bytes
    ) -> None:
        body = mark + json.dumps({"prompt": PROMPT}).encode()
        response = api.client.post("/v1/videos", body, content_type=kind)
        assert (response.status_code, response.json()["prompt"]) == (200, PROMPT)

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b'{"prompt": NaN}',
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b'{"seed": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_what_is_no_json_is_refused(self, api: Api, raw: bytes) -> None:
        response = api.client.post("/v1/videos", raw, content_type="application/json")
        refusal(response, 400)

    def test_a_broken_form_is_refused(self, api: Api) -> None:
        response = api.client.post("/v1/videos", b"--x\r\nnonsense", content_type="multipart/form-data")
        refusal(response, 400)

    def test_a_form_of_thousands_of_fields_is_refused(self, api: Api) -> None:
        refusal(api.form("videos", {f"f{number}": "1" for number in range(1500)}), 400)

    def test_a_body_beyond_the_limit_is_refused(self, api: Api) -> None:
        refusal(api.post("videos", {"prompt": "x" * 3_000_000}), 413)

    def test_a_reference_image_is_refused_plainly(self, api: Api) -> None:
        error = refusal(api.form("videos", {"prompt": PROMPT, "input_reference": io.BytesIO(b"png")}), 400)
        assert error["message"] == "input_reference is not supported: clips are made from text alone."

    def test_an_unknown_kind_of_body_is_refused(self, api: Api) -> None:
        response = api.client.post("/v1/videos", b"<prompt/>", content_type="application/xml")
        refusal(response, 415)

    def test_too_few_credits(self, api: Api, user: Any) -> None:
        ledger.adjust(user=user, amount=-451, reason="test", actor=user)
        error = refusal(api.post("videos", {"prompt": PROMPT}), 402)
        assert error["code"] == "insufficient_credits"
        assert error["message"].endswith("Your balance: 49 credits")

    def test_the_cooldown_says_when_to_come_back(self, api: Api) -> None:
        assert api.post("videos", {"prompt": PROMPT}).status_code == 200
        response = api.post("videos", {"prompt": PROMPT})
        assert refusal(response, 429)["code"] == "cooldown_active"
        assert 50 <= int(response["Retry-After"]) <= 60


class TestIdempotency:
    def test_the_same_key_is_the_same_video(self, api: Api) -> None:
        first = api.post("videos", {"prompt": PROMPT}, **{"Idempotency-Key": "k1"}).json()
        again = api.post("videos", {"prompt": PROMPT}, **{"Idempotency-Key": "k1"}).json()
        assert again["id"] == first["id"]
        assert GenerationJob.objects.count() == 1

    def test_another_body_with_the_same_key_is_refused(self, api: Api) -> None:
        api.post("videos", {"prompt": PROMPT}, **{"Idempotency-Key": "k1"})
        error = refusal(api.post("videos", {"prompt": "Another"}, **{"Idempotency-Key": "k1"}), 422)
        assert error["code"] == "idempotency_conflict"

    @pytest.mark.parametrize("key", ["x" * 256, "a\x01b"])
    def test_an_impossible_key_is_refused(self, api: Api, key: str) -> None:
        refusal(api.post("videos", {"prompt": PROMPT}, **{"Idempotency-Key": key}), 400)

    def test_keys_of_two_people_do_not_meet(self, api: Api, make_user: Callable[..., Any]) -> None:
        other = Api(api_keys.issue(user=make_user("bob"))[1])
        mine = api.post("videos", {"prompt": PROMPT}, **{"Idempotency-Key": "k1"}).json()
        theirs = other.post("videos", {"prompt": "Another"}, **{"Idempotency-Key": "k1"}).json()
        assert mine["id"] != theirs["id"]


class TestRetrieve:
    def test_progress_is_the_share_of_steps(
        self, api: Api, user: Any, start_job: Callable[[GenerationJob], Any]
    ) -> None:
        job = submit(user)
        attempt = start_job(job)
        lifecycle.record_progress(attempt_id=attempt.pk, token=attempt.pk, step=5)
        body = api.get(f"videos/{job.public_id}").json()
        assert (body["status"], body["step"], body["steps"], body["progress"]) == ("in_progress", 5, 20, 25)
        assert (body["queue_position"], body["model"]) == (None, "CogVideoX-tiny")

    def test_a_completed_video(
        self, api: Api, user: Any, finish_job: Callable[[GenerationJob], GenerationJob]
    ) -> None:
        job = finish_job(submit(user))
        body = api.get(f"videos/{job.public_id}").json()
        assert job.finished_at is not None
        assert (body["status"], body["progress"], body["size"]) == (
            "completed",
            100,
            f"{job.width}x{job.height}",
        )
        assert (body["completed_at"], body["error"]) == (int(job.finished_at.timestamp()), None)

    def test_a_failed_video_says_why(
        self, api: Api, user: Any, start_job: Callable[[GenerationJob], Any]
    ) -> None:
        job = submit(user)
        attempt = start_job(job)
        lifecycle.attempt_failed(
            attempt_id=attempt.pk, token=attempt.pk, code="rejected", message="No boats today.", error="x"
        )
        body = api.get(f"videos/{job.public_id}").json()
        assert (body["status"], body["error"]) == (
            "failed",
            {"code": "rejected", "message": "No boats today."},
        )

    def test_the_place_in_line(self, api: Api, user: Any, make_user: Callable[..., Any]) -> None:
        for name in ("bob", "eve"):
            submit(make_user(name))
        job = submit(user)
        assert api.get(f"videos/{job.public_id}").json()["queue_position"] == 3
        assert api.get("videos").json()["data"][0]["queue_position"] == 3


class TestNotFound:
    @pytest.mark.parametrize("method", ["get", "delete"])
    def test_anothers_deleted_and_malformed_ids_are_all_the_same(
        self, api: Api, user: Any, make_user: Callable[..., Any], method: str
    ) -> None:
        deleted = lifecycle.cancel(job=submit(user))
        lifecycle.delete(job=deleted)
        foreign = submit(make_user("bob")).public_id
        ids = [
            foreign,
            deleted.public_id,
            f"video_{uuid.uuid4().hex}",
            "video_",
            foreign.upper(),
            "%00",
            "%ED%A0%80",
            "1",
        ]
        bodies = {getattr(api, method)(f"videos/{one}").content for one in ids}
        assert len(bodies) == 1
        assert refusal(getattr(api, method)(f"videos/{foreign}"), 404)["code"] == "not_found"

    @pytest.mark.parametrize("action", ["content", "events"])
    def test_anothers_video_cannot_be_read(
        self, api: Api, make_user: Callable[..., Any], action: str
    ) -> None:
        refusal(api.get(f"videos/{submit(make_user('bob')).public_id}/{action}"), 404)

    @pytest.mark.parametrize("action", ["cancel", "remix"])
    def test_anothers_video_cannot_be_changed(
        self, api: Api, make_user: Callable[..., Any], action: str
    ) -> None:
        job = submit(make_user("bob"))
        refusal(api.post(f"videos/{job.public_id}/{action}", {"prompt": PROMPT}), 404)
        job.refresh_from_db()
        assert job.state == "queued"

    @pytest.mark.parametrize("path", ["", "video", "videos/", "videos/a/b/c", "credits/1", "../admin", "%00"])
    def test_an_unknown_address_is_refused_in_json(self, api: Api, path: str) -> None:
        refusal(api.get(path), 404)
        refusal(Api(None).get(path), 404)

    def test_a_wrong_method_is_refused_in_json(self, api: Api) -> None:
        response = api.delete("videos")
        assert refusal(response, 405)["type"] == "invalid_request_error"
        assert "POST" in response["Allow"]


@pytest.mark.usefixtures("no_cooldown")
class TestList:
    @pytest.fixture
    def ids(self, user: Any) -> list[str]:
        """Five videos, oldest first."""
        return [submit(user, f"video {number}").public_id for number in range(5)]

    def test_newest_first(self, api: Api, ids: list[str]) -> None:
        body = api.get("videos").json()
        assert [video["id"] for video in body["data"]] == ids[::-1]
        assert (body["object"], body["first_id"], body["last_id"]) == ("list", ids[4], ids[0])
        assert body["has_more"] is False

    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_pages_show_each_video_once(self, api: Api, ids: list[str], order: str) -> None:
        seen: list[str] = []
        page = api.get("videos", limit=2, order=order).json()
        while True:
            seen += [video["id"] for video in page["data"]]
            if not page["has_more"]:
                break
            page = api.get("videos", limit=2, order=order, after=page["last_id"]).json()
        assert seen == (ids if order == "asc" else ids[::-1])

    def test_a_page_goes_on_after_a_video_that_was_deleted_meanwhile(
        self, api: Api, user: Any, ids: list[str]
    ) -> None:
        job = GenerationJob.objects.get(prompt="video 2")
        lifecycle.delete(job=lifecycle.cancel(job=job))
        page = api.get("videos", after=job.public_id).json()
        assert [video["id"] for video in page["data"]] == [ids[1], ids[0]]

    def test_only_ones_own(self, api: Api, ids: list[str], make_user: Callable[..., Any]) -> None:
        submit(make_user("bob"))
        assert len(api.get("videos").json()["data"]) == 5

    def test_nothing_yet(self, api: Api) -> None:
        body = api.get("videos").json()
        assert body == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ({"limit": "0"}, 400),
            ({"limit": "101"}, 400),
            ({"limit": "many"}, 400),
            ({"limit": "9" * 5000}, 400),
            ({"order": "up"}, 400),
            ({"after": "nothing"}, 404),
            ({"after": "\x00"}, 404),
            ({"after": f"video_{'0' * 32}"}, 404),
        ],
    )
    def test_a_bad_page_is_refused(self, api: Api, query: dict[str, str], status: int) -> None:
        refusal(api.get("videos", **query), status)

    @pytest.mark.parametrize("value", ["", " "])
    def test_what_is_empty_in_an_address_counts_as_left_out(
        self, api: Api, ids: list[str], value: str
    ) -> None:
        nothing = {"after": value, "limit": value, "order": value}
        assert api.get("videos", **nothing, other=value).json() == api.get("videos").json()
        assert api.get("credits", **nothing).json() == api.get("credits").json()
        refused = refusal(api.get(f"videos/{ids[0]}/content", variant=value), 409)
        assert refused["code"] == "video_not_ready"

    def test_the_number_of_queries_does_not_grow_with_the_list(
        self, api: Api, user: Any, ids: list[str], django_assert_max_num_queries: Any
    ) -> None:
        for number in range(15):
            submit(user, f"more {number}") if number < 5 else None
        with django_assert_max_num_queries(7):
            assert len(api.get("videos").json()["data"]) == 10


class TestContent:
    @pytest.fixture
    def job(self, user: Any, finish_job: Callable[[GenerationJob], GenerationJob]) -> GenerationJob:
        return finish_job(submit(user))

    def test_the_file_plays(self, api: Api, job: GenerationJob) -> None:
        response = api.get(f"videos/{job.public_id}/content")
        assert (response.status_code, response["Content-Type"]) == (200, "video/mp4")
        with av.open(io.BytesIO(response.getvalue())) as container:
            assert sum(1 for _ in container.decode(video=0)) == 16

    def test_part_of_it_can_be_asked_for(self, api: Api, job: GenerationJob) -> None:
        response = api.client.get(f"/v1/videos/{job.public_id}/content", headers={"Range": "bytes=4-7"})
        assert (response.status_code, response.getvalue()) == (206, b"ftyp")

    def test_a_range_beyond_the_end_is_refused_in_json(self, api: Api, job: GenerationJob) -> None:
        response = api.client.get(f"/v1/videos/{job.public_id}/content", headers={"Range": "bytes=99999999-"})
        assert refusal(response, 416)["code"] == "range_not_satisfiable"
        assert response["Content-Range"] == f"bytes */{job.size_bytes}"

    def test_the_poster(self, api: Api, job: GenerationJob) -> None:
        response = api.get(f"videos/{job.public_id}/content", variant="thumbnail")
        assert response["Content-Type"] == "image/jpeg"
        assert response.getvalue().startswith(b"\xff\xd8")

    def test_whatever_the_client_says_it_accepts(self, api: Api, job: GenerationJob) -> None:
        headers = {"Accept": "application/binary"}
        assert api.client.get(f"/v1/videos/{job.public_id}/content", headers=headers).status_code == 200
        refusal(api.client.get("/v1/videos/none/content", headers=headers), 404)

    def test_there_is_no_spritesheet(self, api: Api, job: GenerationJob) -> None:
        assert (
            refusal(api.get(f"videos/{job.public_id}/content", variant="spritesheet"), 400)["param"]
            == "variant"
        )

    @pytest.mark.usefixtures("no_cooldown")
    def test_it_is_not_ready_before_it_is_completed(self, api: Api, user: Any) -> None:
        job = submit(user)
        assert refusal(api.get(f"videos/{job.public_id}/content"), 409)["code"] == "video_not_ready"
        lifecycle.cancel(job=job)
        assert refusal(api.get(f"videos/{job.public_id}/content"), 409)["message"] == "Canceled."

    def test_a_missing_file_is_410(self, api: Api, job: GenerationJob) -> None:
        default_storage.delete(job.video.name)
        assert refusal(api.get(f"videos/{job.public_id}/content"), 410)["code"] == "video_gone"


class TestDelete:
    def test_a_deleted_video_is_gone(
        self, api: Api, user: Any, finish_job: Callable[[GenerationJob], GenerationJob]
    ) -> None:
        job = finish_job(submit(user))
        body = api.delete(f"videos/{job.public_id}").json()
        assert body == {"id": job.public_id, "object": "video.deleted", "deleted": True}
        refusal(api.get(f"videos/{job.public_id}"), 404)
        refusal(api.delete(f"videos/{job.public_id}"), 404)

    def test_a_video_being_made_must_be_canceled_first(self, api: Api, user: Any) -> None:
        response = api.delete(f"videos/{submit(user).public_id}")
        assert refusal(response, 409)["code"] == "cannot_delete"
        assert response["x-should-retry"] == "false"


class TestCancel:
    def test_the_credits_come_back_at_once(self, api: Api, user: Any) -> None:
        job = submit(user)
        body = api.post(f"videos/{job.public_id}/cancel").json()
        assert (body["status"], body["error"]["code"]) == ("failed", "canceled")
        assert api.get("credits").json()["balance"] == 500
        assert api.post(f"videos/{job.public_id}/cancel").status_code == 200

    def test_what_is_finished_cannot_be_canceled(
        self, api: Api, user: Any, finish_job: Callable[[GenerationJob], GenerationJob]
    ) -> None:
        job = finish_job(submit(user))
        assert refusal(api.post(f"videos/{job.public_id}/cancel"), 409)["code"] == "cannot_cancel"


@pytest.mark.usefixtures("no_cooldown")
class TestRemix:
    def test_all_but_the_prompt_stays(self, api: Api, user: Any) -> None:
        original = submit(user, preset=Preset.objects.get(name="standard"), seed=7, negative_prompt="blurry")
        body = api.post(f"videos/{original.public_id}/remix", {"prompt": "At night"}).json()
        assert (
            body["prompt"],
            body["preset"],
            body["seed"],
            body["negative_prompt"],
            body["remixed_from_video_id"],
        ) == (
            "At night",
            "standard",
            7,
            "blurry",
            original.public_id,
        )

    def test_it_needs_a_prompt(self, api: Api, user: Any) -> None:
        original = submit(user)
        assert refusal(api.post(f"videos/{original.public_id}/remix", {}), 400)["code"] == "empty_prompt"


class TestCredits:
    def test_the_receipt_of_a_video(
        self, api: Api, user: Any, finish_job: Callable[[GenerationJob], GenerationJob]
    ) -> None:
        job = finish_job(submit(user))
        body = api.get("credits").json()
        assert (body["object"], body["balance"], body["held"], body["posted"]) == ("credits", 450, 0, 450)
        rows = [
            (
                row["kind"],
                row["amount"],
                row["posted_delta"],
                row["held_delta"],
                row["balance_after"],
                row["video_id"],
            )
            for row in body["transactions"]
        ]
        assert rows == [
            ("capture", 0, -50, -50, 450, job.public_id),
            ("reserve", -50, 0, 50, 450, job.public_id),
            ("grant", 500, 500, 0, 500, None),
        ]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_pages_show_each_entry_once(self, api: Api, user: Any, order: str) -> None:
        for number in range(4):
            ledger.grant(user=user, amount=number + 1, reason="test")
        seen: list[int] = []
        page = api.get("credits", limit=2, order=order).json()
        while True:
            seen += [entry["id"] for entry in page["transactions"]]
            if not page["has_more"]:
                break
            page = api.get("credits", limit=2, order=order, after=page["last_id"]).json()
        assert seen == sorted(seen, reverse=order == "desc")
        assert len(seen) == 5

    @pytest.mark.parametrize(("after", "status"), [("x", 400), ("-1", 400), (str(2**80), 400), ("0", 404)])
    def test_a_bad_page_is_refused(self, api: Api, after: str, status: int) -> None:
        refusal(api.get("credits", after=after), status)

    def test_anothers_entry_is_no_cursor(self, api: Api, make_user: Callable[..., Any]) -> None:
        entry = make_user("bob").credit_account.transactions.get()
        refusal(api.get("credits", after=entry.pk), 404)


class TestOffer:
    def test_models_are_what_nodes_run(self, api: Api, node: GpuNode) -> None:
        GpuNode.objects.create(name="never-reached", base_url="http://127.0.0.1:10")
        GpuNode.objects.create(name="off", base_url="http://127.0.0.1:11", backend="Old", enabled=False)
        body = api.get("models").json()
        model = {
            "id": "CogVideoX-tiny",
            "object": "model",
            "created": int(node.created_at.timestamp()),
            "owned_by": "system",
        }
        assert body == {"object": "list", "data": [model]}
        assert api.get("models/CogVideoX-tiny").json() == model
        refusal(api.get("models/sora-2"), 404)

    def test_no_model_before_any_node_was_reached(self, api: Api) -> None:
        assert api.get("models").json() == {"object": "list", "data": []}

    def test_presets_say_price_and_time_before_anything_is_made(self, api: Api) -> None:
        presets = api.get("presets").json()["data"]
        assert [
            (preset["id"], preset["seconds"], preset["cost"], preset["default"]) for preset in presets
        ] == [
            ("quick", "2", 50, True),
            ("standard", "6", 250, False),
        ]
        assert all(preset["expected_seconds"] > 0 for preset in presets)

    def test_staff_see_that_it_is_free_for_them(self, staff: Any) -> None:
        presets = Api(api_keys.issue(user=staff)[1]).get("presets").json()["data"]
        assert {preset["cost"] for preset in presets} == {0}


class TestOurOwnFailures:
    def test_an_unforeseen_error_shows_nothing_of_our_insides(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(**_: Any) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr("generation.jobs.catalog.quotes", broken)
        error = refusal(api.get("presets"), 500)
        assert (error["code"], error["type"]) == ("server_error", "server_error")
        assert "secret" not in error["message"]

    def test_an_address_writes_no_line_of_its_own_into_the_log(
        self, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(**_: Any) -> None:
            raise RuntimeError

        monkeypatch.setattr("generation.api.views.kept_jobs", broken)
        refusal(api.get("videos/x%0A2026-11-22 ERROR forged"), 500)
        [line] = [each.getMessage() for each in caplog.records if each.name == "generation.api.errors"]
        assert "forged" in line
        assert "\n" not in line

    def test_an_unknown_host_is_refused_in_json(self, api: Api) -> None:
        refusal(api.client.get("/v1/videos", headers={"Host": "evil.example"}), 400)


def test_every_route_of_the_api_asks_for_a_key() -> None:
    """All but the documents and the answer to what does not exist."""
    public = {"api-schema", "api-docs", None}
    [routes] = [each for each in get_resolver().url_patterns if str(each.pattern) == "v1/"]
    for route in routes.url_patterns:
        view = route.callback.view_class
        if route.name not in public:
            assert view.authentication_classes, route.name
            assert view.permission_classes, route.name


class TestHealth:
    def test_it_says_when_a_node_was_last_heard_of(self, node: GpuNode) -> None:
        body = Client().get("/healthz").json()
        assert (body["status"], body["database"]) == ("ok", "ok")
        assert 0 <= body["node_heard_seconds_ago"] < 60

    def test_without_a_database_it_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: Any, **__: Any) -> None:
            raise OperationalError("the server closed the connection")

        monkeypatch.setattr(connection, "cursor", away)
        response = Client().get("/healthz")
        assert (response.status_code, response.json()["status"]) == (503, "failed")
        assert (
            refusal(Client().get("/v1/videos", headers={"Authorization": "Bearer vk_x"}), 503)["code"]
            == "unavailable"
        )
