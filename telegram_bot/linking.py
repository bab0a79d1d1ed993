"""Joining a person on Telegram with an account on the web, and parting them.

Neither side decides alone: each is shown the other, and both agree. So a link that is passed on, be it to a victim or
by one, joins nothing. The joined account has one wallet and one history: the account on the web, with the credits and
videos that the person had in Telegram.
"""

from datetime import timedelta

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy, gettext_noop

from accounts import merging, security_log
from accounts.models import CreditAccount, User, UserLimits, WalletMerge
from generation import privacy
from telegram_bot import links
from telegram_bot.errors import Refusal
from telegram_bot.models import LinkRequest, TelegramAccount

Side, State = LinkRequest.Side, LinkRequest.State

LIFE = timedelta(minutes=10)
KEEP = timedelta(days=30)
JOINED = gettext_noop("Joined")  # stored in English, translated where it is shown


GONE = gettext_lazy("This link does not work any more. Please begin again.")
WEB_HAS_TELEGRAM = gettext_lazy(
    "This account is connected with another Telegram account already. Disconnect that one first."
)
TELEGRAM_IS_JOINED = gettext_lazy(
    "This Telegram account is connected with another account already. Disconnect it there first."
)
NOT_ACTIVE = gettext_lazy("One of the two accounts is not active.")
STAFF_STAYS = gettext_lazy("An account of the staff cannot become part of another one.")
VIDEO_IS_MADE = gettext_lazy(
    "A video is being made for one of the two accounts. Please try again when it is done."
)
NOT_JOINED = gettext_lazy("This Telegram account is not connected with an account on the web.")


class LinkError(Refusal):
    """A refusal to join the two, or to part them."""


class LinkGone(LinkError):
    """The request is over, or never was."""


# --- Beginning ------------------------------------------------------------------------------------------------------


def begin_on_web(*, user: User) -> str:
    """Make a request; returns the token for the link to the bot. Earlier requests of this account end."""
    if TelegramAccount.objects.filter(user=user).exists():
        raise LinkError(WEB_HAS_TELEGRAM)
    return _begin(LinkRequest(began_on=Side.WEB, user=user), earlier=Q(user=user, began_on=Side.WEB))


def begin_in_telegram(*, account: TelegramAccount) -> str:
    """Make a request from the chat; returns the token for the link to the site. Raises LinkError."""
    _check_telegram(account)
    row = LinkRequest(began_on=Side.TELEGRAM, account=account)
    return _begin(row, earlier=Q(account=account, began_on=Side.TELEGRAM))


@transaction.atomic
def _begin(row: LinkRequest, *, earlier: Q) -> str:
    LinkRequest.objects.filter(earlier, state=State.OPEN).update(state=State.DECLINED, settled_at=Now())
    token, row.digest = links.new_token()
    row.expires_at = Now() + LIFE
    row.save(force_insert=True)
    return token


# --- Looking --------------------------------------------------------------------------------------------------------


def find(token: str, *, began_on: str) -> LinkRequest:
    """Find the request behind a link. Raises LinkGone when it is over, or never was."""
    return _first(_open().filter(digest=links.digest(token), began_on=began_on))


def stage_on_web(user: User) -> tuple[str, LinkRequest | None]:
    """Name the state of joining, as an account on the web sees it.

    `joined`; `confirm`, a person on Telegram agreed and is in the request; `chat`, they have the last word; `waiting`
    for the link to be opened; `none`.
    """
    if TelegramAccount.objects.filter(user=user).exists():
        return "joined", None
    begun_here, begun_there = (_open().filter(user=user, began_on=side) for side in (Side.WEB, Side.TELEGRAM))
    if row := begun_here.filter(answered_at__isnull=False).first():
        return "confirm", row
    if begun_there.filter(answered_at__isnull=False).exists():
        return "chat", None
    return "waiting" if begun_here.exists() else "none", None


