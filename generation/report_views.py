"""Whoever sees a shared video may report it, without an account."""

from typing import cast

from allauth.core import ratelimit
from django import forms
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from accounts.staff.clerks import address_of
from generation import sharing
from generation.models import Report
from generation.staff import reports


class ReportForm(forms.Form):
    about = forms.ChoiceField(choices=Report.About.choices, widget=forms.RadioSelect)
    words = forms.CharField(max_length=1000, required=False, widget=forms.Textarea(attrs={"rows": 3}))


@require_http_methods(["GET", "HEAD", "POST"])
def report_video(request: HttpRequest, token: str) -> HttpResponse:
    """The form, and after it a word of thanks. One address reports a few times an hour."""
    job = sharing.find(token)
    if job is None:
        raise Http404
    form = ReportForm(request.POST or None)
    sent = request.method == "POST" and form.is_valid()
    if sent:
        if too_many := ratelimit.consume_or_429(request, action="report_video"):
            return cast(HttpResponse, too_many)
        reports.report(job=job, address=address_of(request), **form.cleaned_data)
    response = render(
        request, "generation/report.html", {"form": form, "sent": sent, "token": token, "job": job}
    )
    response["X-Robots-Tag"] = "noindex, nofollow"
    return response
