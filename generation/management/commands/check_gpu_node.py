"""Check the GPU nodes: whether they are reachable, accept the key, and make a playable clip."""

import asyncio
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from generation import media
from generation.jobs import canary, catalog
from generation.jobs.node_health import examine, sync_environment_node
from generation.models import GpuNode, Preset
from generation.nodes import (
    NodeAnsweredNonsense,
    NodeError,
    NodeHealth,
    NodeRejected,
    NodeServerError,
    NodeTimeout,
    NodeUnauthorized,
    RemoteJobLost,
)

# What staff do about it, where the error does not say so itself.
CURES = {
    NodeUnauthorized: "Its key is set in the admin, or by VIDEO_API_KEY for the node that VIDEO_API_URL names.",
    NodeRejected: "It has to take prompt, num_frames, fps and num_inference_steps, as JSON or as a form.",
    NodeAnsweredNonsense: "Enter the address up to /v1/videos or /generate_video, without it.",
    RemoteJobLost: "If several machines share this address, enter each of them by its own: a job is known to one.",
    NodeTimeout: "It takes connections and does not answer: its log says what it waits for.",
    NodeServerError: "The fault is on the node: its log says more.",
}


class Command(BaseCommand):
    requires_system_checks = ()  # they load every URL and view
    help = "Check the GPU nodes; with --generate, have them make a clip outside of any job."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--node", help="name of one node; without it, all are checked")
        parser.add_argument("--generate", metavar="PROMPT", help="make a clip of this prompt, and check it")
        parser.add_argument("--output", type=Path, help="keep the clip here")

    def handle(self, *args: Any, **options: Any) -> None:
        sync_environment_node()
        name, nodes = options["node"], GpuNode.objects.all()
        if name:
            nodes = nodes.filter(name=name) if name.isprintable() else nodes.none()
        if not nodes:
            raise CommandError("There is no such node: set VIDEO_API_URL, or add one in the admin.")
        preset = catalog.default_preset()
        failed = [node.name for node in nodes if not self._check(node, preset, options)]
        if failed:
            raise CommandError(f"Not usable: {', '.join(failed)}")

    def _check(self, node: GpuNode, preset: Preset, options: dict[str, Any]) -> bool:
        self.stdout.write(f"{node.name} at {node.base_url}")
        try:
            health = asyncio.run(examine(node))
            backend = health.backend or "not said"
            self.stdout.write(f"  status {health.status}, backend {backend}, speaks /{health.protocol}")
            if not health.ready:
                why = (
                    health.detail.get("detail")
                    or health.detail.get("error")
                    or "it says that it is not ready"
                )
                self.stdout.write(self.style.WARNING(f"  takes no jobs: {why}"))
            if node.set_aside_at:
                self.stdout.write(self.style.WARNING(f"  set aside: {node.set_aside_reason}"))
            if options["generate"]:
                self._generate(node, health, preset, options)
        except (NodeError, media.UnplayableVideo, media.MediaFailure, OSError) as error:
            self.stdout.write(self.style.ERROR(f"  failed: {error}"))
            if cure := next((cure for kind, cure in CURES.items() if isinstance(error, kind)), None):
                self.stdout.write(f"  {cure}")
            return False
        return health.ready

    def _generate(self, node: GpuNode, health: NodeHealth, preset: Preset, options: dict[str, Any]) -> None:
        with tqdm(total=preset.num_inference_steps, unit="step", leave=False) as bar:
            facts, milliseconds = asyncio.run(
                canary.make_clip(
                    node,
                    protocol=health.protocol,
                    prompt=options["generate"],
                    num_frames=preset.num_frames,
                    fps=preset.fps,
                    num_inference_steps=preset.num_inference_steps,
                    on_step=lambda step: bar.update(step - bar.n),
                    keep_as=options["output"],
                )
            )
        took = f", {milliseconds / 1000:.1f} s" if milliseconds else ""
        self.stdout.write(
            self.style.SUCCESS(
                f"  made {facts.frames} frames at {facts.fps:g} fps, {facts.width}×{facts.height}, {facts.codec}{took}"
            )
        )
