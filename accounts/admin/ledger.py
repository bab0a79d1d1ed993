"""Whether the books are right: each time they were added up, and a button to have it done now."""

import csv
import io
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display

from accounts import ledger_check
from accounts.admin.base import MOST_COUNTED, ReadOnlyAdmin, ReasonForm, ask, badge, page_that_asks
from accounts.models import AuditRun, CreditTransaction
from accounts.staff import audit_log
from accounts.staff.actor import Actor, DoneBefore

ROWS_AT_ONCE = 2000
COLUMNS = (
    "id",
    "time",
    "user",
    "kind",
    "amount",
    "balance_after",
    "posted_delta",
    "held_delta",
    "posted_after",
    "held_after",
    "reason",
    "actor",
    "reference",
    "external_id",
)
# A cell that begins so is a formula to a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@admin.register(CreditTransaction)
class CreditTransactionAdmin(ReadOnlyAdmin):
    """The ledger. Entries are never changed; a mistake is corrected by another entry."""

    list_display = ("id", "created_at", "owner", "kind", "amount", "balance_after", "reason", "by", "job")
    list_select_related = ("account__user", "actor")
    search_fields = ("=account__user__username", "=account__user__email", "=reference", "=external_id")
    search_help_text = "Username or e-mail address, a job's or payment's id: whole, not parts."
    list_filter = ("kind", ("created_at", RangeDateTimeFilter), ("actor", admin.EmptyFieldListFilter))
    list_filter_submit = True
    ordering = ("-id",)
    list_before_template = "admin/export_link.html"
    fields = (
        "id",
        "created_at",
        "owner",
        "kind",
        "amount",
        "posted_delta",
        "held_delta",
        "posted_after",
        "held_after",
        "reason",
        "by",
        "job",
        "resolves",
        "counterpart",
        "external_id",
    )

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        allowed = ("account__id__exact", "actor__id__exact", "reference__exact")
        return lookup in allowed or super().lookup_allowed(lookup, value, request)

    @display(description="User", ordering="account__user__username")
    def owner(self, entry: CreditTransaction) -> SafeString:
        user = entry.account.user
        page = reverse("admin:accounts_user_change", args=[user.pk])
        return format_html('<a href="{}" class="text-link">{}</a>', page, user)

    @display(description="By")
    def by(self, entry: CreditTransaction) -> SafeString | str:
        if entry.actor is None:
            return "the service"
        page = reverse("admin:accounts_user_change", args=[entry.actor.pk])
        return format_html('<a href="{}" class="text-link">{}</a>', page, entry.actor)

    @display(description="Amount")
    def amount(self, entry: CreditTransaction) -> str:
        return f"{entry.amount:+d}"

    @display(description="Balance after")
    def balance_after(self, entry: CreditTransaction) -> int:
        return entry.balance_after

    @display(description="Job")
    def job(self, entry: CreditTransaction) -> SafeString | str:
        return link_to_job(entry)

    def get_urls(self) -> list[URLPattern]:
        export = path(
            "export/", self.admin_site.admin_view(self.export), name="accounts_credittransaction_export"
        )
        return [export, *super().get_urls()]

    def export(self, request: HttpRequest) -> HttpResponseBase:
        """Asks why; then the entries that the list's filters show, all of them, the latest first."""
        actor = Actor.of(request)
        actor.must("accounts.export_transactions")
        back = f"{reverse('admin:accounts_credittransaction_changelist')}?{request.GET.urlencode()}"
        try:
            rows = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(back)  # the list says what is wrong
        latest = rows.order_by("-id").first()
        if latest is None:
            messages.error(request, "No transaction fits these filters, so there is nothing to export.")
            return HttpResponseRedirect(back)
        form = ReasonForm(request.POST) if request.method == "POST" else ReasonForm()
        if form.is_valid():
            _note_export(actor, latest, dict(request.GET.items()), **form.cleaned_data)
            return _download(rows)
        return page_that_asks(
            self,
            request,
            rows.none(),
            form=form,
            title="Export",
            explanation=f"{_how_many(rows)}, as the list's filters show them, are downloaded as a CSV file.",
            back=back,
        )


