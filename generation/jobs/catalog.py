"""The offer: presets, prices and expected waits, the models and sizes of the nodes, and the queue before them.

Every channel shows the same figures before submit.
"""

import math
import statistics
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.db import connection
from django.db.models import Aggregate, Count, ExpressionWrapper, F, FloatField, OuterRef, QuerySet, Sum
from django.db.models.functions import Greatest
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.models import User, UserLimits
from generation.errors import InvalidSetting, UnknownModel, UnknownPreset
from generation.jobs import limits, scheduling
from generation.models import GenerationJob, GpuNode, Preset, RunningTotal

State = GenerationJob.State

# Of the time of a clip on its GPU; the rest is decoding, in which no step is counted any more.
DENOISING = 0.9
# Enough to be robust against one odd clip, few enough to follow a change of hardware within the hour.
SAMPLE = 20


# --- Presets: price and expected wait ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quote:
    """A preset as one user is offered it: `cost` in credits, `expected_seconds` from submit to clip without a queue."""

    preset: Preset
    cost: int
    expected_seconds: int


def price(preset: Preset, factor: Decimal) -> int:
    """Price one clip in credits. Rounded up, so that a small price is never 0."""
    usual: int = settings.VIDEO_COST if preset.cost is None else preset.cost
    return math.ceil(usual * factor)


def quote(*, preset: Preset, user: User) -> Quote:
    cost = price(preset, limits.price_factor(user))
    return Quote(preset=preset, cost=cost, expected_seconds=expected_seconds_of([preset])[preset.pk])


def quotes(*, user: User | None = None, agreed: UserLimits | None = None) -> list[Quote]:
    """Quote every enabled preset, in the order staff gave them. agreed: the user's limits, if they are read already."""
    factor = limits.price_factor(user, agreed) if user else Decimal(1)
    presets = Preset.objects.filter(enabled=True).annotate(latest_times=_latest_times(), paces=_paces())
    return [
        Quote(
            preset=preset,
            cost=price(preset, factor),
            expected_seconds=_usual_seconds(preset, preset.latest_times, preset.paces),
        )
        for preset in presets
    ]


def expected_seconds_of(presets: Iterable[Preset]) -> dict[int, int]:
    """Estimate a clip of each preset, by its primary key: the median of the last completed ones.

    Until there are any, what the nodes measured when they started; else VIDEO_EXPECTED_SECONDS scaled by the work.
    """
    rows = Preset.objects.filter(pk__in=[preset.pk for preset in presets]).order_by()
    measured = rows.annotate(latest_times=_latest_times(), paces=_paces())
    return {preset.pk: _usual_seconds(preset, preset.latest_times, preset.paces) for preset in measured}


def _latest_times() -> ArraySubquery:
    """Milliseconds of a preset's last completed clips, those of other settings than its present ones by their work."""
    done = GenerationJob.objects.filter(
        preset=OuterRef("pk"), state=State.COMPLETED, generation_ms__isnull=False
    )
    work = F("num_frames") * F("num_inference_steps")
    same_work = F("generation_ms") * OuterRef("num_frames") * OuterRef("num_inference_steps") / (1.0 * work)
    times = ExpressionWrapper(same_work, FloatField())
    return ArraySubquery(done.order_by("-finished_at").values_list(times, flat=True)[:SAMPLE])


def _paces() -> ArraySubquery:
    """The paces that the nodes in use have measured, each node's a list."""
    used = GpuNode.objects.healthy().filter(enabled=True, set_aside_at=None)
    return ArraySubquery(used.exclude(paces=[]).values("paces"))


def _usual_seconds(preset: Preset, milliseconds: list[float], paces: list[list[list[float]]]) -> int:
    if milliseconds:
        return max(1, round(statistics.median(milliseconds) / 1000))
    if paces:
        return max(1, round(statistics.median(_seconds_on_node(preset, node) for node in paces)))
    work = preset.num_frames * preset.num_inference_steps / (16 * 20)
    return max(1, round(settings.VIDEO_EXPECTED_SECONDS * work))


def _seconds_on_node(preset: Preset, paces: list[list[float]]) -> float:
    """Reckon a clip from the shape that is nearest to it, by the number of frames."""
    frames, step, besides = min(paces, key=lambda pace: abs(pace[0] - preset.num_frames))
    return preset.num_frames / frames * (preset.num_inference_steps * step + besides)


def default_preset() -> Preset:
    offered = Preset.objects.filter(enabled=True).order_by("-is_default", "position").first()
    if offered is None:
        raise UnknownPreset("No preset is enabled.")
    return offered


