"""Shared parts of the admin: fast lists, read-only rows, forms and questions that ask for a reason."""

import functools
import uuid
from collections.abc import Callable, Iterable
from functools import cached_property
from string import Template
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from unfold.admin import ModelAdmin
from unfold.admin import checkbox as CHECKBOX  # noqa: N812  (it is one)
from unfold.decorators import action
from unfold.templatetags import unfold_list
from unfold.utils import display_for_label
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.ledger import LedgerError
from accounts.staff import audit_log
from accounts.staff.actor import Actor, DoneBefore, NeedsApproval, Refused
from accounts.staff.audit_log import Outcome

# A page that names more rows than this is not read before it is confirmed.
MOST_CHOSEN = 500
# Staff filter rather than page further than this; to count all of a large table takes longer than to show it.
MOST_COUNTED = 1_000
HIDDEN = "********"

# Carries an operation out: gets the actor and the form's values, returns the message for the next page, or a response
# instead of it; raises Refused or LedgerError when it is impossible.
Act = Callable[[Actor, dict[str, Any]], "str | HttpResponseBase"]
# The explanation on a page that asks, and the message when it is done: `$reason` or another name in it stands for a
# value of the form, `$result` for the result of the operation.
Question = tuple[str, str]
WhyNot = Callable[[Any], "str | None"]


class Reasoned(forms.Form):
    """A form with the reason for the ledger or the audit log."""

    reason = forms.CharField(
        max_length=200,
        widget=UnfoldAdminTextInputWidget,
        help_text="For the audit log. The user it is about may see it, too.",
    )


class ReasonForm(Reasoned):
    """The reason, and an id by which the form is carried out once, however often it is sent."""

    once = forms.UUIDField(widget=forms.HiddenInput, initial=uuid.uuid4)


# The fieldset for the reason in the forms of rows.
WHY = ("Why", {"fields": ("reason",)})


def allowed(permission: str) -> Callable[..., bool]:
    """Make a `has_…_permission` method, `permission` as `app.codename`."""

    def may(page: ModelAdmin, request: HttpRequest, obj: object = None) -> bool:
        return Actor.of(request).may(permission)

    return may


def never(page: ModelAdmin, request: HttpRequest, obj: object = None) -> bool:
    """Refuse: a `has_…_permission` method for what the admin does not offer at all."""
    return False


def _possible(obj: object) -> None:
    """Return None: the WhyNot of what is always possible."""


class ShortPaginator(Paginator):
    """Counts no further than MOST_COUNTED rows, so that a list takes the same time however many there are."""

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[:MOST_COUNTED].count()

    @property
    def template_name(self) -> str:
        """Unfold's name for the foot of the list; empty means Unfold's own, which is right for a full count."""
        return "admin/_many.html" if self.count == MOST_COUNTED else ""


class FastList(ChangeList):
    """Rows without a full count, and without "Show all" where all are shown."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not (self.query or self.has_active_filters):
            self.full_result_count = self.result_count


# Fields that hold what signs in or opens something, whole or hashed, in any table that an address may lead to.
SECRETS = {"data", "password", "digest", "api_key", "token", "session_key", "session_data"}


class FastAdmin(ModelAdmin):
    """A list that takes the same time however many rows there are."""

    paginator = ShortPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0
    # Whether a row shows what a user has not shown to others: the audit log tells who looked.
    private = False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Refuse a filter in the address by which a secret could be read letter by letter."""
        if SECRETS & set(lookup.split("__")):
            return False
        return bool(super().lookup_allowed(lookup, value, request))

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        response = super().change_view(request, object_id, *args, **kwargs)
        if self.private and response.status_code == 200 and (seen := self.get_object(request, object_id)):
            audit_log.note_look(Actor.of(request), seen)
        return response

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[FastList]:
        return FastList

    def action_checkbox(self, obj: Model) -> SafeString:
        before, after = _checkbox()
        return format_html("{}{}{}", before, obj.pk, after)

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer only the actions that are possible just now."""
        offered: list[Any] = super().get_actions_detail(request, object_id)
        obj = self.get_object(request, str(object_id))
        return [each for each in offered if obj and not getattr(each.method, "why_not", _possible)(obj)]


@functools.cache
def _checkbox() -> tuple[SafeString, SafeString]:
    """Unfold's check box before and after the id of a row. Rendered once: the template is the same for all rows."""
    before, _, after = CHECKBOX.render(ACTION_CHECKBOX_NAME, HIDDEN).partition(HIDDEN)
    return mark_safe(before), mark_safe(after)  # noqa: S308  (no row's word is in it)


