"""Presets and settings, and the buttons to choose among them."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings as django_settings
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from accounts.merging import Plan
from accounts.models import User
from generation.errors import in_words
from generation.jobs.catalog import Quote
from generation.models import Preset
from telegram_bot.models import TelegramAccount
from telegram_bot.texts.jobs import data
from telegram_bot.texts.parts import credits_of, escaped, seconds_of


def only_in_private() -> str:
    return _("This is between you and me: please write it to me in private.")


# --- Joining --------------------------------------------------------------------------------------------------------


def link_begun(url: str, *, minutes: int) -> str:
    return "\n\n".join(
        [
            _("🔗 <b>Connect with your account on the web</b>"),
            _("Open this link in the browser where you are signed in, then confirm here."),
            escaped(url),
            _valid_for(minutes) + " " + _("Do not pass it on."),
        ]
    )


def asks_to_join(user: User, plan: Plan, *, site: str) -> str:
    """Before somebody in Telegram agrees."""
    names = {"name": escaped(user.username), "site": escaped(site)}
    return "\n\n".join(
        [
            _("🔗 Connect this Telegram account with the account <b>%(name)s</b> on %(site)s?") % names,
            what_moves(plan),
            _(
                "Whoever signs in there as <b>%(name)s</b> will have your credits and videos. Agree only if it is you."
            )
            % names,
        ]
    )


def what_moves(plan: Plan) -> str:
    """Telegram's HTML and plain text alike."""
    lines = [_("Your videos and credits from here become part of that account.")]
    if plan.moves:
        lines.append(_("%(credits)s move there.") % {"credits": credits_of(plan.moves)})
    if plan.stays:
        lines.append(
            _("Unspent welcome credits (%(credits)s) do not: everybody has them once.")
            % {"credits": credits_of(plan.stays)}
        )
    return " ".join(lines)


def confirm_on_web(url: str) -> str:
    return _("Now confirm it in your browser, where you began:") + f"\n{escaped(url)}"


def joined(user: User, *, balance: int) -> str:
    facts = {"name": escaped(user.username), "credits": credits_of(balance)}
    return _("✅ Connected with <b>%(name)s</b>. One wallet, one history: you have %(credits)s.") % facts


def declined() -> str:
    return _("Nothing was connected.")


def yes() -> str:
    return _("Yes, connect")


def no() -> str:
    return _("No")


# --- Parting --------------------------------------------------------------------------------------------------------


def asks_to_part(user: User) -> str:
    name = {"name": escaped(user.username)}
    return (
        _(
            "Disconnect this Telegram account from <b>%(name)s</b>? Credits and videos stay there; here you begin anew."
        )
        % name
    )


def disconnect() -> str:
    return _("Disconnect")


def parted(name: str) -> str:
    return _("This Telegram account is no longer connected with <b>%(name)s</b>.") % {"name": escaped(name)}


# --- Signing in -----------------------------------------------------------------------------------------------------


def login(url: str, *, account: TelegramAccount, minutes: int) -> str:
    name = {"name": escaped(account.user.username)}
    return "\n\n".join(
        [
            _("🔑 Sign in on the web as <b>%(name)s</b>:") % name,
            escaped(url),
            _valid_for(minutes)
            + " "
            + _("It works once. Do not pass it on: whoever opens it is in your account."),
        ]
    )


def _valid_for(minutes: int) -> str:
    words = ngettext(
        "The link works for %(number)d minute.", "The link works for %(number)d minutes.", minutes
    )
    return words % {"number": minutes}


# What the bot says about accounts: joining with one on the web, parting, signing in there.


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
