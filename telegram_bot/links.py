"""Links from a chat to the web."""

from django.conf import settings
from django.urls import reverse

from generation.models import GenerationJob


def video_page(job: GenerationJob) -> str:
    """The page of a video, as an absolute URL."""
    return settings.SITE_URL + reverse("video", kwargs={"job_id": job.pk})
