"""Sums over tables that only ever grow, at the cost of what is new: what lies behind is added up once and kept, in the
database, so that every process and host tells the same and no number ever goes back.
"""

import math
import statistics
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.db import connection
from django.db.models import Aggregate, Count, OuterRef, QuerySet
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from accounts.models import User
from generation.errors import InvalidSetting, UnknownModel, UnknownPreset
from generation.jobs import limits, scheduling
from generation.models import GenerationJob, GpuNode, Preset, RunningTotal

# Enough to be robust against one odd clip, few enough to follow a change of hardware within the hour.
SAMPLE = 20


@dataclass(frozen=True)
class Quote:
    """A preset as one person is offered it: `cost` in credits, `expected_seconds` from submit to clip with
    an empty queue.
    """

    preset: Preset
    cost: int
    expected_seconds: int


def price(*, preset: Preset, user: User | None = None) -> int:
    """Credits for one clip; 0 for staff while STAFF_GENERATE_FREE is on, and at the factor agreed with `user`."""
    return _cost(preset, _factor(user))


def expected_seconds(preset: Preset) -> int:
    """Median of the last completed clips of the preset; until there are any, VIDEO_EXPECTED_SECONDS scaled
    by its work.
    """
    return expected_seconds_of([preset])[preset.pk]


def expected_seconds_of(presets: Iterable[Preset]) -> dict[int, int]:
    """The same for several presets, by primary key, in one query."""
    presets = list(presets)
    rows = Preset.objects.filter(pk__in=[preset.pk for preset in presets]).order_by()
    measured = dict(rows.values_list("pk", _latest_times()))
    return {preset.pk: _usual_seconds(preset, measured.get(preset.pk, [])) for preset in presets}


def _latest_times() -> ArraySubquery:
    """Of a preset's last completed clips, in milliseconds."""
    done = GenerationJob.objects.filter(
        preset=OuterRef("pk"), state=GenerationJob.State.COMPLETED, generation_ms__isnull=False
    )
    return ArraySubquery(done.order_by("-finished_at").values_list("generation_ms", flat=True)[:SAMPLE])


def _usual_seconds(preset: Preset, milliseconds: list[int]) -> int:
    if milliseconds:
        return max(1, round(statistics.median(milliseconds) / 1000))
    work = preset.num_frames * preset.num_inference_steps / (16 * 20)
    return max(1, round(settings.VIDEO_EXPECTED_SECONDS * work))


def quote(*, preset: Preset, user: User | None = None) -> Quote:
    return Quote(
        preset=preset, cost=price(preset=preset, user=user), expected_seconds=expected_seconds(preset)
    )


def quotes(*, user: User | None = None) -> list[Quote]:
    """Every preset on offer, in the order staff gave them."""
    factor = _factor(user)
    return [
        Quote(
            preset=preset,
            cost=_cost(preset, factor),
            expected_seconds=_usual_seconds(preset, preset.latest_times),
        )
        for preset in Preset.objects.filter(enabled=True).annotate(latest_times=_latest_times())
    ]


def _factor(user: User | None) -> Decimal:
    if user is None:
        return Decimal(1)
    return Decimal(0) if user.is_staff and settings.STAFF_GENERATE_FREE else limits.price_factor(user)


def _cost(preset: Preset, factor: Decimal) -> int:
    """Rounded up, so that a small price is never none."""
    usual: int = settings.VIDEO_COST if preset.cost is None else preset.cost
    return math.ceil(usual * factor)


def default_preset() -> Preset:
    """The preset used when nobody names one."""
    offered = Preset.objects.filter(enabled=True).order_by("-is_default", "position").first()
    if offered is None:
        raise UnknownPreset("No preset is enabled.")
    return offered


def find_preset(name: str | None) -> Preset:
    """The enabled preset of that name, the default one for None.

    Raises:
        UnknownPreset: there is none; the message names those on offer.
    """
    if not name:
        return default_preset()
    preset = Preset.objects.filter(name=name, enabled=True).first() if name.isprintable() else None
    if preset is None:
        offered = ", ".join(Preset.objects.filter(enabled=True).values_list("name", flat=True))
        raise UnknownPreset(f"There is no such preset. On offer: {offered}.")
    return preset


# What the nodes and presets have to offer to somebody who names a model, a size or a length, as OpenAI's API does.


