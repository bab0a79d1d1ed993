"""What the nodes and presets have to offer to somebody who names a model, a size or a length, as OpenAI's API does."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from generation.errors import InvalidSetting, UnknownModel
from generation.models import GpuNode, Preset
from generation.pricing import find_preset


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
