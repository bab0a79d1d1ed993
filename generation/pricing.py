"""What a clip costs and how long it is expected to take: the same figures in every door, before submit."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import OuterRef

from accounts.models import User
from generation import limits
from generation.errors import UnknownPreset
from generation.models import GenerationJob, Preset

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
