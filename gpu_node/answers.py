"""How jobs and refusals look on the wire, in the two protocols."""

from typing import Any

from starlette.responses import JSONResponse

from gpu_node.errors import Refusal, Unavailable
from gpu_node.job import Job

# A clip that these ended was not made for want of a node, not because of the clip: the client should go elsewhere.
NODE_PROBLEMS = frozenset({"node_shutdown", "model_unavailable"})


def refusal_response(path: str, refusal: Refusal) -> JSONResponse:
    """The refusal in the shape of the protocol that `path` belongs to."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if path.startswith("/v1/"):
        return JSONResponse({"error": _openai_error(refusal)}, status_code=refusal.status, headers=headers)
    body = {"status": "error", "error": refusal.message}
    return JSONResponse(body, status_code=refusal.status, headers=headers)


def _openai_error(refusal: Refusal) -> dict[str, Any]:
    return {"code": refusal.code, "message": refusal.message, "param": refusal.param, "type": refusal.type}


def field_answer(job: Job, *, path: str) -> dict[str, Any]:
    """The answer of `/generate_video`. Raises Unavailable when the node, not the clip, was the problem."""
    if job.error is None:
        return {"status": "ok", "video_path": path, "generation_time_ms": job.generation_time_ms}
    if job.error.code in NODE_PROBLEMS:
        raise Unavailable(job.error.message)
    return {"status": "error", "error": job.error.message}


def video_object(job: Job, *, model: str, position: int | None, retention_seconds: float) -> dict[str, Any]:
    """OpenAI's video object, and what this node knows beyond it."""
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "completed_at": _whole(job.completed_at),
        "expires_at": None if job.completed_at is None else int(job.completed_at + retention_seconds),
        "model": model,
        "prompt": job.prompt,
        "seconds": None if job.num_frames is None else f"{job.num_frames / job.fps:g}",
        "size": None if job.width is None else f"{job.width}x{job.height}",
        "remixed_from_video_id": None,
        "error": None if job.error is None else job.error.model_dump(),
        **_extras(job, position),
    }


def _extras(job: Job, position: int | None) -> dict[str, Any]:
    """`num_frames` are delivered; `generated_frames` were made, because the model makes 8N+1.

    `made_with`: model, profile, precision and levers that the clip was made with.
    """
    return {
        "step": job.step,
        "steps": job.steps,
        "num_frames": job.num_frames,
        "generated_frames": job.generated_frames,
        "fps": job.fps,
        "seed": job.seed,
        "guidance_scale": job.guidance_scale,
        "queue_position": position,
        "generation_time_ms": job.generation_time_ms,
        "file_name": job.file_name if job.status == "completed" else None,
        "stopped_at_step": job.stopped_at_step,
        "made_with": job.made_with,
    }


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