@dataclass(frozen=True)
class Model:
    """A backend that at least one enabled node runs. `created` is when the first such node was added."""

    id: str
    created: datetime


@dataclass(frozen=True)
class Offer:
    """What can be asked for now. The default comes first; both are empty until a node was reached.

    sizes: `WIDTHxHEIGHT`, of each node the one it makes when nobody asks.
    """

    models: tuple[Model, ...]
    sizes: tuple[str, ...]

    @property
    def model(self) -> str | None:
        return self.models[0].id if self.models else None

    @property
    def size(self) -> str | None:
        return self.sizes[0] if self.sizes else None

    def require_model(self, name: str) -> None:
        """Raises UnknownModel when no node runs it; the message names those on offer."""
        names = [model.id for model in self.models]
        if name not in names:
            raise UnknownModel(names)

    def require_size(self, size: str) -> None:
        """Raises InvalidSetting when no node makes it unasked; the message names what they make."""
        if not self.sizes:
            raise InvalidSetting("size cannot be chosen just now: leave it out.", param="size")
        if size not in self.sizes:
            raise InvalidSetting(f"size must be {_either(self.sizes)}.", param="size")


def current() -> Offer:
    """What can be asked for now, of all nodes."""
    return of(GpuNode.objects.told_apart().filter(enabled=True))


def of(known: Iterable[GpuNode]) -> Offer:
    """What these nodes, `told_apart`, have to offer: what healthy ones serve first, then what was heard of last."""
    nodes = sorted((node for node in known if node.backend), key=lambda node: node.created_at)
    added: dict[str, datetime] = {}
    for node in nodes:
        added.setdefault(node.backend, node.created_at)
    healthy = {node.pk for node in nodes if getattr(node, "is_healthy", False)}
    nodes.sort(key=lambda node: (node.pk in healthy, node.last_seen_at or node.created_at), reverse=True)
    return Offer(
        models=tuple(Model(name, added[name]) for name in dict.fromkeys(node.backend for node in nodes)),
        sizes=tuple(dict.fromkeys(str(node.sizes[0]) for node in nodes if node.sizes)),
    )


def choose_preset(*, preset: str | None, seconds: str | None) -> Preset:
    """The preset of that name, or the one whose clips have that length; of two as long, the one staff put first.

    Raises:
        UnknownPreset, InvalidSetting: there is none, or the two contradict each other. What is on offer is named.
    """
    if seconds is None:
        return find_preset(preset)
    enabled = list(Preset.objects.filter(enabled=True).order_by("-is_default", "position", "name"))
    lengths = list(
        dict.fromkeys(str(each.seconds) for each in sorted(enabled, key=lambda each: each.seconds))
    )
    if seconds not in lengths:
        quoted = [f'"{length}"' for length in lengths]
        raise InvalidSetting(f"seconds must be {_either(quoted)}.", param="seconds")
    if not preset:
        return next(each for each in enabled if str(each.seconds) == seconds)
    chosen = find_preset(preset)
    if str(chosen.seconds) != seconds:
        raise InvalidSetting(f'The preset {chosen.name} makes "{chosen.seconds}" seconds.', param="seconds")
    return chosen


def _either(choices: tuple[str, ...] | list[str]) -> str:
    return " or ".join(choices) or "left out: nothing is on offer"


# The line before the GPUs: who waits, and how long somebody who joins now would.


State = GenerationJob.State


@dataclass(frozen=True)
class Line:
    """The queue as it is now.

    capacity: clips that all healthy nodes make at once; 0 when none is ready. running: clips being made.
    queued: waiting clips by their preset's primary key. positions: places of the jobs asked about, 1 is next.
    nodes: all that are enabled, each with `is_healthy`.
    """

    capacity: int
    running: int
    queued: Mapping[int, int]
    nodes: Sequence[GpuNode] = ()
    positions: Mapping[uuid.UUID, int] = field(default_factory=dict)

    def seconds_before(self, position: int, expected: int) -> float:
        """Until the clip at that place starts, when all before it take `expected` seconds. Needs a capacity."""
        # What runs now is half done on average.
        return (position - 1 + self.running / 2) * expected / self.capacity

    def seconds_to_join(self, expected: Mapping[int, int]) -> int | None:
        """Until a clip asked for now would start, from what each preset takes; None when no node is ready."""
        if not self.capacity:
            return None
        usual = max(expected.values(), default=0)
        waiting = sum(number * expected.get(preset, usual) for preset, number in self.queued.items())
        if not waiting and self.running < self.capacity:
            return 0
        return round((waiting + self.running / 2 * usual) / self.capacity)


