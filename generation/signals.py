"""What other apps may listen to, so that `generation` need not know them."""

from django.dispatch import Signal

# Sent with `job` inside the transaction that ends a job: a receiver that only inserts rows commits or falls with it.
job_finished = Signal()

# Sent with `original` and `job` when staff have a failed job made again, inside the transaction that queues it.
job_retried = Signal()
