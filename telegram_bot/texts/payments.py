"""Messages about buying credits."""

from django.conf import settings
from django.utils import formats
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from telegram_bot.models import CreditPack, StarInvoice, StarPayment
from telegram_bot.texts.parts import (
    balance_of,
    button,
    credits_of,
    escaped,
    leading_to,
    lines,
    local_time,
    paragraphs,
    row,
)

State = StarPayment.State


def stars_of(number: int) -> str:
    """`1 Star`, `100 Stars`."""
    return ngettext("%(number)d Star", "%(number)d Stars", number) % {"number": number}


def offers(*, balance: int) -> str:
    return paragraphs(
        _("⭐ <b>Buy credits</b>"),
        balance_of(balance),
        _("Choose a pack and pay for it with Telegram Stars. /terms · /paysupport"),
    )


def offer_buttons(packs: list[CreditPack]) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup.from_column(
        [
            button(f"{pack.name}: {credits_of(pack.credits)} · ⭐ {pack.stars}", "buy", str(pack.pk))
            for pack in packs
        ]
    )


def offers_button(*, url: str | None = None) -> InlineKeyboardMarkup:
    """Leads to the offers: here, or by a link to the chat with the bot."""
    label = _("⭐ Buy credits")
    if url is None:
        return row((label, "offers"))
    return InlineKeyboardMarkup.from_button(InlineKeyboardButton(label, url=url))


def nothing_for_sale() -> tuple[str, InlineKeyboardMarkup | None]:
    if settings.CREDITS_URL and not settings.CREDITS_URL.startswith("mailto:"):
        text = _("Credits are not for sale in Telegram at the moment. There are more on the web.")
        return leading_to(text, _("Get credits"), settings.CREDITS_URL)
    contact = settings.CREDITS_URL.removeprefix("mailto:") or settings.SUPPORT_CONTACT
    if not contact:
        text = _("Credits are not for sale here at the moment. For more, ask the operator of this bot.")
        return text, None
    text = _("Credits are not for sale here at the moment. For more, turn to %(contact)s")
    return text % {"contact": escaped(contact)}, None


def title_of(invoice: StarInvoice) -> str:
    """Telegram takes 32 characters."""
    return (invoice.pack.name if invoice.pack else credits_of(invoice.credits))[:32]


def description_of(invoice: StarInvoice) -> str:
    return _("%(credits)s for making videos. They do not expire.") % {"credits": credits_of(invoice.credits)}


def paid(payment: StarPayment, *, balance: int) -> str:
    if payment.purchase is None:
        return _(
            "⚠️ Your payment arrived, but it fits none of our offers, so no credits were added. "
            "We look into it, and you can ask for your Stars back: /paysupport."
        )
    facts = {"credits": credits_of(payment.purchase.posted_delta), "stars": stars_of(payment.stars)}
    thanks = _("✅ Thank you! %(credits)s for %(stars)s.") % facts
    return lines(thanks, balance_of(balance), receipt_of(payment))


def receipt_of(payment: StarPayment) -> str:
    return _("Receipt: <code>%(charge)s</code>") % {"charge": escaped(payment.charge_id)}


def refunded(payment: StarPayment) -> str:
    text = _("↩️ %(stars)s were given back to you.") % {"stars": stars_of(payment.stars)}
    if payment.refund is not None:
        text += " " + _("%(credits)s were taken back.") % {
            "credits": credits_of(-payment.refund.posted_delta)
        }
    return lines(text, receipt_of(payment))


def support(payments: list[StarPayment]) -> str:
    if settings.SUPPORT_CONTACT:
        how = _("Write to %(contact)s and name the receipt. Telegram's own support cannot help with it.")
        how %= {"contact": escaped(settings.SUPPORT_CONTACT)}
    else:
        how = _(
            "Write to the operator of this bot, and name the receipt. Telegram's own support cannot help with it."
        )
    none, heading = _("You have not paid for anything yet."), _("Your last payments:")
    latest = lines(heading, *map(_line, payments)) if payments else none
    return paragraphs(_("🛟 <b>Help with payments</b>"), how, latest)


def _line(payment: StarPayment) -> str:
    day = local_time(payment.paid_at, formats.date_format(payment.paid_at, "j E Y"), how="D")
    bought = credits_of(payment.purchase.posted_delta) if payment.purchase else _("not credited")
    states = {
        State.PAID: _("paid"),
        State.REFUNDING: _("being refunded"),
        State.REFUNDED: _("refunded"),
        State.UNKNOWN: _("we look into it"),
    }
    state = states[State(payment.state)]
    return f"{day} · ⭐ {payment.stars} · {bought} · {state}\n<code>{escaped(payment.charge_id)}</code>"


def terms() -> tuple[str, InlineKeyboardMarkup | None]:
    text = paragraphs(
        _("📄 <b>Terms</b>"),
        _("Credits pay for videos here. They do not expire, and cannot be passed on or exchanged for money."),
        _("A video that fails costs nothing."),
        _("Credits that you bought and did not spend can be turned back into Stars: /paysupport."),
    )
    if not settings.TERMS_URL:
        return text, None
    return leading_to(text, _("All terms"), settings.TERMS_URL)
