"""R13: as many clips as nodes, all made in the same moment: what is stored is not held up by what is dispatched."""

import time
from collections import Counter
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone
from django_q.models import OrmQ

from accounts.models import User
from generation.models import GpuNode, JobAttempt
from tests.other_servers import OtherServers
from tests.processes import Processes, wait_for
from tests.test_dispatch import add, states, submit

pytestmark = pytest.mark.django_db(transaction=True)

STORED_WITHIN = 10.0


def test_clips_that_are_made_at_once_are_stored_soon_after(
    user: User, processes: Processes, settings: Any, amount: Any, score: Any
) -> None:
    number = amount(200, 30)
    row = score(
        "R13",
        test="clips of as many nodes, made at once",
        load=f"{number} nodes, {number} clips of 2 s, one worker with two processes for storing",
        faults="none",
        bar=f"all stored within {STORED_WITHIN:.0f} s of the last one made, at most 20 tasks queued",
    )
    settings.VIDEO_COOLDOWN_SECONDS = 0
    processes.environment |= {"NODE_HEALTH_SECONDS": "30"}
    with OtherServers(seconds=2) as servers:
        add(servers, *["fine"] * number)
        submit(user, number)
        GpuNode.objects.update(last_seen_at=timezone.now())
        processes.start("run_reconciler")
        processes.start("run_worker")
        most, made_at = 0, 0.0

        def done() -> bool:
            nonlocal most, made_at
            most, now = max(most, OrmQ.objects.count()), states()
            if not made_at and not now["queued"] + now["running"]:
                made_at = time.monotonic()
            return now["completed"] == number

        wait_for(done, seconds=300, every=0.2, message="not all are stored")
    seconds = time.monotonic() - made_at
    row.result = f"the last one stored {seconds:.1f} s after it was made, at most {most} tasks queued"
    assert most <= 20, "tasks piled up"
    assert Counter(JobAttempt.objects.values_list("state", flat=True)) == {"succeeded": number}
    call_command("audit_credits")
    assert number < 200 or seconds <= STORED_WITHIN, row.result
    row.passed = True
