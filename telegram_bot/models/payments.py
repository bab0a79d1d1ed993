"""Credits for Telegram Stars: packs for sale, invoices, and payments with their refunds."""

import uuid

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from generation.outbox import OutboxRow

# Telegram's limit for an invoice in Stars (core.telegram.org/bots/payments-stars).
MAX_STARS = 10_000
MAX_CREDITS = 10_000_000


class CreditPack(models.Model):
    """Credits for sale. Staff edit the rows; an invoice keeps the price and the credits of its time."""

    name = models.CharField(max_length=32, help_text="What the invoice is headed with, such as “Starter”.")
    credits = models.PositiveIntegerField(validators=[MinValueValidator(1), MaxValueValidator(MAX_CREDITS)])
    stars = models.PositiveIntegerField(
        "price in Stars",
        validators=[MinValueValidator(1), MaxValueValidator(MAX_STARS)],
        help_text="The price in Telegram Stars.",
    )
    for_sale = models.BooleanField(default=False, help_text="Shown by /buy, and accepted at the checkout.")
    position = models.PositiveSmallIntegerField(default=0, help_text="Lower ones come first.")

    class Meta:
        ordering = ["position", "stars"]
        constraints = [
            models.CheckConstraint(
                condition=Q(credits__gte=1, credits__lte=MAX_CREDITS, stars__gte=1, stars__lte=MAX_STARS),
                name="pack_within_limits",
            )
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.credits} credits for {self.stars} Stars"


class StarInvoice(models.Model):
    """An offer to one person, at the price of that moment. Its id is the payload of Telegram's invoice."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    account = models.ForeignKey(
        "telegram_bot.TelegramAccount", null=True, on_delete=models.SET_NULL, related_name="invoices"
    )
    pack = models.ForeignKey(CreditPack, null=True, on_delete=models.SET_NULL, related_name="invoices")
    credits = models.PositiveIntegerField()
    stars = models.PositiveIntegerField()
    asked_by = models.CharField(
        max_length=100,
        unique=True,
        help_text="The update that asked for it: handled again, it is the same one.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.credits} credits for {self.stars} Stars"


class StarPayment(OutboxRow):
    """Stars that were paid, once for each charge; while a refund is asked for, a row of the outbox.

    PAID → REFUNDING (the credits are taken back, Telegram is asked) → REFUNDED, or PAID again when Telegram definitely
    refused and the credits are given back. UNKNOWN: paid for something that was never offered here; staff look at it.
    """

    class State(models.TextChoices):
        PAID = "paid", "Paid"
        REFUNDING = "refunding", "Refunding"
        REFUNDED = "refunded", "Refunded"
        UNKNOWN = "unknown", "Paid for something unknown"

    OPEN = Q(state=State.REFUNDING)
    SINCE = "paid_at"

    id = models.BigAutoField(primary_key=True)
    bot_id = models.BigIntegerField("bot", help_text="The bot that was paid; only it can refund.")
    charge_id = models.CharField(
        "receipt", max_length=200, unique=True, help_text="telegram_payment_charge_id"
    )
    telegram_id = models.BigIntegerField("Telegram id", help_text="Who paid, and gets the Stars back.")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="star_payments")
    invoice = models.ForeignKey(StarInvoice, null=True, on_delete=models.PROTECT, related_name="payments")
    payload = models.CharField(max_length=128)
    stars = models.PositiveIntegerField("Stars")
    purchase = models.OneToOneField(
        "accounts.CreditTransaction",
        null=True,
        on_delete=models.PROTECT,
        related_name="star_payment",
        verbose_name="credited",
    )
    state = models.CharField(max_length=10, choices=State, default=State.PAID)
    paid_at = models.DateTimeField("paid", auto_now_add=True)
    refund = models.OneToOneField(
        "accounts.CreditTransaction",
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="The entry that took the credits back, while it stands.",
        verbose_name="taken back by",
    )
    refund_reason = models.CharField("reason of the refund", max_length=200, blank=True)
    refund_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        verbose_name="refunded by",
    )
    refunded_at = models.DateTimeField("refunded", null=True)
    attempts = models.PositiveIntegerField(default=0, help_text="Questions to Telegram without a verdict.")
    next_attempt_at = models.DateTimeField("next attempt", null=True)
    error = models.CharField(
        max_length=500, blank=True, help_text="What Telegram said last about the refund."
    )

    class Meta:
        verbose_name = "Star payment"
        ordering = ["-id"]
        default_permissions = ("view",)
        permissions = [("refund_starpayment", "Can give Stars back")]
        constraints = [
            models.CheckConstraint(condition=~Q(charge_id=""), name="payment_has_a_charge"),
            models.CheckConstraint(
                condition=Q(state="unknown", purchase=None)
                | Q(state="paid", purchase__isnull=False)
                | Q(state__in=["refunding", "refunded"]),
                name="payment_is_credited_or_unknown",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["paid", "unknown"], refund=None)
                | Q(state__in=["refunding", "refunded"], purchase=None, refund=None)
                | Q(state__in=["refunding", "refunded"], purchase__isnull=False, refund__isnull=False),
                name="payment_refunded_with_its_credits",
            ),
        ]
        indexes = [
            models.Index(
                fields=["bot_id", "next_attempt_at"], condition=Q(state="refunding"), name="star_refunds_due"
            )
        ]

    def __str__(self) -> str:
        return f"{self.stars} Stars from {self.telegram_id} ({self.state})"
