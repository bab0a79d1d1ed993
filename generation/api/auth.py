"""API keys as the authentication of the REST API: `Authorization: Bearer <key>`."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts import api_keys
from accounts.models import ApiKey, User

REALM = 'Bearer realm="api"'


class ApiKeyAuthentication(BaseAuthentication):
    """Authenticates the owner of a live API key. No header is anonymous; a wrong header is refused."""

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        header = get_authorization_header(request)
        if not header:
            return None
        key = key_of_header(header)
        if key is None:
            raise AuthenticationFailed("This API key is not valid.")
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        return REALM


def key_of_header(header: bytes) -> ApiKey | None:
    """Find the live key that an Authorization header names. Any bytes are fine."""
    scheme, _, secret = header.partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    return api_keys.verify(secret.strip().decode("latin-1"))


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """ApiKeyAuthentication in the OpenAPI document."""

    target_class = "generation.api.auth.ApiKeyAuthentication"
    name = "apiKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}
