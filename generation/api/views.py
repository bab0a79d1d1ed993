"""The REST door: OpenAI's Videos API, and what it has not: cancel, presets, seeds, live events.

Every view parses, calls one operation and renders.
"""

from typing import Any, cast

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView
from rest_framework.exceptions import NotFound
from rest_framework.renderers import JSONRenderer, TemplateHTMLRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import errors
from accounts.models import User
from generation.api.errors import Problem
from generation.api.serializers import (
    EXAMPLE,
    DeletedVideo,
    ModelList,
    ModelSerializer,
    NewRemix,
    NewVideo,
    Page,
    PresetList,
    PresetSerializer,
    VideoList,
    VideoSerializer,
    Wanted,
    video_json,
    videos_json,
    with_what_is_shown,
)
from generation.errors import JobNotFound, VideoGone, VideoNotReady
from generation.jobs import catalog, lifecycle, submission
from generation.models import GenerationJob
from generation.sse.streams import MEDIA_TYPE, video_frame
from generation.web.gallery import page_of
from generation.web.streaming import filename_for, serve_file

State = GenerationJob.State

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="The same key is the same video, however often it is sent; with another body it is refused (422).",
)
VIDEO = OpenApiResponse(VideoSerializer, examples=[OpenApiExample("A video being made", value=EXAMPLE)])
SERVER_SENT_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["video.updated", "video.completed", "video.failed"]},
        "data": {"type": "string", "description": "The video, as JSON."},
    },
    "required": ["event", "data"],
}
SUBMIT_ERRORS = errors(400, 401, 402, 403, 413, 415, 422, 429)


def caller(request: Request) -> User:
    """Who asks. Behind IsAuthenticated there is always somebody."""
    return cast(User, request.user)


def find_job(request: Request, video_id: str) -> GenerationJob:
    """The caller's own video of that id; somebody else's, a deleted one and no id at all are the same JobNotFound."""
    own = GenerationJob.objects.filter(user=request.user.pk, deleted_at=None)
    job = with_what_is_shown(own.named(video_id)).first()
    if job is None:
        raise JobNotFound()
    return job


class Videos(APIView):
    @extend_schema(
        operation_id="videos_create",
        parameters=[IDEMPOTENCY_KEY],
        request={"application/json": NewVideo, "multipart/form-data": NewVideo},
        responses={200: VIDEO, **SUBMIT_ERRORS},
        summary="Make a video",
    )
    def post(self, request: Request) -> Response:
        """Holds the credits and puts the video in the queue. They are charged only when a playable file is stored."""
        body = NewVideo(data=request.data)
        body.is_valid(raise_exception=True)
        wish: dict[str, Any] = body.validated_data
        _check_offer(wish)
        chosen = None
        if wish.get("preset") or wish.get("seconds"):
            chosen = catalog.choose_preset(preset=wish.get("preset"), seconds=wish.get("seconds"))
        job = submission.submit(
            user=caller(request),
            prompt=wish["prompt"],
            source=GenerationJob.Source.API,
            preset=chosen,
            seed=wish.get("seed"),
            negative_prompt=wish.get("negative_prompt") or "",
            model=wish.get("model") or "",
            size=wish.get("size") or "",
            idempotency_key=request.headers.get("Idempotency-Key"),
        )
        return Response(video_json(job))

    @extend_schema(
        operation_id="videos_list",
        parameters=[Page],
        responses={200: VideoList, **errors(400, 401, 404)},
        summary="List your videos",
    )
    def get(self, request: Request) -> Response:
        """Newest first unless `order` says otherwise. Deleted videos are left out."""
        wanted = Page(data=request.query_params.dict())
        wanted.is_valid(raise_exception=True)
        jobs, has_more = page_of(
            with_what_is_shown(GenerationJob.objects.filter(user=request.user.pk, deleted_at=None)),
            after=_cursor(request, wanted.validated_data.get("after")),
            limit=wanted.validated_data["limit"],
            order=wanted.validated_data["order"],
        )
        data = videos_json(jobs)
        return Response(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": has_more,
            }
        )


class Video(APIView):
    @extend_schema(
        operation_id="videos_retrieve",
        responses={200: VIDEO, **errors(401, 404)},
        summary="How a video stands",
    )
    def get(self, request: Request, video_id: str) -> Response:
        return Response(video_json(find_job(request, video_id)))

    @extend_schema(
        operation_id="videos_delete",
        responses={200: DeletedVideo, **errors(401, 404, 409)},
        summary="Delete a video",
    )
    def delete(self, request: Request, video_id: str) -> Response:
        """For good, its files with it. One that is still being made must be canceled first (409)."""
        job = find_job(request, video_id)
        lifecycle.delete(job=job)
        return Response({"id": job.public_id, "object": "video.deleted", "deleted": True})


class Content(APIView):
    @extend_schema(
        operation_id="videos_content",
        parameters=[Wanted],
        responses={
            (200, "video/mp4"): OpenApiTypes.BINARY,
            (200, "image/jpeg"): OpenApiTypes.BINARY,
            (206, "video/mp4"): OpenApiTypes.BINARY,
            **errors(400, 401, 404, 409, 410, 412, 416),
        },
        summary="Download a video or its poster",
    )
    def get(self, request: Request, video_id: str) -> HttpResponseBase:
        """The MP4 (H.264), or a JPEG with `variant=thumbnail`. Knows Range."""
        wanted = Wanted(data=request.query_params.dict())
        wanted.is_valid(raise_exception=True)
        job = find_job(request, video_id)
        if job.state != State.COMPLETED:
            raise VideoNotReady(job.error_message if not job.is_live else None)
        return _file_response(request, job, wanted.validated_data["variant"])


