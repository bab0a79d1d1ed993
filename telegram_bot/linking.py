"""Joining a person on Telegram with an account on the web, and parting them.

Neither side decides alone: whoever began it is shown who answered, and the other way round, and both agree. So a link
that is passed on, be it to a victim or by one, joins nothing. What is joined then is one person with one wallet and one
history: the account on the web, with the credits and videos that the person had in Telegram.
"""

from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy, gettext_noop

from accounts import merging
from accounts.models import CreditAccount, User, UserLimits, WalletMerge
from generation import privacy
from telegram_bot import tokens
from telegram_bot.models import LinkRequest, TelegramAccount

Side, State = LinkRequest.Side, LinkRequest.State

LIFE = timedelta(minutes=10)
KEEP = timedelta(days=30)
JOINED = gettext_noop("Joined")  # stored in English, translated where it is shown


class LinkError(Exception):
    """The two cannot be joined; `words` say why, to either side."""

    words: Promise | str = ""

    def __init__(self) -> None:
        super().__init__(str(self.words))


class LinkGone(LinkError):
    words = gettext_lazy("This link does not work any more. Please begin again.")


class WebHasTelegram(LinkError):
    words = gettext_lazy(
        "This account is connected with somebody on Telegram already. Disconnect them first."
    )


class TelegramIsJoined(LinkError):
    words = gettext_lazy(
        "This Telegram account is connected with another account already. Disconnect it there first."
    )


class NotActive(LinkError):
    words = gettext_lazy("One of the two accounts is not active.")


class StaffStays(LinkError):
    words = gettext_lazy("An account of the staff cannot become part of another one.")


class VideoIsMade(LinkError):
    words = gettext_lazy(
        "A video is being made for one of the two accounts. Please try again when it is done."
    )


class NotJoined(LinkError):
    words = gettext_lazy("This Telegram account is not connected with an account on the web.")


# --- Beginning ------------------------------------------------------------------------------------------------------


def begin_on_web(*, user: User) -> tuple[LinkRequest, str]:
    """A request, and the token for the link to the bot. Earlier ones of this account are over.

    Raises:
        LinkError: it can never come to anything.
    """
    if TelegramAccount.objects.filter(user=user).exists():
        raise WebHasTelegram
    return _begin(LinkRequest(began_on=Side.WEB, user=user), earlier=Q(user=user, began_on=Side.WEB))


def begin_in_telegram(*, account: TelegramAccount) -> tuple[LinkRequest, str]:
    """The same from the chat: a token for the link to the site.

    Raises:
        LinkError
    """
    _check_telegram(account)
    row = LinkRequest(began_on=Side.TELEGRAM, account=account)
    return _begin(row, earlier=Q(account=account, began_on=Side.TELEGRAM))


@transaction.atomic
def _begin(row: LinkRequest, *, earlier: Q) -> tuple[LinkRequest, str]:
    LinkRequest.objects.filter(earlier, state=State.OPEN).update(state=State.DECLINED, settled_at=Now())
    token, row.digest = tokens.new()
    row.expires_at = Now() + LIFE
    row.save(force_insert=True)
    return row, token


# --- Looking --------------------------------------------------------------------------------------------------------


def find(token: str, *, began_on: str) -> LinkRequest:
    """The request behind a link.

    Raises:
        LinkGone: it is over, or never was.
    """
    row = _open().filter(digest=tokens.digest(token), began_on=began_on).first()
    if row is None:
        raise LinkGone
    return row


@dataclass(frozen=True)
class Stage:
    """How the wish to be joined stands for an account on the web.

    name: `joined`; `confirm`, somebody in Telegram agreed and is in `row`; `chat`, they have the last word; `waiting`
    for somebody to open the link; `none`.
    """

    name: str
    row: LinkRequest | None = None


def stage_on_web(user: User) -> Stage:
    if TelegramAccount.objects.filter(user=user).exists():
        return Stage("joined")
    if row := answered_for_web(user):
        return Stage("confirm", row)
    if row := waits_for_telegram(user):
        return Stage("chat", row)
    return Stage("waiting" if begun_on_web(user) else "none")


