"""What is on offer, for staff."""

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.admin.acts import acts_on
from accounts.admin_pages import LoggedAdmin
from generation.models import Preset


class PresetForm(forms.ModelForm):
    class Meta:
        model = Preset
        fields = (
            "name",
            "label",
            "num_frames",
            "fps",
            "num_inference_steps",
            "guidance_scale",
            "cost",
            "position",
            "is_default",
            "enabled",
        )

    def _get_validation_exclusions(self) -> set[str]:
        # One default at most is a constraint; choosing another default takes it from the one that was (save_model).
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]  # Django's, not in its stubs
        return excluded | {"is_default"}


@admin.register(Preset)
class PresetAdmin(LoggedAdmin):
    """What is on offer. A change is for new jobs only; what was used is switched off rather than deleted."""

    form = PresetForm
    list_display = (
        "label",
        "name",
        "num_frames",
        "fps",
        "num_inference_steps",
        "cost",
        "position",
        "is_default",
        "enabled",
    )
    list_filter = ("enabled",)
    readonly_fields = ("acts",)

    @display(description="History")
    def acts(self, preset: Preset) -> SafeString | str:
        return acts_on(preset)

    @transaction.atomic
    def save_model(self, request: HttpRequest, obj: Preset, form: forms.ModelForm, change: bool) -> None:
        if obj.is_default:
            Preset.objects.exclude(pk=obj.pk).update(is_default=False)
        super().save_model(request, obj, form, change)
