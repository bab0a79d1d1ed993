"""What a person types on the pages about their account."""

from django import forms

from accounts.models import ApiKey


class ApiKeyForm(forms.Form):
    name = forms.CharField(
        max_length=ApiKey._meta.get_field("name").max_length,
        label="What is it for?",
        widget=forms.TextInput(attrs={"placeholder": "laptop, cron job…", "autocomplete": "off"}),
        error_messages={"required": "Please name the key, so that you know later which one to revoke."},
    )
