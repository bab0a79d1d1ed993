"""What allauth asks of this site."""

from allauth.account.adapter import DefaultAccountAdapter


class AccountAdapter(DefaultAccountAdapter):
    """allauth's own answers, but for addresses that are none."""

    def is_safe_url(self, url: str | None) -> bool:
        """Whether somebody may be sent there after signing in; `http://[` is no address and never safe."""
        try:
            return bool(super().is_safe_url(url))
        except ValueError:
            return False
