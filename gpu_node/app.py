"""The node's HTTP surface. This process never imports torch: the worker process does."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

from gpu_node.answers import field_answer, refusal_response, video_object
from gpu_node.auth import Gate
from gpu_node.bodies import idempotency_key, preferred_wait, read_json, read_json_or_form
from gpu_node.errors import InvalidRequest, NotAllowed, NotFound, NotReady, Refusal
from gpu_node.job import Job
from gpu_node.metrics import render
from gpu_node.node import Node
from gpu_node.schemas import parse_generate_video, parse_video
from gpu_node.settings import NodeSettings

log = logging.getLogger(__name__)
router = APIRouter()


def create_app(settings: NodeSettings) -> FastAPI:
    """The application; `app.state.node` is the node behind it."""
    app = FastAPI(title="GPU node", openapi_url=None, lifespan=_lifespan)
    app.state.node = Node(settings)
    app.include_router(router)
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_bad_query)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
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
    """How the node is; the one route that needs no key."""
    return _node(request).health()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus, which sends the key as a bearer token."""
    return Response(render(_node(request)), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The one model that runs here, in OpenAI's shape."""
    model = {
        "id": _node(request).settings.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "gpu_node",
    }
    return {"object": "list", "data": [model]}


@router.post("/generate_video")
async def generate_video(request: Request) -> dict[str, Any]:
    """Make a clip and answer when it is there. The job goes on if the client leaves; the same key finds it again."""
    node = _node(request)
    try:
        spec = parse_generate_video(await read_json(request), node.settings)
        job = node.submit(spec=spec, key=idempotency_key(request))
    except InvalidRequest as error:
        error.status = 422 if error.status == 400 else error.status
        raise
    await job.ended()
    return field_answer(job, path=str(node.store.clip_path(job)))


@router.api_route("/get_video/{filename}", methods=["GET", "HEAD"])
async def get_video(request: Request, filename: str) -> Response:
    """The clip of this name."""
    path = _node(request).store.find_clip(filename)
    if path is None:
        raise NotFound("There is no such video.")
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
    """The jobs that the node knows, a page at a time."""
    queue = _node(request).queue
    jobs = queue.newest_first()
    if order == "asc":
        jobs.reverse()
    if after is not None:
        jobs = jobs[jobs.index(queue.get(after)) + 1 :]
    page = [_as_object(request, job) for job in jobs[:limit]]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": len(jobs) > limit, **ends}


@router.get("/v1/videos/{video_id}")
async def retrieve_video(request: Request, video_id: str) -> Response:
    """A job as it is now, or with `Prefer: wait=N` as it is after its next change."""
    wait = preferred_wait(request)
    if not wait:
        return _video(request, _job(request, video_id))
    await _job(request, video_id).changed(wait)
    response = _video(request, _job(request, video_id))  # asked for again: it may be gone by now
    response.headers["Preference-Applied"] = f"wait={wait}"
    return response


@router.api_route("/v1/videos/{video_id}/content", methods=["GET", "HEAD"])
async def download_video(request: Request, video_id: str, variant: str = "video") -> Response:
    """The clip."""
    if variant != "video":
        raise InvalidRequest("variant: this node has the video only", param="variant")
    job = _job(request, video_id)
    if job.status != "completed":
        raise NotReady("The video has failed." if job.has_ended else "The video is not ready yet.")
    path = _node(request).store.find_clip(job.file_name)
    if path is None:
        raise NotFound("The video's file is gone.")
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


def _as_object(request: Request, job: Job) -> dict[str, Any]:
    node = _node(request)
    return video_object(
        job,
        model=node.settings.model_name,
        position=node.queue.position(job),
        retention_seconds=node.settings.retention_hours * 3600,
    )


def _video(request: Request, job: Job, *, status_code: int = 200) -> JSONResponse:
    return JSONResponse(_as_object(request, job), status_code=status_code)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refusal_response(request.url.path, error)


async def _on_bad_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    name = str(problem["loc"][-1])
    return refusal_response(request.url.path, InvalidRequest(f"{name}: {problem['msg']}", param=name))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = NotAllowed if error.status_code == 405 else NotFound
    refusal = kind(f"{request.method} {request.url.path}: {error.detail}")
    refusal.status = error.status_code
    return refusal_response(request.url.path, refusal)


async def _on_bug(request: Request, error: Exception) -> Response:
    return refusal_response(request.url.path, Refusal("The node failed to answer; its log says why."))
