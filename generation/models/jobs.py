"""Presets, GPU nodes, jobs and the attempts to run them.

`jobs.lifecycle` and `jobs.scheduling` are the only writers of states.
"""

import re
import secrets
import uuid
from datetime import timedelta
from decimal import Decimal

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Lower, Now
from django.utils.translation import gettext, gettext_noop

from generation.models import fields
from generation.models.fields import SecretField
from generation.nodes import CLIENTS, NodeMisconfigured, checked_url, client_class
from generation.outbox import OutboxRow

AUTO = "auto"
PROTOCOLS = [(AUTO, "Find out from the node"), *((client.protocol, client.route) for client in CLIENTS)]


class Preset(models.Model):
    """An offer of staff: how long and how carefully a clip is made, and its price."""

    name = models.SlugField(unique=True, max_length=40)
    label = models.CharField(max_length=60)
    num_frames = models.PositiveIntegerField(
        "frames", default=16, validators=[MinValueValidator(1), MaxValueValidator(49)]
    )
    fps = models.PositiveIntegerField(
        "frames a second", default=8, validators=[MinValueValidator(1), MaxValueValidator(60)]
    )
    num_inference_steps = models.PositiveIntegerField(
        "steps", default=20, validators=[MinValueValidator(1), MaxValueValidator(200)]
    )
    guidance_scale = models.FloatField(null=True, blank=True, help_text="Empty: the model's own.")
    cost = models.PositiveIntegerField(
        "price", null=True, blank=True, help_text="Credits a clip. Empty: VIDEO_COST."
    )
    position = models.PositiveSmallIntegerField(default=0)
    is_default = models.BooleanField("default", default=False)
    enabled = models.BooleanField(default=True)

    # A job keeps these as they are at submit, so that a later edit changes no job.
    COPIED = ("num_frames", "fps", "num_inference_steps", "guidance_scale")

    class Meta:
        ordering = ["position", "name"]
        constraints = [
            models.UniqueConstraint(
                fields=["is_default"], condition=Q(is_default=True), name="one_default_preset"
            )
        ]

    def __str__(self) -> str:
        return self.label

    @property
    def spoken_label(self) -> str:
        """The label in the reader's language, where it is one that comes with the service."""
        return gettext(self.label)

    @property
    def seconds(self) -> int:
        """Length of the clip in whole seconds, as the API's `seconds` names it."""
        return max(1, round(self.num_frames / self.fps))


class GpuNodeQuerySet(models.QuerySet["GpuNode"]):
    def healthy(self) -> "GpuNodeQuerySet":
        """Keep those that answered lately and said that they can take work."""
        return self.filter(self._answered_lately())

    def with_health(self) -> "GpuNodeQuerySet":
        """Annotate each node, the others included, with `is_healthy`."""
        return self.annotate(is_healthy=ExpressionWrapper(self._answered_lately(), BooleanField()))

    def _answered_lately(self) -> Q:
        fresh = timedelta(seconds=max(30.0, 4 * settings.NODE_HEALTH_SECONDS))
        return Q(status="ready", last_seen_at__gt=Now() - fresh)


def check_node_address(address: str) -> None:
    """Validate a node's address; raises ValidationError where none could be asked at it."""
    try:
        checked_url(address)
    except NodeMisconfigured as error:
        raise ValidationError(str(error)) from None


