"""A circuit breaker for nodes: one that fails again and again is set aside, and trial clips decide when it
is back.

Without it, a node that fails fast would win every job, because it is always the least loaded.
"""

import logging
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db.models import F
from django.utils import timezone

from generation import media
from generation.fleet import endpoint_of
from generation.models import GpuNode, JobAttempt
from generation.nodes import GenerationRequest, NodeClient, NodeError, RemoteJob, open_client

logger = logging.getLogger(__name__)

TRIAL_PROMPT = "a red ball moving right on a white background"
# The cheapest clip that shows that a node works: nine frames are the least above one that the model makes.
TRIAL_FRAMES, TRIAL_FPS, TRIAL_STEPS = 9, 8, 4
# Each failed trial doubles the pause, up to this many times NODE_TRIAL_SECONDS.
LONGEST_PAUSE = 16


@dataclass(frozen=True)
class TrialClip:
    """A clip that a node made outside of any job, checked: what it is, and the node's own time for it, if
    it says.
    """

    facts: media.VideoFacts
    generation_ms: int | None


def count_failure(*, attempt_id: uuid.UUID, error: str) -> None:
    """An open attempt came to nothing by its node's fault.

    Call it before the attempt is closed, in the same transaction.
    """
    blamed = GpuNode.objects.filter(attempts=attempt_id, attempts__state=JobAttempt.State.OPEN)
    if not blamed.update(consecutive_failures=F("consecutive_failures") + 1):
        return
    now = timezone.now()
    worn_out = blamed.filter(set_aside_at=None, consecutive_failures__gte=settings.NODE_FAILURES_TO_SET_ASIDE)
    if worn_out.update(
        set_aside_at=now,
        set_aside_reason=f"{settings.NODE_FAILURES_TO_SET_ASIDE} failures in a row, the last: {error}"[:300],
        trials=0,
        next_trial_at=now + timedelta(seconds=settings.NODE_TRIAL_SECONDS),
    ):
        logger.warning("attempt %s: its node is set aside: %s", attempt_id.hex, error)


def count_success(*, attempt_id: uuid.UUID) -> None:
    """It made a playable clip.

    Writes only where there was a failure before: the row is not touched for every clip.
    """
    GpuNode.objects.filter(attempts=attempt_id, consecutive_failures__gt=0).update(consecutive_failures=0)


def claim_trial(node: GpuNode) -> bool:
    """Become the one who tries a set-aside node now; the next trial is due when a failed one has been told."""
    now = timezone.now()
    due = GpuNode.objects.filter(pk=node.pk, enabled=True, set_aside_at__isnull=False, next_trial_at__lt=now)
    pause = settings.NODE_TRIAL_SECONDS * min(LONGEST_PAUSE, 2 ** min(node.trials, 16))
    return bool(due.update(trials=F("trials") + 1, next_trial_at=now + timedelta(seconds=pause)))


def bring_back(node: GpuNode) -> None:
    """It gets jobs again, with a clean record."""
    GpuNode.objects.filter(pk=node.pk).update(
        set_aside_at=None, set_aside_reason="", consecutive_failures=0, trials=0, next_trial_at=None
    )
    logger.info("node %s is back", node.name)


def note_failed_trial(node: GpuNode, error: Exception) -> None:
    """Staff see why it is still set aside."""
    GpuNode.objects.filter(pk=node.pk, set_aside_at__isnull=False).update(
        set_aside_reason=f"The trial clip failed: {error}"[:300]
    )
    logger.warning("node %s: trial clip failed: %s", node.name, error)


async def make_trial_clip(
    node: GpuNode,
    *,
    protocol: str,
    prompt: str = TRIAL_PROMPT,
    num_frames: int = TRIAL_FRAMES,
    fps: int = TRIAL_FPS,
    num_inference_steps: int = TRIAL_STEPS,
    on_step: Callable[[int], None] | None = None,
    keep_as: Path | None = None,
) -> TrialClip:
    """Have the node make a clip that no job asked for and nobody pays, and check that it plays.

    on_step: told the denoising steps done, where the node says them. keep_as: where the clip is copied to.

    Raises:
        NodeError: the node did not make it. media.UnplayableVideo: what it made does not play.
    """
    request = GenerationRequest(
        id=uuid.uuid4().hex,
        prompt=prompt,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=num_inference_steps,
    )
    with tempfile.TemporaryDirectory(prefix="trial-") as folder:
        raw, clip, poster = (Path(folder) / name for name in ("raw.mp4", "clip.mp4", "poster.jpg"))
        async with open_client(endpoint_of(node, protocol=protocol)) as client:
            made = await _make(client, request, on_step)
            await client.download(made, raw, max_bytes=settings.MAX_VIDEO_BYTES)
        facts = await sync_to_async(media.prepare, thread_sensitive=False)(raw, clip, poster)
        if keep_as:
            keep_as.write_bytes(clip.read_bytes())
    return TrialClip(facts=facts, generation_ms=made.generation_ms)


async def _make(
    client: NodeClient, request: GenerationRequest, on_step: Callable[[int], None] | None
) -> RemoteJob:
    if client.protocol == "generate_video":
        made = await client.generate(request, timeout=settings.FIELD_NODE_TIMEOUT_SECONDS)
    else:
        made = await client.submit(request)
        while not made.finished and made.remote_id:
            made = await client.retrieve(made.remote_id, wait=10)
            if on_step:
                on_step(made.step or 0)
    if made.state != "completed":
        raise NodeError(made.error or f"The node ended it as {made.state}.")
    return made
