"""Forms of the account's pages."""

from typing import Any

from allauth.mfa.webauthn.forms import AddWebAuthnForm
from django import forms
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from accounts.models import ApiKey, User


class ApiKeyForm(forms.Form):
    name = forms.CharField(
        max_length=ApiKey._meta.get_field("name").max_length,
        label=_("What is it for?"),
        widget=forms.TextInput(attrs={"placeholder": _("laptop, cron job…"), "autocomplete": "off"}),
        error_messages={"required": _("Please name the key, so that you know later which one to revoke.")},
    )
    # The new key's id, drawn when the form is shown: a form that is sent twice makes one key.
    key_id = forms.UUIDField(required=False, widget=forms.HiddenInput(attrs={"autocomplete": "off"}))


class PasskeyForm(AddWebAuthnForm):
    """Adds a passkey, or a mere second step when the box is cleared."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["passwordless"]
        field.initial = True
        field.label = _("Sign in with it instead of the password")
        field.help_text = _("Otherwise it is asked for after the password.")


class CloseAccountForm(forms.Form):
    """Asks for the password, or for the user name where there is none (an account made in Telegram)."""

    proof = forms.CharField(max_length=200, strip=False)

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._user = user
        field = self.fields["proof"]
        if user.has_usable_password():
            field.label = _("Your password")
            field.widget = forms.PasswordInput(attrs={"autocomplete": "current-password"})
        else:
            field.label = format_lazy(_("Type your user name, {name}, to confirm"), name=user.username)
            field.widget.attrs["autocomplete"] = "off"

    def clean_proof(self) -> str:
        proof: str = self.cleaned_data["proof"]
        if self._user.has_usable_password():
            if not self._user.check_password(proof):
                raise forms.ValidationError(_("That is not your password."))
        elif proof.strip() != self._user.username:
            raise forms.ValidationError(_("That is not your user name."))
        return proof