def now(jobs: list[GenerationJob]) -> Line:
    """The line, with the places of those jobs that are queued; at most three queries."""
    counts = GenerationJob.objects.filter(state__in=[State.QUEUED, State.RUNNING]).order_by()
    rows = list(counts.values_list("state", "preset").annotate(number=Count("pk")))
    nodes = list(GpuNode.objects.told_apart().filter(enabled=True))
    return Line(
        capacity=sum(node.capacity for node in nodes if _takes_work(node)),
        nodes=nodes,
        running=sum(number for state, _, number in rows if state == State.RUNNING),
        queued={preset: number for state, preset, number in rows if state == State.QUEUED},
        positions=scheduling.queue_positions(jobs),
    )


def _takes_work(node: GpuNode) -> bool:
    healthy: bool = getattr(node, "is_healthy", False)
    return healthy and node.set_aside_at is None


# Prompts to begin with, such as the model that is on offer can draw.


DEMONSTRATION_MODEL = "CogVideoX-tiny"  # comes with the project and knows few words: docs/embedded-model.md

FOR_ANY_MODEL = (
    _("A red fox trotting through fresh snow at dawn, slow tracking shot"),
    _("Waves rolling onto a black sand beach, seen from a drone"),
    _("A paper boat drifting down a rainy city street, close-up"),
)
# English in every language, for these are the only words that the model knows.
FOR_THE_DEMONSTRATION = (
    "A golden star flying right at night",
    "A cyan ball moving left in the desert",
    "A pink heart growing over the sea",
)


def context(on_offer: Offer) -> dict[str, object]:
    """For templates: `samples`, and `demonstration`, whether nothing but the demonstration model is on offer."""
    names = {model.id for model in on_offer.models}
    demonstration = names == {DEMONSTRATION_MODEL}
    samples: tuple[str | Promise, ...] = FOR_THE_DEMONSTRATION if demonstration else FOR_ANY_MODEL
    return {"samples": samples, "demonstration": demonstration}


# What a clip costs and how long it is expected to take: the same figures in every door, before submit.


# Transactions that began before a moment may still be open for so long after it.
SETTLED = timedelta(hours=1)
# What came since is added up each time, until it is so much.
SPAN = timedelta(hours=6)

Totals = Counter[tuple[str, ...]]


def add_up(
    name: str, rows: "QuerySet[Any]", *, moment: str, labels: Sequence[str], number: Aggregate
) -> Totals:
    """`number` of the rows by their labels, all rows there ever were.

    name: what the sum is kept under. moment: the column that says when a row came; its rows never change, and there is
    an index on it.
    """
    kept = RunningTotal.objects.filter(pk=name).first()
    since = rows if kept is None else rows.filter(**{f"{moment}__gte": kept.until})
    totals = _numbers_of(kept)
    totals.update(_sums(since, labels, number))
    settled = _now() - SETTLED
    if kept is None or settled - kept.until > SPAN:
        before = _numbers_of(kept)
        before.update(_sums(since.filter(**{f"{moment}__lt": settled}), labels, number))
        _keep(RunningTotal(name=name, until=settled, numbers=[[*key, n] for key, n in before.items()]), kept)
    return totals


def _now() -> datetime:
    """By PostgreSQL's clock: a moment that a host took for past would hide what came until then."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        [(moment,)] = cursor.fetchall()
    return cast(datetime, moment)


def _sums(rows: "QuerySet[Any]", labels: Sequence[str], number: Aggregate) -> Totals:
    found = rows.order_by().values(*labels).annotate(number=number).values_list(*labels, "number")
    return Counter({tuple(key): value for *key, value in found})


def _numbers_of(kept: RunningTotal | None) -> Totals:
    return Counter({tuple(key): value for *key, value in kept.numbers} if kept else {})


def _keep(new: RunningTotal, old: RunningTotal | None) -> None:
    """Unless somebody else was as quick."""
    if old is None:
        RunningTotal.objects.bulk_create([new], ignore_conflicts=True)
    else:
        RunningTotal.objects.filter(pk=old.pk, until=old.until).update(until=new.until, numbers=new.numbers)
