"""The wallet over REST, and what every part of the API shares: the shape of errors, and what counts as left out."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import ledger
from accounts.models import CreditTransaction, User

Kind = CreditTransaction.Kind
MAX_ID = 2**63 - 1
F = TypeVar("F", bound=Callable[..., Any])


class ErrorDetail(serializers.Serializer):
    code = serializers.CharField(help_text="For programs, e.g. `insufficient_credits`.")
    message = serializers.CharField(help_text="For people.")
    param = serializers.CharField(allow_null=True, help_text="The field of the request it is about.")
    type = serializers.CharField(help_text="The kind of error, by status.")


class ErrorBody(serializers.Serializer):
    """The body of every 4xx and 5xx."""

    error = ErrorDetail()


def documented(name: str, summary: str, response: Any, *statuses: int, **options: Any) -> Callable[[F], F]:
    """Describe a view in the OpenAPI document: its response (or responses by status), and the errors it may have."""
    responses = response if isinstance(response, dict) else {200: response}
    # Any call may be one too many.
    responses = responses | {status: OpenApiResponse(ErrorBody) for status in sorted({*statuses, 429})}
    return extend_schema(operation_id=name, summary=summary, responses=responses, **options)


class EmptyIsLeftOut(serializers.Serializer):
    """Takes a field that is null, empty or blank as left out: so many SDKs, and all forms, send what is not set."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            blank = {name for name, value in data.items() if isinstance(value, str) and not value.strip()}
            data = {name: value for name, value in data.items() if value is not None and name not in blank}
            for name in data:
                self.check_field_name(name)
        return super().to_internal_value(data)

    def check_field_name(self, name: str) -> None:
        """Accept any: what an address has beside its fields is ignored."""


class CreditsPage(EmptyIsLeftOut):
    """The part of the history to list."""

    after = serializers.IntegerField(
        required=False, min_value=0, max_value=MAX_ID, help_text="The last id of the page before."
    )
    limit = serializers.IntegerField(default=20, min_value=1, max_value=100)
    order = serializers.ChoiceField(
        choices=["asc", "desc"], default="desc", allow_blank=True, help_text="By time."
    )


class TransactionSerializer(serializers.Serializer):
    """One entry of the append-only ledger."""

    id = serializers.IntegerField()
    kind = serializers.ChoiceField(choices=Kind.choices)
    amount = serializers.IntegerField(help_text="Change of the free credits.")
    posted_delta = serializers.IntegerField(
        help_text="Change of the credits owned: what was given or charged."
    )
    held_delta = serializers.IntegerField(help_text="Change of the credits held for videos being made.")
    balance_after = serializers.IntegerField(help_text="Free credits after it.")
    reason = serializers.CharField()
    video_id = serializers.SerializerMethodField(help_text="The video it is about.")
    created_at = serializers.SerializerMethodField(help_text="Unix time.")

    def get_video_id(self, entry: CreditTransaction) -> str | None:
        # The reference of a transfer is the pair of entries; every other one is a job, which the API calls so.
        return f"video_{entry.reference.hex}" if entry.reference and entry.kind != Kind.TRANSFER else None

    def get_created_at(self, entry: CreditTransaction) -> int:
        return int(entry.created_at.timestamp())


class CreditsSerializer(serializers.Serializer):
    object = serializers.CharField(default="credits")
    balance = serializers.IntegerField(help_text="Credits free to spend.")
    held = serializers.IntegerField(help_text="Credits held for videos being made.")
    posted = serializers.IntegerField(help_text="Credits owned: balance and held.")
    transactions = TransactionSerializer(many=True)
    last_id = serializers.IntegerField(allow_null=True, help_text="`after` of the next page.")
    has_more = serializers.BooleanField()


class Credits(APIView):
    @documented(
        "credits_retrieve",
        "Your credits and where they went",
        CreditsSerializer,
        *(400, 401, 404),
        parameters=[CreditsPage],
    )
    def get(self, request: Request) -> Response:
        query = CreditsPage(data=request.query_params.dict())
        query.is_valid(raise_exception=True)
        page: dict[str, Any] = query.validated_data
        account = ledger.open_account(user=cast(User, request.user))
        newest_first = page["order"] == "desc"
        entries = account.transactions.order_by("-id" if newest_first else "id")
        if "after" in page:
            if not account.transactions.filter(pk=page["after"]).exists():
                raise NotFound("There is no such transaction.")
            entries = entries.filter(**{"id__lt" if newest_first else "id__gt": page["after"]})
        rows = list(entries[: page["limit"] + 1])
        shown = rows[: page["limit"]]
        return Response(
            {
                "object": "credits",
                "balance": account.balance,
                "held": account.held,
                "posted": account.posted,
                "transactions": TransactionSerializer(shown, many=True).data,
                "last_id": shown[-1].pk if shown else None,
                "has_more": len(rows) > len(shown),
            }
        )
