"""The OpenAPI document says what the API does: read from it, any request gets an answer that it describes."""

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from django.test import Client
from drf_spectacular.validation import validate_schema
from pytest_django.live_server_helper import LiveServer
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from accounts import api_keys
from accounts.models import User
from generation.jobs import submission
from generation.models import GpuNode

pytestmark = pytest.mark.django_db


@pytest.fixture
def document() -> dict[str, Any]:
    response = Client().get("/v1/schema")
    assert response["Content-Type"].startswith("application/vnd.oai.openapi+json")
    document: dict[str, Any] = json.loads(response.content)
    return document


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate_schema(document)


def test_every_operation_of_the_contract_is_in_it(document: dict[str, Any]) -> None:
    operations = {f"{verb.upper()} {path}" for path, verbs in document["paths"].items() for verb in verbs}
    assert operations == {
        "GET /v1/videos",
        "POST /v1/videos",
        "GET /v1/videos/{video_id}",
        "DELETE /v1/videos/{video_id}",
        "GET /v1/videos/{video_id}/content",
        "GET /v1/videos/{video_id}/events",
        "POST /v1/videos/{video_id}/cancel",
        "POST /v1/videos/{video_id}/remix",
        "GET /v1/credits",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /v1/presets",
    }


def test_every_operation_asks_for_the_key(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"] == {"apiKey": {"type": "http", "scheme": "bearer"}}
    for verbs in document["paths"].values():
        for operation in verbs.values():
            assert operation["security"] == [{"apiKey": []}]
            assert "401" in operation["responses"]
            assert operation["summary"]


def test_the_docs_are_served_from_our_own_files() -> None:
    page = Client().get("/v1/docs").content.decode()
    assert "/static/drf_spectacular_sidecar/" in page
    assert "https://" not in page


def test_the_docs_lead_back_to_the_site() -> None:
    page = Client().get("/v1/docs").content.decode()
    assert '<a href="/">Video platform</a><a href="/api-keys/">API keys</a>' in page


@pytest.fixture
def api_schema(live_server: LiveServer, user: User, node: GpuNode, settings: Any) -> Any:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    # Each request has a key; what happens without one is in test_api.py. Left to itself, a request that was to be
    # refused for the key it lacks would get one all the same, and be accepted.
    config = SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}})
    return schemathesis.openapi.from_url(f"{live_server.url}/v1/schema", config=config)


schema = schemathesis.pytest.from_fixture("api_schema")


@pytest.mark.django_db(transaction=True)
@schema.parametrize()
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_whatever_is_sent_gets_an_answer_that_is_documented(case: schemathesis.Case, user: User) -> None:
    """Half of the requests about a video are about one that exists.

    What only the platform knows (credits, presets, nodes) may refuse what the document allows: that is not looked at.
    """
    wanted = (case.path_parameters or {}).get("video_id")
    if wanted is not None and len(str(wanted)) % 2:
        job = user.jobs.first() or submission.submit(user=user, prompt="A paper boat", source="api")
        case.path_parameters["video_id"] = job.public_id
    case.call_and_validate(
        headers={"Authorization": f"Bearer {api_keys.issue(user=user)[1]}"},
        excluded_checks=[positive_data_acceptance],
    )