def answered_for_telegram(request_id: int, account: TelegramAccount) -> LinkRequest:
    """Find the request of this person that an account on the web agreed to. Raises LinkGone."""
    return _first(
        _open().filter(pk=request_id, account=account, began_on=Side.TELEGRAM, answered_at__isnull=False)
    )


def _first(rows: "QuerySet[LinkRequest]") -> LinkRequest:
    if (row := rows.first()) is None:
        raise LinkGone(GONE)
    return row


def _open() -> "QuerySet[LinkRequest]":
    rows = LinkRequest.objects.filter(state=State.OPEN, expires_at__gt=Now())
    return rows.select_related("user", "account__user__credit_account")


# --- Agreeing -------------------------------------------------------------------------------------------------------


def answer_in_telegram(*, token: str, account: TelegramAccount) -> LinkRequest:
    """Agree in Telegram to the account on the web that made the link; the web is asked next. Raises LinkError."""
    row = find(token, began_on=Side.WEB)
    assert row.user is not None
    return _answer(row, user=row.user, account=account)


def answer_on_web(*, token: str, user: User) -> LinkRequest:
    """Agree on the web to the person on Telegram who made the link; the chat is asked next. Raises LinkError."""
    row = find(token, began_on=Side.TELEGRAM)
    assert row.account is not None
    return _answer(row, user=user, account=row.account)


def _answer(row: LinkRequest, *, user: User, account: TelegramAccount) -> LinkRequest:
    """Store the first answer; the same one again changes nothing."""
    if row.answered_at is not None and (row.user_id, row.account_id) == (user.pk, account.pk):
        return row
    _check(user=user, account=account)
    unanswered = LinkRequest.objects.filter(
        pk=row.pk, state=State.OPEN, answered_at=None, expires_at__gt=Now()
    )
    if not unanswered.update(answered_at=Now(), user=user, account=account):
        raise LinkGone(GONE)
    row.refresh_from_db()
    return row


def decline(row: LinkRequest) -> None:
    """End a request: either side may say no."""
    LinkRequest.objects.filter(pk=row.pk, state=State.OPEN).update(state=State.DECLINED, settled_at=Now())


def confirm(row: LinkRequest, *, by: User) -> WalletMerge:
    """Join the two: the side that began agrees to the one that answered. A second call finds it done.

    Raises:
        LinkError: nothing has changed; where it says so, trying again later may do.
    """
    with transaction.atomic():
        locked = LinkRequest.objects.select_for_update().get(pk=row.pk)
        if locked.merge is not None:
            return locked.merge
        if not _open().filter(pk=row.pk, answered_at__isnull=False).exists():
            raise LinkGone(GONE)
        assert locked.account_id is not None
        assert locked.user is not None
        locked.merge = _join(account_id=locked.account_id, user=locked.user, by=by)
        locked.state, locked.settled_at = State.JOINED, Now()
        locked.save(update_fields=["merge", "state", "settled_at"])
    return locked.merge


def confirm_in_telegram(request_id: int, *, account: TelegramAccount) -> User:
    """Join the person who began in the chat with the account that answered; returns its user. Raises LinkError."""
    begun = LinkRequest.objects.select_related("user").filter(account=account, began_on=Side.TELEGRAM)
    row = _first(begun.filter(pk=request_id))
    confirm(row, by=account.user)
    assert row.user is not None
    return row.user


def what_moves(account: TelegramAccount, user: User) -> WalletMerge:
    """Plan what joining the two would do to their wallets now."""
    wallets = CreditAccount.objects.select_related("user")
    return merging.plan(source=wallets.get(user=account.user_id), target=wallets.get(user=user))


# --- Joining and parting --------------------------------------------------------------------------------------------


