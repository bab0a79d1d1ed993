"""Videos on the page of a user and in the search: posters, states, charges, and what became of each."""

import re
import uuid
from collections.abc import Iterable
from typing import Any

from django.db.models import Count, Q, QuerySet
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator

from accounts.admin import person, search
from accounts.admin.base import link
from accounts.admin.person import Moment
from accounts.admin.search import Found
from accounts.models import User
from accounts.staff.actor import Actor
from generation.admin.job_search import ids_in
from generation.admin.jobs import State, charge, poster, state_badge
from generation.models import GenerationJob, GpuNode, JobAttempt, SharedLink
from generation.staff import jobs

VIDEOS = 8
PROMPT = 60
SHARED = re.compile(r"(?:^|/s/)([\w-]{22})(?:/|$)")


@person.panel("Videos", "generation.view_generationjob", place=1)
def videos(user: User, actor: Actor) -> dict[str, Any]:
    latest: QuerySet[Any] = jobs.with_charged(user.jobs.select_related("current_attempt__node")).order_by(
        "-created_at"
    )
    counts = dict(user.jobs.order_by().values_list("state").annotate(number=Count("pk")))
    page = reverse("admin:generation_generationjob_changelist")
    may_refund = actor.may("generation.refund_job")
    return {
        "videos": [
            {
                "job": job,
                "poster": poster(job),
                "state": state_badge(job),
                "charge": charge(job),
                "may_refund": may_refund and job.charged > 0,
            }
            for job in latest[:VIDEOS]
        ],
        "counts": [(State(state).label, counts[state]) for state in State.values if state in counts],
        "all": f"{page}?user__id__exact={user.pk}",
    }


@person.moments
def fates(user: User, actor: Actor) -> Iterable[Moment]:
    """Tell when videos were asked for, and how they ended."""
    if not actor.may("generation.view_generationjob"):
        return
    for job in user.jobs.order_by("-created_at")[: person.LATEST]:
        named = link("generation_generationjob", job.pk, Truncator(job.prompt).chars(PROMPT))
        yield Moment(job.created_at, format_html("Asked for {} · {}", named, job.get_source_display()))
        if job.finished_at:
            end = job.error_message or f"{job.cost} charged"  # a refund is a moment of its own
            state = job.get_state_display()
            yield Moment(
                job.finished_at, format_html("{} {} · {}", state, named, end), alarm=job.state == State.FAILED
            )
        if job.deleted_at:
            yield Moment(job.deleted_at, format_html("Removed {}", named))


@person.namers.append
def prompts(references: Iterable[uuid.UUID], actor: Actor) -> dict[uuid.UUID, str]:
    """Name jobs by their prompts."""
    if not actor.may("generation.view_generationjob"):
        return {}
    found = GenerationJob.objects.filter(pk__in=references).values_list("pk", "prompt")
    return {pk: Truncator(prompt).chars(PROMPT) for pk, prompt in found}


@search.finder("generation.view_generationjob")
def by_id(text: str) -> Iterable[Found]:
    """Find videos by their ids, by those of their attempts on nodes, and by links to them."""
    ids = ids_in(text)
    ids |= set(JobAttempt.objects.filter(pk__in=ids).values_list("job", flat=True))
    ids |= set(SharedLink.objects.filter(token__in=SHARED.findall(text)).values_list("job", flat=True))
    for job in GenerationJob.objects.filter(pk__in=ids).select_related("user")[: search.SHOWN]:
        href = reverse("admin:generation_generationjob_change", args=[job.pk])
        note = f"video of {job.user} · {job.get_state_display().lower()}"
        yield Found(Truncator(job.prompt).chars(PROMPT), note, href, "movie")


@search.finder("generation.view_gpunode")
def nodes(text: str) -> Iterable[Found]:
    for node in GpuNode.objects.filter(Q(name__icontains=text) | Q(base_url__icontains=text))[: search.SHOWN]:
        href = reverse("admin:generation_gpunode_change", args=[node.pk])
        yield Found(node.name, f"GPU node · {node.base_url}", href, "memory")
