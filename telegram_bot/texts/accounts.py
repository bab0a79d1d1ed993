"""Messages about accounts: joining with one on the web, parting, signing in there, presets and settings."""

from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings as django_settings
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from accounts.models import User, WalletMerge
from generation.errors import in_words
from generation.jobs.catalog import Quote
from generation.models import Preset
from telegram_bot.models import TelegramAccount
from telegram_bot.texts.parts import (
    button,
    credits_of,
    escaped,
    leading_to,
    lines,
    paragraphs,
    row,
    seconds_of,
)

CHOSEN = "✅ "

# --- What Telegram shows before the first message -------------------------------------------------------------------


def description() -> str:
    """Telegram takes 512 characters."""
    return _(
        "Describe a scene in words, and get a video of it in this chat.\n\n"
        "Press Start for your first credits and a prompt to try."
    )


def short_description() -> str:
    """Telegram takes 120 characters."""
    return _("Makes short videos of what you describe.")


# --- Joining and parting --------------------------------------------------------------------------------------------


def link_begun(url: str, *, life: timedelta) -> tuple[str, InlineKeyboardMarkup | None]:
    text = paragraphs(
        _("🔗 <b>Connect with your account on the web</b>"),
        _("Open this link in the browser where you are signed in, then confirm here."),
        _valid_for(life) + " " + _("Do not pass it on."),
    )
    return leading_to(text, _("🔗 Connect"), url)


def confirms_on_web(url: str) -> tuple[str, InlineKeyboardMarkup | None]:
    text = _("Now confirm it in your browser, where you began:")
    return leading_to(text, _("Confirm on the web"), url)


def asks_to_join(user: User, plan: WalletMerge) -> str:
    """Ask a person in Telegram to agree."""
    site = django_settings.SITE_URL.partition("://")[2]
    names = {"name": escaped(user.username), "site": escaped(site)}
    moves = [_("Your videos and credits from here become part of that account.")]
    if plan.moved:
        moves.append(_("%(credits)s move there.") % {"credits": credits_of(plan.moved)})
    if plan.stayed:
        moves.append(
            _("Unspent welcome credits (%(credits)s) do not: each person gets them once.")
            % {"credits": credits_of(plan.stayed)}
        )
    warning = _(
        "The person who signs in there as <b>%(name)s</b> will have your credits and videos. "
        "Agree only if it is you."
    )
    return paragraphs(
        _("🔗 Connect this Telegram account with the account <b>%(name)s</b> on %(site)s?") % names,
        " ".join(moves),
        warning % names,
    )


def yes_or_no(yes: str, no: str, argument: object) -> InlineKeyboardMarkup:
    """Make two buttons, by the names of their handlers."""
    return row((_("Yes, connect"), yes), (_("No"), no), argument=str(argument))


def joined(user: User, *, balance: int) -> str:
    facts = {"name": escaped(user.username), "credits": credits_of(balance)}
    return _("✅ Connected with <b>%(name)s</b>. One wallet, one history: you have %(credits)s.") % facts


def asks_to_part(user: User) -> str:
    question = _(
        "Disconnect this Telegram account from <b>%(name)s</b>? Credits and videos stay there; here you begin anew."
    )
    return question % {"name": escaped(user.username)}


def parted(name: str) -> str:
    return _("This Telegram account is no longer connected with <b>%(name)s</b>.") % {"name": escaped(name)}


# --- Signing in -----------------------------------------------------------------------------------------------------


def login(url: str, *, account: TelegramAccount, life: timedelta) -> tuple[str, InlineKeyboardMarkup | None]:
    warning = _("It works once. Do not pass it on: it opens your account.")
    text = paragraphs(
        _("🔑 Sign in on the web as <b>%(name)s</b>:") % {"name": escaped(account.user.username)},
        f"{_valid_for(life)} {warning}",
    )
    return leading_to(text, _("🔑 Sign in"), url)


def _valid_for(life: timedelta) -> str:
    minutes = round(life.total_seconds() / 60)
    text = ngettext(
        "The link works for %(number)d minute.", "The link works for %(number)d minutes.", minutes
    )
    return text % {"number": minutes}


# --- Presets and settings -------------------------------------------------------------------------------------------


def presets(quotes: Sequence[Quote], chosen: Preset) -> str:
    return paragraphs(_("🎚 <b>Presets</b>"), *(_preset(quote, chosen) for quote in quotes))


def _preset(quote: Quote, chosen: Preset) -> str:
    preset = quote.preset
    facts = _("%(clip)s of video, %(steps)d steps") % {
        "clip": seconds_of(preset.seconds),
        "steps": preset.num_inference_steps,
    }
    price = f"💰 {credits_of(quote.cost)} · ⏱ ~{in_words(quote.expected_seconds)}"
    return f"{_mark(preset, chosen)}<b>{escaped(_(preset.label))}</b>\n{facts}\n{price}"


def _mark(preset: Preset, chosen: Preset) -> str:
    return CHOSEN if preset.pk == chosen.pk else ""


def preset_buttons(quotes: Sequence[Quote], chosen: Preset, *, name: str) -> list[InlineKeyboardButton]:
    """Make a button for each preset; `name` is that of their handler."""
    return [
        button(
            f"{_mark(quote.preset, chosen)}{_(quote.preset.label)} · {credits_of(quote.cost)}",
            name,
            quote.preset.name,
        )
        for quote in quotes
    ]


def settings(chosen: Preset, language: str) -> str:
    """`language` is the code of the one they chose, empty for Telegram's own."""
    return paragraphs(
        _("⚙️ <b>Settings</b>"),
        lines(
            _("Preset: %(name)s") % {"name": escaped(_(chosen.label))},
            _("Language: %(name)s") % {"name": _language_name(language)},
        ),
        _("/presets shows what each preset costs and how long it takes."),
    )


def settings_buttons(quotes: Sequence[Quote], chosen: Preset, language: str) -> InlineKeyboardMarkup:
    codes = [*(code for code, _name in django_settings.LANGUAGES), ""]
    languages = [
        button(f"{CHOSEN if code == language else ''}{_language_name(code)}", "language", code)
        for code in codes
    ]
    return InlineKeyboardMarkup(
        [*([preset] for preset in preset_buttons(quotes, chosen, name="set-preset")), languages]
    )


def _language_name(code: str) -> str:
    """Name a language in itself."""
    return dict(django_settings.LANGUAGES).get(code) or _("As in Telegram")
