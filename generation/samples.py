"""Prompts to begin with, such as the model that is on offer can draw."""

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from generation.offer import Offer

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
