"""Videos that change hands, because two accounts turn out to be one person, or one account to be two."""

from django.db import transaction

from accounts.models import CreditTransaction, User
from generation.models import GenerationJob


def is_live(*users: User) -> bool:
    """Whether anything is being made for one of them. Certain while their wallets are locked."""
    return GenerationJob.objects.filter(user__in=users, state__in=GenerationJob.LIVE).exists()


def lock_videos(*, of: User) -> None:
    """Before the wallets: everybody locks jobs first."""
    list(
        GenerationJob.objects.select_for_update(no_key=True).filter(user=of).order_by("pk").values_list("pk")
    )


@transaction.atomic
def hand_over(*, source: User, target: User) -> int:
    """All videos of `source` are the target's from here on; how many there were."""
    jobs = GenerationJob.objects.filter(user=source)
    theirs = GenerationJob.objects.filter(user=target, idempotency_key__isnull=False)
    # A key that both used names one job only: the target's, whose programs go on.
    jobs.filter(idempotency_key__in=theirs.values("idempotency_key")).update(idempotency_key=None)
    return jobs.update(user=target)


@transaction.atomic
def give_back(*, source: User, target: User) -> int:
    """The videos that `source` paid for are theirs again. Every job has its hold on the wallet it was made from."""
    holds = CreditTransaction.objects.filter(
        kind=CreditTransaction.Kind.RESERVE, account__user=source, reference__isnull=False
    )
    return GenerationJob.objects.filter(user=target, pk__in=holds.values("reference")).update(user=source)