def _join(*, account_id: int, user: User, by: User) -> WalletMerge:
    """Join inside a transaction. Locks in this order: the person on Telegram, their videos, the two wallets."""
    account = _locked().get(pk=account_id)
    source = account.user
    _check(user=user, account=account)
    privacy.lock_videos(of=source)
    try:
        merge = merging.merge(source=source, target=user, reason=f"{JOINED}: {account}", actor=by)
    except merging.CreditsAreHeld:
        raise LinkError(VIDEO_IS_MADE) from None
    # Submitting takes the lock of a wallet, so from here on nothing new begins.
    _check(user=user, account=account)
    if privacy.is_live(source, user):
        raise LinkError(VIDEO_IS_MADE)
    privacy.hand_over(source=source, target=user)
    account.former_user, account.user = source, user
    account.save(update_fields=["former_user", "user"])
    _retire(source, heir=user)
    security_log.note(gettext_noop("Telegram connected"), user, detail=str(account))
    return merge


@transaction.atomic
def part(*, account: TelegramAccount) -> None:
    """Give the person on Telegram their former account; credits and videos stay on the web. Raises LinkError."""
    row = _locked().get(pk=account.pk)
    if row.former_user is None:
        raise LinkError(NOT_JOINED)
    if not row.user.is_active:
        raise LinkError(NOT_ACTIVE)
    _go_back(row)


@transaction.atomic
def undo(*, merge: WalletMerge, reason: str, actor: User) -> None:
    """Part two people who were joined by mistake. Credits go back by entries of their own, videos to the payer.

    Raises:
        LinkError, LedgerError: it cannot be undone now; nothing has changed.
    """
    source, target = merge.source.user, merge.target.user
    row = _locked().filter(user=target, former_user=source).first()
    privacy.lock_videos(of=target)
    merging.undo(merge=merge, reason=reason, actor=actor)
    if privacy.is_live(source, target):
        raise LinkError(VIDEO_IS_MADE)
    privacy.give_back(source=source, target=target)
    if row is not None:
        _go_back(row)


def _go_back(row: TelegramAccount) -> None:
    assert row.former_user is not None
    User.objects.filter(pk=row.former_user.pk, ban=None).update(is_active=True)
    security_log.note(gettext_noop("Telegram disconnected"), row.user, detail=str(row))
    row.user, row.former_user = row.former_user, None
    row.save(update_fields=["user", "former_user"])


def _retire(source: User, *, heir: User) -> None:
    """End the sessions and keys of the account that is joined; they work again should the two be parted.

    Limits that were set for this person hold on, unless the heir has some already.
    """
    User.objects.filter(pk=source.pk).update(is_active=False)
    if not heir.language:
        User.objects.filter(pk=heir.pk).update(language=source.language)
    limits = UserLimits.objects.filter(user=source).first()
    if limits is not None and not UserLimits.objects.filter(user=heir).exists():
        limits.pk, limits.user = None, heir
        limits.save(force_insert=True)


def _locked() -> "QuerySet[TelegramAccount]":
    return TelegramAccount.objects.select_for_update(of=("self",)).select_related("user", "former_user")


# --- Checks ---------------------------------------------------------------------------------------------------------


def _check(*, user: User, account: TelegramAccount) -> None:
    """Raise LinkError unless the two may be joined, by the rows as they are now."""
    _check_telegram(account)
    if TelegramAccount.objects.filter(user=user).exists():
        raise LinkError(WEB_HAS_TELEGRAM)
    if not User.objects.filter(pk=user.pk, is_active=True).exists():
        raise LinkError(NOT_ACTIVE)


def _check_telegram(account: TelegramAccount) -> None:
    now = TelegramAccount.objects.select_related("user").get(pk=account.pk)
    if now.former_user_id is not None:
        raise LinkError(TELEGRAM_IS_JOINED)
    if not now.user.is_active:
        raise LinkError(NOT_ACTIVE)
    if now.user.is_staff:
        raise LinkError(STAFF_STAYS)


def prune() -> int:
    """Delete requests that came to nothing and ran out a month ago."""
    return LinkRequest.objects.filter(expires_at__lt=Now() - KEEP, merge=None).delete()[0]
