"""Users, their wallets, the append-only ledger and API keys.

The guards of the ledger are in the database (see the migrations): balances move only through an inserted entry, entries
are never changed, and every entry is checked against the one it resolves. Only `ledger` writes them.
"""

import uuid

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Lower


class User(AbstractUser):
    """A person who makes clips, by any channel.

    Never deleted but anonymised: ledger entries reference them.
    """

    language = models.CharField(
        max_length=8,
        blank=True,
        choices=settings.LANGUAGES,
        help_text="Empty: the one that the browser or Telegram asks for.",
    )
    mail_when_ready = models.BooleanField(
        default=False, help_text="A mail when a video that was ordered on the site is ready, or has failed."
    )
    anonymised_at = models.DateTimeField("closed", null=True, blank=True, editable=False)

    class Meta(AbstractUser.Meta):
        constraints = [
            models.UniqueConstraint(
                Lower("username"), name="username_in_any_case", violation_error_message="This name is taken."
            )
        ]

    # How a new user came, not stored: `accounts.welcome` decides by it on the credits to start with.
    came_by = ""

    def __str__(self) -> str:
        return self.username


class CreditAccount(models.Model):
    """A wallet: `posted` credits are owned, `held` of them promised to live jobs, the rest is free to spend."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="credit_account"
    )
    posted = models.BigIntegerField(default=0, editable=False)
    held = models.BigIntegerField(default=0, editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(posted__gte=0), name="account_posted_not_negative"),
            models.CheckConstraint(
                condition=Q(held__gte=0) & Q(held__lte=F("posted")), name="account_held_within_posted"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user}: {self.balance} credits"

    @property
    def balance(self) -> int:
        """Credits free to spend: posted less held."""
        return self.posted - self.held


# The shape of an entry of each kind; the database checks it at every insert.
_ALONE = Q(resolves=None, counterpart=None)
_RESOLVING = Q(resolves__isnull=False, counterpart=None)
_OF_A_JOB = Q(reference__isnull=False)
_HOLDS_NOTHING = Q(held_delta=0)
SHAPES = (
    (Q(kind="grant", posted_delta__gt=0) & _HOLDS_NOTHING & _ALONE)
    | (Q(kind="purchase", posted_delta__gt=0, external_id__isnull=False) & _HOLDS_NOTHING & _ALONE)
    | (Q(kind="purchase_refund", posted_delta__lt=0) & _HOLDS_NOTHING & _RESOLVING)
    | (Q(kind="reserve", posted_delta=0, held_delta__gte=0) & _OF_A_JOB & _ALONE)
    | (Q(kind="capture", posted_delta__lte=0, held_delta__lte=F("posted_delta")) & _OF_A_JOB & _RESOLVING)
    | (Q(kind="release", posted_delta=0, held_delta__lte=0) & _OF_A_JOB & _RESOLVING)
    | (Q(kind="refund", posted_delta__gt=0) & _HOLDS_NOTHING & _OF_A_JOB & _RESOLVING)
    | (Q(kind="adjust") & ~Q(posted_delta=0) & _HOLDS_NOTHING & _ALONE)
    | (Q(kind="adjust", posted_delta__gt=0) & _HOLDS_NOTHING & _RESOLVING)
    | (
        Q(kind="transfer", resolves=None, counterpart__isnull=False)
        & ~Q(counterpart=F("account"))
        & ~Q(posted_delta=0)
        & _HOLDS_NOTHING
        & _OF_A_JOB
    )
)


class CreditTransaction(models.Model):
    """One entry of the ledger.

    Inserted once, never edited or deleted; a mistake is corrected by another entry.
    """

    class Kind(models.TextChoices):
        GRANT = "grant", "Grant"
        PURCHASE = "purchase", "Purchase"
        PURCHASE_REFUND = "purchase_refund", "Purchase refund"
        RESERVE = "reserve", "Reserve"
        CAPTURE = "capture", "Capture"
        RELEASE = "release", "Release"
        REFUND = "refund", "Refund"
        ADJUST = "adjust", "Adjust"
        TRANSFER = "transfer", "Transfer"

    id: models.BigAutoField = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(CreditAccount, on_delete=models.PROTECT, related_name="transactions")
    kind = models.CharField(max_length=16, choices=Kind)
    posted_delta = models.BigIntegerField("change of credits owned", help_text="Change of the credits owned.")
    held_delta = models.BigIntegerField(
        "change of credits held", help_text="Change of the credits promised to live jobs."
    )
    posted_after = models.BigIntegerField(
        "owned after it", editable=False, help_text="Filled in by the database."
    )
    held_after = models.BigIntegerField(
        "held after it", editable=False, help_text="Filled in by the database."
    )
    reference = models.UUIDField(
        null=True,
        blank=True,
        help_text="The job this entry is about, opaque to the ledger; of a transfer, the pair it belongs to.",
    )
    resolves = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="resolutions",
        help_text="The hold of a capture or release, the capture of a refund, the purchase of a purchase refund, "
        "the purchase refund that an adjust takes back.",
    )
    counterpart = models.ForeignKey(
        CreditAccount,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="The other side of a transfer.",
        verbose_name="other wallet",
    )
    external_id = models.CharField(  # noqa: DJ001  (unique where there is one)
        "id of the payment",
        max_length=200,
        null=True,
        blank=True,
        help_text="The payment's or import's own id: once for each kind.",
    )
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Who did it; empty: the service itself.",
    )
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField("time", auto_now_add=True)

    class Meta:
        verbose_name = "transaction"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["reference"], condition=Q(kind="reserve"), name="one_hold_per_job"
            ),
            models.UniqueConstraint(
                fields=["resolves"],
                condition=Q(kind__in=["capture", "release"]),
                name="one_resolution_per_hold",
            ),
            models.UniqueConstraint(
                fields=["resolves"], condition=Q(kind="refund"), name="one_refund_per_capture"
            ),
            # Several refunds of one purchase may follow each other, each taken back before the next: a trigger.
            models.UniqueConstraint(
                fields=["resolves"],
                condition=Q(kind="adjust", resolves__isnull=False),
                name="one_way_back_per_purchase_refund",
            ),
            models.UniqueConstraint(
                fields=["kind", "external_id"],
                condition=Q(external_id__isnull=False),
                name="one_entry_per_external_id",
            ),
            models.UniqueConstraint(
                fields=["reference", "account"],
                condition=Q(kind="transfer"),
                name="one_transfer_entry_a_side",
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="transaction_has_a_reason"),
            models.CheckConstraint(condition=~Q(external_id=""), name="external_id_not_empty"),
            models.CheckConstraint(condition=SHAPES, name="transaction_shape_of_its_kind"),
        ]
        indexes = [
            models.Index(fields=["account", "-id"], name="transaction_history"),
            models.Index(fields=["kind", "-id"], name="transaction_by_kind"),
            models.Index(fields=["created_at"], name="transaction_by_time"),
            models.Index(
                fields=["created_at"],
                include=["reference"],
                name="transaction_refunds",
                condition=Q(kind="refund"),
            ),
            models.Index(fields=["-id"], name="transaction_by_hand", condition=Q(actor__isnull=False)),
            models.Index(
                fields=["reference"], name="transaction_of_job", condition=Q(reference__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.amount:+d}"

    @property
    def amount(self) -> int:
        """Change of the free balance, in credits, as the owner of the wallet sees it."""
        return self.posted_delta - self.held_delta

    @property
    def charged(self) -> int:
        """Credits that a capture spends."""
        return -self.posted_delta

    @property
    def moved(self) -> int:
        """Credits that changed hands or were held or let go, positive."""
        return abs(self.posted_delta or self.held_delta)

    @property
    def balance_before(self) -> int:
        return self.balance_after - self.amount

    @property
    def balance_after(self) -> int:
        return self.posted_after - self.held_after


class WalletMerge(models.Model):
    """Two wallets of one person that became one: the free credits of `source` moved to `target`, by a transfer.

    Entries of `source` up to `after_entry` are about credits that are in `target` since, so that what follows from
    them later, a refund say, happens there. Staff can undo it; the rows are never deleted.
    """

    source = models.ForeignKey(
        CreditAccount, on_delete=models.PROTECT, related_name="merges_away", verbose_name="from"
    )
    target = models.ForeignKey(
        CreditAccount, on_delete=models.PROTECT, related_name="merges_in", verbose_name="into"
    )
    after_entry = models.BigIntegerField(
        "newest transaction before it", help_text="The newest entry of the ledger when it was made."
    )
    moved = models.PositiveBigIntegerField("credits moved", help_text="Credits that changed wallets.")
    stayed = models.PositiveBigIntegerField(
        "credits that stayed",
        help_text="Unspent sign-up credits that stayed behind: each user has them once.",
    )
    brought_welcome = models.BooleanField(
        "with the sign-up credits", help_text="Whether the sign-up credits were among those moved."
    )
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="by"
    )
    reason = models.CharField(max_length=500)
    made_at = models.DateTimeField("joined", auto_now_add=True)
    undone_at = models.DateTimeField("undone", null=True, blank=True, editable=False)
    undone_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    undone_reason = models.CharField("reason of the undoing", max_length=500, blank=True)

    class Meta:
        verbose_name = "joined account"
        ordering = ["-id"]
        default_permissions = ("view",)
        permissions = [("undo_walletmerge", "Can undo the merge of two accounts")]
        constraints = [
            models.CheckConstraint(condition=~Q(source=F("target")), name="merge_of_two_wallets"),
            models.CheckConstraint(
                condition=Q(undone_at=None, undone_by=None)
                | Q(undone_at__isnull=False, undone_by__isnull=False),
                name="merge_undone_has_actor",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.source.user} into {self.target.user}"


class ApiKey(models.Model):
    """A key to the REST API.

    Only its SHA-256 is kept: the key has 256 random bits, so a slow hash adds nothing.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100, default="default")
    prefix = models.CharField(
        "begins with", max_length=12, editable=False, help_text="The first characters, to tell keys apart."
    )
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField("made", auto_now_add=True)
    last_used_at = models.DateTimeField("last used", null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField("revoked", null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"


class RateLimit(models.Model):
    """How much of a limit one source has used. Only `accounts.limits` writes it."""

    key = models.CharField(primary_key=True, max_length=60)
    free_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.key
