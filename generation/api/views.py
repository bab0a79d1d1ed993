"""The REST API: OpenAI's Videos API, and what it has not: cancel, presets, seeds, live events.

Every view parses, calls one operation and renders.
"""

from typing import Any, cast

from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, re_path
from django.utils.functional import lazy
from django.utils.text import format_lazy
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView
from rest_framework.exceptions import NotFound
from rest_framework.renderers import JSONRenderer, TemplateHTMLRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import Credits, documented
from accounts.models import User
from generation.api import serializers
from generation.api.errors import API_PREFIX, PRECONDITION_FAILED, UNSATISFIABLE_RANGE, answer
from generation.errors import JobNotFound, VideoGone, VideoNotReady, cancel_terms
from generation.jobs import catalog, lifecycle, submission
from generation.models import GenerationJob
from generation.sse.streams import MEDIA_TYPE, video_frame
from generation.web.gallery import paginate
from generation.web.presenters import kept_jobs
from generation.web.streaming import filename_for, serve_file

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="The same key is the same video, however often it is sent; with another body it is refused (422).",
)
VIDEO = OpenApiResponse(
    serializers.VideoSerializer, examples=[OpenApiExample("A video being made", value=serializers.EXAMPLE)]
)
SERVER_SENT_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["video.updated", "video.completed", "video.failed"]},
        "data": {"type": "string", "description": "The video, as JSON."},
    },
    "required": ["event", "data"],
}
SUBMIT_ERRORS = (400, 401, 402, 403, 413, 415, 422, 429)


def caller(request: Request) -> User:
    """Return the caller: behind IsAuthenticated there always is one."""
    return cast(User, request.user)


def find_job(request: Request, video_id: str) -> GenerationJob:
    """Find the caller's own video; another person's, a deleted one and no id at all are the same JobNotFound."""
    job = kept_jobs(user=caller(request)).named(video_id).first()
    if job is None:
        raise JobNotFound()
    return job


class Videos(APIView):
    @documented(
        "videos_create",
        "Make a video",
        VIDEO,
        *SUBMIT_ERRORS,
        parameters=[IDEMPOTENCY_KEY],
        request={"application/json": serializers.NewVideo, "multipart/form-data": serializers.NewVideo},
    )
    def post(self, request: Request) -> Response:
        """Holds the credits and puts the video in the queue. They are charged only when a playable file is stored."""
        body = serializers.NewVideo(data=request.data)
        body.is_valid(raise_exception=True)
        params: dict[str, Any] = body.validated_data
        model, size = params.get("model") or "", params.get("size") or ""
        if model or size:
            catalog.current_offer().require(model=model, size=size)
        preset = None
        if params.get("preset") or params.get("seconds"):
            preset = catalog.choose_preset(preset=params.get("preset"), seconds=params.get("seconds"))
        job = submission.submit(
            user=caller(request),
            prompt=params["prompt"],
            source=GenerationJob.Source.API,
            preset=preset,
            seed=params.get("seed"),
            negative_prompt=params.get("negative_prompt") or "",
            model=model,
            size=size,
            idempotency_key=request.headers.get("Idempotency-Key"),
        )
        return Response(serializers.video_json(job))

    @documented(
        "videos_list",
        "List your videos",
        serializers.VideoList,
        *(400, 401, 404),
        parameters=[serializers.PageQuery],
    )
    def get(self, request: Request) -> Response:
        """Lists the newest first unless `order` says otherwise, without deleted videos."""
        query = serializers.PageQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        page: dict[str, Any] = query.validated_data
        if "after" in page:
            # The video may have been deleted since the page before was read.
            own = GenerationJob.objects.filter(user=caller(request))
            page["after"] = own.named(page["after"]).first()
            if page["after"] is None:
                raise JobNotFound()
        jobs, has_more = paginate(kept_jobs(user=caller(request)), **page)
        data = serializers.videos_json(jobs)
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
    @documented("videos_retrieve", "How a video stands", VIDEO, 401, 404)
    def get(self, request: Request, video_id: str) -> Response:
        return Response(serializers.video_json(find_job(request, video_id)))

    @documented("videos_delete", "Delete a video", serializers.DeletedVideo, 401, 404, 409)
    def delete(self, request: Request, video_id: str) -> Response:
        """Removes the video and its files for good. One that is still being made must be canceled first (409)."""
        job = find_job(request, video_id)
        lifecycle.delete(job=job)
        return Response({"id": job.public_id, "object": "video.deleted", "deleted": True})


