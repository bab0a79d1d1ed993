"""A job as its owner sees it: its place in line, the time it still needs, and the HTML of its card."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.template.loader import render_to_string
from django.utils import timezone

from generation.jobs import catalog
from generation.models import GenerationJob, JobAttempt, JobQuerySet

State = GenerationJob.State
Attempt = JobAttempt.State


@dataclass(frozen=True)
class Card:
    """A job and what is not in its row.

    position: 1 is next in line, None unless it is queued. seconds_left: a guess, None where none can be made.
    waits_for_node: it is queued and no GPU node can take it just now.
    """

    job: GenerationJob
    position: int | None = None
    seconds_left: int | None = None
    waits_for_node: bool = False

    @property
    def is_moving(self) -> bool:
        """It will change by itself: it is being made, or the GPU has yet to say at which step it stopped."""
        return self.job.is_live or self.is_stopping

    @property
    def is_stopping(self) -> bool:
        attempt = self.job.current_attempt
        return self.job.state == State.CANCELED and attempt is not None and attempt.state == Attempt.OPEN

    @property
    def stopped_at_step(self) -> int | None:
        """Of a canceled job, as the GPU confirmed it."""
        attempt = self.job.current_attempt
        return attempt.stopped_at_step if attempt and self.job.state == State.CANCELED else None

    @property
    def percent(self) -> int:
        """Of the denoising steps that are done."""
        return 100 * self.job.step // max(1, self.job.num_inference_steps)


def render_card(job_id: uuid.UUID) -> str:
    """The card of one job as an HTML fragment, as it is put into open pages; empty when the job is gone."""
    job = owned_jobs().filter(pk=job_id).first()
    if job is None:
        return ""
    return render_to_string("generation/_card.html", {"card": cards([job])[0]})


def owned_jobs() -> JobQuerySet:
    """Every job that its owner has not deleted, with all that a card shows."""
    return GenerationJob.objects.filter(deleted_at=None).select_related("preset", "current_attempt__node")


def cards(
    jobs: Iterable[GenerationJob],
    *,
    expected: Mapping[int, int] | None = None,
    queue: catalog.Line | None = None,
) -> list[Card]:
    """A card for each job, in a number of queries that does not depend on how many there are.

    expected: seconds a clip of each preset takes, by the preset's primary key; asked for where it is missing.
    queue: the line with the places of these jobs; asked for when it is missing.
    """
    jobs = list(jobs)
    seconds = dict(expected or {})
    missing = {job.preset_id: job.preset for job in jobs if job.is_live and job.preset_id not in seconds}
    if missing:
        seconds |= catalog.expected_seconds_of(missing.values())
    if queue is None and any(job.state == State.QUEUED for job in jobs):
        queue = catalog.now(jobs)
    return [_card(job, queue, seconds.get(job.preset_id, 0)) for job in jobs]


def seconds_left(job: GenerationJob, *, expected: int) -> int:
    """Of a running job, from its own measured steps and from what a clip of its preset takes (`expected`, seconds).

    A clip may have waited on its node behind another one, so time per step so far is an upper bound of its true pace.
    It waits there for one clip at most: what has taken twice as long as expected is slow, not late.
    """
    remaining = max(0, job.num_inference_steps - job.step)
    usual = expected / max(1, job.num_inference_steps)
    elapsed = (timezone.now() - job.started_at).total_seconds() if job.started_at else 0.0
    if not job.step:
        return max(1, expected)
    own = elapsed / job.step
    pace = own if elapsed > 2 * expected else min(own, usual)
    return max(1, round(remaining * pace))


def _card(job: GenerationJob, queue: catalog.Line | None, expected: int) -> Card:
    if job.state == State.RUNNING:
        return Card(job=job, seconds_left=seconds_left(job, expected=expected))
    if job.state != State.QUEUED or queue is None:
        return Card(job=job)
    position = queue.positions.get(job.pk, 1)
    if not queue.capacity:
        return Card(job=job, position=position, waits_for_node=True)
    waiting = queue.seconds_before(position, expected)
    return Card(job=job, position=position, seconds_left=max(1, round(waiting + expected)))
