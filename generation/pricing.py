"""What a clip costs and how long it is expected to take: the same figures in every door, before submit."""

import statistics
from dataclasses import dataclass

from django.conf import settings

from accounts.models import User
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
    """Credits for one clip; 0 for staff while STAFF_GENERATE_FREE is on."""
    if user is not None and user.is_staff and settings.STAFF_GENERATE_FREE:
        return 0
    return settings.VIDEO_COST if preset.cost is None else preset.cost


def expected_seconds(preset: Preset) -> int:
    """Median of the last completed clips of the preset; until there are any, VIDEO_EXPECTED_SECONDS scaled
    by its work.
    """
    latest = GenerationJob.objects.filter(
        preset=preset, state=GenerationJob.State.COMPLETED, generation_ms__isnull=False
    )
    times = list(latest.order_by("-finished_at").values_list("generation_ms", flat=True)[:SAMPLE])
    measured = [milliseconds for milliseconds in times if milliseconds is not None]
    if measured:
        return max(1, round(statistics.median(measured) / 1000))
    work = preset.num_frames * preset.num_inference_steps / (16 * 20)
    return max(1, round(settings.VIDEO_EXPECTED_SECONDS * work))


def quote(*, preset: Preset, user: User | None = None) -> Quote:
    return Quote(
        preset=preset, cost=price(preset=preset, user=user), expected_seconds=expected_seconds(preset)
    )


def quotes(*, user: User | None = None) -> list[Quote]:
    """Every preset on offer, in the order staff gave them."""
    return [quote(preset=preset, user=user) for preset in Preset.objects.filter(enabled=True)]


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
