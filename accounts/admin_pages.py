"""What the admin pages of every app share: rows that are only looked at, and a page that asks before it acts."""

from collections.abc import Callable
from typing import Any, cast

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import unquote
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.models import User


class ReadOnlyAdmin(ModelAdmin):
    """Rows to look at. Only the service itself writes them."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class ReasonForm(forms.Form):
    """Why it is done: written into the books or the history, shown to the person it is about."""

    reason = forms.CharField(
        max_length=200, widget=UnfoldAdminTextInputWidget, help_text="The person it is about sees it."
    )


class Refused(Exception):
    """The action is impossible; the message says why."""


def row(admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """The object of a page's address. Raises Http404 when there is none."""
    found = admin.get_object(request, unquote(object_id))
    if found is None:
        raise Http404
    return found


def ask(
    admin: ModelAdmin,
    request: HttpRequest,
    obj: Model,
    *,
    title: str,
    explanation: str,
    act: Callable[[dict[str, Any]], str],
    form_class: type[forms.Form] = ReasonForm,
) -> HttpResponse:
    """A page with a form and one button. GET asks; POST calls `act` with what was filled in, and goes back.

    act: returns what is told afterwards; raises Refused when it is impossible.
    """
    form = form_class(request.POST) if request.method == "POST" else form_class()
    if request.method == "POST" and form.is_valid():
        try:
            done = act(form.cleaned_data)
        except Refused as refusal:
            form.add_error(None, str(refusal))
        else:
            _write_down(request, obj, done)
            messages.success(request, done)
            return _back(admin, obj)
    context = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "original": obj,
        "title": title,
        "explanation": explanation,
        "form": form,
        "back": _address(admin, obj),
    }
    return TemplateResponse(request, "admin/ask.html", context)


def say_why_not(admin: ModelAdmin, request: HttpRequest, obj: Model, why: str) -> HttpResponse:
    """Back to the object, with the reason why the action was not even asked about."""
    messages.error(request, why)
    return _back(admin, obj)


def _back(admin: ModelAdmin, obj: Model) -> HttpResponse:
    return HttpResponseRedirect(_address(admin, obj))


def _address(admin: ModelAdmin, obj: Model) -> str:
    return reverse(
        f"{admin.admin_site.name}:{admin.opts.app_label}_{admin.opts.model_name}_change", args=[obj.pk]
    )


def _write_down(request: HttpRequest, obj: Model, done: str) -> None:
    LogEntry.objects.log_actions(
        cast(User, request.user).pk, [obj], CHANGE, change_message=done, single_object=True
    )
