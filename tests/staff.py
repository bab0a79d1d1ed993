"""Members of the staff at work, for tests: by role, in a browser that has signed in."""

import uuid
from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import Group
from django.test import Client
from django.urls import reverse

from accounts.models import User
from accounts.staff.actor import Actor


def sent(**values: Any) -> dict[str, Any]:
    """The form of a page that asks: each page has an id of its own."""
    return {"once": str(uuid.uuid4()), **values}


def page(kind: str, *args: Any) -> str:
    return reverse(f"admin:{kind}", args=args)


def said(response: Any) -> str:
    """The messages of the page at the end of the redirects."""
    return " ".join(str(message) for message in response.context["messages"])


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def in_role(make_user: Callable[..., User], role: str) -> Actor:
    """A new member of the staff with one of the shipped roles and nothing else."""
    user = make_user(f"the-{role}", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    return Actor(user=user, address="203.0.113.7")
