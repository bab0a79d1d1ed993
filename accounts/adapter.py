"""What allauth asks of this site."""

import logging
from smtplib import SMTPException
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from django.contrib import messages
from django.utils.translation import gettext as _

logger = logging.getLogger(__name__)


class AccountAdapter(DefaultAccountAdapter):
    """allauth's own answers, but for addresses that are none and for mail that cannot be sent."""

    def is_safe_url(self, url: str | None) -> bool:
        """Whether somebody may be sent there after signing in; `http://[` is no address and never safe."""
        try:
            return bool(super().is_safe_url(url))
        except ValueError:
            return False

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Signing up and changing a password go on without the mail; whoever waits for it is told."""
        try:
            super().send_mail(template_prefix, email, context)
        except (SMTPException, OSError):
            logger.exception("a mail (%s) could not be sent", template_prefix)
            words = _("An email to %(address)s could not be sent just now. Please ask for it again later.")
            messages.error(self.request, words % {"address": email})
