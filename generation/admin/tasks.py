"""Background tasks that failed, for staff."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.text import Truncator
from django_q.models import Failure, OrmQ, Schedule, Success
from unfold.decorators import display

from accounts.admin_pages import ReadOnlyAdmin, ask_about_each
from accounts.staff.clerks import Clerk
from generation.staff import failed_tasks

# Nothing is scheduled here, successes are not kept, and a queued task is a name that would be called.
for unused in (Schedule, Success, OrmQ, Failure):
    admin.site.unregister(unused)


@admin.register(Failure)
class FailureAdmin(ReadOnlyAdmin):
    """What broke, and why. Tasks are safe to repeat."""

    list_display = ("stopped", "func", "args", "error")
    fields = ("func", "args", "kwargs", "started", "stopped", "result")
    search_fields = ("func", "name")
    actions = ("run_again",)

    @display(description="Error")
    def error(self, task: Failure) -> str:
        return Truncator(str(task.result)).chars(100)

    def has_rerun_permission(self, request: HttpRequest, _: object = None) -> bool:
        return Clerk.of(request).may("django_q.change_failure")

    @admin.action(description="Run these again", permissions=["rerun"])
    def run_again(self, request: HttpRequest, queryset: "QuerySet[Failure]") -> HttpResponse:
        def again(clerk: Clerk, task: Failure, wish: dict[str, Any]) -> None:
            failed_tasks.run_again(clerk=clerk, task=task, **wish)

        return ask_about_each(self, request, queryset, title="Run again", do=again)
