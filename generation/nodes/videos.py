"""The asynchronous `/v1/videos` protocol: our own node, vLLM-Omni, SGLang and other servers.

Beyond create, retrieve and content nothing is taken for granted. Idempotency-Key, Prefer, progress and cancel
are asked for, and a server that knows none of them still works: it is polled, and its jobs run to their end.
"""

from __future__ import annotations

import base64
import binascii
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
# Printable ASCII: what can stand in a path, a log and a column.
_JOB_ID = re.compile(r"[!-~]{1,2000}")
# The message of a framework that has no such route; any other 404 is the server's own.
_NO_ROUTE = re.compile(r"not[ _]?found\.?|404.*|method not allowed\.?|cannot post .*", re.I)
# The names that servers have for it; a gateway's answer may have both its own id and that of the server behind it.
_ID_NAMES = ("id", "task_id", "video_id", "job_id")
# In the spelling of `protocol.word`. What a server does not know (`unknown`) is still to come.
_STATES: dict[RemoteState, re.Pattern[str]] = {
    "queued": re.compile(
        r"(in_)?queued?|pending|submitted|created|waiting|accepted|scheduled|not_start(ed)?|received|new|unknown"
    ),
    "in_progress": re.compile(
        r"in_?progress|progress|process(ing)?|running|run|generating|started|starting|initializing|preparing|executing"
        r"|working|active|rendering|encoding|decoding|uploading|downloading|saving|finali[sz]ing|post_?processing"
        r"|cancell?ing|stopping|retrying|paused"
    ),
    "completed": re.compile(r"completed?|succeed(ed)?|success(ful)?|done|finished|finish|ready|ok"),
    "failed": re.compile(
        r"fail(ed|ure)?|error(ed)?|rejected|refused|blocked|moderated|flagged|nsfw|invalid|dead|expired|time(d_)?out"
    ),
    "canceled": re.compile(r"cancell?ed|abort(ed)?|terminated|stopped|deleted|revoked|killed"),
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
            listed = None if body.get("model") else await self._health_by_models()
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
        if answer.status in (404, 405):
            said = message_of(answer)
            if said and not _NO_ROUTE.fullmatch(said):
                raise protocol.NodeRejected(self.transport.clean(said))
            raise protocol.NodeHasNoRoute("The node has no /v1/videos.")
        return self._job(self._accepted(answer))

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
        if answer.status in (415, 422) and not self._wants_form:
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
        if answer.status in (415, 422):
            # The form is no better, so the request was at fault; the first refusal explains it.
            self._wants_form = False
            return refusal if refusal.status == 422 else answer
        return answer

    async def retrieve(self, remote_id: str, *, wait: float = 0) -> RemoteJob:
        headers = {"Prefer": f"wait={max(1, round(wait))}"} if wait > 0 else {}
        answer = await self.transport.call(
            "GET", _job_path(remote_id), headers=headers, timeout=wait + settings.NODE_ANSWER_SECONDS
        )
        return self._job(self._accepted(answer), expected_id=remote_id)

    async def cancel(self, remote_id: str) -> RemoteJob | None:
        """Stop the job, by its cancel route or else by deleting it; None when the server has neither."""
        answer = await self.transport.call("POST", _job_path(remote_id) + "/cancel", timeout=CANCEL_TIMEOUT)
        if answer.status == 409:
            return await self.retrieve(remote_id)
        if answer.status not in (404, 405, 501):
            return self._job(self._accepted(answer), expected_id=remote_id)
        # 404 has two meanings, no such route and no such job; retrieving tells which.
        job = await self.retrieve(remote_id)
        return job if job.finished else await self._delete(job)

    async def _delete(self, job: RemoteJob) -> RemoteJob | None:
        """vLLM-Omni has no cancel, but stops a job that is deleted. SGLang forgets it: nothing more comes of it."""
        answer = await self.transport.call("DELETE", _job_path(job.remote_id), timeout=CANCEL_TIMEOUT)
        if answer.status in (405, 409, 501):
            return None
        body = self._accepted(answer)
        if body.get("deleted") is not True and body.get("status") != "deleted":
            return None
        return RemoteJob(remote_id=job.remote_id, state="canceled", step=job.step)

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

    def _job(self, body: Mapping[str, Any], *, expected_id: str | None = None) -> RemoteJob:
        """Read OpenAI's video object, with the further fields that this server has.

        expected_id: of the job that was asked for; None where it has just been made.
        """
        inner = body.get("data")
        inner = inner[0] if isinstance(inner, list) and len(inner) == 1 else inner
        if isinstance(inner, dict) and not {*_ID_NAMES, "status"} & body.keys():
            body = inner
        state, word = self._state(body, new=expected_id is None)
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

    def _state(self, body: Mapping[str, Any], *, new: bool) -> tuple[RemoteState, str | None]:
        """Read the state, and the server's own word where it says more than that the job failed."""
        status = next((body[name] for name in ("status", "task_status", "state") if body.get(name)), None)
        word = protocol.word(status)
        for state, words in _STATES.items():
            if words.fullmatch(word):
                return state, None if re.fullmatch("fail.*|error.*", word) else word
        if new and status is None and any(body.get(name) for name in _ID_NAMES):
            return "queued", None
        if new and status is None and (said := self._failure(body)[1]):
            raise protocol.NodeRejected(said)
        if isinstance(status, str) and status:
            said = self.transport.clean(status)[:40]
            raise protocol.NodeAnsweredNonsense(
                f"The node answered with a status that has no meaning here: {said}."
            )
        raise protocol.NodeAnsweredNonsense("The node answered something that is no video job.")

    def _id(self, body: Mapping[str, Any], expected_id: str | None) -> str:
        """Read a new job's id; of one that was asked for, check that the answer is about it, however it is spelt."""
        named = [body[name] for name in _ID_NAMES if body.get(name) is not None]
        ids = [known for known in named if isinstance(known, str) and _JOB_ID.fullmatch(known)]
        if not ids and (named or expected_id is None):
            raise protocol.NodeAnsweredNonsense("The node answered something that is no video job.")
        if expected_id is None:
            return ids[0]
        if ids and not any(_spellings(expected_id) & _spellings(known) for known in ids):
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


def _wants_model(answer: Answer) -> bool:
    said = message_of(answer)
    return bool(
        re.search(r"\bmodel\b", said, re.I)
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
    with suppress(binascii.Error, UnicodeDecodeError):
        text = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
        found |= {text, text.rpartition(":")[2]}
    found |= {form.removeprefix("video_") for form in found}
    # A short one would fit too much.
    return {form for form in found if len(form) >= 8} | {remote_id}


def _job_path(remote_id: str | None) -> str:
    """Return the path of a job; an id that would leave the collection is refused."""
    if not remote_id or not _JOB_ID.fullmatch(remote_id) or remote_id in (".", ".."):
        raise protocol.NodeAnsweredNonsense("The job has no usable id on the node.")
    return f"{COLLECTION}/{quote(remote_id, safe='')}"


def _generation_ms(body: Mapping[str, Any]) -> int | None:
    """Read the time that generation took: generation_time_ms of our node, inference_time_s of vLLM-Omni."""
    milliseconds = protocol.whole_number(body.get("generation_time_ms"))
    if milliseconds is not None:
        return milliseconds
    seconds = protocol.real_number(body.get("inference_time_s"))
    return None if seconds is None else protocol.whole_number(seconds * 1000)