def _headers_once(
    changelist: Any, make: Callable[[Any], Iterable[Any]] = unfold_list.result_headers
) -> list[Any]:
    if not hasattr(changelist, "made_headers"):
        changelist.made_headers = list(make(changelist))
    return changelist.made_headers  # type: ignore[no-any-return]


# Unfold makes the head of a list anew for each of its rows, a fifth of the time of a list, and has no setting for it.
unfold_list.result_headers = _headers_once


class ReadOnlyAdmin(FastAdmin):
    """Rows that only the service itself writes."""

    has_add_permission = has_change_permission = has_delete_permission = never


class LoggedAdmin(FastAdmin):
    """Rows that staff edit in a form. Each change is recorded in the audit log, in the same transaction."""

    # Fields whose values are never shown, the audit log included.
    secret_fields: tuple[str, ...] = ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Add the field for the reason."""
        plain: type[forms.ModelForm] = kwargs.get("form") or self.form
        kwargs["form"] = type(plain.__name__, (Reasoned, plain), {})
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in super().get_fields(request, obj) if name != "reason"]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Ask for a reason only where something can be changed; elsewhere Django would show the value of a secret."""
        asked = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        fieldsets = super().get_fieldsets(request, obj)
        if asked:
            return [*fieldsets, WHY]
        hidden = {*self.secret_fields, *(f"forget_{name}" for name in self.secret_fields)}
        return [
            (title, options | {"fields": [name for name in options["fields"] if name not in hidden]})
            for title, options in fieldsets
        ]

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Delete only with a reason given."""
        return self._why_missing(request) or super().delete_view(request, *args, **kwargs)

    def response_action(self, request: HttpRequest, queryset: Any) -> Any:
        """Delete a selection only with a reason given."""
        deletes = request.POST.get("action") == "delete_selected"
        return (deletes and self._why_missing(request)) or super().response_action(request, queryset)

    def _why_missing(self, request: HttpRequest) -> HttpResponse | None:
        """Redirect to the same page when a confirmed deletion has no reason; None lets Django go on."""
        given = not request.POST.get("post") or request.POST.get("reason", "").strip()
        if given or not self.has_delete_permission(request):
            return None
        messages.error(request, "Nothing was deleted: please say why.")
        return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        request._recorded_form = form  # type: ignore[attr-defined]  # log_change below has only the request
        super().save_model(request, obj, form, change)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self._record(request, obj, "add", message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self._record(request, obj, "change", message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for obj in queryset:
            self._record(request, obj, "delete")
        return super().log_deletions(request, queryset)

    def _record(self, request: HttpRequest, obj: Model, verb: str, message: Any = "") -> None:
        form: Any = getattr(request, "_recorded_form", None)
        before: dict[str, Any] = {}
        # Without a form it is a page of Django's own, such as the one for a password.
        after: dict[str, Any] = {"what": str(message)} if message else {}
        if form is not None:
            changed = [name for name in form.changed_data if name != "reason"]
            after = {name: self._shown(name, form.cleaned_data.get(name)) for name in changed}
            before = {name: self._shown(name, form.initial.get(name)) for name in after if verb != "add"}
        act, reason = f"{self.opts.model_name}.{verb}", request.POST.get("reason", "")
        audit_log.Operation(Actor.of(request), act, reason).record(obj, before=before, after=after)

    def _shown(self, name: str, value: Any) -> Any:
        return HIDDEN if name in self.secret_fields and value else value


# --- Questions: a page with an explanation, a form and one button -----------------------------------------------------


def row_action(
    description: str,
    permission: str,
    operation: Callable[..., object],
    *,
    icon: str,
    why_not: WhyNot = _possible,
    title: str = "",
    url_path: str = "",
    form_class: type[forms.Form] = ReasonForm,
    initial: Callable[[Any], dict[str, Any]] = lambda _: {},
) -> Callable[[Callable[[Any, Any], Question]], Callable[..., HttpResponseBase]]:
    """Make a method that returns a Question about a row an action on the row's page.

    permission: the middle of the name of a `has_…_permission` method. operation: called with the row.
    why_not: why it is impossible just now for a row; None: it is possible. An impossible one is not offered.
    title: the button on the page that asks, if not `description`.
    """

    def decorate(question: Callable[[Any, Any], Question]) -> Callable[..., HttpResponseBase]:
        @functools.wraps(question)
        def answer(page: ModelAdmin, request: HttpRequest, object_id: str) -> HttpResponseBase:
            subject = row(page, request, object_id)
            if request.method != "POST" and (why := why_not(subject)):
                messages.error(request, why)
                return HttpResponseRedirect(_back(page, request, subject))
            explanation, done = question(page, subject)
            asked: dict[str, Any] = {"form_class": form_class, "initial": initial(subject)}
            act = does(operation, subject, done)
            return ask(page, request, subject, title or description, explanation, act, **asked)

        path = url_path or question.__name__.replace("_", "-")
        unfold_action = action(description=description, url_path=path, permissions=[permission], icon=icon)
        return unfold_action(offered_unless(why_not)(answer))  # type: ignore[no-any-return]

    return decorate


def offered_unless(why_not: WhyNot) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Offer an action on a row's page only where `why_not` finds no reason against it."""

    def mark(answer: Callable[..., Any]) -> Callable[..., Any]:
        vars(answer)["why_not"] = why_not
        return answer

    return mark


