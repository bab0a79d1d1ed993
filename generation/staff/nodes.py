"""Operations of the staff on nodes: drain, enable, set aside, bring back, and a test step by step in the background."""

import asyncio

from asgiref.sync import async_to_sync
from django.db.models.functions import Coalesce, Now
from django_q.conf import Conf
from django_q.tasks import async_task

from accounts.staff.actor import refuse
from accounts.staff.audit_log import Operation, operation
from generation import media
from generation.database import in_database
from generation.jobs import canary, enqueue, node_health
from generation.jobs.node_health import examine, record_health
from generation.models import CanaryRun, GpuNode
from generation.nodes import NodeError

# Between the end of a test that takes too long and the end of its task.
SPARE_SECONDS = 20
HEALTH, GENERATE, PLAY = "It answers and takes our key", "It makes a clip", "The clip arrives and plays"


@operation("generation.change_gpunode", "node.drain")
def drain(op: Operation, node: GpuNode) -> None:
    """Let a node finish its jobs and give it no new ones. Raises Refused when it is drained already."""
    node = _locked(node)
    refuse(why_not_drain(node))
    op.record(node, before={"enabled": True}, after={"enabled": False})
    GpuNode.objects.filter(pk=node.pk).update(enabled=False)


@operation("generation.change_gpunode", "node.enable")
def enable(op: Operation, node: GpuNode) -> None:
    """Give a drained node jobs again. Raises Refused when it is not drained."""
    node = _locked(node)
    refuse(why_not_enable(node))
    op.record(node, before={"enabled": False}, after={"enabled": True})
    GpuNode.objects.filter(pk=node.pk).update(enabled=True)
    enqueue.dispatch()


@operation("generation.change_gpunode", "node.set_aside")
def set_aside(op: Operation, node: GpuNode) -> None:
    """Give a node no jobs until staff bring it back; no canary does."""
    node = _locked(node)
    op.record(node, before={"reason": node.set_aside_reason}, after={"reason": op.reason})
    GpuNode.objects.filter(pk=node.pk).update(
        set_aside_at=Coalesce("set_aside_at", Now()),
        set_aside_reason=op.reason[:300],
        failed_canaries=0,
        next_canary_at=None,
    )


@operation("generation.change_gpunode", "node.bring_back")
def bring_back(op: Operation, node: GpuNode) -> None:
    """Give a node that was set aside jobs again, without a canary. Raises Refused when it is not set aside."""
    node = _locked(node)
    refuse(why_not_bring_back(node))
    op.record(node, before={"reason": node.set_aside_reason})
    node_health.bring_back(node)
    enqueue.dispatch()


def why_not_drain(node: GpuNode) -> str | None:
    return None if node.enabled else f"{node} is switched off already."


def why_not_enable(node: GpuNode) -> str | None:
    return f"{node} is switched on already." if node.enabled else None


def why_not_bring_back(node: GpuNode) -> str | None:
    return f"{node} is not set aside." if node.set_aside_at is None else None


def _locked(node: GpuNode) -> GpuNode:
    return GpuNode.objects.select_for_update(no_key=True).get(pk=node.pk)


@operation("generation.change_gpunode", "node.test")
def start_test(op: Operation, node: GpuNode) -> CanaryRun:
    """Have a node tested in the background; the steps appear in the row that is returned."""
    steps = [{"name": name, "state": "waiting", "words": ""} for name in (HEALTH, GENERATE, PLAY)]
    op.record(node)
    run = CanaryRun.objects.create(node=node, kind=CanaryRun.Kind.TEST, asked_by=op.actor.user, steps=steps)
    async_task("generation.staff.nodes.run_test", run.pk)
    return run


def run_test(run_id: int) -> None:
    """Carry a test out, as a task. A repeated one begins again."""
    run = CanaryRun.objects.select_related("node").filter(pk=run_id, passed=None).first()
    if run is not None:
        async_to_sync(_Test(run).carry_out)()


def note_canary(node: GpuNode, error: Exception | None) -> None:
    """Store the result of a canary: the clip that decides whether a set-aside node comes back."""
    words = "made and played" if error is None else str(error)
    step = {"name": GENERATE, "state": "passed" if error is None else "failed", "words": words[:500]}
    CanaryRun.objects.create(
        node=node, kind=CanaryRun.Kind.CANARY, steps=[step], passed=error is None, ended_at=Now()
    )


class _Test:
    """One test; each step is stored as it begins and ends."""

    def __init__(self, run: CanaryRun) -> None:
        self.run, self.at = run, 0

    async def carry_out(self) -> None:
        """Make the test, which ends in any case, and before its task is ended from outside."""
        patience = Conf.TIMEOUT - SPARE_SECONDS
        try:
            async with asyncio.timeout(patience):
                await self._make()
            await self._store(passed=True, ended_at=Now())
        except TimeoutError:
            await self._fail(f"It took longer than {patience} s. The node may be busy with other videos.")
        except (NodeError, media.UnplayableVideo, media.MediaFailure, OSError) as error:
            await self._fail(str(error) or repr(error))
        except Exception as error:
            await self._fail(f"The test itself broke: {error!r}")
            raise

    async def _make(self) -> None:
        node = self.run.node
        await self._mark("running", "")
        health = await examine(node)
        await in_database(record_health)(node, health)
        backend = health.backend or "backend not said"
        await self._pass(f"{health.status}, {backend}, /{health.protocol}")
        facts, _ = await canary.make_clip(node, protocol=health.protocol, on_made=self._made)
        await self._mark("passed", f"{facts.frames} frames, {facts.width}×{facts.height}, {facts.codec}")

    async def _fail(self, words: str) -> None:
        await self._mark("failed", words)
        await self._store(passed=False, ended_at=Now())

    async def _made(self, milliseconds: int | None) -> None:
        await self._pass(f"{milliseconds / 1000:.1f} s" if milliseconds else "")

    async def _pass(self, words: str) -> None:
        """End this step and begin the next one."""
        await self._mark("passed", words)
        self.at += 1
        await self._mark("running", "")

    async def _mark(self, state: str, words: str) -> None:
        self.run.steps[self.at] |= {"state": state, "words": words[:500]}
        await self._store(steps=self.run.steps)

    async def _store(self, **values: object) -> None:
        await in_database(CanaryRun.objects.filter(pk=self.run.pk).update)(**values)
