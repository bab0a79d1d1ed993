"""Presets and settings, and the buttons to choose among them."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings as django_settings
from django.utils.translation import gettext as _
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from generation.errors import in_words
from generation.models import Preset
from generation.pricing import Quote
from telegram_bot.texts.buttons import data
from telegram_bot.texts.parts import credits_of, escaped, seconds_of

CHOSEN = "✅ "


@dataclass(frozen=True)
class Offer:
    """What may be chosen, and what is."""

    quotes: Sequence[Quote]
    chosen: Preset


def presets(offer: Offer) -> str:
    return "\n\n".join([_("🎚 <b>Presets</b>"), *(_preset(quote, offer) for quote in offer.quotes)])


def _preset(quote: Quote, offer: Offer) -> str:
    preset = quote.preset
    facts = _("%(clip)s of video, %(steps)d steps") % {
        "clip": seconds_of(preset.seconds),
        "steps": preset.num_inference_steps,
    }
    price = f"💰 {credits_of(quote.cost)} · ⏱ ~{in_words(quote.expected_seconds)}"
    return f"{_mark(preset, offer)}<b>{escaped(_(preset.label))}</b>\n{facts}\n{price}"


def _mark(preset: Preset, offer: Offer) -> str:
    return CHOSEN if preset.pk == offer.chosen.pk else ""


def preset_buttons(offer: Offer, *, name: str) -> InlineKeyboardMarkup:
    """One below the other; `name` says who handles them."""
    return InlineKeyboardMarkup.from_column(_preset_column(offer, name))


def _preset_column(offer: Offer, name: str) -> list[InlineKeyboardButton]:
    return [
        InlineKeyboardButton(
            f"{_mark(quote.preset, offer)}{_(quote.preset.label)} · {credits_of(quote.cost)}",
            callback_data=data(name, quote.preset.name),
        )
        for quote in offer.quotes
    ]


def settings(offer: Offer, language: str) -> str:
    """`language` is the code of the one they chose, empty for Telegram's own."""
    return "\n".join(
        [
            _("⚙️ <b>Settings</b>"),
            "",
            _("Preset: %(name)s") % {"name": escaped(_(offer.chosen.label))},
            _("Language: %(name)s") % {"name": _language_name(language)},
            "",
            _("/presets shows what each preset costs and how long it takes."),
        ]
    )


def settings_buttons(offer: Offer, language: str) -> InlineKeyboardMarkup:
    codes = [*(code for code, _name in django_settings.LANGUAGES), ""]
    speak = [
        InlineKeyboardButton(
            f"{CHOSEN if code == language else ''}{_language_name(code)}",
            callback_data=data("language", code),
        )
        for code in codes
    ]
    return InlineKeyboardMarkup([*([one] for one in _preset_column(offer, "set-preset")), speak])


def _language_name(code: str) -> str:
    """A language's name in itself."""
    return dict(django_settings.LANGUAGES).get(code) or _("As in Telegram")


def unknown_language() -> str:
    """Plain text."""
    return _("This language is not spoken here.")
