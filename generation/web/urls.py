"""Addresses of the site's pages about clips."""

import uuid

from django.urls import path, register_converter

from generation.models import fields
from generation.web import public_views, views


class VideoId:
    """A video's public id in an address; anything else is 404."""

    regex = fields.PUBLIC_ID

    def to_python(self, value: str) -> uuid.UUID | None:
        return fields.job_id(value)

    def to_url(self, value: uuid.UUID) -> str:
        return fields.public_id(value)


register_converter(VideoId, "video_id")

urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("start/", views.start, name="start"),
    path("balance/", views.balance, name="balance"),
    path("videos/", views.submit, name="submit"),
    path("videos/ready/", views.submit_bar, name="submit_bar"),
    path("videos/<video_id:job_id>/", views.video, name="video"),
    path("videos/<video_id:job_id>/card/", views.card, name="video_card"),
    path("videos/<video_id:job_id>/cancel/", views.cancel, name="video_cancel"),
    path("videos/<video_id:job_id>/retry/", views.retry, name="video_retry"),
    path("videos/<video_id:job_id>/delete/", views.delete, name="video_delete"),
    path("videos/<video_id:job_id>/share/", views.share, name="video_share"),
    path("videos/<video_id:job_id>/unshare/", views.unshare, name="video_unshare"),
    path("videos/<video_id:job_id>/video.mp4", views.video_file, name="video_file"),
    path("videos/<video_id:job_id>/poster.jpg", views.poster_file, name="poster_file"),
    path("s/<slug:token>/", public_views.shared_video, name="shared_video"),
    path("s/<slug:token>/report/", public_views.report_video, name="report_video"),
    path("s/<slug:token>/video.mp4", public_views.shared_file, name="shared_file"),
    path("s/<slug:token>/poster.jpg", public_views.shared_poster, name="shared_poster"),
]
