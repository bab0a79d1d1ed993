"""A job as its owner sees it: its place in line, the time it still needs, and the HTML of its card."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.template.loader import render_to_string
from django.utils import timezone, translation

from generation.jobs import catalog
from generation.models import GenerationJob, JobAttempt, JobQuerySet

State = GenerationJob.State


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
        """The card changes by itself: the job is live, or the GPU has yet to confirm its stop."""
        return self.job.is_live or self.is_stopping

    @property
    def is_stopping(self) -> bool:
        attempt = self.job.current_attempt
        is_open = attempt is not None and attempt.state == JobAttempt.State.OPEN
        return self.job.state == State.CANCELED and is_open

    @property
    def stopped_at_step(self) -> int | None:
        """The step of a canceled job, as the GPU confirmed it."""
        attempt = self.job.current_attempt
        return attempt.stopped_at_step if attempt and self.job.state == State.CANCELED else None

    @property
    def percent(self) -> int:
        return 100 * self.job.step // max(1, self.job.num_inference_steps)


def kept_jobs(**filters: Any) -> JobQuerySet:
    """Select jobs that their owners have not deleted, with all that pages and the API show of them."""
    jobs = GenerationJob.objects.filter(deleted_at=None, **filters)
    return jobs.select_related("preset", "current_attempt__node")


def render_card(job_id: uuid.UUID, language: str) -> str:
    """Render one job's card as the HTML fragment that open pages swap in; empty when the job is gone."""
    job = kept_jobs(pk=job_id).first()
    with translation.override(language):
        return render_to_string("generation/_card.html", {"card": cards([job])[0]}) if job else ""


def cards(
    jobs: Iterable[GenerationJob],
    *,
    expected: Mapping[int, int] | None = None,
    queue: catalog.Queue | None = None,
) -> list[Card]:
    """Make a card for each job, in a number of queries that does not depend on how many there are.

    expected: seconds a clip of each preset takes, by the preset's primary key; queried where it is missing.
    queue: the line with the places of these jobs; queried when it is missing.
    """
    jobs = list(jobs)
    seconds = dict(expected or {})
    missing = {job.preset_id: job.preset for job in jobs if job.is_live and job.preset_id not in seconds}
    if missing:
        seconds |= catalog.expected_seconds_of(missing.values())
    if queue is None and any(job.state == State.QUEUED for job in jobs):
        queue = catalog.read_queue(jobs)
    return [_card(job, queue, seconds.get(job.preset_id, 0)) for job in jobs]


def _card(job: GenerationJob, queue: catalog.Queue | None, expected: int) -> Card:
    if job.state == State.RUNNING:
        return Card(job=job, seconds_left=seconds_left(job, expected=expected))
    if job.state != State.QUEUED or queue is None:
        return Card(job=job)
    position = queue.positions.get(job.pk, 1)
    if not queue.capacity:
        return Card(job=job, position=position, waits_for_node=True)
    waiting = queue.seconds_before(position, expected)
    return Card(job=job, position=position, seconds_left=max(1, round(waiting + expected)))


def seconds_left(job: GenerationJob, *, expected: int) -> int:
    """Estimate a running job's time from its own measured steps and what a clip of its preset takes (`expected`).

    A clip may have waited on its node behind another one, so time per step so far is an upper bound of its true pace.
    It waits there for one clip at most: what has taken twice as long as expected is slow, not late.
    """
    if not job.step:
        return max(1, expected)
    elapsed = (timezone.now() - job.started_at).total_seconds() if job.started_at else 0.0
    own, usual = elapsed / job.step, expected / max(1, job.num_inference_steps)
    pace = own if elapsed > 2 * expected else min(own, usual)
    return max(1, round(max(0, job.num_inference_steps - job.step) * pace))