def find_preset(name: str | None) -> Preset:
    """Find the enabled preset of that name; the default one for an empty name.

    Raises:
        UnknownPreset: it is not on offer; the message names those that are.
    """
    if not name:
        return default_preset()
    preset = Preset.objects.filter(name=name, enabled=True).first() if name.isprintable() else None
    if preset is None:
        raise no_such_preset()
    return preset


def no_such_preset() -> UnknownPreset:
    offered = ", ".join(Preset.objects.filter(enabled=True).values_list("name", flat=True))
    return UnknownPreset(f"There is no such preset. On offer: {offered}.")


def choose_preset(*, preset: str | None, seconds: str | None) -> Preset:
    """Choose the preset of that name, or the one whose clips have that length; of two as long, the one staff put first.

    Raises:
        UnknownPreset, InvalidSetting: no preset fits, or the two contradict each other; the message names the choices.
    """
    if seconds is None:
        return find_preset(preset)
    enabled = list(Preset.objects.filter(enabled=True).order_by("-is_default", "position", "name"))
    lengths = dict.fromkeys(str(length) for length in sorted(each.seconds for each in enabled))
    if seconds not in lengths:
        choices = _either([f'"{length}"' for length in lengths])
        raise InvalidSetting(f"seconds must be {choices}.", param="seconds")
    if not preset:
        return next(each for each in enabled if str(each.seconds) == seconds)
    chosen = find_preset(preset)
    if str(chosen.seconds) != seconds:
        raise InvalidSetting(f'The preset {chosen.name} makes "{chosen.seconds}" seconds.', param="seconds")
    return chosen


def _either(choices: Sequence[str]) -> str:
    return " or ".join(choices) or "left out: nothing is on offer"


# --- Nodes: models and sizes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """Models and sizes that can be asked for now. The default comes first; both are empty until a node was reached.

    models: backends that at least one enabled node runs, and when the first such node was added. sizes: `WIDTHxHEIGHT`,
    of each node the one that it makes unasked.
    """

    models: Mapping[str, datetime]
    sizes: tuple[str, ...]

    @property
    def model(self) -> str | None:
        return next(iter(self.models), None)

    @property
    def size(self) -> str | None:
        return self.sizes[0] if self.sizes else None

    def require(self, *, model: str, size: str) -> None:
        """Refuse what no node runs, or makes unasked. Empty is any.

        Raises:
            UnknownModel, InvalidSetting: the message names those on offer.
        """
        if model and model not in self.models:
            names = ", ".join(self.models) or gettext("none yet, no GPU node was reached")
            raise UnknownModel(names=names)
        if size and not self.sizes:
            raise InvalidSetting("size cannot be chosen just now: leave it out.", param="size")
        if size and size not in self.sizes:
            raise InvalidSetting(f"size must be {_either(self.sizes)}.", param="size")


def current_offer() -> Offer:
    return offer_of(GpuNode.objects.with_health().filter(enabled=True))


def offer_of(known: Iterable[GpuNode]) -> Offer:
    """Collect the offer of these nodes (`with_health`): healthy ones first, then those heard of last."""
    nodes = sorted((node for node in known if node.backend), key=lambda node: node.created_at)
    added: dict[str, datetime] = {}
    for node in nodes:
        added.setdefault(node.backend, node.created_at)
    healthy = {node.pk for node in nodes if node.is_healthy}
    nodes.sort(key=lambda node: (node.pk in healthy, node.last_seen_at or node.created_at), reverse=True)
    return Offer(
        models={node.backend: added[node.backend] for node in nodes},
        sizes=tuple(dict.fromkeys(str(node.sizes[0]) for node in nodes if node.sizes)),
    )


# --- The queue --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queue:
    """The queue as it is now.

    capacity: clips that all healthy nodes make at once; 0 when none is ready. running: clips being made.
    queued: waiting clips by their preset's primary key; unmade: of the running ones what is still to be made, in clips.
    expected: seconds a clip of each of these presets takes. positions: places of the jobs asked about, 1 is next.
    nodes: all that are enabled, each with `is_healthy`.
    """

    capacity: int
    running: int
    queued: Mapping[int, int]
    unmade: Mapping[int, float]
    expected: Mapping[int, int]
    nodes: Sequence[GpuNode] = ()
    positions: Mapping[uuid.UUID, int] = field(default_factory=dict)

    def serves(self, job: GenerationJob) -> bool:
        """Look whether a node that is ready has the model and the size that the job asks for, if any."""
        return any(
            job.model in ("", node.backend) and (not job.size or job.size in node.sizes)
            for node in self.nodes
            if node.is_healthy and node.set_aside_at is None
        )

    def seconds_before(self, position: int) -> float:
        """Estimate until the clip at that place starts. Needs a capacity.

        Which presets wait before it is not known: those that wait at all, in their proportion.
        """
        before = min(1.0, (position - 1) / max(1, sum(self.queued.values())))
        return (before * self._seconds(self.queued) + self._seconds(self.unmade)) / self.capacity

    def seconds_to_join(self) -> int | None:
        """Estimate until a new clip would start; None when no node is ready."""
        waiting = sum(self.queued.values())
        if not self.capacity:
            return None
        return 0 if not waiting and self.running < self.capacity else round(self.seconds_before(waiting + 1))

    def _seconds(self, clips: Mapping[int, float]) -> float:
        return sum(number * self.expected[preset] for preset, number in clips.items())


def read_queue(jobs: list[GenerationJob], *, expected: Mapping[int, int] | None = None) -> Queue:
    """Read the queue, with the places of those jobs that are in it; at most four queries.

    expected: seconds a clip of each preset takes, by its primary key; queried for those that are missing.
    """
    counts = GenerationJob.objects.filter(state__in=[State.QUEUED, State.RUNNING]).order_by()
    made = DENOISING * F("step") / Greatest("num_inference_steps", 1)
    rows = list(counts.values_list("state", "preset").annotate(number=Count("pk"), unmade=Sum(1.0 - made)))
    nodes = list(GpuNode.objects.with_health().filter(enabled=True))
    known = dict(expected or {})
    if missing := ({preset for _, preset, _, _ in rows} | {job.preset_id for job in jobs}) - known.keys():
        known |= expected_seconds_of(Preset(pk=preset) for preset in missing)
    return Queue(
        capacity=sum(node.capacity for node in nodes if node.is_healthy and node.set_aside_at is None),
        nodes=nodes,
        running=sum(number for state, _, number, _ in rows if state == State.RUNNING),
        queued={preset: number for state, preset, number, _ in rows if state == State.QUEUED},
        unmade={preset: unmade for state, preset, _, unmade in rows if state == State.RUNNING},
        expected=known,
        positions=scheduling.queue_positions(jobs),
    )


# --- Sample prompts, such as the model on offer can draw --------------------------------------------------------------

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


def samples_of(on_offer: Offer) -> tuple[str | Promise, ...]:
    return FOR_THE_DEMONSTRATION if _is_demonstration(on_offer) else FOR_ANY_MODEL


def samples_context(on_offer: Offer) -> dict[str, object]:
    """Build a template's context: `samples`, and `demonstration`, whether only the demonstration model is on offer."""
    return {"samples": samples_of(on_offer), "demonstration": _is_demonstration(on_offer)}


