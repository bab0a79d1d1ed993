"""What the admin pages of every app share: rows that are only looked at, changes that are written down, lists that
stay fast, and a page that asks before it acts."""

import functools
import uuid
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import unquote
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from unfold.admin import ModelAdmin
from unfold.admin import checkbox as CHECKBOX  # noqa: N812  (it is one)
from unfold.decorators import display
from unfold.templatetags import unfold_list
from unfold.utils import display_for_label
from unfold.widgets import UnfoldAdminTextInputWidget

from accounts.ledger import LedgerError
from accounts.staff import audit_log
from accounts.staff.actor import Actor, DoneBefore, Refused

# A page that names more rows than this is not read before it is confirmed.
MOST_CHOSEN = 500
# Nobody pages further than this, they filter; to count all of a large table takes longer than to show it.
MOST_COUNTED = 1_000
HIDDEN = "********"


class Reasoned(forms.Form):
    """Why it is done: written into the books or the log."""

    reason = forms.CharField(
        max_length=200,
        widget=UnfoldAdminTextInputWidget,
        help_text="For the log. Whoever it is about may see it, too.",
    )


class ReasonForm(Reasoned):
    """Most acts want no more than that. Carried out once, however often it is sent: each page that shows it gives it
    another id.
    """

    once = forms.UUIDField(widget=forms.HiddenInput, initial=uuid.uuid4)


# Where the forms of rows ask for it.
WHY = ("Why", {"fields": ("reason",)})


class ShortPaginator(Paginator):
    """Counts no further than MOST_COUNTED rows, so that a list takes the same time however many there are."""

    @cached_property
    def count(self) -> int:
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[:MOST_COUNTED].count()

    @property
    def template_name(self) -> str:
        """For the foot of the list, as Unfold asks for it; none where its own says what is true."""
        return "admin/_many.html" if self.count == MOST_COUNTED else ""


class FastAdmin(ModelAdmin):
    """A list that takes the same time however many rows there are."""

    paginator = ShortPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0

    @display(description=mark_safe(CHECKBOX.render("action_toggle_all", 1)))  # noqa: S308  (as Unfold has it)
    def action_checkbox(self, obj: Model) -> SafeString:
        before, after = _checkbox()
        return format_html("{}{}{}", before, obj.pk, after)


@functools.cache
def _checkbox() -> tuple[SafeString, SafeString]:
    """What stands before and after the id of a row: the template is the same for all of them."""
    before, _, after = CHECKBOX.render(ACTION_CHECKBOX_NAME, HIDDEN).partition(HIDDEN)
    return mark_safe(before), mark_safe(after)  # noqa: S308  (no row's word is in it)


def _made_once(head: Callable[[Any], Iterable[Any]]) -> Callable[[Any], list[Any]]:
    @functools.wraps(head)
    def made(page: Any) -> list[Any]:
        kept = vars(page)
        if "_head" not in kept:
            kept["_head"] = list(head(page))
        return kept["_head"]  # type: ignore[no-any-return]

    return made


# Unfold makes the head of a list anew for each row of it, which was a fifth of the time that a list took.
unfold_list.result_headers = _made_once(unfold_list.result_headers)


class ReadOnlyAdmin(FastAdmin):
    """Rows to look at. Only the service itself writes them."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class LoggedAdmin(FastAdmin):
    """Rows that staff edit in a form. What was changed goes into the log of acts, in the same transaction."""

    # Fields whose values nobody is shown, not even in the log.
    secret_fields: tuple[str, ...] = ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """As it would be, and a field for the reason."""
        plain: type[forms.ModelForm] = kwargs.get("form") or self.form
        kwargs["form"] = type(plain.__name__, (Reasoned, plain), {})
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in super().get_fields(request, obj) if name != "reason"]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who only looks is not asked why."""
        asked = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return [*super().get_fieldsets(request, obj), *([WHY] if asked else [])]

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """As it would be, but for nothing without a reason."""
        return self._why_missing(request) or super().delete_view(request, *args, **kwargs)

    def response_action(self, request: HttpRequest, queryset: Any) -> Any:
        """As it would be; deleting a selection wants a reason, too."""
        deletes = request.POST.get("action") == "delete_selected"
        return (deletes and self._why_missing(request)) or super().response_action(request, queryset)

    def _why_missing(self, request: HttpRequest) -> HttpResponse | None:
        """Back to the page that asks, when its answer came without a reason; who may not delete is refused as ever."""
        given = not request.POST.get("post") or request.POST.get("reason", "").strip()
        if given or not self.has_delete_permission(request):
            return None
        messages.error(request, "Nothing was deleted: please say why.")
        return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        request._form_of_act = form  # type: ignore[attr-defined]  # log_change below has only the request
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
        form: Any = getattr(request, "_form_of_act", None)
        before: dict[str, Any] = {}
        # Without a form it is a page of Django's own: a password, say.
        after: dict[str, Any] = {"what": str(message)} if message else {}
        if form is not None:
            changed = [name for name in form.changed_data if name != "reason"]
            after = {name: self._shown(name, form.cleaned_data.get(name)) for name in changed}
            before = {name: self._shown(name, form.initial.get(name)) for name in after if verb != "add"}
        audit_log.record(
            actor=Actor.of(request),
            act=f"{self.opts.model_name}.{verb}",
            subject=obj,
            reason=request.POST.get("reason", ""),
            before=before,
            after=after,
        )

    def _shown(self, name: str, value: Any) -> Any:
        return HIDDEN if name in self.secret_fields and value else value


Act = Callable[[Actor, dict[str, Any]], str]


