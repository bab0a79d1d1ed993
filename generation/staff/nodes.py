"""Whether a node works, step by step: what `check_gpu_node --generate` does, in the background, for staff to watch."""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from asgiref.sync import async_to_sync
from django.db import transaction
from django.db.models.functions import Coalesce, Now
from django_q.tasks import async_task

from accounts.staff import audit_log
from accounts.staff.actor import Actor, Refused
from generation import media
from generation.database import in_database
from generation.jobs import canary, enqueue, node_health
from generation.jobs.node_health import examine, record_health
from generation.models import GpuNode, NodeTrial
from generation.nodes import NodeError
from generation.staff import stats
from generation.staff.stats import DAYS


@dataclass(frozen=True)
class Account:
    """The last 30 days of a node (UTC, the running one included): clips that came out of it, hours it worked, money a
    clip cost, share refunded.
    """

    clips: int
    hours: float
    cost_per_clip: Decimal | None
    refund_rate: float | None


@transaction.atomic
def switch(*, actor: Actor, node: GpuNode, on: bool, reason: str, once: uuid.UUID | None = None) -> None:
    """Drain a node (it finishes what it has and gets nothing new), or give it work again.

    Raises:
        NotPermitted: the actor may not. Refused: it is so already.
    """
    node = _locked(actor, node)
    if node.enabled == on:
        raise Refused(f"{node} is switched {'on' if on else 'off'} already.")
    act = "node.enable" if on else "node.drain"
    audit_log.record(
        actor=actor,
        act=act,
        subject=node,
        reason=reason,
        before={"enabled": not on},
        after={"enabled": on},
        once=once,
    )
    GpuNode.objects.filter(pk=node.pk).update(enabled=on)
    if on:
        enqueue.dispatch()


@transaction.atomic
def set_aside(*, actor: Actor, node: GpuNode, reason: str, once: uuid.UUID | None = None) -> None:
    """No jobs until staff bring it back; no trial clip does.

    Raises:
        NotPermitted, Refused: as `switch`.
    """
    node = _locked(actor, node)
    audit_log.record(
        actor=actor,
        act="node.set_aside",
        subject=node,
        reason=reason,
        before={"reason": node.set_aside_reason},
        after={"reason": reason},
        once=once,
    )
    GpuNode.objects.filter(pk=node.pk).update(
        set_aside_at=Coalesce("set_aside_at", Now()),
        set_aside_reason=reason[:300],
        trials=0,
        next_trial_at=None,
    )


@transaction.atomic
def bring_back(*, actor: Actor, node: GpuNode, reason: str, once: uuid.UUID | None = None) -> None:
    """It gets jobs again, without a trial clip.

    Raises:
        NotPermitted: the actor may not. Refused: it is not set aside.
    """
    node = _locked(actor, node)
    if node.set_aside_at is None:
        raise Refused(f"{node} is not set aside.")
    audit_log.record(
        actor=actor,
        act="node.bring_back",
        subject=node,
        reason=reason,
        before={"reason": node.set_aside_reason},
        once=once,
    )
    node_health.bring_back(node)
    enqueue.dispatch()


def account(node: GpuNode) -> Account:
    """What a node did and what it cost, by the time that its attempts took, those that came to nothing included."""
    first = stats.today() - timedelta(days=DAYS - 1)
    work = stats.work_since(first, node)
    hours, cost, rate = work.milliseconds / 3_600_000, None, None
    if node.cost_per_hour is not None and work.clips:
        cost = (node.cost_per_hour * Decimal(hours) / work.clips).quantize(Decimal("0.0001"))
    if work.charged:
        rate = stats.refunded_since(first, node) / work.charged
    return Account(clips=work.clips, hours=hours, cost_per_clip=cost, refund_rate=rate)


def _locked(actor: Actor, node: GpuNode) -> GpuNode:
    actor.must("generation.change_gpunode")
    return GpuNode.objects.select_for_update(no_key=True).get(pk=node.pk)


# What staff do about nodes: drain, enable, set aside, bring back; and what a node costs.


HEALTH, GENERATE, PLAY = "It answers and takes our key", "It makes a clip", "The clip arrives and plays"


@transaction.atomic
def start(*, actor: Actor, node: GpuNode, reason: str, once: uuid.UUID | None = None) -> NodeTrial:
    """Have a node tested. Raises NotPermitted, DoneBefore."""
    actor.must("generation.change_gpunode")
    steps = [{"name": name, "state": "waiting", "words": ""} for name in (HEALTH, GENERATE, PLAY)]
    audit_log.record(actor=actor, act="node.test", subject=node, reason=reason, once=once)
    row = NodeTrial.objects.create(node=node, kind=NodeTrial.Kind.TEST, asked_by=actor.user, steps=steps)
    async_task("generation.staff.nodes.run", row.pk)
    return row


def run(trial_id: int) -> None:
    """A task. One that was cut off says so when it is repeated."""
    row = NodeTrial.objects.select_related("node").filter(pk=trial_id, passed=None).first()
    if row is not None:
        async_to_sync(_Test(row).run)()


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
        facts, _ = await canary.make_clip(node, protocol=health.protocol, on_made=self._is_made)
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
