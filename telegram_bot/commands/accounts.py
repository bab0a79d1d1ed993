"""/link, /unlink and /login: one person, in the chat and on the web."""

import contextlib

from django.utils.translation import gettext_lazy
from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from accounts.merging import Plan
from accounts.models import CreditAccount, User
from generation.database import in_database
from telegram_bot import linking, links, tokens
from telegram_bot.models import LinkRequest, TelegramAccount
from telegram_bot.receiving.context import Press, Request
from telegram_bot.receiving.routes import button, command, deep_link
from telegram_bot.texts import accounts as texts
from telegram_bot.texts.jobs import data

begin = in_database(linking.begin_in_telegram)
decline = in_database(linking.decline)
part = in_database(linking.part)
issue_login = in_database(tokens.issue)


@in_database
def wish_of(token: str, account: TelegramAccount) -> tuple[LinkRequest, User, Plan]:
    """What somebody on the web wants of the one who opened their link.

    Raises:
        LinkError
    """
    row = linking.find(token, began_on=LinkRequest.Side.WEB)
    assert row.user is not None
    return row, row.user, linking.what_moves(account, row.user)


@in_database
def agree(token: str, account: TelegramAccount) -> str:
    """The address at which the web confirms next."""
    linking.answer_in_telegram(token=token, account=account)
    return links.connect_page()


@in_database
def refuse_wish(token: str) -> None:
    linking.decline(linking.find(token, began_on=LinkRequest.Side.WEB))


@in_database
def join(request_id: int, account: TelegramAccount) -> tuple[User, int]:
    """The account they are part of now, and its free credits."""
    user = linking.confirm_in_telegram(request_id, account=account)
    return user, CreditAccount.objects.get(user=user).balance


@in_database
def refuse_answer(request_id: int, account: TelegramAccount) -> None:
    linking.decline(linking.answered_for_telegram(request_id, account))


# --- Joining ----------------------------------------------------------------------------------------------------------


@command("link", menu=gettext_lazy("Connect with your account on the web"))
async def link(request: Request) -> None:
    """Begin here; the web answers, and is confirmed here."""
    if not request.in_private:
        await request.refuse(texts.only_in_private())
        return
    try:
        token = (await begin(account=request.account))[1]
    except linking.LinkError as error:
        await request.refuse(str(error))
        return
    await request.reply(
        texts.link_begun(links.link_page(token), minutes=_minutes(linking.LIFE.total_seconds()))
    )


@deep_link("link")
async def opened(request: Request) -> None:
    """Begun on the web: say who asks, and do nothing before they agree."""
    if not request.in_private:
        await request.refuse(texts.only_in_private())
        return
    try:
        _, user, plan = await wish_of(request.argument, request.account)
    except linking.LinkError as error:
        await request.refuse(str(error))
        return
    token = request.argument
    await request.reply(
        texts.asks_to_join(user, plan, site=links.site_name()),
        reply_markup=_choice("linkyes", "linkno", token),
    )


@button("linkyes")
async def agreed(press: Press) -> None:
    """They agree to the account on the web, where they are looked at next."""
    try:
        url = await agree(press.argument, press.account)
    except linking.LinkError as error:
        await press.refuse(str(error))
        return
    await press.show(texts.confirm_on_web(url))


@button("linkno")
async def disagreed(press: Press) -> None:
    with contextlib.suppress(linking.LinkGone):  # it is over anyway
        await refuse_wish(press.argument)
    await press.show(texts.declined())


@button("join")
async def confirmed(press: Press) -> None:
    """Begun here, answered on the web: the last word."""
    try:
        user, balance = await join(_number(press.argument), press.account)
    except linking.LinkError as error:
        await press.refuse(str(error))
        return
    await press.show(texts.joined(user, balance=balance))


@button("joinno")
async def refused(press: Press) -> None:
    with contextlib.suppress(linking.LinkGone):
        await refuse_answer(_number(press.argument), press.account)
    await press.show(texts.declined())


# --- Parting ----------------------------------------------------------------------------------------------------------


@command("unlink")
async def unlink(request: Request) -> None:
    """Ask first."""
    if not request.in_private:
        await request.refuse(texts.only_in_private())
    elif request.account.former_user_id is None:
        await request.refuse(str(linking.NotJoined()))
    else:
        name = InlineKeyboardButton(texts.disconnect(), callback_data=data("part"))
        await request.reply(texts.asks_to_part(request.person), reply_markup=InlineKeyboardMarkup([[name]]))


@button("part")
async def parted(press: Press) -> None:
    name = press.person.username
    try:
        await part(account=press.account)
    except linking.LinkError as error:
        await press.refuse(str(error))
        return
    await press.show(texts.parted(name))


# --- Signing in -------------------------------------------------------------------------------------------------------


@command("login", menu=gettext_lazy("Sign in on the web"))
@deep_link("login")
async def login(request: Request) -> None:
    if not request.in_private:
        await request.refuse(texts.only_in_private())
        return
    try:
        token = await issue_login(account=request.account)
    except tokens.CannotSignIn as error:
        await request.refuse(str(error))
        return
    minutes = _minutes(tokens.LIFE.total_seconds())
    await request.reply(texts.login(links.login_page(token), account=request.account, minutes=minutes))


# --- Messages ---------------------------------------------------------------------------------------------------------


def _choice(yes: str, no: str, argument: str) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup(
        [
            [
                InlineKeyboardButton(texts.yes(), callback_data=data(yes, argument)),
                InlineKeyboardButton(texts.no(), callback_data=data(no, argument)),
            ]
        ]
    )


def _number(argument: str) -> int:
    """The id that a button carries; 0, which is nobody's, for anything else."""
    return int(argument) if argument.isascii() and argument.isdigit() and len(argument) < 19 else 0


def _minutes(seconds: float) -> int:
    return round(seconds / 60)
