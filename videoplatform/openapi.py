"""How the OpenAPI document describes an error: one shape for every part of the API."""

from drf_spectacular.utils import OpenApiResponse
from rest_framework import serializers


class ErrorDetail(serializers.Serializer):
    code = serializers.CharField(help_text="For programs, e.g. `insufficient_credits`.")
    message = serializers.CharField(help_text="For people.")
    param = serializers.CharField(allow_null=True, help_text="The field of the request it is about.")
    type = serializers.CharField(help_text="The kind of error, by status.")


class ErrorBody(serializers.Serializer):
    """What every 4xx and 5xx carries."""

    error = ErrorDetail()


def errors(*statuses: int) -> dict[int, OpenApiResponse]:
    """These statuses, all of the one shape."""
    return {status: OpenApiResponse(ErrorBody) for status in statuses}
