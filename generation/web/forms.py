"""The composer's form: it parses what was typed, and puts the refusals of `submission` by their fields."""

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
    """Text without surrounding space. Browsers send a line's end as two characters, and count it as one."""

    def to_python(self, value: Any) -> str:
        return str(value or "").replace("\r\n", "\n").strip()


class ComposerForm(forms.Form):
    """`key` is new in every rendered form, so that a second click on the same one makes no second clip."""

    prompt = TextField(required=False)
    preset = TextField(required=False)
    seed = TextField(required=False)
    negative_prompt = TextField(required=False)
    remix = TextField(required=False)
    key = TextField(required=False)

    def clean_seed(self) -> int | None:
        text: str = self.cleaned_data["seed"]
        if not text:
            return None
        is_number = text.isascii() and text.isdigit() and len(text) < 20
        try:
            return submission.check_seed(int(text) if is_number else -1)
        except GenerationError as error:
            raise ValidationError(error.message) from None

    def submit(self, *, user: User) -> GenerationJob | None:
        """Submit the job; None with every refusal among the form's errors."""
        valid, data = self.is_valid(), self.cleaned_data
        try:
            if not valid:
                submission.check_prompt(data["prompt"])  # two mistakes are named at once
                return None
            original = GenerationJob.objects.filter(user=user, deleted_at=None).named(data["remix"]).first()
            return submission.submit(
                user=user,
                source=GenerationJob.Source.WEB,
                idempotency_key=self._idempotency_key(),
                prompt=data["prompt"],
                preset=catalog.find_preset(data["preset"]),
                seed=data["seed"],
                negative_prompt=data["negative_prompt"],
                model=original.model if original else "",
                size=original.size if original else "",
                remixed_from=original,
            )
        except GenerationError as error:
            self.add_error(error.param if error.param in self.fields else None, error.message)
            return None

    def _idempotency_key(self) -> str | None:
        """Derive the key from form and content: going back and changing the prompt makes another clip."""
        if not self.cleaned_data["key"]:
            return None
        content = json.dumps(self.cleaned_data, sort_keys=True)
        return "web-" + hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