def link_to_job(entry: CreditTransaction) -> SafeString | str:
    """What the reference names is another app's; where that has a page, link to it."""
    if entry.reference is None or entry.kind == CreditTransaction.Kind.TRANSFER:
        return "-"
    try:
        page = reverse("admin:generation_generationjob_change", args=[entry.reference])
    except NoReverseMatch:
        return entry.reference.hex
    return format_html('<a href="{}" class="text-link">{}…</a>', page, entry.reference.hex[:8])


# --- Export -----------------------------------------------------------------------------------------------------------


def _note_export(
    actor: Actor, latest: CreditTransaction, filters: dict[str, Any], *, reason: str, once: uuid.UUID
) -> None:
    """Whoever presses the button twice gets the file all the same, and one line in the log."""
    with suppress(DoneBefore):
        audit_log.record(
            actor=actor,
            act="transactions.export",
            subject=latest,
            reason=reason,
            after=filters,
            once=once,
        )


def _how_many(rows: "QuerySet[CreditTransaction]") -> str:
    found = rows.order_by()[: MOST_COUNTED + 1].count()
    if found > MOST_COUNTED:
        return f"More than {MOST_COUNTED:,} transactions"
    return "1 transaction" if found == 1 else f"{found:,} transactions"


def _download(rows: "QuerySet[CreditTransaction]") -> StreamingHttpResponse:
    name = f"transactions-{timezone.now():%Y%m%d-%H%M}.csv"
    return StreamingHttpResponse(
        csv_lines(rows),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def csv_lines(rows: "QuerySet[CreditTransaction]") -> AsyncIterator[str]:
    """A header and a line for each entry. A page at a time, so that neither memory nor a cursor is held for long."""
    yield _line(COLUMNS)
    last: int | None = None
    while page := await sync_to_async(_page_below)(rows, last):
        yield "".join(_line(_cells(entry)) for entry in page)
        last = page[-1].pk


def _page_below(rows: "QuerySet[CreditTransaction]", last: int | None) -> list[CreditTransaction]:
    rest = rows if last is None else rows.filter(pk__lt=last)
    return list(rest.select_related("account__user", "actor").order_by("-pk")[:ROWS_AT_ONCE])


def _cells(entry: CreditTransaction) -> list[object]:
    return [
        entry.pk,
        entry.created_at.isoformat(),
        entry.account.user.username,
        entry.kind,
        entry.amount,
        entry.balance_after,
        entry.posted_delta,
        entry.held_delta,
        entry.posted_after,
        entry.held_after,
        entry.reason,
        entry.actor.username if entry.actor else "",
        entry.reference or "",
        entry.external_id or "",
    ]


def _line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(
        f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in cells
    )
    return line.getvalue()


# The ledger, for staff: to be looked at and exported.


@admin.register(AuditRun)
class AuditRunAdmin(ReadOnlyAdmin):
    list_display = ("at", "verdict", "accounts", "entries", "seconds")
    fields = ("at", "verdict", "sentences", "accounts", "entries", "seconds")
    actions_list = ("run_now",)

    @display(description="Result")
    def verdict(self, run: AuditRun) -> SafeString:
        words = f"{run.found} discrepancies" if run.found else "The books are right"
        return badge(bool(run.found), words, {False: "success", True: "danger"})

    @display(description="Discrepancies")
    def sentences(self, run: AuditRun) -> SafeString | str:
        lines = format_html_join("", "<li>{}</li>", ((sentence,) for sentence in run.discrepancies))
        return format_html("<ul>{}</ul>", lines) if run.found else "none"

    def has_run_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Actor.of(request).may("accounts.run_audit")

    @action(description="Add the books up now", url_path="run", permissions=["run"], icon="calculate")
    def run_now(self, request: HttpRequest) -> HttpResponse:
        def begin(actor: Actor, wish: dict[str, Any]) -> str:
            ledger_check.begin(actor=actor, **wish)
            return "The books are being added up. The result appears here when it is done."

        return ask(
            self,
            request,
            AuditRun.objects.none(),
            title="Add the books up",
            explanation="Every wallet is added up again, from the entries alone. It only reads.",
            act=begin,
            initial={"reason": "Are they right?"},
            back=reverse("admin:accounts_auditrun_changelist"),
        )
