"""API keys that staff take away."""

import uuid

from django.db import transaction

from accounts import api_keys
from accounts.models import ApiKey
from accounts.staff import log
from accounts.staff.clerks import Clerk


@transaction.atomic
def revoke(*, clerk: Clerk, key: ApiKey, reason: str, once: uuid.UUID | None = None) -> None:
    """The key is refused from now on.

    Raises:
        NotPermitted: the clerk may not. DoneBefore: the form was carried out already.
    """
    clerk.must("accounts.change_apikey")
    log.record(clerk=clerk, act="key.revoke", subject=key, reason=reason, once=once)
    api_keys.revoke(key=key)
