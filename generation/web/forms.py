"""What a person types into the composer. The rules are admission's; this parses and puts messages by their field."""

import hashlib
import json
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from accounts.models import User
from generation.errors import GenerationError
from generation.jobs import catalog, submission
from generation.models import GenerationJob


class TextField(forms.Field):
    """Text as typed. Browsers send a line's end as two characters, which their own counters count as one."""

    def to_python(self, value: Any) -> str:
        return str(value or "").replace("\r\n", "\n")


class ComposerForm(forms.Form):
    """`key` is new in every rendered form, so that a second click on the same one makes no second clip."""

    prompt = TextField(required=False)
    preset = TextField(required=False)
    seed = TextField(required=False)
    negative_prompt = TextField(required=False)
    remix = TextField(required=False)
    key = TextField(required=False)

    def clean_prompt(self) -> str:
        try:
            return submission.check_prompt(self.cleaned_data["prompt"])
        except GenerationError as error:
            raise ValidationError(error.message) from None

    def clean_seed(self) -> int | None:
        text: str = self.cleaned_data["seed"].strip()
        if not text:
            return None
        is_number = text.isascii() and text.isdigit() and len(text) < 20
        try:
            return submission.check_seed(int(text) if is_number else -1)
        except GenerationError as error:
            raise ValidationError(error.message) from None

    def submit(self, *, user: User) -> GenerationJob | None:
        """The job, or None with the refusal among the form's errors."""
        if not self.is_valid():
            return None
        asked = self.cleaned_data
        try:
            return submission.submit(
                user=user,
                prompt=asked["prompt"],
                source=GenerationJob.Source.WEB,
                preset=catalog.find_preset(asked["preset"]),
                seed=asked["seed"],
                negative_prompt=asked["negative_prompt"],
                idempotency_key=self._idempotency_key(),
                remixed_from=self._remixed_from(user),
            )
        except GenerationError as error:
            self.add_error(error.param if error.param in self.fields else None, error.message)
            return None

    def _idempotency_key(self) -> str | None:
        """Of the form and its content: whoever goes back, changes the prompt and submits again wants another clip."""
        if not self.cleaned_data["key"]:
            return None
        content = json.dumps(self.cleaned_data, sort_keys=True)
        return "web-" + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def _remixed_from(self, user: User) -> GenerationJob | None:
        own = GenerationJob.objects.filter(user=user, deleted_at=None)
        return own.named(self.cleaned_data["remix"]).first()