def found_once(shown: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """For what a page shows of a row: Unfold asks for each such field half a dozen times, each with its queries."""
    name = f"_found_{shown.__name__}"

    @functools.wraps(shown)
    def found(admin: Any, obj: Model) -> Any:
        kept = vars(obj)
        if name not in kept:
            kept[name] = shown(admin, obj)
        return kept[name]

    return found


def state_now(words: str, *, moves: bool) -> SafeString:
    """How far something is; while it `moves`, the page that shows it looks again by itself (admin_live.js)."""
    return format_html("<span data-live>{}</span>" if moves else "<span>{}</span>", words)


def row(admin: ModelAdmin, request: HttpRequest, object_id: str) -> Any:
    """The object of a page's address. Raises Http404 when there is none."""
    found = admin.get_object(request, unquote(object_id))
    if found is None:
        raise Http404
    return found


def ask(
    admin: ModelAdmin,
    request: HttpRequest,
    subject: Model | QuerySet[Any],
    *,
    title: str,
    explanation: str,
    act: Act,
    form_class: type[forms.Form] = ReasonForm,
    initial: dict[str, Any] | None = None,
    back: str = "",
) -> HttpResponse:
    """A page with a form and one button. The first request asks; the form's own POST calls `act` and goes back.

    subject: the row it is about, or the rows that were chosen in a list.
    back: where to go afterwards, if not to the row or the list.
    act: gets who acts and what was filled in; returns what is told afterwards; raises Refused or LedgerError
        when it is impossible.
    """
    if isinstance(subject, QuerySet) and len(subject[: MOST_CHOSEN + 1]) > MOST_CHOSEN:
        messages.error(request, f"Please choose at most {MOST_CHOSEN} at a time.")
        return HttpResponseRedirect(request.get_full_path())
    sent = request.method == "POST" and "once" in request.POST
    form = form_class(request.POST) if sent else form_class(initial=initial)
    back = back or _back(admin, request, subject)
    if sent and form.is_valid() and _done(request, form, act):
        return HttpResponseRedirect(back)
    return page_that_asks(admin, request, subject, form=form, title=title, explanation=explanation, back=back)


def page_that_asks(
    admin: ModelAdmin,
    request: HttpRequest,
    subject: Model | QuerySet[Any],
    *,
    form: forms.Form,
    title: str,
    explanation: str,
    back: str,
) -> HttpResponse:
    """What `ask` shows, for views that answer the form's POST themselves."""
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
    do: Callable[[Actor, Any, dict[str, Any]], None],
    why_not: Callable[[Any], str | None] = lambda _: None,
    form_class: type[forms.Form] = ReasonForm,
) -> HttpResponse:
    """As `ask`, about rows of a list: `do` is called for each, with a form id of its own, in the order of their ids.

    why_not: why a row is impossible; None when it is possible. What `do` refuses is passed over, and said.
    """
    rows = sorted(chosen[:MOST_CHOSEN], key=lambda row: row.pk)
    possible = sum(why_not(row) is None for row in rows)

    def act(actor: Actor, wish: dict[str, Any]) -> str:
        done, refusals = 0, set()
        for each in rows:
            once = uuid.uuid5(wish["once"], str(each.pk))
            try:
                do(actor, each, wish | {"once": once})
                done += 1
            except Refused as refusal:
                if audit_log.carried_out(once):
                    done += 1  # by the same form, sent before
                else:
                    refusals.add(str(refusal))
        return " ".join([f"Done for {done} of {len(rows)} ({wish['reason']}).", *sorted(refusals)])

    over = "" if possible == len(rows) else " The others are passed over."
    explanation = f"Possible for {possible} of {len(rows)} chosen.{over}"
    return ask(admin, request, chosen, title=title, explanation=explanation, act=act, form_class=form_class)


def badge(value: Hashable, words: str, colours: Mapping[Any, str]) -> SafeString:
    """`words` in the colour of `value`, in lists as on the pages of single rows: info, success, warning, danger."""
    return _label(words, colours.get(value, ""))


@functools.lru_cache(maxsize=1000)
def _label(words: str, colour: str) -> SafeString:
    """A list has it in each row, and few different ones."""
    shown: SafeString = display_for_label((colour, words), "-", {colour: colour})
    return shown


def say_why_not(admin: ModelAdmin, request: HttpRequest, obj: Model, why: str) -> HttpResponse:
    """Back to the object, with the reason why the action was not even asked about."""
    messages.error(request, why)
    return HttpResponseRedirect(_back(admin, request, obj))


def _done(request: HttpRequest, form: forms.Form, act: Act) -> bool:
    """Whether there is nothing left to ask."""
    try:
        with transaction.atomic():
            messages.success(request, act(Actor.of(request), form.cleaned_data))
    except DoneBefore as before:
        messages.info(request, str(before))
    except (Refused, LedgerError) as refusal:
        if audit_log.carried_out(form.cleaned_data["once"]):
            # Sent twice, it found its own work: what is done already is often impossible, too.
            messages.info(request, str(DoneBefore()))
            return True
        form.add_error(None, str(refusal))
        return False
    return True


def _back(admin: ModelAdmin, request: HttpRequest, subject: Model | QuerySet[Any]) -> str:
    if isinstance(subject, QuerySet):
        return request.get_full_path()
    return reverse(
        f"{admin.admin_site.name}:{admin.opts.app_label}_{admin.opts.model_name}_change", args=[subject.pk]
    )


def _carried(request: HttpRequest, subject: Model | QuerySet[Any]) -> list[tuple[str, str]]:
    """What a list sends again with the form: the rows themselves, because others may match its filters by then."""
    if not isinstance(subject, QuerySet) or "action" not in request.POST:
        return []
    chosen = [(ACTION_CHECKBOX_NAME, str(pk)) for pk in subject.values_list("pk", flat=True)]
    return [("action", request.POST.get("action", "")), ("index", "0"), *chosen]
