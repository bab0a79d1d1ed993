"""Forms of the account's pages."""

import json
from base64 import b64decode
from datetime import timedelta
from typing import Any, cast

from allauth.account.forms import SignupForm
from allauth.mfa.webauthn.forms import AddWebAuthnForm
from altcha.v1 import ChallengeOptions, create_challenge, verify_solution
from django import forms
from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from accounts import limits
from accounts.models import ApiKey, User

PUZZLE_LIFE = timedelta(minutes=20)
# Hashes that a puzzle may take; half of them on average, which is a second of a browser.
PUZZLE_HASHES = 50_000


class SignUpForm(SignupForm):
    """allauth's form, with a puzzle where SIGNUP_PROOF_OF_WORK is on, and an answer to two sign-ups at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if settings.SIGNUP_PROOF_OF_WORK:
            expires = timezone.now() + PUZZLE_LIFE
            options = ChallengeOptions(
                max_number=PUZZLE_HASHES, hmac_key=settings.SECRET_KEY, expires=expires
            )
            puzzle = json.dumps(create_challenge(options).to_dict())
            widget = forms.HiddenInput(attrs={"data-puzzle": puzzle, "autocomplete": "off"})
            self.fields["proof"] = forms.CharField(required=False, widget=widget)

    def clean_proof(self) -> str:
        """Check the solution, which is good once."""
        proof: str = self.cleaned_data["proof"]
        try:
            solved, _why = verify_solution(proof, settings.SECRET_KEY, check_expires=True)
            if solved:
                limits.take("proof", json.loads(b64decode(proof))["salt"])
        # The library trusts the shape of the JSON.
        except (limits.TooOften, ValueError, TypeError, AttributeError):
            solved = False
        if not solved:
            text = _("The check against programs has failed or is too old. Please press Sign up once more.")
            self.add_error(None, text)
        return proof

    def try_save(self, request: HttpRequest) -> tuple[User | None, HttpResponse | None]:
        """Save; where another sign-up has taken the name since it was looked up, ask for another name."""
        try:
            with transaction.atomic():
                return cast("tuple[User | None, HttpResponse | None]", super().try_save(request))
        except IntegrityError:
            messages.error(request, _("That name was taken a moment ago. Please choose another one."))
            return None, redirect(request.get_full_path())


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
    """Asks for the user name, so that it is no slip; who it is the sign-in or the password has shown lately."""

    proof = forms.CharField(max_length=200, widget=forms.TextInput(attrs={"autocomplete": "off"}))

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._user = user
        label = _("Type your user name, {name}, to confirm")
        self.fields["proof"].label = format_lazy(label, name=user.username)

    def clean_proof(self) -> str:
        proof: str = self.cleaned_data["proof"]
        if proof != self._user.username:
            raise forms.ValidationError(_("That is not your user name."))
        return proof
