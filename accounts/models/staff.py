"""The audit log, limits and bans of users, ledger checks, and notices."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext


class AuditEvent(models.Model):
    """One act of a member of the staff. Written once; the database refuses changes (see the migrations)."""

    at = models.DateTimeField("time", db_default=Now(), editable=False)
    # Empty: a command on the server.
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+", verbose_name="by"
    )
    approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    address = models.CharField("IP address", max_length=45, help_text="The IP address it was done from.")
    act = models.CharField("what", max_length=40, help_text="What was done, as `user.ban` or `job.refund`.")
    subject_kind = models.CharField(max_length=60, help_text="`app.model` of what it was done to.")
    subject_id = models.CharField(max_length=64)
    subject_name = models.CharField(max_length=200)
    reason = models.CharField(max_length=500, blank=True)
    before = models.JSONField(default=dict)
    after = models.JSONField(default=dict)
    credits = models.BigIntegerField(
        default=0, help_text="Credits that it moved to people; less than 0: from them."
    )
    once = models.UUIDField(
        null=True, unique=True, help_text="The form it was sent with: the same form does nothing twice."
    )

    class Meta:
        verbose_name = "entry of the audit log"
        verbose_name_plural = "entries of the audit log"
        ordering = ["-id"]
        default_permissions = ("view",)
        permissions = [
            ("grant_credits", "Can grant credits"),
            ("adjust_credits", "Can adjust balances up and down"),
            ("export_transactions", "Can export transactions"),
            ("limit_user", "Can set the limits of a person"),
            ("set_price_factor", "Can set the price factor of a person"),
            ("ban_user", "Can ban people and let them back in"),
            ("manage_staff", "Can make staff, give roles, and change what staff sign in with"),
        ]
        indexes = [
            models.Index(fields=["subject_kind", "subject_id", "-id"], name="audit_event_of_subject"),
            models.Index(fields=["actor", "act", "at"], name="audit_event_of_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.act} {self.subject_name}"


class Approval(models.Model):
    """An operation that one member of the staff asked for, and that another one approves or refuses."""

    VALID = timedelta(days=7)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="asked for by"
    )
    act = models.CharField("what", max_length=40)
    summary = models.TextField("in words")
    arguments = models.JSONField(encoder=DjangoJSONEncoder)
    credits = models.BigIntegerField()
    reason = models.CharField(max_length=500)
    permission = models.CharField(max_length=80, help_text="What the other one must be allowed to do.")
    created_at = models.DateTimeField("asked for", db_default=Now(), editable=False)
    approved = models.BooleanField(null=True, help_text="Unknown: it waits.")

    class Meta:
        ordering = ["-id"]
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.act}, {self.credits} credits"


class SecurityEvent(models.Model):
    """One thing done with an account, or tried, and from where. Written once; `accounts.security_log` is the writer."""

    at = models.DateTimeField("time", db_default=Now(), editable=False, db_index=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")
    what = models.CharField(max_length=40)
    address = models.CharField("IP address", max_length=45, blank=True, db_index=True)
    agent = models.CharField("browser or program", max_length=200, blank=True)
    detail = models.CharField(
        max_length=200, blank=True, help_text="The name that was typed, or what was added."
    )

    class Meta:
        verbose_name = "entry of the security log"
        verbose_name_plural = "entries of the security log"
        ordering = ["-id"]
        default_permissions = ("view",)
        indexes = [models.Index(fields=["user", "-id"], name="security_event_of_user")]

    def __str__(self) -> str:
        return f"{self.what} {self.user or self.detail}"


class UserLimits(models.Model):
    """Limits and prices of one user, in place of the service's own. Empty: as for all."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="limits")
    daily_clips = models.PositiveIntegerField(null=True, blank=True, help_text="Videos in any 24 hours.")
    concurrent_jobs = models.PositiveIntegerField(
        null=True, blank=True, help_text="Videos that are waiting or being made at the same time."
    )
    cooldown_seconds = models.PositiveIntegerField(
        null=True, blank=True, help_text="Between two videos, instead of VIDEO_COOLDOWN_SECONDS."
    )
    price_factor = models.DecimalField(
        null=True,
        blank=True,
        max_digits=6,
        decimal_places=3,
        validators=[MinValueValidator(Decimal(0)), MaxValueValidator(Decimal(100))],
        help_text="1 is the usual price, 0.5 half of it, 0 nothing. Rounded up to whole credits.",
    )

    class Meta:
        verbose_name_plural = "user limits"
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                condition=Q(price_factor=None) | Q(price_factor__gte=0), name="price_factor_not_negative"
            )
        ]

    def __str__(self) -> str:
        return f"limits of {self.user}"

    @classmethod
    def of(cls, user: Any) -> "UserLimits":
        """Read the limits of `user`; where nothing was agreed, an empty row that is not stored."""
        return cls.objects.filter(user=user).first() or cls(user=user)


class Ban(models.Model):
    """The reason why a user cannot sign in. The ban ends with the row; the audit log keeps it."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="ban")
    reason = models.CharField(max_length=500)
    since = models.DateTimeField(db_default=Now(), editable=False)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"ban of {self.user}"

    @classmethod
    def words_for(cls, user: Any) -> str:
        """Say why the account of `user`, which is not active, cannot be used."""
        ban = cls.objects.filter(user=user).first()
        if ban is None:
            return gettext("This account is not active.")
        return gettext("This account is banned: %(reason)s") % {"reason": ban.reason}


class AuditRun(models.Model):
    """One finished run of `audit_credits`, and its findings."""

    at = models.DateTimeField("time", db_default=Now(), editable=False)
    seconds = models.FloatField()
    accounts = models.PositiveBigIntegerField("wallets")
    entries = models.PositiveBigIntegerField("transactions")
    found = models.PositiveIntegerField(help_text="Discrepancies; 0 is what it should be.")
    discrepancies = models.JSONField(default=list, help_text="As sentences, the first hundred.")

    class Meta:
        ordering = ["-id"]
        default_permissions = ("view",)
        permissions = [("run_audit", "Can have the books added up")]
        verbose_name = "audit of the books"
        verbose_name_plural = "audits of the books"

    def __str__(self) -> str:
        return f"{self.found} discrepancies in {self.entries} entries"


class Notice(models.Model):
    """News of an act of staff for the user it is about: on the site until they have seen it, and in Telegram."""

    class Kind(models.TextChoices):
        REFUND = "refund", "Refund"
        REMOVAL = "removal", "Removed video"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="notices")
    kind = models.CharField(max_length=10, choices=Kind)
    # videos, credits, prompt, reason: the parts of the text, which is made in the reader's language.
    facts = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    seen_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        default_permissions = ()
        indexes = [models.Index(fields=["user"], condition=Q(seen_at=None), name="notice_unseen")]

    def __str__(self) -> str:
        return f"{self.kind} for {self.user}"
