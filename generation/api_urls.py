"""Everything under /v1/. No trailing slashes, as clients of OpenAI's API expect."""

from django.urls import path, re_path

from accounts.api import Credits
from generation import api

urlpatterns = [
    path("videos", api.Videos.as_view(), name="api-videos"),
    path("videos/<str:video_id>", api.Video.as_view(), name="api-video"),
    path("videos/<str:video_id>/content", api.Content.as_view(), name="api-content"),
    path("videos/<str:video_id>/cancel", api.Cancel.as_view(), name="api-cancel"),
    path("videos/<str:video_id>/remix", api.Remix.as_view(), name="api-remix"),
    path("videos/<str:video_id>/events", api.Events.as_view(), name="api-events"),
    path("credits", Credits.as_view(), name="api-credits"),
    path("models", api.Models.as_view(), name="api-models"),
    path("models/<path:model>", api.Model.as_view(), name="api-model"),
    path("presets", api.Presets.as_view(), name="api-presets"),
    path("schema", api.Schema.as_view(), name="api-schema"),
    path("docs", api.Docs.as_view(), name="api-docs"),
    re_path(r"", api.UnknownRoute.as_view()),
]
