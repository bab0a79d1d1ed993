"""Signals of accounts. `accounts` knows nothing of its receivers in the other apps."""

from django.dispatch import Signal

# An account is being closed. Sent inside the transaction, `user` (a User) as it was before: remove what names them and
# needs no lock on a job.
account_closing = Signal()

# The same, after the commit: for what takes locks or time. A crash may lose it, so what it does is repeated later.
account_closed = Signal()

# Answered with an `accounts.privacy.Part`: what an app holds about `user` (a User).
personal_data = Signal()