def does(operation: Callable[..., object], subject: object, done: str) -> Act:
    """Make an Act that calls `operation` with `subject` and returns the message `done`, as in a Question."""

    def act(actor: Actor, values: dict[str, Any]) -> str:
        result = operation(subject, actor=actor, **values)
        return Template(done).safe_substitute(values, result=result)

    return act


def row(admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """Find the object of a page's address. Raises Http404 when there is none."""
    found = admin.get_object(request, unquote(object_id))
    if found is None:
        raise Http404
    return found


def ask(
    admin: ModelAdmin,
    request: HttpRequest,
    subject: Model | QuerySet[Any],
    title: str,
    explanation: str,
    act: Act,
    *,
    form_class: type[forms.Form] = ReasonForm,
    initial: dict[str, Any] | None = None,
    back: str = "",
) -> HttpResponseBase:
    """Show a form with one button; its own POST calls `act` and goes back.

    subject: the row, or the rows that were chosen in a list. back: the next page, if not the row or the list.
    """
    if isinstance(subject, QuerySet) and len(subject[: MOST_CHOSEN + 1]) > MOST_CHOSEN:
        messages.error(request, f"Please choose at most {MOST_CHOSEN} at a time.")
        return HttpResponseRedirect(request.get_full_path())
    sent = request.method == "POST" and "once" in request.POST
    form = form_class(request.POST) if sent else form_class(initial=initial)
    back = back or _back(admin, request, subject)
    if sent and form.is_valid() and (done := _answer(request, form, act, back)):
        return done
    context = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "original": None if isinstance(subject, QuerySet) else subject,
        "title": title,
        "explanation": explanation,
        "form": form,
        "back": back,
        "carried": _carried(request, subject),
    }
    return TemplateResponse(request, "admin/ask.html", context)


