"""Browsers that are signed in, without the forms and hashes of a real sign-in."""

from typing import Any

from allauth.account.internal.flows.login import record_authentication
from django.http import HttpRequest
from django.test import Client


def signed_in(user: Any) -> Client:
    """A browser in which `user` gave the password a moment ago, which is proof enough for everything."""
    client, request = Client(), HttpRequest()
    client.force_login(user)
    request.session = client.session
    record_authentication(request, user, "password", username=user.username)
    request.session.save()
    return client
