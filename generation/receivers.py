"""Receivers: a ban cancels live jobs, a closed account is forgotten, a fresh database gets its presets."""

from typing import Any

from django.db.models.signals import post_migrate, post_save
from django.dispatch import receiver
from django.utils.translation import gettext_noop

from accounts.models import User
from accounts.signals import account_closed, personal_data
from generation import mails, privacy
from generation.jobs import lifecycle
from generation.jobs.events import jobs_finished
from generation.models import Preset

QUICK, STANDARD = gettext_noop("Quick"), gettext_noop("Standard")
# cost None: VIDEO_COST
FIRST_PRESETS: tuple[dict[str, Any], ...] = (
    {"name": "quick", "label": QUICK, "num_frames": 16, "num_inference_steps": 20, "is_default": True},
    {"name": "standard", "label": STANDARD, "num_frames": 49, "num_inference_steps": 50, "cost": 250},
)

jobs_finished.connect(mails.expect, dispatch_uid="generation.mail_about_jobs")
account_closed.connect(privacy.forget, dispatch_uid="generation.forget_who_left")
personal_data.connect(privacy.part_of, dispatch_uid="generation.personal_data")


@receiver(post_save, sender=User, dispatch_uid="generation.cancel_jobs_of_banned")
def cancel_jobs_of_banned(instance: User, created: bool, **_: Any) -> None:
    if not created and not instance.is_active:
        lifecycle.cancel_each(jobs=instance.jobs.all(), reason=gettext_noop("The account was closed"))


@receiver(post_migrate, dispatch_uid="generation.first_presets")
def first_presets(sender: Any, using: str = "default", **_: Any) -> None:
    """Make the presets only where there is none: staff may have renamed or removed them."""
    if sender.name != "generation" or Preset.objects.using(using).exists():
        return
    for position, values in enumerate(FIRST_PRESETS):
        Preset.objects.using(using).create(position=position, fps=8, **values)
