"""A user's clips when the account is closed, exported, or merged with another."""

from typing import Any

from django.db import transaction
from django.utils.translation import gettext_noop

from accounts.models import CreditTransaction, User
from accounts.privacy import Part
from generation import sharing
from generation.jobs import lifecycle
from generation.models import GenerationJob, SharedLink, fields
from generation.web.streaming import filename_for

# Times, sizes and states stay: the books and the statistics need them.
FORGOTTEN: dict[str, Any] = {
    "prompt": "",
    "negative_prompt": "",
    "idempotency_key": None,
    "request_digest": "",
}


# --- A closed account -------------------------------------------------------------------------------------------------


def forget(*, user: User, **_: Any) -> None:
    """Cancel what is live, remove files, links and prompts. A job that is just being stored is left for the next time.

    Safe to repeat: `forget_closed_accounts` does, until nothing is left.
    """
    jobs = GenerationJob.objects.filter(user=user)
    lifecycle.cancel_each(jobs=jobs, reason=gettext_noop("The account was deleted"))
    for job in jobs.filter(finished_at__isnull=False, deleted_at=None):
        with transaction.atomic():
            lifecycle.delete(job=job)
            SharedLink.objects.filter(job=job).delete()
            GenerationJob.objects.filter(pk=job.pk).update(**FORGOTTEN)
    # Those that were deleted before.
    with transaction.atomic():
        lock_videos(of=user)
        jobs.filter(deleted_at__isnull=False).exclude(prompt="").update(**FORGOTTEN)


def forget_closed_accounts() -> int:
    """Finish what `forget` could not; return for how many users."""
    unfinished = User.objects.filter(anonymised_at__isnull=False, jobs__deleted_at=None, jobs__isnull=False)
    users = list(unfinished.distinct()[:100])
    for user in users:
        forget(user=user)
    return len(users)


# --- The export -------------------------------------------------------------------------------------------------------


def part_of(user: User, **_: Any) -> Part:
    """Export every video of the user as data, and the files of those that are kept."""
    jobs = GenerationJob.objects.filter(user=user).select_related("preset").order_by("created_at")
    data, files = [], {}
    for job in jobs.prefetch_related("shared_links"):
        paths = _paths(job) if job.deleted_at is None else {}
        files.update(paths)
        data.append(_facts(job) | {"files": list(paths)})
    return Part(name="videos", data=data, files=files)


def _paths(job: GenerationJob) -> dict[str, str]:
    stem = f"{job.created_at:%Y-%m-%d}-{job.id.hex[:8]}-"
    stored = ((filename_for(job.prompt), job.video), (filename_for(job.prompt, ".jpg"), job.poster))
    return {f"videos/{stem}{name}": str(file) for name, file in stored if file}


def _facts(job: GenerationJob) -> dict[str, Any]:
    return {
        "id": job.public_id,
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "preset": job.preset.name,
        "seed": job.seed,
        "frames": job.stored_frames or job.num_frames,
        "frames_per_second": job.fps,
        "steps": job.num_inference_steps,
        "remix_of": job.remixed_from_id and fields.public_id(job.remixed_from_id),
        "ordered_by": job.source,
        "state": job.state,
        "error": job.error_message,
        "cost": job.cost,
        "ordered_at": job.created_at,
        "finished_at": job.finished_at,
        "deleted_at": job.deleted_at,
        "links": [
            {"address": sharing.address(link), "made_at": link.created_at, "revoked_at": link.revoked_at}
            for link in job.shared_links.all()
        ],
    }


# --- Two accounts of one person become one, or two again --------------------------------------------------------------


def is_live(*users: User) -> bool:
    """Check whether a job of one of them is live. Certain while their wallets are locked."""
    return GenerationJob.objects.filter(user__in=users, state__in=GenerationJob.LIVE).exists()


def lock_videos(*, of: User) -> None:
    """Lock the user's jobs, to be called before wallets are locked: jobs come first everywhere."""
    list(
        GenerationJob.objects.select_for_update(no_key=True).filter(user=of).order_by("pk").values_list("pk")
    )


@transaction.atomic
def hand_over(*, source: User, target: User) -> int:
    """Give all videos of `source` to `target`; return how many there were."""
    jobs = GenerationJob.objects.filter(user=source)
    theirs = GenerationJob.objects.filter(user=target, idempotency_key__isnull=False)
    # A key that both used names one job only: the target's, whose programs go on.
    jobs.filter(idempotency_key__in=theirs.values("idempotency_key")).update(idempotency_key=None)
    return jobs.update(user=target)


@transaction.atomic
def give_back(*, source: User, target: User) -> int:
    """Give `source` the videos back that it paid for: every job has its hold on the wallet it was made from."""
    holds = CreditTransaction.objects.filter(
        kind=CreditTransaction.Kind.RESERVE, account__user=source, reference__isnull=False
    )
    return GenerationJob.objects.filter(user=target, pk__in=holds.values("reference")).update(user=source)