def answered_for_web(user: User) -> LinkRequest | None:
    """The request of this account that somebody in Telegram agreed to."""
    return _open().filter(user=user, began_on=Side.WEB, answered_at__isnull=False).first()


def begun_on_web(user: User) -> bool:
    """Whether a link to the bot of this account is still good."""
    return _open().filter(user=user, began_on=Side.WEB).exists()


def waits_for_telegram(user: User) -> LinkRequest | None:
    """The request of somebody in Telegram that this account agreed to, and they not yet."""
    return _open().filter(user=user, began_on=Side.TELEGRAM, answered_at__isnull=False).first()


def answered_for_telegram(request_id: int, account: TelegramAccount) -> LinkRequest:
    """The request of this person that an account on the web agreed to.

    Raises:
        LinkGone
    """
    rows = _open().filter(pk=request_id, account=account, began_on=Side.TELEGRAM, answered_at__isnull=False)
    row = rows.first()
    if row is None:
        raise LinkGone
    return row


def _open() -> "QuerySet[LinkRequest]":
    rows = LinkRequest.objects.filter(state=State.OPEN, expires_at__gt=Now())
    return rows.select_related("user", "account__user__credit_account")


# --- Agreeing -------------------------------------------------------------------------------------------------------


def answer_in_telegram(*, token: str, account: TelegramAccount) -> LinkRequest:
    """Somebody with the web's link agrees. The first one counts; the web is asked about them next.

    Raises:
        LinkError
    """
    row = find(token, began_on=Side.WEB)
    assert row.user is not None
    if row.answered_at is not None and row.account_id == account.pk:
        return row
    _check(user=row.user, account=account)
    return _answer(row, account=account)


def answer_on_web(*, token: str, user: User) -> LinkRequest:
    """Somebody with the chat's link agrees, signed in. The first one counts; the chat is asked about them next.

    Raises:
        LinkError
    """
    row = find(token, began_on=Side.TELEGRAM)
    assert row.account is not None
    if row.answered_at is not None and row.user_id == user.pk:
        return row
    _check(user=user, account=row.account)
    return _answer(row, user=user)


def _answer(row: LinkRequest, **side: User | TelegramAccount) -> LinkRequest:
    unanswered = LinkRequest.objects.filter(
        pk=row.pk, state=State.OPEN, answered_at=None, expires_at__gt=Now()
    )
    if not unanswered.update(answered_at=Now(), **side):
        raise LinkGone
    row.refresh_from_db()
    return row


def decline(row: LinkRequest) -> None:
    """Either side says no."""
    LinkRequest.objects.filter(pk=row.pk, state=State.OPEN).update(state=State.DECLINED, settled_at=Now())


def confirm(row: LinkRequest, *, by: User) -> WalletMerge:
    """Whoever began it agrees to who answered: the two are joined. A second press finds it done.

    Raises:
        LinkError: nothing has changed; where it says so, trying again later may do.
    """
    with transaction.atomic():
        locked = LinkRequest.objects.select_for_update().get(pk=row.pk)
        if locked.merge is not None:
            return locked.merge
        if not _open().filter(pk=row.pk, answered_at__isnull=False).exists():
            raise LinkGone
        assert locked.account_id is not None
        assert locked.user is not None
        locked.merge = _join(account_id=locked.account_id, user=locked.user, by=by)
        locked.state, locked.settled_at = State.JOINED, Now()
        locked.save(update_fields=["merge", "state", "settled_at"])
    return locked.merge


def confirm_in_telegram(request_id: int, *, account: TelegramAccount) -> User:
    """The person who began it in the chat agrees to the account that answered, and is part of it from now on.

    Raises:
        LinkError
    """
    done = LinkRequest.objects.filter(pk=request_id, account=account, state=State.JOINED).select_related(
        "user"
    )
    if (row := done.first()) is None:
        row = answered_for_telegram(request_id, account)
        confirm(row, by=account.user)
    assert row.user is not None
    return row.user


def what_moves(account: TelegramAccount, user: User) -> merging.Plan:
    """What joining the two would do to the wallets now."""
    wallets = CreditAccount.objects.select_related("user")
    return merging.plan(source=wallets.get(user=account.user_id), target=wallets.get(user=user))