class Cancel(APIView):
    @extend_schema(
        operation_id="videos_cancel",
        request=None,
        responses={200: VIDEO, **errors(401, 404, 409)},
        summary="Stop making a video",
    )
    def post(self, request: Request, video_id: str) -> Response:
        """Gives the held credits back at once. `status` becomes `failed`, `error.code` is `canceled`."""
        job = lifecycle.cancel(job=find_job(request, video_id), actor=caller(request))
        return Response(video_json(job))


class Remix(APIView):
    @extend_schema(
        operation_id="videos_remix",
        parameters=[IDEMPOTENCY_KEY],
        request={"application/json": NewRemix, "multipart/form-data": NewRemix},
        responses={200: VIDEO, **SUBMIT_ERRORS, **errors(404)},
        summary="Make it again with another prompt",
    )
    def post(self, request: Request, video_id: str) -> Response:
        """A new video with the seed, preset and negative prompt of this one."""
        original = find_job(request, video_id)
        body = NewRemix(data=request.data)
        body.is_valid(raise_exception=True)
        remix = submission.same_again(original)
        remix["prompt"], remix["remixed_from"] = body.validated_data["prompt"], original
        job = submission.submit(
            user=caller(request),
            source=GenerationJob.Source.API,
            idempotency_key=request.headers.get("Idempotency-Key"),
            **remix,
        )
        return Response(video_json(job))


class Events(APIView):
    @extend_schema(
        operation_id="videos_events",
        responses={(200, MEDIA_TYPE): SERVER_SENT_EVENT, **errors(401, 404, 429)},
        summary="Follow a video",
    )
    def get(self, request: Request, video_id: str) -> HttpResponse:
        """Server-sent events: `video.updated` for each change, then `video.completed` or `video.failed` and the end.

        The data of each is the video. Under the web server `generation.sse` answers this; without it (Django's own
        development server) there is one event, and a client that keeps to the standard asks again.
        """
        return HttpResponse(
            video_frame(find_job(request, video_id)),
            content_type=MEDIA_TYPE,
            headers={"Cache-Control": "no-cache"},
        )


class Models(APIView):
    @extend_schema(
        operation_id="models_list", responses={200: ModelList, **errors(401)}, summary="What can make videos"
    )
    def get(self, request: Request) -> Response:
        """The default first."""
        return Response({"object": "list", "data": ModelSerializer(catalog.current().models, many=True).data})


class Model(APIView):
    @extend_schema(
        operation_id="models_retrieve",
        responses={200: ModelSerializer, **errors(401, 404)},
        summary="One model",
    )
    def get(self, request: Request, model: str) -> Response:
        for known in catalog.current().models:
            if known.id == model:
                return Response(ModelSerializer(known).data)
        raise NotFound("There is no such model.")


class Presets(APIView):
    @extend_schema(
        operation_id="presets_list", responses={200: PresetList, **errors(401)}, summary="What a video costs"
    )
    def get(self, request: Request) -> Response:
        """Price for the caller and expected wait of everything on offer."""
        quotes = catalog.quotes(user=caller(request))
        return Response({"object": "list", "data": PresetSerializer(quotes, many=True).data})


class Schema(SpectacularJSONAPIView):
    """This API as an OpenAPI document."""

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response: Response = super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]
        return response

    def _get_version_parameter(self, request: Request) -> None:
        """There is one version; `?version=` would otherwise stand in a header, whatever it says."""


class Docs(SpectacularSwaggerView):
    """This API to read and to try, from files of our own."""

    http_method_names = ["get", "head"]
    renderer_classes = [TemplateHTMLRenderer]
    url_name = "api-schema"

    def handle_exception(self, exc: Exception) -> Response:
        """A page when all is well, and the errors of the API as everywhere else."""
        response: Response = super().handle_exception(exc)
        self.request.accepted_renderer = JSONRenderer()
        self.request.accepted_media_type = JSONRenderer.media_type
        return response


class UnknownRoute(APIView):
    """Whatever else is asked for under /v1/: 404 in the shape of every other error, with or without a key."""

    authentication_classes = []
    permission_classes = []

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise NotFound(f"There is no {request.method} for this address. See /v1/docs.")


def _check_offer(wish: dict[str, Any]) -> None:
    if wish.get("model") or wish.get("size"):
        available = catalog.current()
        if wish.get("model"):
            available.require_model(wish["model"])
        if wish.get("size"):
            available.require_size(wish["size"])


def _cursor(request: Request, after: str | None) -> GenerationJob | None:
    """The video a page begins after. It may have been deleted since the page before was read."""
    if after is None:
        return None
    job = GenerationJob.objects.filter(user=request.user.pk).named(after).first()
    if job is None:
        raise JobNotFound()
    return job


def _file_response(request: Request, job: GenerationJob, variant: str) -> HttpResponseBase:
    file, kind, extension = job.video, "video/mp4", ".mp4"
    if variant == "thumbnail":
        file, kind, extension = job.poster, "image/jpeg", ".jpg"
    plain: HttpRequest = request._request
    try:
        response = serve_file(
            plain, file.name or "", content_type=kind, filename=filename_for(job.prompt, extension)
        )
    except Http404:
        raise VideoGone() from None
    return _explained(response) if response.status_code >= 400 else response


def _explained(response: HttpResponseBase) -> HttpResponseBase:
    """A range or a precondition that cannot be met, in the shape of every other error."""
    texts = {
        412: ("precondition_failed", "The file is not the one this request is for."),
        416: ("range_not_satisfiable", "This range begins behind the end of the file."),
    }
    code, message = texts[response.status_code]
    told = JsonResponse(Problem(response.status_code, code, message).body, status=response.status_code)
    for name, value in response.items():
        told.headers.setdefault(name, value)
    return told
