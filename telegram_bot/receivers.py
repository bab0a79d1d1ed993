"""A job that ends makes its delivery due in the same transaction, in whichever process it ends."""

from typing import Any

from django.dispatch import receiver
from django.utils import timezone

from generation.models import GenerationJob
from generation.signals import job_finished
from telegram_bot.models import JobMessage


@receiver(job_finished, dispatch_uid="telegram_bot.make_delivery_due")
def make_delivery_due(job: GenerationJob, **_: Any) -> None:
    JobMessage.objects.filter(job=job, state=JobMessage.State.PENDING).update(next_attempt_at=timezone.now())
