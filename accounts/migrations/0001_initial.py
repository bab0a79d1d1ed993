"""Users, wallets, the ledger, API keys, and the records of staff. The guards are in 0002."""

from decimal import Decimal
from uuid import uuid4

import django.utils.timezone
from django.conf import settings
from django.contrib.auth.models import UserManager
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.serializers.json import DjangoJSONEncoder
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import migrations, models
from django.db.models import F, Q
from django.db.models.functions import Lower, Now


class Migration(migrations.Migration):
    initial = True
    dependencies = [("auth", "0012_alter_user_first_name_max_length")]
    operations = [
        migrations.CreateModel(
            name="User",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("password", models.CharField(max_length=128, verbose_name="password")),
                ("last_login", models.DateTimeField(null=True, blank=True, verbose_name="last login")),
                ("is_superuser", models.BooleanField(default=False, verbose_name="superuser status", help_text="Designates that this user has all permissions without explicitly assigning them.")),
                ("username", models.CharField(max_length=150, unique=True, validators=[UnicodeUsernameValidator()], error_messages={"unique": "A user with that username already exists."}, verbose_name="username", help_text="Required. 150 characters or fewer. Letters, digits and @/./+/-/_ only.")),
                ("first_name", models.CharField(max_length=150, blank=True, verbose_name="first name")),
                ("last_name", models.CharField(max_length=150, blank=True, verbose_name="last name")),
                ("email", models.EmailField(max_length=254, blank=True, verbose_name="email address")),
                ("is_staff", models.BooleanField(default=False, verbose_name="staff status", help_text="Designates whether the user can log into this admin site.")),
                ("is_active", models.BooleanField(default=True, verbose_name="active", help_text="Designates whether this user should be treated as active. Unselect this instead of deleting accounts.")),
                ("date_joined", models.DateTimeField(default=django.utils.timezone.now, verbose_name="date joined")),
                ("language", models.CharField(max_length=8, choices=[("en", "English"), ("ru", "Русский")], blank=True, help_text="Empty: the one that the browser or Telegram asks for.")),
                ("mail_when_ready", models.BooleanField(default=False, help_text="A mail when a video that was ordered on the site is ready, or has failed.")),
                ("anonymised_at", models.DateTimeField(null=True, blank=True, editable=False, verbose_name="closed")),
                ("groups", models.ManyToManyField("auth.group", blank=True, related_name="user_set", related_query_name="user", verbose_name="groups", help_text="The groups this user belongs to. A user will get all permissions granted to each of their groups.")),
                ("user_permissions", models.ManyToManyField("auth.permission", blank=True, related_name="user_set", related_query_name="user", verbose_name="user permissions", help_text="Specific permissions for this user.")),
            ],
            options={
                "verbose_name": "user",
                "verbose_name_plural": "users",
                "constraints": [models.UniqueConstraint(Lower("username"), name="username_in_any_case", violation_error_message="This name is taken.")],
            },
            managers=[("objects", UserManager())],
        ),
        migrations.CreateModel(
            name="CreditAccount",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("user", models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="credit_account")),
                ("posted", models.BigIntegerField(default=0, editable=False)),
                ("held", models.BigIntegerField(default=0, editable=False)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(condition=Q(posted__gte=0), name="account_posted_not_negative"),
                    models.CheckConstraint(
                        condition=Q(held__gte=0, held__lte=F("posted")), name="account_held_within_posted"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="CreditTransaction",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("account", models.ForeignKey("accounts.creditaccount", on_delete=models.PROTECT, related_name="transactions")),
                ("kind", models.CharField(max_length=16, choices=[("grant", "Grant"), ("purchase", "Purchase"), ("purchase_refund", "Purchase refund"), ("reserve", "Reserve"), ("capture", "Capture"), ("release", "Release"), ("refund", "Refund"), ("adjust", "Adjust"), ("transfer", "Transfer")])),
                ("posted_delta", models.BigIntegerField(verbose_name="change of credits owned", help_text="Change of the credits owned.")),
                ("held_delta", models.BigIntegerField(verbose_name="change of credits held", help_text="Change of the credits promised to live jobs.")),
                ("posted_after", models.BigIntegerField(editable=False, verbose_name="owned after it", help_text="Filled in by the database.")),
                ("held_after", models.BigIntegerField(editable=False, verbose_name="held after it", help_text="Filled in by the database.")),
                ("reference", models.UUIDField(null=True, blank=True, help_text="The job this entry is about, opaque to the ledger; of a transfer, the pair it belongs to.")),
                ("resolves", models.ForeignKey("accounts.credittransaction", null=True, blank=True, on_delete=models.PROTECT, related_name="resolutions", help_text="The hold of a capture or release, the capture of a refund, the purchase of a purchase refund, the purchase refund that an adjust takes back.")),
                ("counterpart", models.ForeignKey("accounts.creditaccount", null=True, blank=True, on_delete=models.PROTECT, related_name="+", verbose_name="other wallet", help_text="The other side of a transfer.")),
                ("external_id", models.CharField(max_length=200, null=True, blank=True, verbose_name="id of the payment", help_text="The payment's or import's own id: once for each kind.")),
                ("actor", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+", help_text="Who did it; empty: the service itself.")),
                ("reason", models.CharField(max_length=500)),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="time")),
            ],
            options={
                "verbose_name": "transaction",
                "ordering": ["-id"],
                "constraints": [
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
                    models.CheckConstraint(
                        condition=(
                            Q(kind="grant", posted_delta__gt=0)
                            & Q(held_delta=0)
                            & Q(counterpart=None, resolves=None)
                        )
                        | (
                            Q(external_id__isnull=False, kind="purchase", posted_delta__gt=0)
                            & Q(held_delta=0)
                            & Q(counterpart=None, resolves=None)
                        )
                        | (
                            Q(kind="purchase_refund", posted_delta__lt=0)
                            & Q(held_delta=0)
                            & Q(counterpart=None, resolves__isnull=False)
                        )
                        | (
                            Q(held_delta__gte=0, kind="reserve", posted_delta=0, reference__isnull=False)
                            & Q(counterpart=None, resolves=None)
                        )
                        | (
                            Q(
                                held_delta__lte=F("posted_delta"),
                                kind="capture",
                                posted_delta__lte=0,
                                reference__isnull=False,
                            )
                            & Q(counterpart=None, resolves__isnull=False)
                        )
                        | (
                            Q(held_delta__lte=0, kind="release", posted_delta=0, reference__isnull=False)
                            & Q(counterpart=None, resolves__isnull=False)
                        )
                        | (
                            Q(kind="refund", posted_delta__gt=0)
                            & Q(held_delta=0, reference__isnull=False)
                            & Q(counterpart=None, resolves__isnull=False)
                        )
                        | (
                            Q(kind="adjust")
                            & ~Q(posted_delta=0)
                            & Q(held_delta=0)
                            & Q(counterpart=None, resolves=None)
                        )
                        | (
                            Q(kind="adjust", posted_delta__gt=0)
                            & Q(held_delta=0)
                            & Q(counterpart=None, resolves__isnull=False)
                        )
                        | (
                            Q(counterpart__isnull=False, kind="transfer", resolves=None)
                            & ~Q(counterpart=F("account"))
                            & ~Q(posted_delta=0)
                            & Q(held_delta=0, reference__isnull=False)
                        ),
                        name="transaction_shape_of_its_kind",
                    ),
                ],
                "indexes": [
                    models.Index(fields=["account", "-id"], name="transaction_history"),
                    models.Index(fields=["kind", "-id"], name="transaction_by_kind"),
                    models.Index(fields=["created_at"], name="transaction_by_time"),
                    models.Index(
                        fields=["created_at"],
                        include=["reference"],
                        condition=Q(kind="refund"),
                        name="transaction_refunds",
                    ),
                    models.Index(
                        fields=["-id"], condition=Q(actor__isnull=False), name="transaction_by_hand"
                    ),
                    models.Index(
                        fields=["reference"], condition=Q(reference__isnull=False), name="transaction_of_job"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="WalletMerge",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("source", models.ForeignKey("accounts.creditaccount", on_delete=models.PROTECT, related_name="merges_away", verbose_name="from")),
                ("target", models.ForeignKey("accounts.creditaccount", on_delete=models.PROTECT, related_name="merges_in", verbose_name="into")),
                ("after_entry", models.BigIntegerField(verbose_name="newest transaction before it", help_text="The newest entry of the ledger when it was made.")),
                ("moved", models.PositiveBigIntegerField(verbose_name="credits moved", help_text="Credits that changed wallets.")),
                ("stayed", models.PositiveBigIntegerField(verbose_name="credits that stayed", help_text="Unspent sign-up credits that stayed behind: each user has them once.")),
                ("brought_welcome", models.BooleanField(verbose_name="with the sign-up credits", help_text="Whether the sign-up credits were among those moved.")),
                ("actor", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="by")),
                ("reason", models.CharField(max_length=500)),
                ("made_at", models.DateTimeField(auto_now_add=True, verbose_name="joined")),
                ("undone_at", models.DateTimeField(null=True, blank=True, editable=False, verbose_name="undone")),
                ("undone_by", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+")),
                ("undone_reason", models.CharField(max_length=500, blank=True, verbose_name="reason of the undoing")),
            ],
            options={
                "verbose_name": "joined account",
                "ordering": ["-id"],
                "default_permissions": ("view",),
                "permissions": [("undo_walletmerge", "Can undo the merge of two accounts")],
                "constraints": [
                    models.CheckConstraint(condition=~Q(source=F("target")), name="merge_of_two_wallets"),
                    models.CheckConstraint(
                        condition=Q(undone_at=None, undone_by=None)
                        | Q(undone_at__isnull=False, undone_by__isnull=False),
                        name="merge_undone_has_actor",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                ("id", models.UUIDField(primary_key=True, default=uuid4, editable=False, serialize=False)),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_keys")),
                ("name", models.CharField(max_length=100, default="default")),
                ("prefix", models.CharField(max_length=12, editable=False, verbose_name="begins with", help_text="The first characters, to tell keys apart.")),
                ("digest", models.CharField(max_length=64, unique=True, editable=False)),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="made")),
                ("last_used_at", models.DateTimeField(null=True, blank=True, editable=False, verbose_name="last used")),
                ("revoked_at", models.DateTimeField(null=True, blank=True, verbose_name="revoked")),
            ],
            options={
                "verbose_name": "API key",
                "ordering": ["-created_at"],
            },
        ),
        migrations.CreateModel(
            name="AuditEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="time")),
                ("actor", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+", verbose_name="by")),
                ("approved_by", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+")),
                ("address", models.CharField(max_length=45, verbose_name="IP address", help_text="The IP address it was done from.")),
                ("act", models.CharField(max_length=40, verbose_name="what", help_text="What was done, as `user.ban` or `job.refund`.")),
                ("subject_kind", models.CharField(max_length=60, help_text="`app.model` of what it was done to.")),
                ("subject_id", models.CharField(max_length=64)),
                ("subject_name", models.CharField(max_length=200)),
                ("reason", models.CharField(max_length=500, blank=True)),
                ("before", models.JSONField(default=dict)),
                ("after", models.JSONField(default=dict)),
                ("credits", models.BigIntegerField(default=0, help_text="Credits that it moved to people; less than 0: from them.")),
                ("once", models.UUIDField(null=True, unique=True, help_text="The form it was sent with: the same form does nothing twice.")),
            ],
            options={
                "verbose_name": "entry of the audit log",
                "verbose_name_plural": "entries of the audit log",
                "ordering": ["-id"],
                "default_permissions": ("view",),
                "permissions": [
                    ("grant_credits", "Can grant credits"),
                    ("adjust_credits", "Can adjust balances up and down"),
                    ("export_transactions", "Can export transactions"),
                    ("limit_user", "Can set the limits of a person"),
                    ("set_price_factor", "Can set the price factor of a person"),
                    ("ban_user", "Can ban people and let them back in"),
                    ("manage_staff", "Can make staff, give roles, and change what staff sign in with"),
                ],
                "indexes": [
                    models.Index(fields=["subject_kind", "subject_id", "-id"], name="audit_event_of_subject"),
                    models.Index(fields=["actor", "act", "at"], name="audit_event_of_actor"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Approval",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("actor", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="asked for by")),
                ("act", models.CharField(max_length=40, verbose_name="what")),
                ("summary", models.TextField(verbose_name="in words")),
                ("arguments", models.JSONField(encoder=DjangoJSONEncoder)),
                ("credits", models.BigIntegerField()),
                ("reason", models.CharField(max_length=500)),
                ("permission", models.CharField(max_length=80, help_text="What the other one must be allowed to do.")),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="asked for")),
                ("approved", models.BooleanField(null=True, help_text="Unknown: it waits.")),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="SecurityEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("at", models.DateTimeField(db_default=Now(), db_index=True, editable=False, verbose_name="time")),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+")),
                ("what", models.CharField(max_length=40)),
                ("address", models.CharField(max_length=45, blank=True, db_index=True, verbose_name="IP address")),
                ("agent", models.CharField(max_length=200, blank=True, verbose_name="browser or program")),
                ("detail", models.CharField(max_length=200, blank=True, help_text="The name that was typed, or what was added.")),
            ],
            options={
                "verbose_name": "entry of the security log",
                "verbose_name_plural": "entries of the security log",
                "ordering": ["-id"],
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["user", "-id"], name="security_event_of_user")],
            },
        ),
        migrations.CreateModel(
            name="UserLimits",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("user", models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="limits")),
                ("daily_clips", models.PositiveIntegerField(null=True, blank=True, help_text="Videos in any 24 hours.")),
                ("concurrent_jobs", models.PositiveIntegerField(null=True, blank=True, help_text="Videos that are waiting or being made at the same time.")),
                ("cooldown_seconds", models.PositiveIntegerField(null=True, blank=True, help_text="Between two videos, instead of VIDEO_COOLDOWN_SECONDS.")),
                ("price_factor", models.DecimalField(max_digits=6, decimal_places=3, null=True, blank=True, validators=[MinValueValidator(Decimal("0")), MaxValueValidator(Decimal("100"))], help_text="1 is the usual price, 0.5 half of it, 0 nothing. Rounded up to whole credits.")),
            ],
            options={
                "verbose_name_plural": "user limits",
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(price_factor=None) | Q(price_factor__gte=0),
                        name="price_factor_not_negative",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Ban",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("user", models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="ban")),
                ("reason", models.CharField(max_length=500)),
                ("since", models.DateTimeField(db_default=Now(), editable=False)),
                ("by", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="AuditRun",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="time")),
                ("seconds", models.FloatField()),
                ("accounts", models.PositiveBigIntegerField(verbose_name="wallets")),
                ("entries", models.PositiveBigIntegerField(verbose_name="transactions")),
                ("found", models.PositiveIntegerField(help_text="Discrepancies; 0 is what it should be.")),
                ("discrepancies", models.JSONField(default=list, help_text="As sentences, the first hundred.")),
            ],
            options={
                "verbose_name": "audit of the books",
                "verbose_name_plural": "audits of the books",
                "ordering": ["-id"],
                "default_permissions": ("view",),
                "permissions": [("run_audit", "Can have the books added up")],
            },
        ),
        migrations.CreateModel(
            name="Notice",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="notices")),
                ("kind", models.CharField(max_length=10, choices=[("refund", "Refund"), ("removal", "Removed video")])),
                ("facts", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False)),
                ("seen_at", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": (),
                "indexes": [models.Index(fields=["user"], condition=Q(seen_at=None), name="notice_unseen")],
            },
        ),
        migrations.CreateModel(
            name="RateLimit",
            fields=[
                ("key", models.CharField(max_length=60, primary_key=True, serialize=False)),
                ("free_at", models.DateTimeField(db_index=True)),
            ],
            options={
                "default_permissions": (),
            },
        ),
    ]