# --- Joining and parting --------------------------------------------------------------------------------------------


def _join(*, account_id: int, user: User, by: User) -> WalletMerge:
    """Inside a transaction. Locked in this order: the person on Telegram, their videos, the two wallets."""
    account = (
        TelegramAccount.objects.select_for_update(of=("self",)).select_related("user").get(pk=account_id)
    )
    source = account.user
    _check(user=user, account=account)
    privacy.lock_videos(of=source)
    try:
        merge = merging.merge(source=source, target=user, reason=f"{JOINED}: {account}", actor=by)
    except merging.CreditsAreHeld:
        raise VideoIsMade from None
    # Submitting takes the lock of a wallet, so from here on nothing new begins.
    _check(user=user, account=account)
    if privacy.is_live(source, user):
        raise VideoIsMade
    privacy.hand_over(source=source, target=user)
    account.former_user, account.user = source, user
    account.save(update_fields=["former_user", "user"])
    _close_door(source, heir=user)
    return merge


@transaction.atomic
def part(*, account: TelegramAccount) -> None:
    """The person on Telegram is who they were before; credits and videos stay with the account on the web.

    Raises:
        LinkError
    """
    row = (
        TelegramAccount.objects.select_for_update(of=("self",))
        .select_related("user", "former_user")
        .get(pk=account.pk)
    )
    if row.former_user is None:
        raise NotJoined
    if not row.user.is_active:
        raise NotActive
    _go_back(row)


@transaction.atomic
def undo(*, merge: WalletMerge, reason: str, actor: User) -> None:
    """Staff: they were two people after all. Credits go back by entries of their own, and videos to who paid for them.

    Raises:
        LinkError, LedgerError: it cannot be undone now; nothing has changed.
    """
    source, target = merge.source.user, merge.target.user
    rows = TelegramAccount.objects.select_for_update(of=("self",)).select_related("user", "former_user")
    row = rows.filter(user=target, former_user=source).first()
    privacy.lock_videos(of=target)
    merging.undo(merge=merge, reason=reason, actor=actor)
    if privacy.is_live(source, target):
        raise VideoIsMade
    privacy.give_back(source=source, target=target)
    if row is not None:
        _go_back(row)


def _go_back(row: TelegramAccount) -> None:
    assert row.former_user is not None
    User.objects.filter(pk=row.former_user.pk).update(is_active=True)
    row.user, row.former_user = row.former_user, None
    row.save(update_fields=["user", "former_user"])


def _close_door(source: User, *, heir: User) -> None:
    """Sessions and keys of the account that is no more do not work; they do again should the two be parted."""
    User.objects.filter(pk=source.pk).update(is_active=False)
    if not heir.language:
        User.objects.filter(pk=heir.pk).update(language=source.language)
    _carry_limits(source, heir=heir)


def _carry_limits(source: User, *, heir: User) -> None:
    """What was agreed with this person, or imposed on them, holds on, unless something is said of the heir already."""
    limits = UserLimits.objects.filter(user=source).first()
    if limits is not None and not UserLimits.objects.filter(user=heir).exists():
        limits.pk, limits.user = None, heir
        limits.save(force_insert=True)


# --- What must be so ------------------------------------------------------------------------------------------------


def _check(*, user: User, account: TelegramAccount) -> None:
    """As the database has it now. Raises LinkError."""
    _check_telegram(account)
    if TelegramAccount.objects.filter(user=user).exists():
        raise WebHasTelegram
    if not User.objects.filter(pk=user.pk, is_active=True).exists():
        raise NotActive


def _check_telegram(account: TelegramAccount) -> None:
    now = TelegramAccount.objects.select_related("user").get(pk=account.pk)
    if now.former_user_id is not None:
        raise TelegramIsJoined
    if not now.user.is_active:
        raise NotActive
    if now.user.is_staff:
        raise StaffStays


def prune() -> int:
    """Forget requests that came to nothing long ago; how many there were."""
    old = LinkRequest.objects.filter(expires_at__lt=Now() - KEEP, merge=None)
    return old.delete()[0]