def _is_demonstration(on_offer: Offer) -> bool:
    return set(on_offer.models) == {DEMONSTRATION_MODEL}


# --- Sums over tables that only grow ----------------------------------------------------------------------------------
# The past is added up once and kept in the database, so that all processes agree and no number ever goes back.

# Transactions that began before a moment may still be open for so long after it.
SETTLED = timedelta(hours=1)
# The rest is added up each time, until it spans this much.
SPAN = timedelta(hours=6)

Totals = Counter[tuple[str, ...]]


def add_up(
    name: str, rows: "QuerySet[Any]", *, moment: str, labels: Sequence[str], number: Aggregate
) -> Totals:
    """Add up `number` of all rows there ever were, by their labels.

    name: of the kept sum. moment: the column with the time of a row; rows never change, and there is an index on it.
    """

    def sums(some: "QuerySet[Any]") -> Totals:
        found = some.order_by().values(*labels).annotate(number=number).values_list(*labels, "number")
        return Counter({tuple(key): value for *key, value in found})

    kept = RunningTotal.objects.filter(pk=name).first()
    past = Counter({tuple(key): value for *key, value in kept.numbers} if kept else {})
    since = rows.filter(**{f"{moment}__gte": kept.until}) if kept else rows
    totals = past.copy()
    totals.update(sums(since))
    with connection.cursor() as cursor:
        # PostgreSQL's clock: a moment that a host took for past would hide what came until then.
        cursor.execute("SELECT statement_timestamp()")
        settled: datetime = cursor.fetchone()[0] - SETTLED
    if kept is None or settled - kept.until > SPAN:
        past.update(sums(since.filter(**{f"{moment}__lt": settled})))
        new = RunningTotal(name=name, until=settled, numbers=[[*key, n] for key, n in past.items()])
        # Unless another process was quicker.
        if kept is None:
            RunningTotal.objects.bulk_create([new], ignore_conflicts=True)
        else:
            RunningTotal.objects.filter(pk=name, until=kept.until).update(until=settled, numbers=new.numbers)
    return totals
