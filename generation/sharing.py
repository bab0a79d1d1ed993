"""Links that let anyone watch one clip: unguessable, made by its owner, and revoked for good.

A link shows the clip and its prompt, and nothing else of the owner.
"""

from django.conf import settings
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from generation.errors import VideoNotReady
from generation.models import GenerationJob, SharedLink


@transaction.atomic
def share(*, job: GenerationJob) -> SharedLink:
    """Return the clip's working link; make one when there is none.

    Raises:
        VideoNotReady: the clip is not finished, or deleted.
    """
    # Two requests at once wait for each other here, and a deleted clip is not shared by a late one.
    locked = GenerationJob.objects.select_for_update(no_key=True).get(pk=job.pk)
    if locked.state != GenerationJob.State.COMPLETED or locked.deleted_at is not None:
        raise VideoNotReady()
    return SharedLink.objects.get_or_create(job=locked, revoked_at=None)[0]


def revoke(*, job: GenerationJob) -> bool:
    """End the clip's link; False when there was none."""
    return bool(SharedLink.objects.filter(job=job, revoked_at=None).update(revoked_at=timezone.now()))


def link_of(job: GenerationJob) -> SharedLink | None:
    return SharedLink.objects.filter(job=job, revoked_at=None).first()


def find(token: str) -> GenerationJob | None:
    """Find the clip behind a link; None when it was revoked, the clip deleted, or its owner banned."""
    shown = GenerationJob.objects.filter(deleted_at=None, user__is_active=True)
    return shown.filter(shared_links__token=token, shared_links__revoked_at=None).first()


def address(link: SharedLink) -> str:
    """Return the link's full address, for callers without a request to take the host from."""
    return settings.SITE_URL + reverse("shared_video", args=[link.token])
