"""A clip that a node makes outside of any job: for the circuit breaker, for staff and for `check_gpu_node`."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from django.conf import settings

from generation import media
from generation.jobs.node_health import endpoint_of
from generation.media.folders import work_folder
from generation.models import GpuNode
from generation.nodes import (
    DOUBTFUL,
    GenerationRequest,
    NodeClient,
    NodeError,
    NodeTimeout,
    RemoteJob,
    TransientNodeError,
    open_client,
)

PROMPT = "a red ball moving right on a white background"
# The cheapest clip that shows that a node works: nine frames are the least above one that the model makes.
FRAMES, FPS, STEPS = 9, 8, 4
# Between two questions: a server without long polling answers each at once.
PAUSE_SECONDS = 0.2
# Before a question is put again that had no answer, or one that may be another's; after the last it counts.
DOUBT_PAUSES = (0.5, 1.0, 2.0, 4.0)
# How long a node is asked to stop a clip that was given up.
STOP_SECONDS = 2.0
# Every job has one, so a node that refuses it is found out.
SEED = 20

OnStep = Callable[[int], None]


async def make_clip(
    node: GpuNode,
    *,
    protocol: str,
    prompt: str = PROMPT,
    num_frames: int = FRAMES,
    fps: int = FPS,
    num_inference_steps: int = STEPS,
    on_step: OnStep | None = None,
    on_made: Callable[[int | None], Awaitable[None]] | None = None,
    keep_as: Path | None = None,
) -> tuple[media.VideoFacts, int | None]:
    """Have the node make a clip that no job asked for and that costs nothing, and check that it plays.

    Returns what the clip is, and the node's own milliseconds for it, where it reports them.

    on_step: called with the denoising steps done, where the node reports them. on_made: called with those milliseconds
    before the clip is fetched. keep_as: where the clip is copied to.

    Raises:
        NodeError: the node did not make it. media.UnplayableVideo: its clip does not play.
    """
    request = GenerationRequest(
        id=uuid.uuid4().hex,
        prompt=prompt,
        num_frames=num_frames,
        fps=fps,
        num_inference_steps=num_inference_steps,
        seed=SEED,
    )
    with work_folder() as folder:
        raw, clip, poster = (folder / name for name in ("raw.mp4", "clip.mp4", "poster.jpg"))
        async with open_client(endpoint_of(node, protocol=protocol)) as client:
            try:
                # A node that goes on for ever is as broken as one that reports it: no job would wait longer.
                async with asyncio.timeout(settings.JOB_DEADLINE_SECONDS):
                    made = await _make(client, request, on_step)
            except TimeoutError:
                raise NodeTimeout(
                    f"The node did not make it within {settings.JOB_DEADLINE_SECONDS} s."
                ) from None
            if on_made:
                await on_made(made.generation_ms)
            await client.download(
                made, raw, max_bytes=settings.MAX_VIDEO_BYTES, timeout=settings.DOWNLOAD_TIMEOUT_SECONDS
            )
        facts = await asyncio.to_thread(media.prepare, raw, clip, poster)
        if keep_as:
            keep_as.write_bytes(clip.read_bytes())
    return facts, made.generation_ms


async def _make(client: NodeClient, request: GenerationRequest, on_step: OnStep | None) -> RemoteJob:
    if client.background:
        made = await client.submit(request)
        try:
            while not made.finished and made.remote_id:
                made = await _ask(client, made.remote_id)
                if on_step:
                    on_step(made.step or 0)
                await asyncio.sleep(PAUSE_SECONDS)
        except (asyncio.CancelledError, NodeError):
            # It is given up, so the node need not go on with it.
            with contextlib.suppress(NodeError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await client.cancel(made.remote_id or "")
            raise
    else:
        made = await client.generate(request, timeout=settings.FIELD_NODE_TIMEOUT_SECONDS)
    if made.state != "completed":
        raise NodeError(made.error or f"The node ended it as {made.state}.")
    return made


async def _ask(client: NodeClient, remote_id: str) -> RemoteJob:
    for pause in DOUBT_PAUSES:
        try:
            return await client.retrieve(remote_id, wait=10)
        except (TransientNodeError, *DOUBTFUL):
            await asyncio.sleep(pause)
    return await client.retrieve(remote_id, wait=10)
