"""A member of the staff at work: identity, permissions, and the reasons why an operation is refused."""

from dataclasses import dataclass
from typing import Any, cast

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from accounts.models import User


class Refused(Exception):
    """This is not possible."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class NeedsApproval(Exception):
    """More than the actor may do alone; the values are fields of the Approval."""

    def __init__(self, summary: str, **values: Any) -> None:
        super().__init__(f"{summary}: this waits under “Approvals” until a colleague approves it.")
        self.values = {"summary": summary, **values}


class DoneBefore(Refused):
    """This form was sent before, and what it asks for is done."""


class NotPermitted(PermissionDenied):
    """The actor's role does not include this. Django answers it with 403."""


@dataclass(frozen=True)
class Actor:
    """A member of the staff at work. `address` is the IP address the request came from."""

    user: User
    address: str

    @classmethod
    def of(cls, request: HttpRequest) -> "Actor":
        return cls(user=cast("User", request.user), address=address_of(request))

    def may(self, permission: str) -> bool:
        """`permission` as `app.codename`."""
        return self.user.is_active and self.user.is_staff and self.user.has_perm(permission)

    def must(self, permission: str) -> None:
        """Raises NotPermitted unless the actor may."""
        if not self.may(permission):
            raise NotPermitted(f"{self.user} has no right to this ({permission}).")


def refuse(why: str | None) -> None:
    """Raise Refused with this message; do nothing where there is none."""
    if why:
        raise Refused(why)


def address_of(request: HttpRequest) -> str:
    """Find the client's IP address: behind a proxy, the one that the proxy itself wrote, the last in the list."""
    forwarded = request.headers.get("X-Forwarded-For", "") if settings.BEHIND_PROXY else ""
    return (forwarded.rpartition(",")[2].strip() or request.META.get("REMOTE_ADDR") or "unknown")[:45]
