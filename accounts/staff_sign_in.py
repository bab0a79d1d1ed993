"""How staff get into the admin."""

from allauth.mfa.adapter import get_adapter
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import ValidationError
from unfold.forms import AuthenticationForm


class StaffSignInForm(AuthenticationForm):
    """The admin's own form asks for a password alone, which must not lead around a second step."""

    def confirm_login_allowed(self, user: AbstractBaseUser) -> None:
        super().confirm_login_allowed(user)
        if get_adapter().is_mfa_enabled(user):
            raise ValidationError(
                "Your account has two-step sign-in. Please sign in on the site first, then come back here."
            )
