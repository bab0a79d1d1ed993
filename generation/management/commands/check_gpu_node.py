"""Is the GPU node reachable, does it take our key, and does it make a playable clip?"""

import asyncio
import tempfile
import uuid
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from generation import media, pricing
from generation.fleet import endpoint_of, examine, sync_environment_node
from generation.models import GpuNode, Preset
from generation.nodes import GenerationRequest, NodeClient, NodeError, NodeHealth, RemoteJob, open_client


class Command(BaseCommand):
    help = "Check a GPU node (all of them without --node); with --generate, make a clip with it, outside of any job."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--node", help="name of one node")
        parser.add_argument("--generate", metavar="PROMPT", help="make a clip of this prompt, and check it")
        parser.add_argument("--output", type=Path, help="keep the clip here")

    def handle(self, *args: Any, **options: Any) -> None:
        sync_environment_node()
        nodes = GpuNode.objects.filter(name=options["node"]) if options["node"] else GpuNode.objects.all()
        if not nodes:
            raise CommandError("There is no such node: set VIDEO_API_URL, or add one in the admin.")
        preset = pricing.default_preset()
        failed = [node.name for node in nodes if not self._check(node, preset, options)]
        if failed:
            raise CommandError(f"Not usable: {', '.join(failed)}")

    def _check(self, node: GpuNode, preset: Preset, options: dict[str, Any]) -> bool:
        self.stdout.write(f"{node.name} at {node.base_url}")
        try:
            health = asyncio.run(examine(node))
            self._report(health)
            if options["generate"]:
                asyncio.run(self._generate(node, health, preset, options["generate"], options["output"]))
        except (NodeError, media.UnplayableVideo, media.MediaFailure) as error:
            self.stdout.write(self.style.ERROR(f"  failed: {error}"))
            return False
        return health.ready

    def _report(self, health: NodeHealth) -> None:
        self.stdout.write(
            f"  status {health.status}, backend {health.backend or 'not said'}, speaks /{health.protocol}"
        )

    async def _generate(
        self, node: GpuNode, health: NodeHealth, preset: Preset, prompt: str, output: Path | None
    ) -> None:
        request = GenerationRequest(
            id=uuid.uuid4().hex,
            prompt=prompt,
            num_frames=preset.num_frames,
            fps=preset.fps,
            num_inference_steps=preset.num_inference_steps,
        )
        with tempfile.TemporaryDirectory() as folder:
            raw, clip, poster = (Path(folder) / name for name in ("raw.mp4", "clip.mp4", "poster.jpg"))
            async with open_client(endpoint_of(node, protocol=health.protocol)) as client:
                made = await self._make(client, request)
                await client.download(made, raw)
            facts = await asyncio.to_thread(media.prepare, raw, clip, poster)
            if output:
                output.write_bytes(clip.read_bytes())
        self.stdout.write(
            self.style.SUCCESS(
                f"  made {facts.frames} frames at {facts.fps:g} fps, {facts.width}×{facts.height}, {facts.codec}"
                f"{f', {made.generation_ms / 1000:.1f} s' if made.generation_ms else ''}"
            )
        )

    async def _make(self, client: NodeClient, request: GenerationRequest) -> RemoteJob:
        if client.protocol == "generate_video":
            made = await client.generate(request, timeout=settings.FIELD_NODE_TIMEOUT_SECONDS)
        else:
            made = await client.submit(request)
            with tqdm(total=request.num_inference_steps, unit="step", leave=False) as bar:
                while not made.finished and made.remote_id:
                    made = await client.retrieve(made.remote_id, wait=10)
                    bar.update((made.step or 0) - bar.n)
        if made.state != "completed":
            raise NodeError(made.error or f"the node ended it as {made.state}")
        return made
