"""Everything under /v1/. No trailing slashes, as clients of OpenAI's API expect."""

from django.urls import path, re_path

from accounts.api import Credits
from generation.api import views

urlpatterns = [
    path("videos", views.Videos.as_view(), name="api-videos"),
    path("videos/<str:video_id>", views.Video.as_view(), name="api-video"),
    path("videos/<str:video_id>/content", views.Content.as_view(), name="api-content"),
    path("videos/<str:video_id>/cancel", views.Cancel.as_view(), name="api-cancel"),
    path("videos/<str:video_id>/remix", views.Remix.as_view(), name="api-remix"),
    path("videos/<str:video_id>/events", views.Events.as_view(), name="api-events"),
    path("credits", Credits.as_view(), name="api-credits"),
    path("models", views.Models.as_view(), name="api-models"),
    path("models/<path:model>", views.Model.as_view(), name="api-model"),
    path("presets", views.Presets.as_view(), name="api-presets"),
    path("schema", views.Schema.as_view(), name="api-schema"),
    path("docs", views.Docs.as_view(), name="api-docs"),
    re_path(r"", views.UnknownRoute.as_view()),
]
