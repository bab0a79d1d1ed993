"""What staff did that concerns a person or a video without being done to that very row: named on their pages, too."""

from django.db.models import Q, QuerySet

from accounts.admin.audit_log import LATEST, concerning
from accounts.models import User
from generation.models import GenerationJob, RefundBatch

# Of somebody who has made more videos, what was done about older ones is on the pages of these.
VIDEOS_LOOKED_AT = 200


@concerning(User)
def refunds_that_reached(user: User) -> Q:
    return _one_of(RefundBatch.objects.filter(items__job__user=user))


@concerning(User)
def acts_on_videos_of(user: User) -> Q:
    latest = user.jobs.order_by("-created_at").values_list("pk", flat=True)[:VIDEOS_LOOKED_AT]
    return Q(subject_kind=GenerationJob._meta.label_lower, subject_id__in=[str(pk) for pk in latest])


@concerning(GenerationJob)
def refunds_with(job: GenerationJob) -> Q:
    return _one_of(RefundBatch.objects.filter(items__job=job))


def _one_of(batches: "QuerySet[RefundBatch]") -> Q:
    """The latest of them: no page names more acts than that."""
    latest = batches.order_by("-created_at").values_list("pk", "created_at").distinct()[:LATEST]
    return Q(subject_kind=RefundBatch._meta.label_lower, subject_id__in=[str(pk) for pk, _ in latest])
