"""Bulk refunds, figures of days, canary runs, content rules and reports."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from generation.models.fields import public_id


class BulkRefund(models.Model):
    """A refund of many jobs, decided once and carried out in the background, one job a transaction.

    RUNNING → DONE; what was refunded meanwhile by others is passed over, so that it can be repeated safely.
    """

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        DONE = "done", "Done"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="by"
    )
    reason = models.CharField(max_length=200, help_text="The people it is about read it.")
    node = models.ForeignKey(
        "generation.GpuNode",
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Whose clips they are.",
    )
    since = models.DateTimeField("from", null=True)
    until = models.DateTimeField(null=True)
    jobs = models.PositiveIntegerField("videos", help_text="As decided.")
    credits = models.PositiveBigIntegerField(help_text="As decided.")
    state = models.CharField(max_length=10, choices=State, default=State.RUNNING)
    created_at = models.DateTimeField("decided", db_default=Now(), editable=False)
    moved_at = models.DateTimeField(db_default=Now(), help_text="When it last got on.")
    finished_at = models.DateTimeField("finished", null=True)

    class Meta:
        ordering = ["-created_at"]
        default_permissions = ("view",)
        permissions = [
            ("refund_job", "Can refund videos, up to REFUND_LIMIT_CREDITS a day"),
            ("refund_any_amount", "Can refund beyond REFUND_LIMIT_CREDITS"),
            ("cancel_job", "Can cancel what is being made"),
            ("retry_job", "Can have a failed video made again"),
            ("move_job", "Can move what is being made to another node"),
            ("remove_video", "Can remove videos and settle reports"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state="running", finished_at=None) | Q(state="done", finished_at__isnull=False),
                name="bulk_refund_finished_iff_done",
            )
        ]

    def __str__(self) -> str:
        return f"{self.jobs} jobs, {self.credits} credits"


class BulkRefundItem(models.Model):
    """One job of a batch."""

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        REFUNDED = "refunded", "Refunded"
        PASSED_OVER = "passed_over", "Passed over"  # refunded before, in another way
        FAILED = "failed", "Failed"  # it raised an error each time: staff look at it

    batch = models.ForeignKey(BulkRefund, on_delete=models.PROTECT, related_name="items")
    job = models.ForeignKey("generation.GenerationJob", on_delete=models.PROTECT, related_name="+")
    state = models.CharField(max_length=12, choices=State, default=State.WAITING)
    tries = models.PositiveSmallIntegerField(default=0, help_text="How often it raised an error.")
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["batch", "job"], name="one_refund_of_a_job_per_bulk_refund")
        ]

    def __str__(self) -> str:
        return f"{self.job_id} ({self.state})"


class DailyStats(models.Model):
    """One day that is over (UTC), added up once: ended jobs and entries of the ledger never change."""

    day = models.DateField(primary_key=True)
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    canceled = models.PositiveIntegerField(default=0)
    people = models.PositiveIntegerField(default=0, help_text="Who asked for a video on that day.")
    people_in_month = models.PositiveIntegerField(
        null=True,
        help_text="The same for the 30 days that end with it; known of days that were once the latest.",
    )
    granted = models.BigIntegerField(default=0)
    bought = models.BigIntegerField(default=0)
    captured = models.BigIntegerField(default=0)
    refunded = models.BigIntegerField(default=0)
    discounts = models.BigIntegerField(default=0)
    # How many clips took how long, from submit to the end; staff/stats.py has the bounds of the classes.
    times = models.JSONField(default=dict)
    # By the id of a node: clips, milliseconds of work, clips that were charged (staff/stats.py).
    nodes = models.JSONField(null=True, help_text="Empty: not added up yet.")

    class Meta:
        ordering = ["-day"]
        default_permissions = ()
        verbose_name_plural = "daily stats"

    def __str__(self) -> str:
        return str(self.day)


class CanaryRun(models.Model):
    """A clip that a node made outside of any job: a test by staff, or the canary of a set-aside node."""

    class Kind(models.TextChoices):
        TEST = "test", "Test"
        CANARY = "canary", "Canary"

    node = models.ForeignKey("generation.GpuNode", on_delete=models.CASCADE, related_name="canary_runs")
    kind = models.CharField(max_length=10, choices=Kind)
    asked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    began_at = models.DateTimeField(db_default=Now(), editable=False)
    ended_at = models.DateTimeField(null=True)
    passed = models.BooleanField(null=True, help_text="Empty: it is still going on.")
    steps = models.JSONField(default=list, help_text="name, state and words of each step.")

    class Meta:
        ordering = ["-id"]
        default_permissions = ()
        indexes = [models.Index(fields=["node", "-id"], name="canary_runs_of_node")]

    def __str__(self) -> str:
        return f"{self.kind} of {self.node}"


class BlockedPrompt(models.Model):
    """Words or a pattern that no prompt may contain."""

    class Kind(models.TextChoices):
        WORDS = "words", "Words, as they stand"
        PATTERN = "pattern", "Pattern (RE2)"

    kind = models.CharField(max_length=10, choices=Kind, default=Kind.WORDS)
    text = models.CharField(max_length=500, unique=True)
    explanation = models.CharField(
        max_length=200,
        blank=True,
        help_text="The reason, as the user reads it. Empty: it is against the rules.",
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["kind", "text"]
        verbose_name = "content rule"

    def __str__(self) -> str:
        return self.text


class Report(models.Model):
    """A complaint about a shared video."""

    class About(models.TextChoices):
        SEXUAL = "sexual", _("Sexual content")
        VIOLENCE = "violence", _("Violence or hate")
        PERSON = "person", _("It shows a real person")
        OTHER = "other", _("Something else")

    class Outcome(models.TextChoices):
        REMOVED = "removed", "Video removed"
        DISMISSED = "dismissed", "Dismissed"

    job = models.ForeignKey("generation.GenerationJob", on_delete=models.PROTECT, related_name="reports")
    about = models.CharField(max_length=10, choices=About)
    words = models.CharField("what they wrote", max_length=1000, blank=True)
    address = models.CharField("IP address", max_length=45, help_text="The IP address it came from.")
    created_at = models.DateTimeField("reported", db_default=Now(), editable=False)
    outcome = models.CharField(max_length=10, choices=Outcome, blank=True)
    settled_at = models.DateTimeField("settled", null=True)
    settled_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.PROTECT,
        related_name="+",
        verbose_name="settled by",
    )

    class Meta:
        ordering = ["-id"]
        default_permissions = ("view",)
        constraints = [
            models.UniqueConstraint(
                fields=["job", "address"], condition=Q(outcome=""), name="one_open_report_per_address"
            )
        ]

    def __str__(self) -> str:
        return f"{self.get_about_display()}: {public_id(self.job_id)}"
