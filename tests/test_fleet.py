"""The node that VIDEO_API_URL names: one row that follows the setting, whatever staff added besides."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from generation.jobs.node_health import sync_environment_node
from generation.models import GpuNode

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def named(settings: Any) -> None:
    settings.VIDEO_API_URL, settings.VIDEO_API_KEY = "http://gpu-a:8081", "first"


def test_no_address_is_no_node(settings: Any) -> None:
    settings.VIDEO_API_URL = ""
    assert sync_environment_node() is None
    assert not GpuNode.objects.exists()


def test_the_same_address_is_the_same_row_and_takes_a_new_key(settings: Any) -> None:
    first = sync_environment_node()
    settings.VIDEO_API_KEY = "second"
    again = sync_environment_node()
    assert first == again
    node = GpuNode.objects.get()
    assert (node.name, node.base_url, node.api_key) == ("default", "http://gpu-a:8081", "second")
    assert node.from_environment


def test_what_was_heard_of_it_stays_while_the_address_does() -> None:
    sync_environment_node()
    GpuNode.objects.update(status="ready", detected_protocol="videos", last_seen_at=timezone.now())
    node = sync_environment_node()
    assert node is not None
    assert (node.status, node.detected_protocol) == ("ready", "videos")


def test_a_changed_address_moves_the_row_and_forgets_what_was_heard_at_the_old_one(settings: Any) -> None:
    sync_environment_node()
    GpuNode.objects.update(status="ready", detected_protocol="videos", last_seen_at=timezone.now())
    settings.VIDEO_API_URL = "http://gpu-b:8081"
    sync_environment_node()
    node = GpuNode.objects.get()
    assert (node.base_url, node.status, node.detected_protocol) == ("http://gpu-b:8081", "unknown", "")
    assert node.last_seen_at is None


def test_a_row_of_staff_with_that_address_is_taken_over_and_the_earlier_one_switched_off(
    settings: Any,
) -> None:
    earlier = sync_environment_node()
    staffs = GpuNode.objects.create(name="rack 2", base_url="http://gpu-b:8081")
    settings.VIDEO_API_URL = staffs.base_url
    assert sync_environment_node() == staffs
    assert earlier is not None
    earlier.refresh_from_db()
    staffs.refresh_from_db()
    assert (staffs.name, staffs.from_environment, staffs.enabled) == ("rack 2", True, True)
    assert (earlier.from_environment, earlier.enabled) == (False, False)


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    GpuNode.objects.create(name="default-2", base_url="http://gpu-c:8081")
    assert getattr(sync_environment_node(), "name", None) == "default"
    GpuNode.objects.filter(name="default").update(from_environment=False, base_url="http://gpu-d:8081")
    assert getattr(sync_environment_node(), "name", None) == "default-3"


@pytest.mark.parametrize(
    "address",
    ["http://gpu-box:8081", "http://gpu_node:8081", "https://gpu.example.org/two", "http://[fd00::7]:8081"],
)
def test_a_node_may_have_any_address_that_can_be_asked(address: str) -> None:
    GpuNode(name="rack 3", base_url=address).full_clean()


@pytest.mark.parametrize(
    "address", ["", "gpu-box:8081", "ftp://gpu-box", "http://", "http://gpu:99999", "http://["]
)
def test_what_is_no_address_of_a_node_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        GpuNode(name="rack 3", base_url=address).full_clean()