class Content(APIView):
    @documented(
        "videos_content",
        "Download a video or its poster",
        dict.fromkeys([(200, "video/mp4"), (200, "image/jpeg"), (206, "video/mp4")], OpenApiTypes.BINARY),
        *(400, 401, 404, 409, 410, 412, 416),
        parameters=[serializers.ContentQuery],
    )
    def get(self, request: Request, video_id: str) -> HttpResponseBase:
        """Returns the MP4 (H.264), or a JPEG with `variant=thumbnail`. Supports Range."""
        query = serializers.ContentQuery(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        job = find_job(request, video_id)
        if job.state != GenerationJob.State.COMPLETED:
            raise VideoNotReady(job.error_message if not job.is_live else None)
        file, kind, extension = job.video, "video/mp4", ".mp4"
        if query.validated_data["variant"] == "thumbnail":
            file, kind, extension = job.poster, "image/jpeg", ".jpg"
        plain: HttpRequest = request._request
        filename = filename_for(job.prompt, extension)
        try:
            response = serve_file(plain, file.name or "", content_type=kind, filename=filename)
        except Http404:
            raise VideoGone() from None
        if response.status_code < 400:
            return response
        problem = PRECONDITION_FAILED if response.status_code == 412 else UNSATISFIABLE_RANGE
        explained = answer(API_PREFIX, problem)
        for name, value in response.items():
            explained.headers.setdefault(name, value)
        return explained


class Cancel(APIView):
    WORDS = "Gives the held credits back at once. `status` becomes `failed`, `error.code` is `canceled`. {}"
    EFFECT = format_lazy(WORDS, lazy(cancel_terms, str)())

    @documented(
        "videos_cancel", "Stop making a video", VIDEO, 401, 404, 409, request=None, description=EFFECT
    )
    def post(self, request: Request, video_id: str) -> Response:
        job = lifecycle.cancel(job=find_job(request, video_id), actor=caller(request))
        return Response(serializers.video_json(job))


class Remix(APIView):
    @documented(
        "videos_remix",
        "Make it again with another prompt",
        VIDEO,
        *(*SUBMIT_ERRORS, 404),
        parameters=[IDEMPOTENCY_KEY],
        request={"application/json": serializers.NewRemix, "multipart/form-data": serializers.NewRemix},
    )
    def post(self, request: Request, video_id: str) -> Response:
        """Makes a new video with the preset, seed, negative prompt, model and size of this one."""
        original = find_job(request, video_id)
        body = serializers.NewRemix(data=request.data)
        body.is_valid(raise_exception=True)
        params = submission.same_again(original)
        params["prompt"], params["remixed_from"] = body.validated_data["prompt"], original
        job = submission.submit(
            user=caller(request),
            source=GenerationJob.Source.API,
            idempotency_key=request.headers.get("Idempotency-Key"),
            **params,
        )
        return Response(serializers.video_json(job))


class Events(APIView):
    @documented("videos_events", "Follow a video", {(200, MEDIA_TYPE): SERVER_SENT_EVENT}, 401, 404, 429)
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
    @documented("models_list", "What can make videos", serializers.ModelList, 401)
    def get(self, request: Request) -> Response:
        """Lists the default first."""
        models = catalog.current_offer().models
        return Response(
            {"object": "list", "data": [serializers.model_json(*model) for model in models.items()]}
        )


class Model(APIView):
    @documented("models_retrieve", "One model", serializers.ModelSerializer, 401, 404)
    def get(self, request: Request, model: str) -> Response:
        created = catalog.current_offer().models.get(model)
        if created is None:
            raise NotFound("There is no such model.")
        return Response(serializers.model_json(model, created))


class Presets(APIView):
    @documented("presets_list", "What a video costs", serializers.PresetList, 401)
    def get(self, request: Request) -> Response:
        """Lists every preset with its price for the caller and its expected wait."""
        quotes = serializers.PresetSerializer(catalog.quotes(user=caller(request)), many=True)
        return Response({"object": "list", "data": quotes.data})


class Schema(SpectacularJSONAPIView):
    """This API as an OpenAPI document."""

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        response: Response = super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]
        return response

    def _get_version_parameter(self, request: Request) -> None:
        """Ignore `?version=`: there is one version, and the text would otherwise stand in a header."""


class Docs(SpectacularSwaggerSplitView):
    """This API to read and to try, from files of our own."""

    http_method_names = ["get", "head"]
    renderer_classes = [TemplateHTMLRenderer]
    url_name = "api-schema"

    def handle_exception(self, exc: Exception) -> Response:
        """Answer errors as the rest of the API does, in JSON."""
        response: Response = super().handle_exception(exc)
        self.request.accepted_renderer = JSONRenderer()
        self.request.accepted_media_type = JSONRenderer.media_type
        return response


class UnknownRoute(APIView):
    """Every other address under /v1/: 404 in the shape of every other error, with or without a key."""

    authentication_classes = []
    permission_classes = []

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise NotFound(f"There is no {request.method} for this address. See /v1/docs.")


# Everything under /v1/. No trailing slashes, as clients of OpenAI's API expect.
urlpatterns = [
    path("videos", Videos.as_view(), name="api-videos"),
    path("videos/<str:video_id>", Video.as_view(), name="api-video"),
    path("videos/<str:video_id>/content", Content.as_view(), name="api-content"),
    path("videos/<str:video_id>/cancel", Cancel.as_view(), name="api-cancel"),
    path("videos/<str:video_id>/remix", Remix.as_view(), name="api-remix"),
    path("videos/<str:video_id>/events", Events.as_view(), name="api-events"),
    path("credits", Credits.as_view(), name="api-credits"),
    path("models", Models.as_view(), name="api-models"),
    path("models/<path:model>", Model.as_view(), name="api-model"),
    path("presets", Presets.as_view(), name="api-presets"),
    path("schema", Schema.as_view(), name="api-schema"),
    path("docs", Docs.as_view(), name="api-docs"),
    re_path(r"", UnknownRoute.as_view()),
]
