"""The asynchronous `/v1/videos` protocol: our own node, vLLM-Omni, SGLang and other servers.

Beyond create, retrieve and content nothing is taken for granted. Idempotency-Key, Prefer, progress and cancel
are asked for, and a server that knows none of them still works: it is polled, and its jobs run to their end.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

from django.conf import settings

from generation.nodes import protocol
from generation.nodes.client import CANCEL_TIMEOUT, HEALTH_TIMEOUT, SUBMIT_TIMEOUT, NodeClient, is_there
from generation.nodes.protocol import GenerationRequest, NodeHealth, RemoteJob, RemoteState
from generation.nodes.transport import Answer, Transport, message_of

COLLECTION = "/v1/videos"
MODELS = "/v1/models"
# What the column holds.
LONGEST_ID = 2000
# The message of a framework that has no such route; any other 404 is the server's own.
_NO_ROUTE = re.compile(r"not[ _]?found\.?|404.*|method not allowed\.?|cannot post .*", re.I)
# The names that servers have for it; a gateway's answer may have both its own id and that of the server behind it.
_ID_NAMES = ("id", "task_id", "video_id", "job_id", "generation_id", "uuid")
# These are often another thing: a new job's id where it has no other.
_WEAK_ID_NAMES = ("request_id", "name")
_STATUS_NAMES = ("status", "task_status", "job_status", "state")
# What a job may be wrapped in.
_ENVELOPES = ("data", "output", "result", "response", "task", "job", "video", "generation")
# In the spelling of `protocol.word`. What a server does not know (`unknown`) is still to come.
_STATES: dict[RemoteState, re.Pattern[str]] = {
    "queued": re.compile(
        r"(in_|en)?queued?|queue?ing|pending|submitted|created|waiting|awaiting|accepted|scheduled|dispatched|received"
        r"|new|initiali[sz]ed|not_start(ed)?|held|on_hold|throttled|delayed|deferred|unknown"
    ),
    "in_progress": re.compile(
        r"in_?progress|progress|(pre|post)?_?process(ing)?|running|run|generating|started|starting|initiali[sz]ing"
        r"|preparing|executing|working|active|ongoing|loading|warming|building|validating|reviewing|in_review"
        r"|inferenc(ing|e)|sampling|denoising|dreaming|upscaling|rendering|encoding|decoding|uploading|downloading|saving"
        r"|finali[sz]ing|cancell?ing|stopping|retrying|paused"
    ),
    "completed": re.compile(
        r"completed?|succeed(ed)?|success(ful(ly)?)?|done|finished|finish|fulfilled|generated|available|ready|ok"
    ),
    "failed": re.compile(
        r"fail(ed|ure)?|unsuccessful|error(ed)?|rejected|refused|denied|blocked|moderated|filtered|flagged|nsfw"
        r"|violation|invalid|not_found|dead|expired|time(d_)?out"
    ),
    # Without a word about the request itself.
    "canceled": re.compile(
        r"cancell?ed|abort(ed)?|terminated|stopped|deleted|revoked|killed|interrupted|preempted|evicted|lost|crashed"
    ),
}


class VideosClient(NodeClient):
    """Speaks `/v1/videos`, JSON first, and multipart to a server that wants it so."""

    protocol = "videos"
    route = COLLECTION
    _wants_form = False

    @classmethod
    async def is_spoken(cls, transport: Transport) -> bool:
        """Ask for the route, then for the models: a server may answer 404 to a GET of a route that takes POST."""
        answer = await transport.call("GET", cls.route, timeout=HEALTH_TIMEOUT)
        if answer.status in (404, 405) and not is_there(answer):
            return bool(_models(await transport.call("GET", MODELS, timeout=HEALTH_TIMEOUT)))
        return is_there(answer)

    async def health(self) -> NodeHealth:
        """Ask `/health`, and `/v1/models` where that names no model or is nothing that says how the node is.

        vLLM answers an empty 200, SGLang its status, others a page, a word, JSON of their own, or 404.
        """
        answer = await self.transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
        if answer.status >= 500 or answer.status in (401, 403, 429):
            raise self.transport.refuse(answer)
        try:
            body = answer.json_object() if answer.status == 200 else {}
        except protocol.NodeAnsweredNonsense:
            body = {}
        try:
            is_known = body.get("model") and protocol.says_how_it_is(body)
            listed = None if is_known else await self._health_by_models()
        except protocol.NodeError:
            if "status" not in body:
                raise
            listed = None
        if listed is not None and not protocol.says_how_it_is(body):
            return listed
        health = protocol.node_health(body, self.protocol)
        if listed is None:
            return health
        return replace(health, model=listed.model, backend=health.backend or listed.backend)

    async def _health_by_models(self) -> NodeHealth:
        answer = await self.transport.call("GET", MODELS, timeout=HEALTH_TIMEOUT)
        if answer.status == 200:
            answer.json_value()  # a page is no list of models
        elif answer.status not in (404, 405) or not await self.is_spoken(self.transport):
            raise self.transport.refuse(answer)
        name = next(iter(_models(answer)), None)
        return NodeHealth(ready=True, status="ready", protocol=self.protocol, backend=name, model=name)

    async def submit(self, request: GenerationRequest) -> RemoteJob:
        """Hand the job over; a repeated call is the same job where the server knows Idempotency-Key."""
        values: dict[str, Any] = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt or None,
            "num_frames": request.num_frames,
            "fps": request.fps,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "seed": request.seed,
            "size": request.size or None,
        }
        # A value that is not set is left to the server.
        fields = {name: value for name, value in values.items() if value is not None}
        answer = await self._post(fields, key=request.id)
        if not answer.body.strip() and (named := _named_by_location(answer)):
            return RemoteJob(state="queued", remote_id=named)
        if answer.status in (404, 405):
            said = message_of(answer)
            if said and not _NO_ROUTE.fullmatch(said):
                raise protocol.NodeRejected(self.transport.clean(said))
            raise protocol.NodeHasNoRoute("The node has no /v1/videos.")
        return self._job(answer)

    async def _only_model(self, refusal: Answer) -> str:
        """Name the one model that the server lists, for a server that wants it named."""
        names = _models(await self.transport.call("GET", MODELS, timeout=HEALTH_TIMEOUT))
        if len(names) == 1:
            return names[0]
        listed = self.transport.clean(", ".join(names[:5])) or "none"
        said = self.transport.clean(message_of(refusal))
        raise protocol.NodeRejected(
            f"{said} (It lists {listed}; if it listed exactly one, that would be named.)"
        )

    async def _post(self, fields: Mapping[str, Any], *, key: str) -> Answer:
        answer = await self._post_once(fields, key=key)
        if _may_want_form(answer) and not self._wants_form:
            return await self._post_as_form(answer, fields, key=key)
        return answer

    async def _post_once(self, fields: Mapping[str, Any], *, key: str) -> Answer:
        answer = await self._send(fields, key=key)
        if answer.status in (400, 422) and _wants_model(answer):
            return await self._send({**fields, "model": await self._only_model(answer)}, key=key)
        return answer

    async def _send(self, fields: Mapping[str, Any], *, key: str) -> Answer:
        headers = {"Idempotency-Key": key}
        if self._wants_form:
            form = {name: str(value) for name, value in fields.items()}
            return await self.transport.call(
                "POST", COLLECTION, form=form, headers=headers, timeout=SUBMIT_TIMEOUT
            )
        return await self.transport.call(
            "POST", COLLECTION, json_body=fields, headers=headers, timeout=SUBMIT_TIMEOUT
        )

    async def _post_as_form(self, refusal: Answer, fields: Mapping[str, Any], *, key: str) -> Answer:
        """Try a form once: servers that take only forms call JSON unsupported, or miss the prompt in it."""
        self._wants_form = True
        answer = await self._post_once(fields, key=key)
        if _may_want_form(answer):
            # The form is no better, so the request was at fault; the first refusal explains it.
            self._wants_form = False
            return refusal if refusal.status == 422 else answer
        return answer

    async def retrieve(self, remote_id: str, *, wait: float = 0) -> RemoteJob:
        headers = {"Prefer": f"wait={max(1, round(wait))}"} if wait > 0 else {}
        answer = await self.transport.call(
            "GET", _job_path(remote_id), headers=headers, timeout=wait + settings.NODE_ANSWER_SECONDS
        )
        return self._job(answer, expected_id=remote_id)

    async def cancel(self, remote_id: str) -> RemoteJob | None:
        """Stop the job, by its cancel route or else by deleting it; None when the server has neither."""
        answer = await self.transport.call("POST", _job_path(remote_id) + "/cancel", timeout=CANCEL_TIMEOUT)
        if answer.status < 300:
            # Many answer with something other than the job, or with nothing.
            with suppress(protocol.NodeAnsweredNonsense):
                return self._job(answer, expected_id=remote_id)
            return await self._stopped(remote_id)
        has_no_route = answer.status in (404, 405, 501)
        is_clear = (
            answer.status >= 400 and not answer.is_page and answer.status not in (401, 403, 408, 425, 429)
        )
        if not has_no_route and (answer.status >= 500 or not is_clear):
            raise self.transport.refuse(answer)
        # 404 has two meanings, no such route and no such job, and other refusals that it has ended: retrieving tells.
        job = await self.retrieve(remote_id)
        return await self._delete(job) if has_no_route and not job.finished else job

    async def _delete(self, job: RemoteJob) -> RemoteJob | None:
        """vLLM-Omni has no cancel, but stops a job that is deleted. SGLang forgets it: nothing more comes of it."""
        answer = await self.transport.call("DELETE", _job_path(job.remote_id), timeout=CANCEL_TIMEOUT)
        if 400 <= answer.status < 500 or answer.status == 501:
            return None
        if answer.status >= 300:
            raise self.transport.refuse(answer)
        with suppress(protocol.NodeAnsweredNonsense):
            if (body := answer.json_object()).get("deleted") is True or body.get("status") == "deleted":
                return RemoteJob(remote_id=job.remote_id, state="canceled", step=job.step)
        stopped = await self._stopped(job.remote_id or "")
        return stopped if stopped.finished else None

    async def _stopped(self, remote_id: str) -> RemoteJob:
        """Look at a job that the server has agreed to stop; one that it has forgotten is stopped."""
        try:
            return await self.retrieve(remote_id)
        except protocol.RemoteJobLost:
            return RemoteJob(remote_id=remote_id, state="canceled")

    async def forget(self, remote_id: str) -> None:
        answer = await self.transport.call("DELETE", _job_path(remote_id), timeout=HEALTH_TIMEOUT)
        if answer.status >= 300:
            raise self.transport.refuse(answer)

    def content_path(self, job: RemoteJob) -> str:
        return _job_path(job.remote_id) + "/content"

    async def file_url(self, job: RemoteJob) -> str | None:
        """Look in the job's record for an address of the file, signed or not."""
        found = (await self.retrieve(job.remote_id or "")).file_url
        return found and self.transport.absolute(found)

    def _accepted(self, answer: Answer) -> dict[str, Any]:
        if not 200 <= answer.status < 300:
            raise self.transport.refuse(answer)
        return answer.json_object()

    def _job(self, answer: Answer, *, expected_id: str | None = None) -> RemoteJob:
        """Read OpenAI's video object, with the further fields that this server has.

        expected_id: of the job that was asked for; None where it has just been made.
        """
        body = _record(self._accepted(answer))
        state, word = self._state(body, new=expected_id is None, pending=answer.status == 202)
        code, said = self._failure(body) if state == "failed" or body.get("error") else (None, None)
        if state == "failed" and code in ("canceled", "cancelled"):
            state = "canceled"
        elif state == "failed":
            code, said = code or word, said or "The node gave no reason."
        return RemoteJob(
            remote_id=self._id(body, expected_id),
            state=state,
            step=protocol.whole_number(body.get("step")),
            progress=protocol.whole_number(body.get("progress")),
            error=said,
            error_code=code,
            file_name=protocol.known_file_name(body.get("file_name")),
            file_url=protocol.file_url(body) if state == "completed" else None,
            generation_ms=_generation_ms(body),
            stopped_at_step=protocol.whole_number(body.get("stopped_at_step")),
            profile=protocol.profile(body.get("made_with")),
        )

    def _state(self, body: Mapping[str, Any], *, new: bool, pending: bool) -> tuple[RemoteState, str | None]:
        """Read the state, and the server's own word where it says more than that the job failed.

        pending: the status of HTTP says that the answer is still to come.
        """
        status = _status(body)
        word = protocol.word(status)
        if (state := _meaning(word)) is not None:
            return state, None if re.fullmatch("fail.*|error.*", word) else word
        if status is None:
            named = any(body.get(name) for name in (*_ID_NAMES, *_WEAK_ID_NAMES))
            if new and named:
                return "queued", None
            said = self._failure(body)[1]
            if new and said:
                raise protocol.NodeRejected(said)
            if named and body.get("error") and said:
                return "failed", None
            if body.get("done") is True or protocol.file_url(body):
                return "completed", None
            if pending or body.get("done") is False:
                return "in_progress", None
        if status is not None:
            said = self.transport.clean(status)[:40]
            raise protocol.NodeAnsweredNonsense(
                f"The node answered with a status that has no meaning here: {said}."
            )
        raise protocol.NodeAnsweredNonsense("The node answered something that is no video job.")

    def _id(self, body: Mapping[str, Any], expected_id: str | None) -> str:
        """Read a new job's id; of one that was asked for, check that the answer is about it, however it is spelt."""
        named = [body[name] for name in _ID_NAMES if body.get(name) is not None]
        ids = [*filter(None, map(_usable_id, sorted(named, key=lambda one: not isinstance(one, str))))]
        weak = [*filter(None, (_usable_id(body.get(name)) for name in _WEAK_ID_NAMES))]
        if expected_id is None and (known := next(iter([*ids, *weak]), None)):
            return known
        if expected_id is None or (named and not ids):
            raise protocol.NodeAnsweredNonsense("The node answered something that is no video job.")
        if ids and not any(_spellings(expected_id) & _spellings(known) for known in [*ids, *weak]):
            raise protocol.NodeAnsweredNonsense("The node answered with another job than was asked for.")
        return expected_id

    def _failure(self, body: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Read the code and the message of what went wrong."""
        names = ("error", "fail_reason", "failure_reason", "error_message", "message", "detail")
        error = next((body[name] for name in names if body.get(name)), None)
        if not isinstance(error, dict):
            said = protocol.text(error)
            return None, said and self.transport.clean(said)
        said = protocol.text(error.get("message"))
        return protocol.text(error.get("code")), said and self.transport.clean(said)


def _record(body: dict[str, Any], *, depth: int = 3) -> dict[str, Any]:
    """Find the job in an answer: the object itself, or one within, whose envelope may have a status of its own."""
    has_id, has_status = any(name in body for name in _ID_NAMES), _status(body) is not None
    for name in _ENVELOPES if depth and not (has_id and has_status) else ():
        inner = body.get(name)
        inner = inner[0] if isinstance(inner, list) and len(inner) == 1 else inner
        found = _record(inner, depth=depth - 1) if isinstance(inner, dict) else {}
        if _status(found) is not None or (not has_id and any(name in found for name in _ID_NAMES)):
            return {**body, **found}
    return body


def _status(body: Mapping[str, Any]) -> str | None:
    found = (protocol.text(body.get(name)) for name in _STATUS_NAMES)
    return next(filter(None, found), None)


def _meaning(word: str) -> RemoteState | None:
    """Find what a status means: by the whole word, else by its last part that is known, as of `pending_review`."""
    parts = word.split("_")
    for part in [word, *reversed(parts)]:
        for state, words in _STATES.items():
            if words.fullmatch(part) and (
                part == word or not {"not", "to", "for"} & {*parts} or state == "queued"
            ):
                return state
    return None


def _usable_id(value: object) -> str | None:
    """Read an id: a number, or a text of a length and of characters that can be quoted in a path and kept."""
    known = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return known if isinstance(known, str) and 0 < len(known) <= LONGEST_ID and known.isprintable() else None


def _named_by_location(answer: Answer) -> str | None:
    """Read the new job's id where only the header Location names it."""
    place = answer.headers.get("location", "").partition("?")[0].rstrip("/")
    found = (
        re.fullmatch(r"(?:.*/videos/)?([^/#]+)", place)
        if answer.status in (200, 201, 202, 204, 303)
        else None
    )
    return _usable_id(unquote(found[1])) if found else None


def _may_want_form(answer: Answer) -> bool:
    said = message_of(answer) if answer.status == 400 else ""
    return answer.status in (415, 422) or bool(
        re.search(r"multipart|form[ -]?data|content[ -]?type", said, re.I)
    )


def _wants_model(answer: Answer) -> bool:
    said, about = message_of(answer), ""
    with suppress(protocol.NodeAnsweredNonsense):
        error = answer.json_object().get("error")
        about = str(error.get("param")) if isinstance(error, dict) else ""
    return bool(
        (about == "model" or re.search(r"(?<![a-z])model(?![a-z])", said, re.I))
        and re.search("requir|missing|must|specif|provid|empty", said, re.I)
    )


def _models(answer: Answer) -> list[str]:
    """Read the names in a list of models, as OpenAI has it or bare; empty when the answer is none."""
    try:
        listed = answer.json_value() if answer.status == 200 else []
    except protocol.NodeAnsweredNonsense:
        return []
    if isinstance(listed, dict):
        listed = listed.get("data") or listed.get("models")
    ones = listed if isinstance(listed, list) else []
    names = [one.get("id") or one.get("name") if isinstance(one, dict) else one for one in ones]
    return [name for name in map(protocol.text, names) if name]


def _spellings(remote_id: str) -> set[str]:
    """List the forms that one job's id takes: percent-encoded, with a prefix, in base64 with what a gateway adds.

    LiteLLM's is video_BASE64 of `litellm:custom_llm_provider:…;model_id:…;video_id:ID`, its model_id at times empty.
    """
    plain = unquote(remote_id)
    found = {remote_id, plain}
    coded = plain.removeprefix("video_").rstrip("=").replace("+", "-").replace("/", "_")
    with suppress(ValueError):
        text = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
        found |= {text, text.rpartition(":")[2]}
    found |= {form.removeprefix("video_") for form in found}
    # A short one would fit too much.
    return {form for form in found if len(form) >= 8} | {remote_id}


def _job_path(remote_id: str | None) -> str:
    """Return the path of a job; an id that would leave the collection is refused."""
    if not _usable_id(remote_id) or remote_id in (None, ".", ".."):
        raise protocol.NodeAnsweredNonsense("The job has no usable id on the node.")
    return f"{COLLECTION}/{quote(remote_id, safe='')}"


def _generation_ms(body: Mapping[str, Any]) -> int | None:
    """Read the time that generation took: generation_time_ms of our node, inference_time_s of vLLM-Omni."""
    milliseconds = protocol.whole_number(body.get("generation_time_ms"))
    if milliseconds is not None:
        return milliseconds
    seconds = protocol.real_number(body.get("inference_time_s"))
    return None if seconds is None else protocol.whole_number(seconds * 1000)
