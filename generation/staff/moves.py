"""A running job taken from its node and given to another one, which begins it afresh."""

import logging
import uuid

from asgiref.sync import async_to_sync
from django.db import transaction
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts.staff import log
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused
from generation import events, leases, scheduling
from generation.fleet import endpoint_of
from generation.models import GenerationJob, GpuNode, JobAttempt
from generation.nodes import NodeError, open_client

logger = logging.getLogger(__name__)
State = GenerationJob.State


@transaction.atomic
def move(
    *, clerk: Clerk, job: GenerationJob, target: GpuNode, reason: str, once: uuid.UUID | None = None
) -> JobAttempt:
    """End the open attempt and open one on `target`. It does not count towards JOB_MAX_ATTEMPTS.

    Raises:
        NotPermitted: the clerk may not. Refused: the job does not run, or the node cannot take it now.
    """
    clerk.must("generation.move_job")
    node = GpuNode.objects.select_for_update(no_key=True).get(pk=target.pk)
    old = (
        JobAttempt.objects.select_for_update(of=("self",))
        .filter(job=job, state=JobAttempt.State.OPEN)
        .first()
    )
    job.refresh_from_db()
    if why := why_not_move(job):
        raise Refused(why)
    if old is None or old.pk != job.current_attempt_id:
        raise Refused("This video has just ended, or went to another node.")
    if node.pk == old.node_id:
        raise Refused(f"It is being made on {node} already.")
    if why := scheduling.why_not_on(node, job):
        raise Refused(f"{node} {why}.")
    before, after = {"node": str(old.node)}, {"node": str(node)}
    log.record(clerk=clerk, act="job.move", subject=job, reason=reason, before=before, after=after, once=once)
    closed = {
        "state": JobAttempt.State.CANCELED,
        "closed_at": Now(),
        "error": f"moved to {node} by staff: {reason}"[:500],
    }
    JobAttempt.objects.filter(pk=old.pk).update(**closed)
    attempt = scheduling.open_attempt(job, node)
    leases.drop(attempt_id=attempt.pk, token=attempt.pk)  # a reconciler hands it over, and follows it
    GenerationJob.objects.filter(pk=job.pk).update(current_attempt=attempt, started_at=Now(), step=0)
    events.publish(GenerationJob.objects.get(pk=job.pk))
    async_task("generation.staff.moves.stop_on_node", str(old.pk))
    return attempt


def why_not_move(job: GenerationJob) -> str | None:
    """Why a job cannot be moved; None when it can."""
    if job.state == State.QUEUED:
        return "This video still waits: it goes to whichever node is free first."
    if job.state == State.STORING:
        return "This video is made already and being stored."
    return None if job.state == State.RUNNING else f"This video is {job.state} already."


def stop_on_node(attempt_id: str) -> None:
    """A task: tell the node that it need not go on. Where it cannot be told, what it makes is discarded."""
    attempt = JobAttempt.objects.select_related("node").filter(pk=attempt_id).first()
    if attempt is None or not attempt.remote_id:
        return
    try:
        async_to_sync(_stop)(attempt)
    except NodeError as error:
        logger.info(
            "attempt %s was moved and could not be stopped on %s: %s", attempt_id, attempt.node, error
        )


async def _stop(attempt: JobAttempt) -> None:
    async with open_client(endpoint_of(attempt.node, protocol=attempt.protocol)) as client:
        await client.cancel(attempt.remote_id)
