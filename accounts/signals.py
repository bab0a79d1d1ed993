"""What other apps hear of accounts. `accounts` knows nothing of them; they come here."""

from django.dispatch import Signal

# Somebody left for good. Sent inside the transaction, `user` (a User) as it was before: remove here what names them and
# needs no lock on a job.
account_closing = Signal()

# The same, after the commit: for what takes locks or time. May be lost in a crash, so somebody must look again later.
account_closed = Signal()

# Answered with a `accounts.export.Part`: what an app holds about `user` (a User).
personal_data = Signal()
