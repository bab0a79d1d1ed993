"""Links between Telegram and the web: requests to join accounts, sign-in links, and notices from the site to a chat.

Of every token only a SHA-256 is kept, so reading the table is not enough to use it.
"""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from generation.outbox import OutboxRow
from telegram_bot.models.accounts import JobMessage


class KnownBot(models.Model):
    """The username of a bot. The bot's process stores it, the site makes links of it."""

    bot_id = models.BigIntegerField(primary_key=True)
    username = models.CharField(max_length=64)
    seen_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "bot"

    def __str__(self) -> str:
        return f"@{self.username}"


class LinkRequest(models.Model):
    """A request to join an account on the web with a person on Telegram.

    Neither side knows the other at first, so each is shown the other and both have to agree. OPEN → JOINED | DECLINED;
    a request past `expires_at` is void.
    """

    class Side(models.TextChoices):
        WEB = "web", "Web"
        TELEGRAM = "telegram", "Telegram"

    class State(models.TextChoices):
        OPEN = "open", "Open"
        JOINED = "joined", "Joined"
        DECLINED = "declined", "Declined"  # by either side, or by a newer request of the side that began it

    digest = models.CharField(max_length=64, unique=True, editable=False)
    began_on = models.CharField("began", max_length=10, choices=Side)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="link_requests",
    )
    account = models.ForeignKey(
        "telegram_bot.TelegramAccount",
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="link_requests",
        verbose_name="on Telegram",
    )
    state = models.CharField(max_length=10, choices=State, default=State.OPEN)
    answered_at = models.DateTimeField(
        "answered", null=True, blank=True, help_text="When the side that did not begin it agreed."
    )
    created_at = models.DateTimeField("asked", auto_now_add=True)
    expires_at = models.DateTimeField("void after")
    settled_at = models.DateTimeField("settled", null=True, blank=True)
    merge = models.OneToOneField(
        "accounts.WalletMerge", null=True, blank=True, on_delete=models.PROTECT, related_name="link_request"
    )

    class Meta:
        verbose_name = "request to join"
        verbose_name_plural = "requests to join"
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(began_on="web", user__isnull=False)
                | Q(began_on="telegram", account__isnull=False),
                name="link_request_has_initiator",
            ),
            models.CheckConstraint(
                condition=~Q(state="joined")
                | Q(user__isnull=False, account__isnull=False, answered_at__isnull=False),
                name="joined_by_both_sides",
            ),
        ]
        indexes = [models.Index(fields=["expires_at"], name="telegram_link_age")]

    def __str__(self) -> str:
        return f"{self.user or '?'} and {self.account or '?'} ({self.state})"


class LoginLink(models.Model):
    """A one-time link, asked for in the chat, that signs in on the web."""

    digest = models.CharField(max_length=64, unique=True, editable=False)
    account = models.ForeignKey(
        "telegram_bot.TelegramAccount", on_delete=models.CASCADE, related_name="login_links"
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="login_links")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        indexes = [models.Index(fields=["expires_at"], name="telegram_login_age")]

    def __str__(self) -> str:
        return f"for {self.user}, {'used' if self.used_at else 'not used'}"


class ChatNotice(OutboxRow):
    """A message to a chat, written by a process that does not speak to Telegram.

    PENDING → SENT, or FAILED when it cannot be delivered; PENDING again when the person writes next.
    """

    State = JobMessage.State

    OPEN = Q(state=State.PENDING)
    SINCE = "created_at"

    bot_id = models.BigIntegerField()
    chat_id = models.BigIntegerField("chat")
    text = models.TextField(help_text="In Telegram's HTML.")
    keyboard = models.JSONField(
        default=list, blank=True, help_text="Rows of buttons as the Bot API has them."
    )
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    next_attempt_at = models.DateTimeField("next attempt", db_default=Now())
    created_at = models.DateTimeField("made", db_default=Now(), editable=False)
    handed_over_at = models.DateTimeField(
        "handed over",
        null=True,
        blank=True,
        help_text="Set when the request is on its way to Telegram, before the answer.",
    )
    sent_at = models.DateTimeField("sent", null=True, blank=True)

    class Meta:
        verbose_name = "notice"
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["bot_id", "next_attempt_at"], condition=Q(state="pending"), name="telegram_notices"
            ),
            models.Index(
                fields=["chat_id"], condition=Q(state="failed"), name="telegram_undelivered_notices"
            ),
        ]

    def __str__(self) -> str:
        return f"notice {self.pk} for {self.chat_id} ({self.state})"
