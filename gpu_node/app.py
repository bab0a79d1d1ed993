"""The node's routes, in two protocols. This process never imports torch: the worker process does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import FileResponse, JSONResponse, Response

from gpu_node.errors import Code, InvalidRequest, Refusal
from gpu_node.http import Gate, handle_errors, idempotency_key, preferred_wait, read_json, read_json_or_form
from gpu_node.metrics import render
from gpu_node.node import Node
from gpu_node.queue import Job
from gpu_node.schemas import parse_generate_video, parse_video
from gpu_node.settings import NodeSettings

router = APIRouter()

# These ends say that the node, not the clip, was the problem: the client should go elsewhere.
NODE_PROBLEMS = frozenset({"node_shutdown", "model_unavailable"})


def create_app(settings: NodeSettings) -> FastAPI:
    """Make the application; `app.state.node` is the node behind it."""
    app = FastAPI(title="GPU node", openapi_url=None, lifespan=_lifespan)
    app.state.node = Node(settings)
    app.include_router(router)
    handle_errors(app)
    key = settings.api_key
    app.add_middleware(Gate, key=key.get_secret_value().strip() if key is not None else None)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    node: Node = app.state.node
    node.start()
    yield
    await node.drain()


def _node(request: Request) -> Node:
    node: Node = request.app.state.node
    return node


def _job(request: Request, video_id: str) -> Job:
    return _node(request).queue.get(video_id)


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Report the node's state; the one route that needs no key."""
    return _node(request).health()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Report figures for Prometheus, which sends the key as a bearer token."""
    return Response(render(_node(request)), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the one model that runs here, in OpenAI's shape."""
    name = _node(request).settings.model_name
    model = {"id": name, "object": "model", "created": 0, "owned_by": "gpu_node"}
    return {"object": "list", "data": [model]}


@router.post("/generate_video")
async def generate_video(request: Request) -> dict[str, Any]:
    """Make a clip and answer when it is there. The job goes on if the client leaves; the same key finds it again."""
    node = _node(request)
    spec = parse_generate_video(await read_json(request), node.settings)
    job = node.submit(spec=spec, key=idempotency_key(request))
    await job.ended()
    if job.error is None:
        path = str(node.store.clip_path(job))
        return {"status": "ok", "video_path": path, "generation_time_ms": job.generation_time_ms}
    if job.error.code in NODE_PROBLEMS:
        raise Refusal(Code.unavailable, job.error.message)
    return {"status": "error", "error": job.error.message}


@router.api_route("/get_video/{filename}", methods=["GET", "HEAD"])
async def get_video(request: Request, filename: str) -> Response:
    path = _node(request).store.find_clip(filename)
    if path is None:
        raise Refusal(Code.not_found, "There is no such video.")
    return FileResponse(path, media_type="video/mp4")


@router.post("/v1/videos")
async def create_video(request: Request) -> Response:
    """Accept a job; the same Idempotency-Key is the same job."""
    node = _node(request)
    key = idempotency_key(request)
    spec, picture = parse_video(await read_json_or_form(request), node.settings)
    return _video(request, node.submit(spec=spec, key=key, picture=picture))


@router.get("/v1/videos")
async def list_videos(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List the jobs that the node knows, a page at a time."""
    node = _node(request)
    jobs = node.queue.newest_first()
    if order == "asc":
        jobs.reverse()
    if after is not None:
        jobs = jobs[jobs.index(node.queue.get(after)) + 1 :]
    page = [video_object(job, node) for job in jobs[:limit]]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": len(jobs) > limit, **ends}


@router.get("/v1/videos/{video_id}")
async def retrieve_video(request: Request, video_id: str) -> Response:
    """Answer with a job at once, or with `Prefer: wait=N` after its next change."""
    wait = preferred_wait(request)
    if not wait:
        return _video(request, _job(request, video_id))
    await _job(request, video_id).changed(wait)
    response = _video(request, _job(request, video_id))  # looked up again: it may be gone by now
    response.headers["Preference-Applied"] = f"wait={wait}"
    return response


@router.api_route("/v1/videos/{video_id}/content", methods=["GET", "HEAD"])
async def download_video(request: Request, video_id: str, variant: str = "video") -> Response:
    if variant != "video":
        raise InvalidRequest("variant: this node has the video only", param="variant")
    job = _job(request, video_id)
    if job.status != "completed":
        message = "The video has failed." if job.has_ended else "The video is not ready yet."
        raise Refusal(Code.not_ready, message)
    path = _node(request).store.find_clip(job.file_name)
    if path is None:
        raise Refusal(Code.not_found, "The video's file is gone.")
    return FileResponse(path, media_type="video/mp4", filename=job.file_name)


@router.delete("/v1/videos/{video_id}")
async def delete_video(request: Request, video_id: str) -> dict[str, Any]:
    """Drop a job and its clip, canceling it first if it still lives."""
    job = _job(request, video_id)
    await _node(request).delete(job)
    return {"id": job.id, "object": "video.deleted", "deleted": True}


@router.post("/v1/videos/{video_id}/cancel")
async def cancel_video(request: Request, video_id: str) -> Response:
    """Stop a job within one step. A job that has ended is answered as it is; 202 if it has not stopped yet."""
    job = _job(request, video_id)
    await _node(request).cancel(job)
    return _video(request, job, status_code=200 if job.has_ended else 202)


def _video(request: Request, job: Job, *, status_code: int = 200) -> JSONResponse:
    return JSONResponse(video_object(job, _node(request)), status_code=status_code)


def video_object(job: Job, node: Node) -> dict[str, Any]:
    """Return the job as OpenAI's video object, and what this node knows beyond it, from `step` on.

    `num_frames` are delivered; `generated_frames` were made, because the model makes 8N+1. `made_with`: model, profile,
    precision and levers that the clip was made with.
    """
    completed_at, retention = job.completed_at, node.settings.retention_hours * 3600
    return {
        "id": job.id,
        "object": "video",
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "completed_at": None if completed_at is None else int(completed_at),
        "expires_at": None if completed_at is None else int(completed_at + retention),
        "model": node.settings.model_name,
        "prompt": job.prompt,
        "seconds": None if job.num_frames is None else f"{job.num_frames / job.fps:g}",
        "size": None if job.width is None else f"{job.width}x{job.height}",
        "remixed_from_video_id": None,
        "error": None if job.error is None else job.error.model_dump(),
        "step": job.step,
        "steps": job.steps,
        "num_frames": job.num_frames,
        "generated_frames": job.generated_frames,
        "fps": job.fps,
        "seed": job.seed,
        "guidance_scale": job.guidance_scale,
        "queue_position": node.queue.position(job),
        "generation_time_ms": job.generation_time_ms,
        "file_name": job.file_name if job.status == "completed" else None,
        "stopped_at_step": job.stopped_at_step,
        "made_with": job.made_with,
    }
