"""Accounts on Telegram, the inbox and the outbox, links and payments."""

from uuid import uuid4

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import migrations, models
from django.db.models import Q
from django.db.models.functions import Now


class Migration(migrations.Migration):
    initial = True
    dependencies = [
        ("accounts", "0001_initial"),
        ("generation", "0001_initial"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.CreateModel(
            name="TelegramAccount",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("telegram_id", models.BigIntegerField(unique=True, verbose_name="Telegram id")),
                ("user", models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="telegram_account")),
                ("username", models.CharField(max_length=64, blank=True, verbose_name="name on Telegram")),
                ("first_name", models.CharField(max_length=128, blank=True, verbose_name="first name")),
                ("language_code", models.CharField(max_length=16, blank=True, verbose_name="language")),
                ("preset", models.ForeignKey("generation.preset", null=True, blank=True, on_delete=models.SET_NULL, related_name="+", help_text="The preset of this user's videos. Empty: the default one.")),
                ("blocked_at", models.DateTimeField(null=True, blank=True, verbose_name="blocked the bot", help_text="They blocked the bot, without a word since.")),
                ("former_user", models.OneToOneField(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="former_telegram_account", verbose_name="user before joining", help_text="Who they were until they were joined with an account on the web, and are again when parted.")),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="first seen")),
                ("last_seen_at", models.DateTimeField(null=True, blank=True, verbose_name="last seen")),
            ],
            options={
                "verbose_name": "Telegram account",
                "ordering": ["-created_at"],
            },
        ),
        migrations.CreateModel(
            name="TelegramUpdate",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("bot_id", models.BigIntegerField(verbose_name="bot")),
                ("update_id", models.BigIntegerField(verbose_name="number")),
                ("raw", models.TextField(verbose_name="as it came")),
                ("state", models.CharField(max_length=10, choices=[("received", "Received"), ("done", "Done"), ("failed", "Failed")], default="received")),
                ("error", models.CharField(max_length=500, blank=True)),
                ("received_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="received")),
                ("settled_at", models.DateTimeField(null=True, verbose_name="settled")),
            ],
            options={
                "verbose_name": "update",
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["bot_id", "update_id"], name="one_row_per_telegram_update"
                    )
                ],
                "indexes": [
                    models.Index(
                        fields=["bot_id", "update_id"], condition=Q(state="received"), name="telegram_inbox"
                    ),
                    models.Index(fields=["settled_at"], name="telegram_update_age"),
                ],
            },
        ),
        migrations.CreateModel(
            name="JobMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("attempts", models.PositiveIntegerField(default=0, help_text="Tries that failed.")),
                ("next_attempt_at", models.DateTimeField(null=True, blank=True, verbose_name="next attempt")),
                ("error", models.CharField(max_length=500, blank=True)),
                ("job", models.OneToOneField("generation.generationjob", on_delete=models.CASCADE, related_name="telegram_message", verbose_name="video")),
                ("bot_id", models.BigIntegerField(verbose_name="bot", help_text="The bot that was asked; another one may not write to this chat.")),
                ("chat_id", models.BigIntegerField(verbose_name="chat")),
                ("thread_id", models.BigIntegerField(null=True, blank=True, verbose_name="topic", help_text="The topic that it was asked for in.")),
                ("reply_to", models.BigIntegerField(null=True, blank=True, verbose_name="message that asked", help_text="The message that asked for it.")),
                ("status_message_id", models.BigIntegerField(null=True, blank=True, verbose_name="status message")),
                ("last_text", models.TextField(blank=True, verbose_name="what it shows", help_text="What the status message shows.")),
                ("state", models.CharField(max_length=10, choices=[("pending", "Pending"), ("sent", "Sent"), ("failed", "Failed")], default="pending")),
                ("upload_began_at", models.DateTimeField(null=True, blank=True, verbose_name="upload began", help_text="Set when the result begins to be sent: it may have arrived.")),
                ("file_id", models.CharField(max_length=250, blank=True, verbose_name="file at Telegram", help_text="Sends the same file again without an upload.")),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="asked for")),
                ("sent_at", models.DateTimeField(null=True, blank=True, verbose_name="sent")),
            ],
            options={
                "verbose_name": "delivery",
                "verbose_name_plural": "deliveries",
                "ordering": ["-id"],
                "indexes": [
                    models.Index(
                        fields=["next_attempt_at"],
                        condition=Q(next_attempt_at__isnull=False),
                        name="telegram_outbox",
                    ),
                    models.Index(fields=["job"], condition=Q(state="failed"), name="telegram_undelivered"),
                ],
            },
        ),
        migrations.CreateModel(
            name="MessageRef",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("job", models.ForeignKey("generation.generationjob", on_delete=models.CASCADE, related_name="telegram_posts")),
                ("bot_id", models.BigIntegerField()),
                ("chat_id", models.BigIntegerField()),
                ("message_id", models.BigIntegerField()),
                ("asks_for_prompt", models.BooleanField(default=False, help_text="A reply to it is the changed prompt of a remix.")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ["-id"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["bot_id", "chat_id", "message_id"], name="one_job_per_telegram_post"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="BotTraffic",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("what", models.CharField(max_length=40)),
                ("outcome", models.CharField(max_length=20)),
                ("number", models.BigIntegerField(default=0)),
                ("seconds", models.FloatField(default=0.0, help_text="Of all of them together.")),
            ],
            options={
                "verbose_name_plural": "bot traffic",
                "constraints": [
                    models.UniqueConstraint(fields=["what", "outcome"], name="one_row_per_bot_traffic")
                ],
            },
        ),
        migrations.CreateModel(
            name="KnownBot",
            fields=[
                ("bot_id", models.BigIntegerField(primary_key=True, serialize=False)),
                ("username", models.CharField(max_length=64)),
                ("seen_at", models.DateTimeField(auto_now=True)),
            ],
            options={
                "verbose_name": "bot",
            },
        ),
        migrations.CreateModel(
            name="LinkRequest",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("digest", models.CharField(max_length=64, unique=True, editable=False)),
                ("began_on", models.CharField(max_length=10, choices=[("web", "Web"), ("telegram", "Telegram")], verbose_name="began")),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="link_requests")),
                ("account", models.ForeignKey("telegram_bot.telegramaccount", null=True, blank=True, on_delete=models.CASCADE, related_name="link_requests", verbose_name="on Telegram")),
                ("state", models.CharField(max_length=10, choices=[("open", "Open"), ("joined", "Joined"), ("declined", "Declined")], default="open")),
                ("answered_at", models.DateTimeField(null=True, blank=True, verbose_name="answered", help_text="When the side that did not begin it agreed.")),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="asked")),
                ("expires_at", models.DateTimeField(verbose_name="void after")),
                ("settled_at", models.DateTimeField(null=True, blank=True, verbose_name="settled")),
                ("merge", models.OneToOneField("accounts.walletmerge", null=True, blank=True, on_delete=models.PROTECT, related_name="link_request")),
            ],
            options={
                "verbose_name": "request to join",
                "verbose_name_plural": "requests to join",
                "ordering": ["-id"],
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(began_on="web", user__isnull=False)
                        | Q(account__isnull=False, began_on="telegram"),
                        name="link_request_has_initiator",
                    ),
                    models.CheckConstraint(
                        condition=~Q(state="joined")
                        | Q(account__isnull=False, answered_at__isnull=False, user__isnull=False),
                        name="joined_by_both_sides",
                    ),
                ],
                "indexes": [models.Index(fields=["expires_at"], name="telegram_link_age")],
            },
        ),
        migrations.CreateModel(
            name="LoginLink",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("digest", models.CharField(max_length=64, unique=True, editable=False)),
                ("account", models.ForeignKey("telegram_bot.telegramaccount", on_delete=models.CASCADE, related_name="login_links")),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="login_links")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("expires_at", models.DateTimeField()),
                ("used_at", models.DateTimeField(null=True, blank=True)),
            ],
            options={
                "ordering": ["-id"],
                "indexes": [models.Index(fields=["expires_at"], name="telegram_login_age")],
            },
        ),
        migrations.CreateModel(
            name="ChatNotice",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("attempts", models.PositiveIntegerField(default=0, help_text="Tries that failed.")),
                ("error", models.CharField(max_length=500, blank=True)),
                ("bot_id", models.BigIntegerField()),
                ("chat_id", models.BigIntegerField(verbose_name="chat")),
                ("text", models.TextField(help_text="In Telegram's HTML.")),
                ("keyboard", models.JSONField(default=list, blank=True, help_text="Rows of buttons as the Bot API has them.")),
                ("state", models.CharField(max_length=10, choices=[("pending", "Pending"), ("sent", "Sent"), ("failed", "Failed")], default="pending")),
                ("next_attempt_at", models.DateTimeField(db_default=Now(), verbose_name="next attempt")),
                ("created_at", models.DateTimeField(db_default=Now(), editable=False, verbose_name="made")),
                ("handed_over_at", models.DateTimeField(null=True, blank=True, verbose_name="handed over", help_text="Set when the request is on its way to Telegram, before the answer.")),
                ("sent_at", models.DateTimeField(null=True, blank=True, verbose_name="sent")),
            ],
            options={
                "verbose_name": "notice",
                "ordering": ["-id"],
                "indexes": [
                    models.Index(
                        fields=["bot_id", "next_attempt_at"],
                        condition=Q(state="pending"),
                        name="telegram_notices",
                    ),
                    models.Index(
                        fields=["chat_id"], condition=Q(state="failed"), name="telegram_undelivered_notices"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="CreditPack",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False, auto_created=True, verbose_name="ID")),
                ("name", models.CharField(max_length=32, help_text="What the invoice is headed with, such as “Starter”.")),
                ("credits", models.PositiveIntegerField(validators=[MinValueValidator(1), MaxValueValidator(10000000)])),
                ("stars", models.PositiveIntegerField(validators=[MinValueValidator(1), MaxValueValidator(10000)], verbose_name="price in Stars", help_text="The price in Telegram Stars.")),
                ("for_sale", models.BooleanField(default=False, help_text="Shown by /buy, and accepted at the checkout.")),
                ("position", models.PositiveSmallIntegerField(default=0, help_text="Lower ones come first.")),
            ],
            options={
                "ordering": ["position", "stars"],
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(credits__gte=1, credits__lte=10000000, stars__gte=1, stars__lte=10000),
                        name="pack_within_limits",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="StarInvoice",
            fields=[
                ("id", models.UUIDField(primary_key=True, default=uuid4, editable=False, serialize=False)),
                ("account", models.ForeignKey("telegram_bot.telegramaccount", null=True, on_delete=models.SET_NULL, related_name="invoices")),
                ("pack", models.ForeignKey("telegram_bot.creditpack", null=True, on_delete=models.SET_NULL, related_name="invoices")),
                ("credits", models.PositiveIntegerField()),
                ("stars", models.PositiveIntegerField()),
                ("asked_by", models.CharField(max_length=100, unique=True, help_text="The update that asked for it: handled again, it is the same one.")),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ["-created_at"],
            },
        ),
        migrations.CreateModel(
            name="StarPayment",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("bot_id", models.BigIntegerField(verbose_name="bot", help_text="The bot that was paid; only it can refund.")),
                ("charge_id", models.CharField(max_length=200, unique=True, verbose_name="receipt", help_text="telegram_payment_charge_id")),
                ("telegram_id", models.BigIntegerField(verbose_name="Telegram id", help_text="Who paid, and gets the Stars back.")),
                ("user", models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="star_payments")),
                ("invoice", models.ForeignKey("telegram_bot.starinvoice", null=True, on_delete=models.PROTECT, related_name="payments")),
                ("payload", models.CharField(max_length=128)),
                ("stars", models.PositiveIntegerField(verbose_name="Stars")),
                ("purchase", models.OneToOneField("accounts.credittransaction", null=True, on_delete=models.PROTECT, related_name="star_payment", verbose_name="credited")),
                ("state", models.CharField(max_length=10, choices=[("paid", "Paid"), ("refunding", "Refunding"), ("refunded", "Refunded"), ("unknown", "Paid for something unknown")], default="paid")),
                ("paid_at", models.DateTimeField(auto_now_add=True, verbose_name="paid")),
                ("refund", models.OneToOneField("accounts.credittransaction", null=True, on_delete=models.PROTECT, related_name="+", verbose_name="taken back by", help_text="The entry that took the credits back, while it stands.")),
                ("refund_reason", models.CharField(max_length=200, blank=True, verbose_name="reason of the refund")),
                ("refund_by", models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+", verbose_name="refunded by")),
                ("refunded_at", models.DateTimeField(null=True, verbose_name="refunded")),
                ("attempts", models.PositiveIntegerField(default=0, help_text="Questions to Telegram without a verdict.")),
                ("next_attempt_at", models.DateTimeField(null=True, verbose_name="next attempt")),
                ("error", models.CharField(max_length=500, blank=True, help_text="What Telegram said last about the refund.")),
            ],
            options={
                "verbose_name": "Star payment",
                "ordering": ["-id"],
                "default_permissions": ("view",),
                "permissions": [("refund_starpayment", "Can give Stars back")],
                "constraints": [
                    models.CheckConstraint(condition=~Q(charge_id=""), name="payment_has_a_charge"),
                    models.CheckConstraint(
                        condition=Q(purchase=None, state="unknown")
                        | Q(purchase__isnull=False, state="paid")
                        | Q(state__in=["refunding", "refunded"]),
                        name="payment_is_credited_or_unknown",
                    ),
                    models.CheckConstraint(
                        condition=Q(refund=None, state__in=["paid", "unknown"])
                        | Q(purchase=None, refund=None, state__in=["refunding", "refunded"])
                        | Q(
                            purchase__isnull=False, refund__isnull=False, state__in=["refunding", "refunded"]
                        ),
                        name="payment_refunded_with_its_credits",
                    ),
                ],
                "indexes": [
                    models.Index(
                        fields=["bot_id", "next_attempt_at"],
                        condition=Q(state="refunding"),
                        name="star_refunds_due",
                    )
                ],
            },
        ),
    ]
