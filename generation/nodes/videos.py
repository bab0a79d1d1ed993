"""The asynchronous `/v1/videos` protocol: our own node, vLLM-Omni, SGLang and other servers.

Beyond create, retrieve and content nothing is taken for granted. Idempotency-Key, Prefer, progress and cancel
are asked for, and a server that knows none of them still works: it is polled, and its jobs run to their end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from django.conf import settings

from generation.nodes import protocol
from generation.nodes.client import CANCEL_TIMEOUT, HEALTH_TIMEOUT, SUBMIT_TIMEOUT, NodeClient
from generation.nodes.protocol import GenerationRequest, NodeHealth, RemoteJob, RemoteState
from generation.nodes.transport import Answer

COLLECTION = "/v1/videos"
# Printable ASCII: what can stand in a path, a log and a column.
_JOB_ID = re.compile(r"[!-~]{1,200}")
_STATES: dict[str, RemoteState] = {
    "queued": "queued",
    "pending": "queued",
    "in_progress": "in_progress",
    "processing": "in_progress",
    "running": "in_progress",
    "completed": "completed",
    "succeeded": "completed",
    "failed": "failed",
    "canceled": "canceled",
    "cancelled": "canceled",
}


class VideosClient(NodeClient):
    """Speaks `/v1/videos`, JSON first, and multipart to a server that wants it so."""

    protocol = "videos"
    route = COLLECTION
    _wants_form = False

    async def health(self) -> NodeHealth:
        """Ask `/health`, and `/v1/models` where that names no model (vLLM answers an empty 200, SGLang its status)."""
        answer = await self.transport.call("GET", "/health", timeout=HEALTH_TIMEOUT)
        if answer.status == 200 and answer.body.strip():
            health = protocol.node_health(answer.json_object(), self.protocol)
            return health if health.model is not None else await self._with_model(health)
        if answer.status in (200, 404, 405):
            return await self._health_by_models()
        raise self.transport.refuse(answer)

    async def _with_model(self, health: NodeHealth) -> NodeHealth:
        """Add the model, if the server names it anywhere; it is healthy without."""
        try:
            listed = await self._health_by_models()
        except protocol.NodeError:
            return health
        return replace(health, model=listed.model, backend=health.backend or listed.backend)

    async def _health_by_models(self) -> NodeHealth:
        answer = await self.transport.call("GET", "/v1/models", timeout=HEALTH_TIMEOUT)
        if answer.status != 200:
            raise self.transport.refuse(answer)
        body = answer.json_object()
        models = body.get("data")
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        name = protocol.text(first.get("id"))
        return NodeHealth(
            ready=True, status="ready", protocol=self.protocol, backend=name, model=name, detail=body
        )

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
        if answer.status in (415, 422) and not self._wants_form:
            answer = await self._post_as_form(answer, fields, key=request.id)
        if answer.status in (404, 405):
            raise protocol.NodeAnsweredNonsense("The node has no /v1/videos.")
        return self._job(self._accepted(answer))

    async def _post(self, fields: Mapping[str, Any], *, key: str) -> Answer:
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
        answer = await self._post(fields, key=key)
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

    def _accepted(self, answer: Answer) -> dict[str, Any]:
        if not 200 <= answer.status < 300:
            raise self.transport.refuse(answer)
        return answer.json_object()

    def _job(self, body: Mapping[str, Any], *, expected_id: str | None = None) -> RemoteJob:
        """Read OpenAI's video object, with the further fields that this server has."""
        remote_id, status = body.get("id"), body.get("status")
        state = _STATES.get(status) if isinstance(status, str) else None
        if not isinstance(remote_id, str) or not _JOB_ID.fullmatch(remote_id) or state is None:
            raise protocol.NodeAnsweredNonsense("The node answered something that is no video job.")
        if expected_id is not None and remote_id != expected_id:
            raise protocol.NodeAnsweredNonsense("The node answered with another job than was asked for.")
        code, said = self._failure(body.get("error"))
        if state == "failed" and code in ("canceled", "cancelled"):
            state = "canceled"
        return RemoteJob(
            remote_id=remote_id,
            state=state,
            step=protocol.whole_number(body.get("step")),
            progress=protocol.whole_number(body.get("progress")),
            error=said or ("The node gave no reason." if state == "failed" else None),
            error_code=code,
            file_name=protocol.known_file_name(body.get("file_name")),
            generation_ms=_generation_ms(body),
            stopped_at_step=protocol.whole_number(body.get("stopped_at_step")),
            profile=protocol.profile(body.get("made_with")),
        )

    def _failure(self, error: object) -> tuple[str | None, str | None]:
        """Read the code and the message of a job's `error`."""
        if not isinstance(error, dict):
            said = protocol.text(error)
            return None, said and self.transport.clean(said)
        said = protocol.text(error.get("message"))
        return protocol.text(error.get("code")), said and self.transport.clean(said)


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
