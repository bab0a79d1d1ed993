"""Signals for the other apps, so that `generation` need not know them."""

from django.dispatch import Signal

# Sent with `job` inside the transaction that ends a job: a receiver that only inserts rows commits or falls with it.
job_finished = Signal()

# Sent with `original` and `job` inside the transaction by which staff queue a failed job again.
job_retried = Signal()
