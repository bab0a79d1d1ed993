"""The ledger and its checks, for staff: rows to look at, a CSV export, and a button that has the books added up."""

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from operator import attrgetter
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display

from accounts import ledger_check
from accounts.admin.base import MOST_COUNTED, ReadOnlyAdmin, allowed, ask, badge, bullets, link
from accounts.models import AuditRun, CreditTransaction
from accounts.staff import operations
from accounts.staff.actor import Actor, DoneBefore

ROWS_AT_ONCE = 2000
COLUMNS: dict[str, Callable[[CreditTransaction], Any]] = {
    "id": attrgetter("pk"),
    "time": lambda entry: entry.created_at.isoformat(),
    "user": attrgetter("account.user.username"),
    "kind": attrgetter("kind"),
    "amount": attrgetter("amount"),
    "balance_after": attrgetter("balance_after"),
    "posted_delta": attrgetter("posted_delta"),
    "held_delta": attrgetter("held_delta"),
    "posted_after": attrgetter("posted_after"),
    "held_after": attrgetter("held_after"),
    "reason": attrgetter("reason"),
    "actor": lambda entry: entry.actor.username if entry.actor else "",
    "reference": attrgetter("reference"),
    "external_id": attrgetter("external_id"),
}
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
    def owner(self, entry: CreditTransaction) -> SafeString | str:
        return link("accounts_user", entry.account.user_id, entry.account.user)

    @display(description="By")
    def by(self, entry: CreditTransaction) -> SafeString | str:
        return link("accounts_user", entry.actor.pk, entry.actor) if entry.actor else "the service"

    @display(description="Amount")
    def amount(self, entry: CreditTransaction) -> str:
        return f"{entry.amount:+d}"

    @display(description="Job")
    def job(self, entry: CreditTransaction) -> SafeString | str:
        return link_to_job(entry)

    def get_urls(self) -> list[URLPattern]:
        export = path(
            "export/", self.admin_site.admin_view(self.export), name="accounts_credittransaction_export"
        )
        return [export, *super().get_urls()]

    def export(self, request: HttpRequest) -> HttpResponseBase:
        """Ask for a reason, then download all entries that the list's filters show, the latest first."""
        Actor.of(request).must("accounts.export_transactions")
        back = f"{reverse('admin:accounts_credittransaction_changelist')}?{request.GET.urlencode()}"
        try:
            rows = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(back)  # the list says what is wrong
        latest = rows.order_by("-id").first()
        if latest is None:
            messages.error(request, "No transaction fits these filters, so there is nothing to export.")
            return HttpResponseRedirect(back)

        def act(actor: Actor, values: dict[str, Any]) -> HttpResponseBase:
            with suppress(DoneBefore):  # the button pressed twice: the file twice, one entry in the audit log
                operations.export_transactions(latest, dict(request.GET.items()), actor=actor, **values)
            return _download(rows)

        explanation = f"{_how_many(rows)}, as the list's filters show them, are downloaded as a CSV file."
        return ask(self, request, rows.none(), "Export", explanation, act, back=back)


def link_to_job(entry: CreditTransaction) -> SafeString | str:
    """Link to the job that the reference names, which belongs to another app."""
    if entry.reference is None or entry.kind == CreditTransaction.Kind.TRANSFER:
        return "-"
    return link("generation_generationjob", entry.reference, f"{entry.reference.hex[:8]}…")


def _how_many(rows: "QuerySet[CreditTransaction]") -> str:
    found = rows.order_by()[: MOST_COUNTED + 1].count()
    if found > MOST_COUNTED:
        return f"More than {MOST_COUNTED:,} transactions"
    return "1 transaction" if found == 1 else f"{found:,} transactions"


def _download(rows: "QuerySet[CreditTransaction]") -> StreamingHttpResponse:
    name = f"transactions-{timezone.now():%Y%m%d-%H%M}.csv"
    return StreamingHttpResponse(
        _csv_lines(rows),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


async def _csv_lines(rows: "QuerySet[CreditTransaction]") -> AsyncIterator[str]:
    """Write a header and a line for each entry, read page by page: neither memory nor a cursor is held for long."""
    yield _line(COLUMNS)
    last: int | None = None
    while page := await sync_to_async(_page_below)(rows, last):
        yield "".join(_line(cell(entry) for cell in COLUMNS.values()) for entry in page)
        last = page[-1].pk


def _page_below(rows: "QuerySet[CreditTransaction]", last: int | None) -> list[CreditTransaction]:
    rest = rows if last is None else rows.filter(pk__lt=last)
    return list(rest.select_related("account__user", "actor").order_by("-pk")[:ROWS_AT_ONCE])


def _line(cells: Iterable[object]) -> str:
    """One line of CSV; None is an empty cell."""
    line = io.StringIO()
    csv.writer(line).writerow(
        f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in cells
    )
    return line.getvalue()


@admin.register(AuditRun)
class AuditRunAdmin(ReadOnlyAdmin):
    """Checks of the ledger: each time the books were added up."""

    list_display = ("at", "verdict", "accounts", "entries", "seconds")
    fields = ("at", "verdict", "sentences", "accounts", "entries", "seconds")
    actions_list = ("run_now",)
    has_run_permission = allowed("accounts.run_audit")

    @display(description="Result")
    def verdict(self, run: AuditRun) -> SafeString:
        words = f"{run.found} discrepancies" if run.found else "The books are right"
        return badge(words, "danger" if run.found else "success")

    @display(description="Discrepancies")
    def sentences(self, run: AuditRun) -> SafeString | str:
        return bullets(run.discrepancies, empty="none")

    @action(description="Add the books up now", url_path="run", permissions=["run"], icon="calculate")
    def run_now(self, request: HttpRequest) -> HttpResponseBase:
        def act(actor: Actor, values: dict[str, Any]) -> str:
            ledger_check.begin(actor=actor, **values)
            return "The books are being added up. The result appears here when it is done."

        return ask(
            self,
            request,
            AuditRun.objects.none(),
            "Add the books up",
            "Every wallet is added up again, from the entries alone. It only reads.",
            act,
            initial={"reason": "Are they right?"},
            back=reverse("admin:accounts_auditrun_changelist"),
        )
