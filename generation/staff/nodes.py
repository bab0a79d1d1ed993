"""What staff do about nodes: drain, enable, set aside, bring back; and what a node costs."""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from django.db import transaction
from django.db.models.functions import Coalesce, Now

from accounts.staff import log
from accounts.staff.clerks import Clerk
from accounts.staff.errors import Refused
from generation import breaker, nudges
from generation.models import GpuNode
from generation.staff import days, node_figures
from generation.staff.day_figures import DAYS


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
def switch(*, clerk: Clerk, node: GpuNode, on: bool, reason: str, once: uuid.UUID | None = None) -> None:
    """Drain a node (it finishes what it has and gets nothing new), or give it work again.

    Raises:
        NotPermitted: the clerk may not. Refused: it is so already.
    """
    node = _locked(clerk, node)
    if node.enabled == on:
        raise Refused(f"{node} is switched {'on' if on else 'off'} already.")
    act = "node.enable" if on else "node.drain"
    log.record(
        clerk=clerk,
        act=act,
        subject=node,
        reason=reason,
        before={"enabled": not on},
        after={"enabled": on},
        once=once,
    )
    GpuNode.objects.filter(pk=node.pk).update(enabled=on)
    if on:
        nudges.dispatch()


@transaction.atomic
def set_aside(*, clerk: Clerk, node: GpuNode, reason: str, once: uuid.UUID | None = None) -> None:
    """No jobs until staff bring it back; no trial clip does.

    Raises:
        NotPermitted, Refused: as `switch`.
    """
    node = _locked(clerk, node)
    log.record(
        clerk=clerk,
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
def bring_back(*, clerk: Clerk, node: GpuNode, reason: str, once: uuid.UUID | None = None) -> None:
    """It gets jobs again, without a trial clip.

    Raises:
        NotPermitted: the clerk may not. Refused: it is not set aside.
    """
    node = _locked(clerk, node)
    if node.set_aside_at is None:
        raise Refused(f"{node} is not set aside.")
    log.record(
        clerk=clerk,
        act="node.bring_back",
        subject=node,
        reason=reason,
        before={"reason": node.set_aside_reason},
        once=once,
    )
    breaker.bring_back(node)
    nudges.dispatch()


def account(node: GpuNode) -> Account:
    """What a node did and what it cost, by the time that its attempts took, those that came to nothing included."""
    first = days.today() - timedelta(days=DAYS - 1)
    work = node_figures.work_since(first, node)
    hours, cost, rate = work.milliseconds / 3_600_000, None, None
    if node.cost_per_hour is not None and work.clips:
        cost = (node.cost_per_hour * Decimal(hours) / work.clips).quantize(Decimal("0.0001"))
    if work.charged:
        rate = node_figures.refunded_since(first, node) / work.charged
    return Account(clips=work.clips, hours=hours, cost_per_clip=cost, refund_rate=rate)


def _locked(clerk: Clerk, node: GpuNode) -> GpuNode:
    clerk.must("generation.change_gpunode")
    return GpuNode.objects.select_for_update(no_key=True).get(pk=node.pk)
