"""/link, /unlink and /login: one person, in the chat and on the web."""

import contextlib

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts.merging import Plan
from accounts.models import CreditAccount, User
from generation.database import in_database
from telegram_bot import linking, links, tokens
from telegram_bot.models import LinkRequest, TelegramAccount
from telegram_bot.receiving.context import Press, Request
from telegram_bot.receiving.routes import button, command, deep_link
from telegram_bot.texts import accounts as texts
from telegram_bot.texts.buttons import row
from telegram_bot.texts.parts import escaped

begin = in_database(linking.begin_in_telegram)
answer = in_database(linking.answer_in_telegram)
part = in_database(linking.part)
issue_login = in_database(tokens.issue)


@in_database
def request_behind(token: str, account: TelegramAccount) -> tuple[User, Plan]:
    """The user on the web who made the link, and what joining would move. Raises LinkError."""
    row = linking.find(token, began_on=LinkRequest.Side.WEB)
    assert row.user is not None
    return row.user, linking.what_moves(account, row.user)


@in_database
def decline_link(token: str) -> None:
    linking.decline(linking.find(token, began_on=LinkRequest.Side.WEB))


@in_database
def join(request_id: int, account: TelegramAccount) -> tuple[User, int]:
    """The account they are part of now, and its free credits."""
    user = linking.confirm_in_telegram(request_id, account=account)
    return user, CreditAccount.objects.get(user=user).balance


@in_database
def decline_answer(request_id: int, account: TelegramAccount) -> None:
    linking.decline(linking.answered_for_telegram(request_id, account))


@command("link", menu=gettext_lazy("Connect with your account on the web"))
async def link(request: Request) -> None:
    """Begin here; the web answers, and is confirmed here."""
    request.must_be_private()
    url = links.link_page(await begin(account=request.account))
    await request.reply(texts.link_begun(url, life=linking.LIFE))


@deep_link("link")
async def opened(request: Request) -> None:
    """Begun on the web: name the account that asks, and do nothing before they agree."""
    request.must_be_private()
    user, plan = await request_behind(request.argument, request.account)
    choice = texts.yes_or_no("linkyes", "linkno", request.argument)
    await request.reply(texts.asks_to_join(user, plan), reply_markup=choice)


@button("linkyes")
async def agreed(press: Press) -> None:
    """They agree to the account on the web, which confirms next."""
    await answer(token=press.argument, account=press.account)
    words = _("Now confirm it in your browser, where you began:")
    await press.show(f"{words}\n{escaped(links.connect_page())}")


@button("linkno")
async def disagreed(press: Press) -> None:
    with contextlib.suppress(linking.LinkGone):  # it is over anyway
        await decline_link(press.argument)
    await press.show(_("Nothing was connected."))


@button("join")
async def confirmed(press: Press) -> None:
    """Begun here, answered on the web: the last word."""
    user, balance = await join(_number(press.argument), press.account)
    await press.show(texts.joined(user, balance=balance))


@button("joinno")
async def refused(press: Press) -> None:
    with contextlib.suppress(linking.LinkGone):
        await decline_answer(_number(press.argument), press.account)
    await press.show(_("Nothing was connected."))


@command("unlink")
async def unlink(request: Request) -> None:
    """Ask first."""
    request.must_be_private()
    if request.account.former_user_id is None:
        raise linking.NotJoined
    await request.reply(texts.asks_to_part(request.person), reply_markup=row((_("Disconnect"), "part")))


@button("part")
async def parted(press: Press) -> None:
    name = press.person.username
    await part(account=press.account)
    await press.show(texts.parted(name))


@command("login", menu=gettext_lazy("Sign in on the web"))
@deep_link("login")
async def login(request: Request) -> None:
    request.must_be_private()
    url = links.login_page(await issue_login(account=request.account))
    await request.reply(texts.login(url, account=request.account, life=tokens.LIFE))


def _number(argument: str) -> int:
    """The id that a button carries; 0, which no row has, for anything else."""
    return int(argument) if argument.isascii() and argument.isdigit() and len(argument) < 19 else 0