def ask_about_each(
    admin: ModelAdmin,
    request: HttpRequest,
    chosen: QuerySet[Any],
    *,
    title: str,
    do: Callable[..., Outcome[Any]],
    why_not: WhyNot = _possible,
    form_class: type[forms.Form] = ReasonForm,
) -> HttpResponseBase:
    """Ask about rows of a list, then call the operation `do` with them.

    why_not: as for `row_action`; it is asked about each row, so what it needs comes with the rows. A row that `do`
    refuses is passed over, and the message says so.
    """
    rows = list(chosen[:MOST_CHOSEN])
    possible = sum(why_not(row) is None for row in rows)

    def act(actor: Actor, values: dict[str, Any]) -> str:
        outcome = do(rows, actor=actor, **values)
        done = len(outcome.results) + outcome.repeated
        return " ".join(
            [f"Done for {done} of {len(rows)} ({values['reason']}).", *sorted(set(outcome.refusals))]
        )

    over = "" if possible == len(rows) else " The others are passed over."
    explanation = f"Possible for {possible} of {len(rows)} chosen.{over}"
    return ask(admin, request, chosen, title, explanation, act, form_class=form_class)


def _answer(request: HttpRequest, form: forms.Form, act: Act, back: str) -> HttpResponseBase | None:
    """Answer a valid form; return None when it is refused, with the error in the form."""
    try:
        with transaction.atomic():
            try:
                done = act(Actor.of(request), form.cleaned_data)
            except NeedsApproval as waits:  # not beyond this block, which would undo that it waits
                done = str(waits)
        if isinstance(done, HttpResponseBase):
            return done
        messages.success(request, done)
    except DoneBefore as before:
        messages.info(request, str(before))
    except (Refused, LedgerError) as refusal:
        if not audit_log.carried_out(form.cleaned_data["once"]):
            form.add_error(None, str(refusal))
            return None
        # Sent twice, it found its own work: what is done already is often impossible, too.
        messages.info(request, str(DoneBefore()))
    return HttpResponseRedirect(back)


def _back(admin: ModelAdmin, request: HttpRequest, subject: Model | QuerySet[Any]) -> str:
    if isinstance(subject, QuerySet):
        return request.get_full_path()
    return reverse(
        f"{admin.admin_site.name}:{admin.opts.app_label}_{admin.opts.model_name}_change", args=[subject.pk]
    )


def _carried(request: HttpRequest, subject: Model | QuerySet[Any]) -> list[tuple[str, str]]:
    """Repeat the fields that a list sent: the rows themselves, because others may match its filters by then."""
    if not isinstance(subject, QuerySet) or "action" not in request.POST:
        return []
    chosen = [(ACTION_CHECKBOX_NAME, str(pk)) for pk in subject.values_list("pk", flat=True)]
    return [("action", request.POST.get("action", "")), ("index", "0"), *chosen]


# --- Fields of a page -------------------------------------------------------------------------------------------------


def link(model: str, pk: object, text: object) -> SafeString | str:
    """Link to the page of a row, `model` as `app_model`; the text alone where the admin has no such page."""
    try:
        page = reverse(f"admin:{model}_change", args=[pk])
    except NoReverseMatch:
        return str(text)
    return format_html('<a href="{}" class="text-link">{}</a>', page, text)


def bullets(lines: Iterable[object], empty: str = "-") -> SafeString | str:
    """Render a list of lines; `empty` without any."""
    items = format_html_join("", "<li>{}</li>", ((line,) for line in lines))
    return format_html("<ul>{}</ul>", items) if items else empty


def once_a_row(field: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Keep what a read-only field returns on the row: Unfold calls it half a dozen times, each with its queries."""
    name = f"_shown_{field.__name__}"

    @functools.wraps(field)
    def shown(page: Any, obj: Model) -> Any:
        kept = vars(obj)
        if name not in kept:
            kept[name] = field(page, obj)
        return kept[name]

    return shown


def state_now(words: str, *, moves: bool) -> SafeString:
    """Render the state of a row; while it `moves`, the page reloads itself (admin_live.js)."""
    return format_html("<span data-live>{}</span>" if moves else "<span>{}</span>", words)


@functools.lru_cache(maxsize=1000)
def badge(words: str, colour: str) -> SafeString:
    """`words` in a colour: info, success, warning, danger. Kept, as the rows of a list have few different ones."""
    shown: SafeString = display_for_label((colour, words), "-", {colour: colour})
    return shown