def check_file_hosts(hosts: str) -> None:
    """Validate the hosts that a node's files may be on; raises ValidationError for anything but names."""
    for host in hosts.replace(",", " ").split():
        if not re.fullmatch(r"(\*\.[A-Za-z0-9-]+\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise ValidationError(f"{host} is no name of a host.")


class GpuNode(models.Model):
    """A server that makes clips, and its last answer about itself."""

    name = models.CharField(max_length=60, unique=True)
    # Not a URLField: that takes no name of a machine in the own network, such as http://gpu-box:8081.
    base_url = models.CharField(
        "address (base URL)",
        max_length=200,
        unique=True,
        validators=[check_node_address],
        help_text="Scheme, host and port; only staff can name a node.",
    )
    api_key = SecretField(blank=True)
    file_hosts = models.CharField(
        max_length=300,
        blank=True,
        validators=[check_file_hosts],
        help_text="Other hosts that its finished files may be fetched from, separated by spaces; *.example.com stands "
        "for all below. Its own host always may be.",
    )
    protocol = models.CharField(max_length=16, choices=PROTOCOLS, default=AUTO)
    enabled = models.BooleanField(
        default=True, help_text="Off: it finishes what it runs and gets nothing new."
    )
    cost_per_hour = models.DecimalField(
        max_digits=10,
        decimal_places=4,
        null=True,
        blank=True,
        validators=[MinValueValidator(Decimal(0))],
        help_text="What an hour of it costs, in whichever money you count: shows what a clip costs.",
    )
    from_environment = models.BooleanField(
        "follows VIDEO_API_URL", default=False, editable=False, help_text="Follows VIDEO_API_URL."
    )

    detected_protocol = models.CharField(
        "protocol it speaks", max_length=16, choices=PROTOCOLS, blank=True, editable=False
    )
    status = models.CharField(max_length=20, default="unknown", editable=False)
    status_detail = models.CharField("what it says", max_length=300, blank=True, editable=False)
    backend = models.CharField("model", max_length=100, blank=True, editable=False)
    sizes = models.JSONField(default=list, editable=False, help_text="WIDTHxHEIGHT it serves, its own first.")
    capacity = models.PositiveSmallIntegerField(
        "videos at the same time", default=1, editable=False, help_text="Clips it makes at the same time."
    )
    seconds_per_step = models.FloatField(null=True, editable=False)
    paces = models.JSONField(
        default=list,
        editable=False,
        help_text="Measured: frames, seconds a step, seconds of a clip beside its steps.",
    )
    last_seen_at = models.DateTimeField("last seen", null=True, editable=False)
    leave_alone_until = models.DateTimeField(
        "left alone until", null=True, editable=False, help_text="It said it was busy until then."
    )
    consecutive_failures = models.PositiveSmallIntegerField(
        "failures in a row",
        default=0,
        editable=False,
        help_text="Attempts in a row that came to nothing by its fault.",
    )
    set_aside_at = models.DateTimeField(
        "set aside since",
        null=True,
        editable=False,
        help_text="It failed too often: no jobs until a canary clip succeeds.",
    )
    set_aside_reason = models.CharField("set aside because", max_length=300, blank=True, editable=False)
    failed_canaries = models.PositiveSmallIntegerField(
        "failed canary clips", default=0, editable=False, help_text="Canary clips that failed since then."
    )
    next_canary_at = models.DateTimeField("next canary clip", null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    is_healthy: bool  # only of nodes that were read by `with_health`
    objects = GpuNodeQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        verbose_name = "GPU node"

    def __str__(self) -> str:
        return self.name

    @property
    def effective_protocol(self) -> str:
        """The one it is asked in, as `videos`; empty while the node was never reached."""
        return self.detected_protocol if self.protocol == AUTO else self.protocol

    @property
    def runs_in_background(self) -> bool:
        """True where the node takes a job at once and is asked for it later (`NodeClient.background`)."""
        return client_class(self.effective_protocol).background

    @property
    def slots(self) -> int:
        """Attempts it may hold: one more than it runs where it queues itself, so that its next job is there already."""
        return self.capacity + 1 if self.runs_in_background else 1


def new_seed() -> int:
    """Draw a seed that every server of the protocol can take: 31 bits."""
    return secrets.randbelow(2**31)


def new_share_token() -> str:
    """Draw 128 random bits, in 22 characters that need no quoting in an address."""
    return secrets.token_urlsafe(16)


def new_deadline() -> Combinable:
    """Set the deadline by PostgreSQL's clock, as everything that several hosts judge by."""
    return Now() + timedelta(seconds=settings.JOB_DEADLINE_SECONDS)


class JobQuerySet(models.QuerySet["GenerationJob"]):
    def named(self, public_id: str) -> "JobQuerySet":
        job_id = fields.job_id(public_id)
        return self.none() if job_id is None else self.filter(pk=job_id)


class GenerationJob(models.Model):
    """One clip that a user asked for, from the prompt to the stored file.

    QUEUED → RUNNING → STORING → COMPLETED; FAILED and CANCELED end it too. docs/architecture.md has the diagram.
    """

    class State(models.TextChoices):
        QUEUED = "queued", "Queued"  # waits for a free slot on a node; credits are held from here on
        RUNNING = "running", "Running"  # an attempt is open on a node
        STORING = "storing", "Storing"  # the node is done: the file is fetched, checked and stored
        COMPLETED = "completed", "Completed"  # a playable file is stored and the credits are captured
        FAILED = "failed", "Failed"  # nothing was charged
        CANCELED = "canceled", "Canceled"  # nothing was charged

    LIVE = (State.QUEUED, State.RUNNING, State.STORING)

    class Source(models.TextChoices):
        WEB = "web", "Web"
        API = "api", "API"
        TELEGRAM = "telegram", "Telegram"
        STAFF = "staff", gettext_noop("Staff")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="jobs")
    source = models.CharField("channel", max_length=10, choices=Source)
    prompt = models.TextField()
    negative_prompt = models.TextField(blank=True)
    preset = models.ForeignKey(Preset, on_delete=models.PROTECT, related_name="jobs")
    # Preset.COPIED
    num_frames = models.PositiveIntegerField("frames")
    fps = models.PositiveIntegerField("frames a second")
    num_inference_steps = models.PositiveIntegerField("steps")
    guidance_scale = models.FloatField(null=True)
    seed = models.BigIntegerField(default=new_seed)
    model = models.CharField(
        max_length=100, blank=True, help_text="Only nodes with this backend. Empty: any."
    )
    size = models.CharField(
        max_length=20, blank=True, help_text="WIDTHxHEIGHT asked for. Empty: the node's own."
    )
    cost = models.PositiveIntegerField("price", help_text="Credits held for it.")
    discount = models.PositiveIntegerField(default=0, help_text="Credits less than usual, by a price factor.")
    cancel_fee = models.PositiveIntegerField(default=0, help_text="Credits charged when it was canceled.")
    remixed_from = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="remixes",
        verbose_name="remix of",
    )
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001  (unique where there is one)
    request_digest = models.CharField(
        max_length=64, blank=True, help_text="Tells a repeated request from another one."
    )

    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    current_attempt = models.ForeignKey("JobAttempt", null=True, on_delete=models.PROTECT, related_name="+")
    attempt_count = models.PositiveSmallIntegerField(
        "attempts", default=0, help_text="Attempts that count towards JOB_MAX_ATTEMPTS."
    )
    step = models.PositiveIntegerField("steps done", default=0, help_text="Denoising steps done.")
    error_code = models.CharField("kind of error", max_length=40, blank=True)
    error_message = models.CharField(
        "reason", max_length=500, blank=True, help_text="The reason, as the user reads it."
    )

    created_at = models.DateTimeField("asked for", db_default=Now(), editable=False)
    started_at = models.DateTimeField(
        "started", null=True, help_text="When the attempt that counts was opened."
    )
    finished_at = models.DateTimeField("ended", null=True)
    deadline_at = models.DateTimeField("deadline", default=new_deadline)
    deleted_at = models.DateTimeField(
        "removed", null=True, help_text="The owner deleted the clip; the row stays for the books."
    )

    video = models.FileField(max_length=200, blank=True)
    poster = models.FileField(max_length=200, blank=True)
    generation_ms = models.PositiveIntegerField(null=True, help_text="What the node says the clip took.")
    width = models.PositiveIntegerField(null=True)
    height = models.PositiveIntegerField(null=True)
    stored_frames = models.PositiveIntegerField(null=True)
    duration_ms = models.PositiveIntegerField(null=True)
    size_bytes = models.PositiveBigIntegerField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = "job"
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="one_job_per_idempotency_key",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["queued", "running", "storing"], finished_at=None)
                | Q(state__in=["completed", "failed", "canceled"], finished_at__isnull=False),
                name="job_finished_iff_terminal",
            ),
            models.CheckConstraint(
                condition=~Q(state="completed") | ~Q(video=""), name="completed_job_has_a_video"
            ),
        ]
        indexes = [
            models.Index(fields=["created_at"], condition=Q(state="queued"), name="job_queue"),
            # So that a claim passes over jobs that no node serves.
            models.Index(
                fields=["model", "size", "created_at"], condition=Q(state="queued"), name="job_queue_of_kind"
            ),
            models.Index(fields=["state", "deadline_at"], condition=Q(finished_at=None), name="job_live"),
            models.Index(fields=["user", "-created_at"], name="job_gallery"),
            models.Index(fields=["-created_at", "-id"], name="job_listed"),
            models.Index(fields=["state", "-created_at", "-id"], name="job_listed_by_state"),
            models.Index(fields=["finished_at"], condition=Q(finished_at__isnull=False), name="job_ended"),
            models.Index(
                fields=["preset", "-finished_at"],
                include=["generation_ms"],
                condition=Q(state="completed", generation_ms__isnull=False),
                name="job_usual_time",
            ),
            # For the search of staff (staff/jobs.py).
            GinIndex(
                SearchVector(Lower("prompt"), Lower("error_message"), config="simple"), name="job_words"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.public_id} ({self.state})"

    @property
    def public_id(self) -> str:
        return fields.public_id(self.id)

    @property
    def is_live(self) -> bool:
        return self.state in self.LIVE

    @property
    def elapsed_seconds(self) -> float | None:
        """Seconds from submit to the end."""
        return (self.finished_at - self.created_at).total_seconds() if self.finished_at else None


class UnclaimedFile(models.Model):
    """A file in the storage, or about to be there, that no job names: it is removed when its time comes."""

    name = models.CharField(max_length=200, unique=True)
    remove_after = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.name


class JobAttempt(models.Model):
    """One try at a job on one node.

    Its id is the Idempotency-Key on the node and the fence of every transition.
    """

    class State(models.TextChoices):
        OPEN = "open", "Open"  # it holds a slot of its node
        SUCCEEDED = "succeeded", "Succeeded"
        FAILED = "failed", "Failed"  # the node said so, or its file is no playable video
        LOST = "lost", "Lost"  # the node does not know it any more, or stayed silent
        CANCELED = "canceled", "Canceled"  # the person canceled, or the node was too busy to take it
        REFUSED = "refused", "Refused"  # the node refused the request, which was no verdict yet

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    job = models.ForeignKey(GenerationJob, on_delete=models.PROTECT, related_name="attempts")
    node = models.ForeignKey(GpuNode, on_delete=models.PROTECT, related_name="attempts")
    protocol = models.CharField(max_length=16, choices=PROTOCOLS)
    state = models.CharField(max_length=10, choices=State, default=State.OPEN)
    counts = models.BooleanField(default=True, help_text="Towards JOB_MAX_ATTEMPTS; not when staff moved it.")
    remote_id = models.CharField(max_length=2000, blank=True, help_text="The node's own id of it.")
    file_name = models.CharField(
        max_length=300, blank=True, help_text="What the node calls the finished file."
    )
    profile = models.CharField(
        max_length=40, blank=True, help_text="How the node made the clip, in its own word."
    )
    step = models.PositiveIntegerField(default=0)
    generation_ms = models.PositiveIntegerField(null=True)
    posted_at = models.DateTimeField(null=True, help_text="The node took it.")
    heard_at = models.DateTimeField(null=True, help_text="The node last said something about it.")
    silent_since = models.DateTimeField(
        null=True, help_text="The node has answered no question about it since."
    )
    cancel_requested_at = models.DateTimeField(null=True)
    stopped_at_step = models.PositiveIntegerField(null=True)
    lease_token = models.UUIDField(null=True, help_text="Who drives it just now.")
    lease_expires_at = models.DateTimeField(db_default=Now())
    error = models.CharField(max_length=500, blank=True, help_text="For staff: what the node said or did.")
    opened_at = models.DateTimeField(db_default=Now(), editable=False)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["opened_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["job"], condition=Q(state="open"), name="one_open_attempt_per_job"
            ),
        ]
        indexes = [
            models.Index(fields=["node"], condition=Q(state="open"), name="attempt_open_of_node"),
            models.Index(fields=["node", "closed_at"], name="attempt_closed_of_node"),
        ]

    def __str__(self) -> str:
        return f"attempt {self.id.hex} on {self.node}"

    @property
    def runs_in_background(self) -> bool:
        """True where the node takes it at once and is asked for it later (`NodeClient.background`)."""
        return client_class(self.protocol).background


class RunningTotal(models.Model):
    """The sum of a table that only grows, until a moment. `jobs.catalog` is the only writer."""

    name = models.CharField(max_length=40, primary_key=True)
    until = models.DateTimeField()
    numbers = models.JSONField(help_text="Lists: labels, and the number last.")

    def __str__(self) -> str:
        return f"{self.name} until {self.until}"


class ReadyMail(OutboxRow):
    """A mail to be sent about a job that has ended, until it is sent. `mails` is the only writer."""

    OPEN = Q()
    SINCE = "created_at"

    job = models.OneToOneField(GenerationJob, on_delete=models.CASCADE, related_name="ready_mail")
    created_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"mail about {self.job_id}"


class SharedLink(models.Model):
    """A public address of one clip, until it is revoked. `sharing` is the only writer."""

    job = models.ForeignKey(GenerationJob, on_delete=models.PROTECT, related_name="shared_links")
    token = models.CharField(max_length=64, unique=True, default=new_share_token, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["job"], condition=Q(revoked_at=None), name="one_working_link_per_job"
            ),
        ]

    def __str__(self) -> str:
        return f"link to {self.job_id}"
