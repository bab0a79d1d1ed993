"""From the queue to the nodes through the real worker and reconciler: nodes that refuse or hang, lost wake-ups, and
what a claim costs beside many jobs and nodes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import OrmQ

from accounts.models import User
from generation.jobs import catalog, scheduling, submission
from generation.models import CanaryRun, GenerationJob, GpuNode, JobAttempt
from tests.other_servers import OtherServers
from tests.processes import Processes, wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def servers() -> Iterator[OtherServers]:
    with OtherServers(seconds=0.2) as running:
        yield running


@pytest.fixture
def running(processes: Processes, settings: Any) -> Processes:
    settings.VIDEO_COOLDOWN_SECONDS = 0
    processes.start("run_worker")
    processes.start("run_reconciler")
    return processes


def add(servers: OtherServers, *ways: str) -> None:
    """Make each of these servers a node, known to be ready as the reconciler would find it."""
    for way, number in Counter(ways).items():
        for each in range(number):
            GpuNode.objects.create(
                name=f"{way}-{each}",
                base_url=servers.url(way, each),
                detected_protocol="videos",
                status="ready",
                last_seen_at=timezone.now(),
            )


def submit(user: User, number: int = 1, **fields: Any) -> list[GenerationJob]:
    User.objects.filter(pk=user.pk).update(is_staff=True)  # they pay nothing
    user.refresh_from_db()
    return [
        submission.submit(user=user, prompt=f"Number {count}", source="api", **fields)
        for count in range(number)
    ]


def states() -> Counter[str]:
    return Counter(GenerationJob.objects.values_list("state", flat=True))


def all_end(number: int, state: str = "completed") -> None:
    wait_for(lambda: not states().keys() & set(GenerationJob.LIVE), message="not all have ended")
    assert states() == {state: number}, list(GenerationJob.objects.values_list("state", "error_message"))


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ways",
    [
        ("refuses", "fine"),
        ("wants_payment", "forbids", "misses_model", "fine"),
        ("refuses", "refuses", "refuses_with_200", "fine"),
    ],
)
def test_nodes_that_refuse_everything_cost_no_job_and_are_set_aside(
    user: User, servers: OtherServers, running: Processes, ways: tuple[str, ...]
) -> None:
    add(servers, *ways)
    submit(user, 12)
    all_end(12)
    assert set(JobAttempt.objects.filter(state="succeeded").values_list("node__name", flat=True)) == {
        "fine-0"
    }
    aside = GpuNode.objects.filter(set_aside_at__isnull=False)
    wait_for(lambda: aside.count() == len(ways) - 1, message=f"{list(aside)}")
    assert not aside.filter(name="fine-0").exists()


def test_what_two_nodes_refuse_fails_with_their_reason_and_they_stay(
    user: User, servers: OtherServers, running: Processes
) -> None:
    add(servers, "picky", "picky")
    submit(user)
    all_end(1)
    [job] = submit(user, negative_prompt="refuse this")
    wait_for(lambda: GenerationJob.objects.get(pk=job.pk).state == "failed")
    job.refresh_from_db()
    assert (job.error_code, job.error_message) == ("rejected", "The GPU node says: “No such negative prompt”")
    assert sorted(job.attempts.values_list("state", flat=True)) == ["failed", "refused"]
    assert not GpuNode.objects.filter(set_aside_at__isnull=False).exists()
    submit(user)
    wait_for(lambda: states() == {"completed": 2, "failed": 1})


def test_what_the_only_node_refuses_fails_once_it_has_shown_that_it_works(
    user: User, servers: OtherServers, running: Processes
) -> None:
    add(servers, "picky")
    [job] = submit(user, negative_prompt="refuse this")
    all_end(1, "failed")
    job.refresh_from_db()
    assert job.error_message == "The GPU node says: “No such negative prompt”"
    assert CanaryRun.objects.get().passed
    assert len(servers["picky"].bodies) == 3, "the job, the canary clip, and the job again"
    assert GpuNode.objects.get().set_aside_at is None


def test_the_only_node_that_refuses_everything_is_set_aside_and_the_job_waits_for_another(
    user: User, servers: OtherServers, running: Processes
) -> None:
    add(servers, "refuses")
    submit(user)
    wait_for(lambda: GpuNode.objects.filter(set_aside_reason__contains="not permitted").exists())
    assert states() == {"queued": 1}
    add(servers, "fine")
    all_end(1)


# --- Nodes that hang --------------------------------------------------------------------------------------------------


def test_two_hung_nodes_of_five_do_not_delay_the_others_and_lose_what_they_were_given(
    user: User, servers: OtherServers, running: Processes
) -> None:
    add(servers, *["hangs"] * 2, *["fine"] * 3)
    submit(user, 10)
    given = JobAttempt.objects.filter(node__name__startswith="hangs")
    wait_for(lambda: states()["completed"] == 10 - given.count() and given.exists(), seconds=30)
    held_up = list(given.values_list("job__state", "silent_since"))
    assert {state for state, _ in held_up} == {"running"}, (
        "the others are done before any of these was given up"
    )
    silent = given.filter(silent_since__isnull=False)
    wait_for(lambda: silent.values("node").distinct().count() == 2)
    submit(user, 6)
    wait_for(lambda: states()["completed"] == 16 - given.filter(state="open").count())
    assert given.count() == len(held_up), "after one silence a node is given nothing more"
    all_end(16)


def test_files_that_hang_hold_up_no_dispatch_and_no_other_file_for_long(
    user: User, servers: OtherServers, running: Processes
) -> None:
    add(servers, "hanging_file")
    submit(user, 4)
    wait_for(lambda: states()["storing"] >= 3)
    wait_for(lambda: JobAttempt.objects.filter(silent_since__isnull=False).exists())
    add(servers, "fine")
    [job] = submit(user)
    wait_for(lambda: job.attempts.exclude(remote_id="").exists(), seconds=30)
    assert states()["storing"] >= 3, "it went to its node while the workers waited for files"
    wait_for(lambda: GenerationJob.objects.get(pk=job.pk).state == "completed")
    assert states()["storing"] >= 3, "and was stored before these were given up"
    given = servers["hanging_file"].posts
    submit(user)
    wait_for(lambda: states()["completed"] == 2)
    assert servers["hanging_file"].posts == given, "a node whose files hang is given nothing more"


# --- Wake-ups, and what lies in the queue -----------------------------------------------------------------------------


def test_a_job_whose_wake_up_was_lost_is_found_by_a_look_at_the_rows(
    user: User, servers: OtherServers, running: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(servers, "fine")
    submit(user)
    all_end(1)
    monkeypatch.setattr("generation.database.notify", lambda *_: None)
    submit(user)
    all_end(2)


def test_jobs_leave_no_rows_in_the_queue_however_often_they_are_asked_for(user: User, node: GpuNode) -> None:
    from generation.jobs import enqueue, lifecycle

    submit(user)
    [attempt] = scheduling.claim(1)
    assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk)
    for _ in range(3):
        enqueue.dispatch()
        enqueue.store(attempt_id=attempt.pk)
    assert not OrmQ.objects.exists()


# --- What a claim costs -----------------------------------------------------------------------------------------------


@pytest.fixture
def many_nodes(node: GpuNode) -> None:
    facts = {"detected_protocol": "videos", "status": "ready", "backend": node.backend}
    GpuNode.objects.bulk_create(
        GpuNode(
            name=f"n{number}", base_url=f"http://127.0.0.1:9/{number}", last_seen_at=timezone.now(), **facts
        )
        for number in range(100)
    )


def queue_up(user: User, number: int, **fields: Any) -> None:
    """Put many jobs into the queue at once, older than any other."""
    preset = catalog.default_preset()
    facts = {name: getattr(preset, name) for name in preset.COPIED} | fields
    first = GenerationJob.objects.create(user=user, source="api", prompt="x", preset=preset, cost=0, **facts)
    others = ", ".join(field.column for field in GenerationJob._meta.concrete_fields if field.name != "id")
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO generation_generationjob (id, {others}) SELECT gen_random_uuid(), {others}"
            " FROM generation_generationjob, generate_series(2, %s) WHERE id = %s",
            [number, first.pk],
        )
        cursor.execute("ANALYZE generation_generationjob")


def cost(claim: Callable[[], object]) -> tuple[int, float]:
    """Queries, and rows that PostgreSQL touched: how long it takes says nothing on a busy machine."""
    with CaptureQueriesContext(connection) as made:
        claim()
    return len(made), sum(_rows(query["sql"]) for query in made if query["sql"].startswith("SELECT"))


def _rows(statement: str) -> float:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
        return _rows_of(cursor.fetchone()[0][0]["Plan"])


def _rows_of(plan: dict[str, Any]) -> float:
    here = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return float(here + sum(map(_rows_of, plan.get("Plans", []))))


def test_an_empty_queue_costs_one_look_however_many_nodes_there_are(many_nodes: None) -> None:
    with CaptureQueriesContext(connection) as made:
        assert scheduling.claim() == []
    assert len([query for query in made if "generation_" in query["sql"]]) == 1


def test_a_claim_is_as_flat_beside_ten_thousand_jobs_that_no_node_serves(
    user: User, many_nodes: None
) -> None:
    submit(user)
    alone = cost(scheduling.claim)
    assert GenerationJob.objects.get().state == "running"
    for fields in ({"model": "elsewhere"}, {"size": "1280x720"}):
        queue_up(user, 5000, **fields)
    GpuNode.objects.update(last_seen_at=timezone.now())
    submit(user)
    queries, rows = cost(scheduling.claim)
    assert states() == {"running": 2, "queued": 10_000}
    assert queries == alone[0]
    assert rows < alone[1] + 500


def test_two_hundred_jobs_are_claimed_with_as_many_queries_as_one(user: User, many_nodes: None) -> None:
    submit(user)
    alone, _ = cost(scheduling.claim)
    queue_up(user, 100)
    with CaptureQueriesContext(connection) as made:
        assert len(scheduling.claim()) == 100
    assert len(made) <= alone
    assert max(GpuNode.objects.filter(attempts__state="open").values_list("capacity", flat=True)) == 1
    assert Counter(JobAttempt.objects.values_list("node", flat=True)).most_common(1)[0][1] == 1, (
        "idle ones first"
    )
