"""/link, /unlink and /login: one person, in the chat and on the web."""

import contextlib

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from generation.database import in_database
from telegram_bot import linking, links
from telegram_bot.commands.welcome import wallet_of
from telegram_bot.models import LinkRequest
from telegram_bot.receiving.context import Press, Request
from telegram_bot.receiving.routes import button, command, deep_link
from telegram_bot.texts import accounts as texts
from telegram_bot.texts import parts

find = in_database(linking.find)
decline = in_database(linking.decline)


@command("link", menu=gettext_lazy("Connect with your account on the web"))
async def link(request: Request) -> None:
    """Begin here; the web answers, and is confirmed here."""
    request.must_be_private()
    url = links.page("telegram_link", await in_database(linking.begin_in_telegram)(account=request.account))
    text, markup = texts.link_begun(url, life=linking.LIFE)
    await request.reply(text, reply_markup=markup)


@deep_link("link")
async def opened(request: Request) -> None:
    """Name the account on the web that asks, and do nothing before they agree."""
    request.must_be_private()
    row = await find(request.argument, began_on=LinkRequest.Side.WEB)
    assert row.user is not None
    plan = await in_database(linking.what_moves)(request.account, row.user)
    choice = texts.yes_or_no("linkyes", "linkno", request.argument)
    await request.reply(texts.asks_to_join(row.user, plan), reply_markup=choice)


@button("linkyes")
async def agreed(press: Press) -> None:
    """Agree to the account on the web, which confirms next."""
    await in_database(linking.answer_in_telegram)(token=press.argument, account=press.account)
    text, markup = texts.confirms_on_web(links.page("telegram_connect"))
    await press.show(text, reply_markup=markup)


@button("linkno")
async def disagreed(press: Press) -> None:
    with contextlib.suppress(linking.LinkGone):  # it is over anyway
        await decline(await find(press.argument, began_on=LinkRequest.Side.WEB))
    await press.show(_("Nothing was connected."))


@button("join")
async def confirmed(press: Press) -> None:
    """Take the last word on the account that answered on the web."""
    user = await in_database(linking.confirm_in_telegram)(press.number, account=press.account)
    await press.show(texts.joined(user, balance=(await wallet_of(user)).balance))


@button("joinno")
async def refused(press: Press) -> None:
    with contextlib.suppress(linking.LinkGone):
        await decline(await in_database(linking.answered_for_telegram)(press.number, press.account))
    await press.show(_("Nothing was connected."))


@command("unlink")
async def unlink(request: Request) -> None:
    request.must_be_private()
    if request.account.former_user_id is None:
        raise linking.LinkError(linking.NOT_JOINED)
    await request.reply(texts.asks_to_part(request.person), reply_markup=parts.row((_("Disconnect"), "part")))


@button("part")
async def parted(press: Press) -> None:
    name = press.person.username
    await in_database(linking.part)(account=press.account)
    await press.show(texts.parted(name))


@command("login", menu=gettext_lazy("Sign in on the web"))
@deep_link("login")
async def login(request: Request) -> None:
    request.must_be_private()
    url = links.page("telegram_login", await in_database(links.issue_login)(account=request.account))
    text, markup = texts.login(url, account=request.account, life=links.LOGIN_LIFE)
    await request.reply(text, reply_markup=markup)
