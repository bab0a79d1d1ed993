"""A clip that a node makes outside of any job: whether it works, for the breaker and for `check_gpu_node`."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from asgiref.sync import sync_to_async
from django.conf import settings

from generation import media
from generation.jobs.node_health import endpoint_of
from generation.media.folders import work_folder
from generation.models import GpuNode
from generation.nodes import (
    GenerationRequest,
    NodeClient,
    NodeError,
    NodeTimeout,
    RemoteJob,
    open_client,
)

PROMPT = "a red ball moving right on a white background"
# The cheapest clip that shows that a node works: nine frames are the least above one that the model makes.
FRAMES, FPS, STEPS = 9, 8, 4
# Between two questions: a server without long polling answers each at once.
PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class TrialClip:
    """A clip that a node made outside of any job, checked: what it is, and the node's own time for it, if
    it says.
    """

    facts: media.VideoFacts
    generation_ms: int | None


async def make_clip(
    node: GpuNode,
    *,
    protocol: str,
    prompt: str = PROMPT,
    num_frames: int = FRAMES,
    fps: int = FPS,
    num_inference_steps: int = STEPS,
    on_step: Callable[[int], None] | None = None,
    on_made: Callable[[int | None], Awaitable[None]] | None = None,
    keep_as: Path | None = None,
) -> TrialClip:
    """Have the node make a clip that no job asked for and nobody pays, and check that it plays.

    on_step: told the denoising steps done, where the node says them. on_made: told, before the clip is fetched, the
    milliseconds that the node says it took. keep_as: where the clip is copied to.

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
    with work_folder() as folder:
        raw, clip, poster = (folder / name for name in ("raw.mp4", "clip.mp4", "poster.jpg"))
        async with open_client(endpoint_of(node, protocol=protocol)) as client:
            made = await _made_in_time(client, request, on_step)
            if on_made:
                await on_made(made.generation_ms)
            await client.download(
                made,
                raw,
                max_bytes=settings.MAX_VIDEO_BYTES,
                timeout=settings.DOWNLOAD_TIMEOUT_SECONDS,
            )
        facts = await sync_to_async(media.prepare, thread_sensitive=False)(raw, clip, poster)
        if keep_as:
            keep_as.write_bytes(clip.read_bytes())
    return TrialClip(facts=facts, generation_ms=made.generation_ms)


async def _made_in_time(
    client: NodeClient, request: GenerationRequest, on_step: Callable[[int], None] | None
) -> RemoteJob:
    """A node that goes on for ever is as broken as one that says so: no job would wait longer."""
    try:
        async with asyncio.timeout(settings.JOB_DEADLINE_SECONDS):
            return await _make(client, request, on_step)
    except TimeoutError:
        raise NodeTimeout(f"The node did not make it within {settings.JOB_DEADLINE_SECONDS} s.") from None


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
            await asyncio.sleep(PAUSE_SECONDS)
    if made.state != "completed":
        raise NodeError(made.error or f"The node ended it as {made.state}.")
    return made
