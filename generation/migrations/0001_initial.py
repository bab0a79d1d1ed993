"""Presets, GPU nodes, jobs and their attempts, reports, bulk refunds and daily figures."""

from decimal import Decimal
from uuid import uuid4

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import migrations, models
from django.db.models import Q
from django.db.models.functions import Lower, Now

from generation.models.fields import SecretField
from generation.models.jobs import (
    check_file_hosts,
    check_node_address,
    new_deadline,
    new_seed,
    new_share_token,
)


class Migration(migrations.Migration):
    initial = True
    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]
    operations = [
        migrations.CreateModel(
            name="Preset",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("name", models.SlugField(max_length=40, unique=True)),
                ("label", models.CharField(max_length=60)),
                ("num_frames", models.PositiveIntegerField(default=16, validators=[MinValueValidator(1), MaxValueValidator(49)], verbose_name="frames")),
                ("fps", models.PositiveIntegerField(default=8, validators=[MinValueValidator(1), MaxValueValidator(60)], verbose_name="frames a second")),
                ("num_inference_steps", models.PositiveIntegerField(default=20, validators=[MinValueValidator(1), MaxValueValidator(200)], verbose_name="steps")),
                ("guidance_scale", models.FloatField(null=True, blank=True, help_text="Empty: the model's own.")),
                ("cost", models.PositiveIntegerField(null=True, blank=True, verbose_name="price", help_text="Credits a clip. Empty: VIDEO_COST.")),
                ("position", models.PositiveSmallIntegerField(default=0)),
                ("is_default", models.BooleanField(default=False, verbose_name="default")),
                ("enabled", models.BooleanField(default=True)),
            ],
            options={
                "ordering": ["position", "name"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["is_default"], condition=Q(is_default=True), name="one_default_preset"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="GpuNode",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("name", models.CharField(max_length=60, unique=True)),
                ("base_url", models.CharField(max_length=200, unique=True, validators=[check_node_address], verbose_name="address (base URL)", help_text="Scheme, host and port; only staff can name a node.")),
                ("api_key", SecretField(blank=True)),
                ("file_hosts", models.CharField(max_length=300, blank=True, validators=[check_file_hosts], help_text="Other hosts that its finished files may be fetched from, separated by spaces; *.example.com stands for all below. Its own host always may be.")),
                ("protocol", models.CharField(max_length=16, choices=[("auto", "Find out from the node"), ("videos", "/v1/videos"), ("generate_video", "/generate_video")], default="auto")),
                ("enabled", models.BooleanField(default=True, help_text="Off: it finishes what it runs and gets nothing new.")),
                ("cost_per_hour", models.DecimalField(max_digits=10, decimal_places=4, null=True, blank=True, validators=[MinValueValidator(Decimal("0"))], help_text="What an hour of it costs, in whichever money you count: shows what a clip costs.")),
                ("from_environment", models.BooleanField(default=False, editable=False, verbose_name="follows VIDEO_API_URL", help_text="Follows VIDEO_API_URL.")),
                ("detected_protocol", models.CharField(max_length=16, choices=[("auto", "Find out from the node"), ("videos", "/v1/videos"), ("generate_video", "/generate_video")], blank=True, editable=False, verbose_name="protocol it speaks")),
                ("status", models.CharField(max_length=20, default="unknown", editable=False)),
                ("status_detail", models.CharField(max_length=300, blank=True, editable=False, verbose_name="what it says")),
                ("backend", models.CharField(max_length=100, blank=True, editable=False, verbose_name="model")),
                ("sizes", models.JSONField(default=list, editable=False, help_text="WIDTHxHEIGHT it serves, its own first.")),
                ("capacity", models.PositiveSmallIntegerField(default=1, editable=False, verbose_name="videos at the same time", help_text="Clips it makes at the same time.")),
                ("seconds_per_step", models.FloatField(null=True, editable=False)),
                ("paces", models.JSONField(default=list, editable=False, help_text="Measured: frames, seconds a step, seconds of a clip beside its steps.")),
                ("last_seen_at", models.DateTimeField(null=True, editable=False, verbose_name="last seen")),
                ("leave_alone_until", models.DateTimeField(null=True, editable=False, verbose_name="left alone until", help_text="It said it was busy until then.")),
                ("consecutive_failures", models.PositiveSmallIntegerField(default=0, editable=False, verbose_name="failures in a row", help_text="Attempts in a row that came to nothing by its fault.")),
                ("set_aside_at", models.DateTimeField(null=True, editable=False, verbose_name="set aside since", help_text="It failed too often: no jobs until a canary clip succeeds.")),
                ("set_aside_reason", models.CharField(max_length=300, blank=True, editable=False, verbose_name="set aside because")),
                ("failed_canaries", models.PositiveSmallIntegerField(default=0, editable=False, verbose_name="failed canary clips", help_text="Canary clips that failed since then.")),
                ("next_canary_at", models.DateTimeField(null=True, editable=False, verbose_name="next canary clip")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "verbose_name": "GPU node",
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="GenerationJob",
            fields=[
                ("id", models.UUIDField(primary_key=True, default=uuid4, editable=False, serialize=False)),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="jobs")),
                ("source", models.CharField(max_length=10, choices=[("web", "Web"), ("api", "API"), ("telegram", "Telegram"), ("staff", "Staff")], verbose_name="channel")),
                ("prompt", models.TextField()),
                ("negative_prompt", models.TextField(blank=True)),
                ("preset", models.ForeignKey("generation.preset", on_delete=models.PROTECT, related_name="jobs")),
                ("num_frames", models.PositiveIntegerField(verbose_name="frames")),
                ("fps", models.PositiveIntegerField(verbose_name="frames a second")),
                ("num_inference_steps", models.PositiveIntegerField(verbose_name="steps")),
                ("guidance_scale", models.FloatField(null=True)),
                ("seed", models.BigIntegerField(default=new_seed)),
                ("model", models.CharField(max_length=100, blank=True, help_text="Only nodes with this backend. Empty: any.")),
                ("size", models.CharField(max_length=20, blank=True, help_text="WIDTHxHEIGHT asked for. Empty: the node's own.")),
                ("cost", models.PositiveIntegerField(verbose_name="price", help_text="Credits held for it.")),
                ("discount", models.PositiveIntegerField(default=0, help_text="Credits less than usual, by a price factor.")),
                ("cancel_fee", models.PositiveIntegerField(default=0, help_text="Credits charged when it was canceled.")),
                ("remixed_from", models.ForeignKey("generation.generationjob", null=True, blank=True, on_delete=models.SET_NULL, related_name="remixes", verbose_name="remix of")),
                ("idempotency_key", models.CharField(max_length=255, null=True, blank=True)),
                ("request_digest", models.CharField(max_length=64, blank=True, help_text="Tells a repeated request from another one.")),
                ("state", models.CharField(max_length=10, choices=[("queued", "Queued"), ("running", "Running"), ("storing", "Storing"), ("completed", "Completed"), ("failed", "Failed"), ("canceled", "Canceled")], default="queued")),
                ("attempt_count", models.PositiveSmallIntegerField(default=0, verbose_name="attempts", help_text="Attempts that count towards JOB_MAX_ATTEMPTS.")),
                ("step", models.PositiveIntegerField(default=0, verbose_name="steps done", help_text="Denoising steps done.")),
                ("error_code", models.CharField(max_length=40, blank=True, verbose_name="kind of error")),
                ("error_message", models.CharField(max_length=500, blank=True, verbose_name="reason", help_text="The reason, as the user reads it.")),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="asked for")),
                ("started_at", models.DateTimeField(null=True, verbose_name="started", help_text="When the attempt that counts was opened.")),
                ("finished_at", models.DateTimeField(null=True, verbose_name="ended")),
                ("deadline_at", models.DateTimeField(default=new_deadline, verbose_name="deadline")),
                ("deleted_at", models.DateTimeField(null=True, verbose_name="removed", help_text="The owner deleted the clip; the row stays for the books.")),
                ("video", models.FileField(max_length=200, blank=True, upload_to="")),
                ("poster", models.FileField(max_length=200, blank=True, upload_to="")),
                ("generation_ms", models.PositiveIntegerField(null=True, help_text="What the node says the clip took.")),
                ("width", models.PositiveIntegerField(null=True)),
                ("height", models.PositiveIntegerField(null=True)),
                ("stored_frames", models.PositiveIntegerField(null=True)),
                ("duration_ms", models.PositiveIntegerField(null=True)),
                ("size_bytes", models.PositiveBigIntegerField(null=True)),
            ],
            options={
                "verbose_name": "job",
                "ordering": ["-created_at"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["user", "idempotency_key"],
                        condition=Q(idempotency_key__isnull=False),
                        name="one_job_per_idempotency_key",
                    ),
                    models.CheckConstraint(
                        condition=Q(finished_at=None, state__in=["queued", "running", "storing"])
                        | Q(finished_at__isnull=False, state__in=["completed", "failed", "canceled"]),
                        name="job_finished_iff_terminal",
                    ),
                    models.CheckConstraint(
                        condition=~Q(state="completed") | ~Q(video=""), name="completed_job_has_a_video"
                    ),
                ],
                "indexes": [
                    models.Index(fields=["created_at"], condition=Q(state="queued"), name="job_queue"),
                    models.Index(
                        fields=["model", "size", "created_at"],
                        condition=Q(state="queued"),
                        name="job_queue_of_kind",
                    ),
                    models.Index(
                        fields=["state", "deadline_at"], condition=Q(finished_at=None), name="job_live"
                    ),
                    models.Index(fields=["user", "-created_at"], name="job_gallery"),
                    models.Index(fields=["-created_at", "-id"], name="job_listed"),
                    models.Index(fields=["state", "-created_at", "-id"], name="job_listed_by_state"),
                    models.Index(
                        fields=["finished_at"], condition=Q(finished_at__isnull=False), name="job_ended"
                    ),
                    models.Index(
                        fields=["preset", "-finished_at"],
                        include=["generation_ms"],
                        condition=Q(generation_ms__isnull=False, state="completed"),
                        name="job_usual_time",
                    ),
                    GinIndex(
                        SearchVector(Lower("prompt"), Lower("error_message"), config="simple"),
                        name="job_words",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="UnclaimedFile",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("name", models.CharField(max_length=200, unique=True)),
                ("remove_after", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="JobAttempt",
            fields=[
                ("id", models.UUIDField(primary_key=True, default=uuid4, editable=False, serialize=False)),
                ("job", models.ForeignKey("generation.generationjob", on_delete=models.PROTECT, related_name="attempts")),
                ("node", models.ForeignKey("generation.gpunode", on_delete=models.PROTECT, related_name="attempts")),
                ("protocol", models.CharField(max_length=16, choices=[("auto", "Find out from the node"), ("videos", "/v1/videos"), ("generate_video", "/generate_video")])),
                ("state", models.CharField(max_length=10, choices=[("open", "Open"), ("succeeded", "Succeeded"), ("failed", "Failed"), ("lost", "Lost"), ("canceled", "Canceled"), ("refused", "Refused")], default="open")),
                ("counts", models.BooleanField(default=True, help_text="Towards JOB_MAX_ATTEMPTS; not when staff moved it.")),
                ("remote_id", models.CharField(max_length=2000, blank=True, help_text="The node's own id of it.")),
                ("file_name", models.CharField(max_length=300, blank=True, help_text="What the node calls the finished file.")),
                ("profile", models.CharField(max_length=40, blank=True, help_text="How the node made the clip, in its own word.")),
                ("step", models.PositiveIntegerField(default=0)),
                ("generation_ms", models.PositiveIntegerField(null=True)),
                ("posted_at", models.DateTimeField(null=True, help_text="The node took it.")),
                ("heard_at", models.DateTimeField(null=True, help_text="The node last said something about it.")),
                ("silent_since", models.DateTimeField(null=True, help_text="The node has answered no question about it since.")),
                ("cancel_requested_at", models.DateTimeField(null=True)),
                ("stopped_at_step", models.PositiveIntegerField(null=True)),
                ("lease_token", models.UUIDField(null=True, help_text="Who drives it just now.")),
                ("lease_expires_at", models.DateTimeField(db_default=Now())),
                ("error", models.CharField(max_length=500, blank=True, help_text="For staff: what the node said or did.")),
                ("opened_at", models.DateTimeField(db_default=Now(), editable=False)),
                ("closed_at", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["opened_at"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["job"], condition=Q(state="open"), name="one_open_attempt_per_job"
                    )
                ],
                "indexes": [
                    models.Index(fields=["node"], condition=Q(state="open"), name="attempt_open_of_node"),
                    models.Index(fields=["node", "closed_at"], name="attempt_closed_of_node"),
                ],
            },
        ),
        migrations.AddField(
            model_name="generationjob",
            name="current_attempt",
            field=models.ForeignKey(
                "generation.jobattempt", null=True, on_delete=models.PROTECT, related_name="+"
            ),
        ),
        migrations.CreateModel(
            name="RunningTotal",
            fields=[
                ("name", models.CharField(primary_key=True, max_length=40, serialize=False)),
                ("until", models.DateTimeField()),
                ("numbers", models.JSONField(help_text="Lists: labels, and the number last.")),
            ],
        ),
        migrations.CreateModel(
            name="ReadyMail",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("attempts", models.PositiveIntegerField(default=0, help_text="Tries that failed.")),
                ("next_attempt_at", models.DateTimeField(null=True, blank=True, verbose_name="next attempt")),
                ("error", models.CharField(max_length=500, blank=True)),
                ("job", models.OneToOneField("generation.generationjob", on_delete=models.CASCADE, related_name="ready_mail")),
                ("created_at", models.DateTimeField(db_default=Now())),
            ],
        ),
        migrations.CreateModel(
            name="SharedLink",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("job", models.ForeignKey("generation.generationjob", on_delete=models.PROTECT, related_name="shared_links")),
                ("token", models.CharField(max_length=64, default=new_share_token, unique=True, editable=False)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("revoked_at", models.DateTimeField(null=True, blank=True)),
            ],
            options={
                "ordering": ["-created_at"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["job"], condition=Q(revoked_at=None), name="one_working_link_per_job"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="BulkRefund",
            fields=[
                ("id", models.UUIDField(primary_key=True, default=uuid4, editable=False, serialize=False)),
                ("actor", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="by")),
                ("reason", models.CharField(max_length=200, help_text="The people it is about read it.")),
                ("node", models.ForeignKey("generation.gpunode", null=True, on_delete=models.PROTECT, related_name="+", help_text="Whose clips they are.")),
                ("since", models.DateTimeField(null=True, verbose_name="from")),
                ("until", models.DateTimeField(null=True)),
                ("jobs", models.PositiveIntegerField(verbose_name="videos", help_text="As decided.")),
                ("credits", models.PositiveBigIntegerField(help_text="As decided.")),
                ("state", models.CharField(max_length=10, choices=[("running", "Running"), ("done", "Done")], default="running")),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="decided")),
                ("moved_at", models.DateTimeField(db_default=Now(), help_text="When it last got on.")),
                ("finished_at", models.DateTimeField(null=True, verbose_name="finished")),
            ],
            options={
                "ordering": ["-created_at"],
                "default_permissions": ("view",),
                "permissions": [
                    ("refund_job", "Can refund videos, up to REFUND_LIMIT_CREDITS a day"),
                    ("refund_any_amount", "Can refund beyond REFUND_LIMIT_CREDITS"),
                    ("cancel_job", "Can cancel what is being made"),
                    ("retry_job", "Can have a failed video made again"),
                    ("move_job", "Can move what is being made to another node"),
                    ("remove_video", "Can remove videos and settle reports"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(finished_at=None, state="running")
                        | Q(finished_at__isnull=False, state="done"),
                        name="bulk_refund_finished_iff_done",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="BulkRefundItem",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("batch", models.ForeignKey("generation.bulkrefund", on_delete=models.PROTECT, related_name="items")),
                ("job", models.ForeignKey("generation.generationjob", on_delete=models.PROTECT, related_name="+")),
                ("state", models.CharField(max_length=12, choices=[("waiting", "Waiting"), ("refunded", "Refunded"), ("passed_over", "Passed over"), ("failed", "Failed")], default="waiting")),
                ("tries", models.PositiveSmallIntegerField(default=0, help_text="How often it raised an error.")),
                ("note", models.CharField(max_length=200, blank=True)),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=["batch", "job"], name="one_refund_of_a_job_per_bulk_refund"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DailyStats",
            fields=[
                ("day", models.DateField(primary_key=True, serialize=False)),
                ("completed", models.PositiveIntegerField(default=0)),
                ("failed", models.PositiveIntegerField(default=0)),
                ("canceled", models.PositiveIntegerField(default=0)),
                ("people", models.PositiveIntegerField(default=0, help_text="Who asked for a video on that day.")),
                ("people_in_month", models.PositiveIntegerField(null=True, help_text="The same for the 30 days that end with it; known of days that were once the latest.")),
                ("granted", models.BigIntegerField(default=0)),
                ("bought", models.BigIntegerField(default=0)),
                ("captured", models.BigIntegerField(default=0)),
                ("refunded", models.BigIntegerField(default=0)),
                ("discounts", models.BigIntegerField(default=0)),
                ("times", models.JSONField(default=dict)),
                ("nodes", models.JSONField(null=True, help_text="Empty: not added up yet.")),
            ],
            options={
                "verbose_name_plural": "daily stats",
                "ordering": ["-day"],
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="CanaryRun",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("node", models.ForeignKey("generation.gpunode", on_delete=models.CASCADE, related_name="canary_runs")),
                ("kind", models.CharField(max_length=10, choices=[("test", "Test"), ("canary", "Canary")])),
                ("asked_by", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")),
                ("began_at", models.DateTimeField(db_default=Now(), editable=False)),
                ("ended_at", models.DateTimeField(null=True)),
                ("passed", models.BooleanField(null=True, help_text="Empty: it is still going on.")),
                ("steps", models.JSONField(default=list, help_text="name, state and words of each step.")),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": (),
                "indexes": [models.Index(fields=["node", "-id"], name="canary_runs_of_node")],
            },
        ),
        migrations.CreateModel(
            name="BlockedPrompt",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("kind", models.CharField(max_length=10, choices=[("words", "Words, as they stand"), ("pattern", "Pattern (RE2)")], default="words")),
                ("text", models.CharField(max_length=500, unique=True)),
                ("explanation", models.CharField(max_length=200, blank=True, help_text="The reason, as the user reads it. Empty: it is against the rules.")),
                ("enabled", models.BooleanField(default=True)),
            ],
            options={
                "verbose_name": "content rule",
                "ordering": ["kind", "text"],
            },
        ),
        migrations.CreateModel(
            name="Report",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("job", models.ForeignKey("generation.generationjob", on_delete=models.PROTECT, related_name="reports")),
                ("about", models.CharField(max_length=10, choices=[("sexual", "Sexual content"), ("violence", "Violence or hate"), ("person", "It shows a real person"), ("other", "Something else")])),
                ("words", models.CharField(max_length=1000, blank=True, verbose_name="what they wrote")),
                ("address", models.CharField(max_length=45, verbose_name="IP address", help_text="The IP address it came from.")),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="reported")),
                ("outcome", models.CharField(max_length=10, choices=[("removed", "Video removed"), ("dismissed", "Dismissed")], blank=True)),
                ("settled_at", models.DateTimeField(null=True, verbose_name="settled")),
                ("settled_by", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+", verbose_name="settled by")),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": ("view",),
                "constraints": [
                    models.UniqueConstraint(
                        fields=["job", "address"], condition=Q(outcome=""), name="one_open_report_per_address"
                    )
                ],
            },
        ),
    ]
