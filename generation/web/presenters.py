"""A job as its owner sees it: its place in line, the time it still needs, and the HTML of its card."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, F, OuterRef, Subquery, Sum, When
from django.db.models.functions import Greatest
from django.template.loader import render_to_string
from django.utils import timezone, translation

from generation.jobs import catalog
from generation.models import GenerationJob, JobAttempt, JobQuerySet

State = GenerationJob.State
# Of the bar: the steps take the first part, decoding the next, and saving the rest.
DENOISED, SAVING = round(100 * catalog.DENOISING), 97


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
    def is_silent(self) -> bool:
        """The GPU that makes it has stopped answering."""
        attempt = self.job.current_attempt
        return self.job.state == State.RUNNING and attempt is not None and attempt.silent_since is not None

    @property
    def is_moved(self) -> bool:
        """It is in line again, because its GPU was lost."""
        return self.job.state == State.QUEUED and self.job.attempt_count > 0

    @property
    def is_next_on_gpu(self) -> bool:
        """Its node has it already, and is still at the clip before."""
        return self.job.state == State.RUNNING and not self.job.step and bool(clips_ahead(self.job))

    @property
    def counts_no_steps(self) -> bool:
        """Its node makes it within one request, of which no step is heard."""
        return self.job.current_attempt is not None and not self.job.current_attempt.runs_in_background

    @property
    def is_decoding(self) -> bool:
        """All steps are done, and frames are made of them."""
        return self.job.state == State.RUNNING and self.job.step >= self.job.num_inference_steps

    @property
    def percent(self) -> int:
        if self.job.state == State.STORING:
            return SAVING
        steps = self.job.num_inference_steps
        return DENOISED * min(self.job.step, steps) // max(1, steps)


def kept_jobs(**filters: Any) -> JobQuerySet:
    """Select jobs that their owners have not deleted, with all that pages and the API show of them."""
    jobs = GenerationJob.objects.filter(deleted_at=None, **filters)
    # What its node still has to make before a job, in clips: a node holds one job more than it runs.
    earlier = JobAttempt.objects.filter(
        node=OuterRef("current_attempt__node"),
        opened_at__lt=OuterRef("current_attempt__opened_at"),
        state=JobAttempt.State.OPEN,
        job__state=State.RUNNING,
    )
    unmade = Sum(1.0 - catalog.DENOISING * F("job__step") / Greatest("job__num_inference_steps", 1))
    ahead = Subquery(earlier.order_by().values("node").annotate(clips=unmade).values("clips"))
    waits = When(state=State.RUNNING, step=0, then=ahead)
    return jobs.select_related("preset", "current_attempt__node").annotate(clips_ahead=Case(waits))


def clips_ahead(job: GenerationJob) -> float:
    """Return what its node makes before it, of a job that `kept_jobs` has read; 0 of others."""
    return getattr(job, "clips_ahead", None) or 0.0


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
    if queue is None and any(job.state == State.QUEUED for job in jobs):
        queue = catalog.read_queue(jobs, expected=seconds)
    seconds |= queue.expected if queue is not None else {}
    missing = {job.preset_id: job.preset for job in jobs if job.is_live and job.preset_id not in seconds}
    if missing:
        seconds |= catalog.expected_seconds_of(missing.values())
    return [_card(job, queue, seconds.get(job.preset_id, 0)) for job in jobs]


def _card(job: GenerationJob, queue: catalog.Queue | None, expected: int) -> Card:
    if job.state == State.RUNNING:
        return Card(job=job, seconds_left=seconds_left(job, expected=expected))
    if job.state != State.QUEUED or queue is None:
        return Card(job=job)
    position = queue.positions.get(job.pk, 1)
    if not queue.serves(job):
        return Card(job=job, position=position, waits_for_node=True)
    waiting = queue.seconds_before(position)
    return Card(job=job, position=position, seconds_left=max(1, round(waiting + expected)))


def seconds_left(job: GenerationJob, *, expected: int) -> int | None:
    """Estimate a running job's time from its own measured steps and what a clip of its preset takes (`expected`).

    A clip may have waited on its node behind another one, so time per step so far is an upper bound of its true pace.
    It waits there for one clip at most: what has taken twice as long as expected is slow, not late. None when it takes
    longer than usual and no step tells how much longer.
    """
    elapsed = (timezone.now() - job.started_at).total_seconds() if job.started_at else 0.0
    if ahead := clips_ahead(job):
        return max(1, round(expected * (1 + ahead)))
    decoding = expected * (1 - catalog.DENOISING)
    steps_left = max(0, job.num_inference_steps - job.step)
    if not job.step or not steps_left:
        # No step to go by: before the first one, in decoding, and all the time on a node that reports none.
        left = round(min(expected - elapsed, expected if steps_left else decoding))
        return left if left > 0 else None
    own, usual = elapsed / job.step, expected * catalog.DENOISING / job.num_inference_steps
    if elapsed > 2 * expected:
        return max(1, round(steps_left * own))
    return max(1, round(steps_left * min(own, usual) + decoding))
