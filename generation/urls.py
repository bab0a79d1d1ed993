"""The site's own pages about clips."""

import uuid

from django.urls import path, register_converter

from generation import public_ids, report_views, shared_views, video_views, views


class VideoId:
    """The name the API has for a video; anything else is a page that does not exist."""

    regex = public_ids.PATTERN

    def to_python(self, value: str) -> uuid.UUID | None:
        return public_ids.parse(value)

    def to_url(self, value: uuid.UUID) -> str:
        return public_ids.of(value)


register_converter(VideoId, "video_id")

urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("start/", views.start, name="start"),
    path("balance/", views.balance, name="balance"),
    path("videos/", views.submit, name="submit"),
    path("videos/ready/", views.submit_bar, name="submit_bar"),
    path("videos/<video_id:job_id>/", video_views.video, name="video"),
    path("videos/<video_id:job_id>/card/", video_views.card, name="video_card"),
    path("videos/<video_id:job_id>/cancel/", video_views.cancel, name="video_cancel"),
    path("videos/<video_id:job_id>/retry/", video_views.retry, name="video_retry"),
    path("videos/<video_id:job_id>/delete/", video_views.delete, name="video_delete"),
    path("videos/<video_id:job_id>/share/", video_views.share, name="video_share"),
    path("videos/<video_id:job_id>/unshare/", video_views.unshare, name="video_unshare"),
    path("videos/<video_id:job_id>/video.mp4", video_views.video_file, name="video_file"),
    path("videos/<video_id:job_id>/poster.jpg", video_views.poster_file, name="poster_file"),
    path("s/<slug:token>/", shared_views.shared_video, name="shared_video"),
    path("s/<slug:token>/report/", report_views.report_video, name="report_video"),
    path("s/<slug:token>/video.mp4", shared_views.shared_file, name="shared_file"),
    path("s/<slug:token>/poster.jpg", shared_views.shared_poster, name="shared_poster"),
]
