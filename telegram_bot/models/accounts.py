"""People on Telegram, the inbox of updates, job results to deliver, and the messages that are about a job."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from generation.models import GenerationJob, Preset
from generation.outbox import OutboxRow


class TelegramAccount(models.Model):
    """A person on Telegram and their user here. The chat with the bot has the same id as the person."""

    telegram_id = models.BigIntegerField("Telegram id", unique=True)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="telegram_account"
    )
    username = models.CharField("name on Telegram", max_length=64, blank=True)
    first_name = models.CharField("first name", max_length=128, blank=True)
    language_code = models.CharField("language", max_length=16, blank=True)
    preset = models.ForeignKey(
        Preset,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="The preset of this user's videos. Empty: the default one.",
    )
    blocked_at = models.DateTimeField(
        "blocked the bot", null=True, blank=True, help_text="They blocked the bot, without a word since."
    )
    former_user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="former_telegram_account",
        help_text="Who they were until they were joined with an account on the web, and are again when parted.",
        verbose_name="user before joining",
    )
    created_at = models.DateTimeField("first seen", auto_now_add=True)
    last_seen_at = models.DateTimeField("last seen", null=True, blank=True)

    class Meta:
        verbose_name = "Telegram account"
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"@{self.username}" if self.username else f"Telegram {self.telegram_id}"


class TelegramUpdate(models.Model):
    """The inbox: an update exactly as it came, stored before it is handled and before it is acknowledged.

    RECEIVED → DONE, or FAILED with the reason; a repeated update finds its row and changes nothing.
    """

    class State(models.TextChoices):
        RECEIVED = "received", "Received"
        DONE = "done", "Done"
        FAILED = "failed", "Failed"  # it could not be parsed or answered; kept for staff to look at

    bot_id = models.BigIntegerField("bot")
    update_id = models.BigIntegerField("number")
    # Text and not jsonb, which refuses the NULs and lone surrogates that a client may send.
    raw = models.TextField("as it came")
    state = models.CharField(max_length=10, choices=State, default=State.RECEIVED)
    error = models.CharField(max_length=500, blank=True)
    received_at = models.DateTimeField("received", db_default=Now(), editable=False)
    settled_at = models.DateTimeField("settled", null=True)

    class Meta:
        verbose_name = "update"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["bot_id", "update_id"], name="one_row_per_telegram_update")
        ]
        indexes = [
            models.Index(
                fields=["bot_id", "update_id"], condition=Q(state="received"), name="telegram_inbox"
            ),
            models.Index(fields=["settled_at"], name="telegram_update_age"),
        ]

    def __str__(self) -> str:
        return f"update {self.update_id} ({self.state})"


class JobMessage(OutboxRow):
    """A job that was asked for in Telegram: its status message while it is made, and the delivery of its result.

    `next_attempt_at` is empty until the job ends. After the result is sent, the status message is removed then.
    """

    class State(models.TextChoices):
        PENDING = "pending", "Pending"  # the person still waits for the result
        SENT = "sent", "Sent"
        # The bot is blocked or muted, the topic is closed: sent again when the person writes next.
        FAILED = "failed", "Failed"

    OPEN = Q(state=State.PENDING) | Q(state=State.SENT, status_message_id__isnull=False)
    SINCE = "job__finished_at"

    job = models.OneToOneField(
        GenerationJob, on_delete=models.CASCADE, related_name="telegram_message", verbose_name="video"
    )
    bot_id = models.BigIntegerField(
        "bot", help_text="The bot that was asked; another one may not write to this chat."
    )
    chat_id = models.BigIntegerField("chat")
    thread_id = models.BigIntegerField(
        "topic", null=True, blank=True, help_text="The topic that it was asked for in."
    )
    reply_to = models.BigIntegerField(
        "message that asked", null=True, blank=True, help_text="The message that asked for it."
    )
    status_message_id = models.BigIntegerField("status message", null=True, blank=True)
    last_text = models.TextField("what it shows", blank=True, help_text="What the status message shows.")
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    upload_began_at = models.DateTimeField(
        "upload began",
        null=True,
        blank=True,
        help_text="Set when the result begins to be sent: it may have arrived.",
    )
    file_id = models.CharField(
        "file at Telegram",
        max_length=250,
        blank=True,
        help_text="Sends the same file again without an upload.",
    )
    created_at = models.DateTimeField("asked for", db_default=Now(), editable=False)
    sent_at = models.DateTimeField("sent", null=True, blank=True)

    class Meta:
        verbose_name = "delivery"
        verbose_name_plural = "deliveries"
        ordering = ["-id"]
        indexes = [
            models.Index(
                fields=["next_attempt_at"], condition=Q(next_attempt_at__isnull=False), name="telegram_outbox"
            ),
            # Looked at whenever a person writes.
            models.Index(fields=["job"], condition=Q(state="failed"), name="telegram_undelivered"),
        ]

    def __str__(self) -> str:
        return f"{self.job_id} in chat {self.chat_id} ({self.state})"


class MessageRef(models.Model):
    """A message of the bot that is about a job, so that a reply to it can be understood."""

    job = models.ForeignKey(GenerationJob, on_delete=models.CASCADE, related_name="telegram_posts")
    bot_id = models.BigIntegerField()
    chat_id = models.BigIntegerField()
    message_id = models.BigIntegerField()
    asks_for_prompt = models.BooleanField(
        default=False, help_text="A reply to it is the changed prompt of a remix."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["bot_id", "chat_id", "message_id"], name="one_job_per_telegram_post"
            )
        ]

    def __str__(self) -> str:
        return f"message {self.message_id} in chat {self.chat_id}"


class BotTraffic(models.Model):
    """Totals for `/metrics`: requests to Telegram by method, and updates, each by outcome."""

    what = models.CharField(max_length=40)
    outcome = models.CharField(max_length=20)
    number = models.BigIntegerField(default=0)
    seconds = models.FloatField(default=0.0, help_text="Of all of them together.")

    class Meta:
        verbose_name_plural = "bot traffic"
        constraints = [models.UniqueConstraint(fields=["what", "outcome"], name="one_row_per_bot_traffic")]

    def __str__(self) -> str:
        return f"{self.what}: {self.outcome}"
