"""Whether a node works, step by step: what `check_gpu_node --generate` does, in the background, for staff to watch."""

import asyncio
import uuid
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts.staff import log
from accounts.staff.clerks import Clerk
from generation import media, trial
from generation.database import in_database
from generation.fleet import examine, record_health
from generation.models import GpuNode, NodeTrial
from generation.nodes import NodeError

HEALTH, GENERATE, PLAY = "It answers and takes our key", "It makes a clip", "The clip arrives and plays"


@transaction.atomic
def start(*, clerk: Clerk, node: GpuNode, reason: str, once: uuid.UUID | None = None) -> NodeTrial:
    """Have a node tested. Raises NotPermitted, DoneBefore."""
    clerk.must("generation.change_gpunode")
    steps = [{"name": name, "state": "waiting", "words": ""} for name in (HEALTH, GENERATE, PLAY)]
    log.record(clerk=clerk, act="node.test", subject=node, reason=reason, once=once)
    row = NodeTrial.objects.create(node=node, kind=NodeTrial.Kind.TEST, asked_by=clerk.user, steps=steps)
    async_task("generation.staff.node_tests.run", row.pk)
    return row


def run(trial_id: int) -> None:
    """A task. One that was cut off says so when it is repeated."""
    row = NodeTrial.objects.select_related("node").filter(pk=trial_id, passed=None).first()
    if row is not None:
        asyncio.run(_Test(row).run())


def note_canary(node: GpuNode, error: Exception | None) -> None:
    """What became of the trial clip of a set-aside node."""
    words = "made and played" if error is None else str(error)
    step = {"name": GENERATE, "state": "passed" if error is None else "failed", "words": words[:500]}
    NodeTrial.objects.create(
        node=node, kind=NodeTrial.Kind.CANARY, steps=[step], passed=error is None, ended_at=Now()
    )


class _Test:
    """One test, whose steps are written down as they are gone through."""

    def __init__(self, row: NodeTrial) -> None:
        self.row, self.at = row, 0

    async def run(self) -> None:
        try:
            await self._go_through()
        except (NodeError, media.UnplayableVideo, media.MediaFailure, OSError) as error:
            await self._mark("failed", str(error) or repr(error))
            await self._end(passed=False)

    async def _go_through(self) -> None:
        node = self.row.node
        await self._mark("running", "")
        health = await examine(node)
        await in_database(record_health)(node, health)
        await self._mark(
            "passed", f"{health.status}, {health.backend or 'backend not said'}, /{health.protocol}"
        )
        self.at = 1
        await self._mark("running", "")
        made = await trial.make_clip(node, protocol=health.protocol, on_made=self._is_made)
        facts = made.facts
        await self._mark("passed", f"{facts.frames} frames, {facts.width}×{facts.height}, {facts.codec}")
        await self._end(passed=True)

    async def _is_made(self, milliseconds: int | None) -> None:
        await self._mark("passed", f"{milliseconds / 1000:.1f} s" if milliseconds else "")
        self.at = 2
        await self._mark("running", "")

    async def _mark(self, state: str, words: str) -> None:
        steps: list[dict[str, Any]] = self.row.steps
        steps[self.at] |= {"state": state, "words": words[:500]}
        await in_database(NodeTrial.objects.filter(pk=self.row.pk).update)(steps=steps)

    async def _end(self, *, passed: bool) -> None:
        await in_database(NodeTrial.objects.filter(pk=self.row.pk).update)(passed=passed, ended_at=Now())
