"""R1, R2, R3, R6: the whole platform under load while its processes and its database are killed."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from tests import web
from tests.chaos.platform import PROMPT, Platform
from tests.processes import wait_for

# Each role as often as its weight; a node needs some seconds to load its model again.
ROLES = {
    "worker child": 18,
    "worker helper": 10,
    "worker sentinel": 12,
    "worker main": 12,
    "reconciler": 14,
    "web main": 6,
    "web worker": 8,
    "bot": 10,
    "node front": 5,
    "node worker": 5,
}


def plan_of_kills(count: int, rng: random.Random) -> list[str]:
    """Every role at least once where there are enough kills, then by weight."""
    plan = list(ROLES)[:count]
    plan += rng.choices(list(ROLES), weights=list(ROLES.values()), k=count - len(plan))
    rng.shuffle(plan)
    return plan


def test_kills_of_every_process_under_load_lose_nothing(
    platform_under_fire: Platform, amount: Any, rng: random.Random, score: Any
) -> None:
    platform, jobs, kills = platform_under_fire, amount(500, 12), amount(100, 10)
    by_bot = jobs // 5
    row = score(
        "R1",
        test="kill -9 of every kind of process under load",
        load=f"{jobs} jobs, {by_bot} of them by the bot",
        faults=f"{kills} kills: " + ", ".join(ROLES),
        bar="0 lost, 0 charged twice, 0 stuck, every job ended by its deadline + 60 s",
    )
    before = platform.sql("SELECT count(*) FROM generation_generationjob")[0][0]
    landed: list[str] = []

    def fire() -> None:
        for role in plan_of_kills(kills, rng):
            platform.kill(role, rng)
            landed.append(role)
            time.sleep(rng.uniform(0.2, amount(4, 1)))

    gun = threading.Thread(target=fire)
    gun.start()
    with ThreadPoolExecutor(6) as people:
        by_api = [people.submit(platform.submit, number) for number in range(jobs - by_bot)]
        for number in range(by_bot):
            platform.telegram.say(f"/video {PROMPT} {number}", sender=9000 + number % 20)
            time.sleep(rng.uniform(0, amount(3, 0)))
        ids = {future.result() for future in by_api}
    gun.join()
    assert len(landed) == kills, f"only {len(landed)} of {kills} kills landed"

    def all_there() -> bool:
        return platform.sql("SELECT count(*) FROM generation_generationjob")[0][0] - before >= jobs

    wait_for(all_there, seconds=120, message="a command of the bot was lost", every=0.2)
    platform.wait_until_idle(seconds=960)
    assert len(ids) == jobs - by_bot
    assert platform.sql("SELECT count(*) FROM generation_generationjob")[0][0] - before == jobs
    states = platform.check_books()
    row.result = f"{kills} kills landed; {states}; books balance"
    row.passed = True


def test_after_the_kill_of_an_idle_worker_the_next_task_starts_soon(
    platform_under_fire: Platform, amount: Any, rng: random.Random, score: Any
) -> None:
    platform, kills = platform_under_fire, amount(30, 2)
    row = score(
        "R2",
        test="kill -9 of an idle worker",
        load="one task after each kill",
        faults=f"{kills} kills of pool processes that wait for work",
        bar="the next task starts within 15 s",
    )
    platform.wait_until_idle(seconds=120)
    waits = [_task_after_a_kill(platform, rng) for _ in range(kills)]
    platform.check_books()
    row.result = f"median {sorted(waits)[len(waits) // 2]:.1f} s, slowest {max(waits):.1f} s"
    assert max(waits) <= 15, waits
    row.passed = True


ENQUEUE = """
from django_q.models import OrmQ
from django_q.tasks import async_task
async_task("generation.jobs.tasks.dispatch")
print(OrmQ.objects.latest("id").pk)
"""


def _task_after_a_kill(platform: Platform, rng: random.Random) -> float:
    """Seconds from the kill until a task that was queued after it is done, the queueing itself included."""
    # The supervisor takes a start that ends within a second for one that failed, and waits longer before each next one.
    wait_for(lambda: platform.age_of("worker sentinel", rng) > 1.5)
    platform.kill("worker child", rng)
    begun = time.monotonic()
    task = int(platform.manage("shell", "-v", "0", "-c", ENQUEUE).split()[-1])

    def done() -> bool:
        return platform.sql("SELECT count(*) FROM django_q_ormq WHERE id = %s", task) == [(0,)]

    wait_for(done, seconds=30, message="the queue is wedged")
    return time.monotonic() - begun


def test_an_immediate_stop_of_postgresql_is_survived_by_every_process(
    platform_under_fire: Platform, amount: Any, score: Any
) -> None:
    platform, stops = platform_under_fire, amount(20, 1)
    row = score(
        "R3",
        test="immediate stop of PostgreSQL under load",
        load="3 jobs around each stop, one asked of each door after it",
        faults=f"{stops} times SIGQUIT to the server",
        bar="web, bot, worker and reconciler work again within 15 s of its return; books balance",
    )
    slowest = {"web": 0.0, "bot": 0.0, "worker and reconciler": 0.0}
    for number in range(stops):
        for name, seconds in _stop_and_ask(platform, number).items():
            slowest[name] = max(slowest[name], seconds)
    platform.wait_until_idle(seconds=300)
    platform.check_books()
    row.result = "slowest: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slowest.items())
    assert max(slowest.values()) <= 15, slowest
    row.passed = True


def _stop_and_ask(platform: Platform, number: int) -> dict[str, float]:
    """Seconds from the database's return until each part was seen to work."""
    for job in range(3):
        platform.submit(number, key=f"stop-{number}-{job}")
    old = platform.database_pid()
    os.kill(old, signal.SIGQUIT)

    def back() -> bool:
        try:
            return platform.database_pid() != old and platform.sql("SELECT 1") == [(1,)]
        except (psycopg.OperationalError, FileNotFoundError, IndexError):
            return False

    wait_for(back, message="PostgreSQL did not come back")
    begun = time.monotonic()
    with ThreadPoolExecutor(2) as doors:
        bot = doors.submit(platform.bot_answers, "/balance", sender=500 + number)
        video = platform.submit(number, key=f"after-stop-{number}")
        web = time.monotonic() - begun
        wait_for(
            lambda: platform.status(video, number) in ("in_progress", "completed"), message="not taken up"
        )
        taken_up = time.monotonic() - begun
        return {"web": web, "bot": bot.result(), "worker and reconciler": taken_up}


def test_one_idempotency_key_used_by_many_at_once_is_one_job(
    platform_under_fire: Platform, amount: Any, score: Any
) -> None:
    platform, twins = platform_under_fire, amount(64, 16)
    row = score(
        "R6",
        test="one Idempotency-Key, many submits at once",
        load=f"{twins} concurrent POST /v1/videos",
        faults="none",
        bar="1 job, 1 reservation, the same job every time; another body is 422",
    )
    with ThreadPoolExecutor(twins) as people:
        ids = list(people.map(lambda _: platform.submit(0, key="twins"), range(twins)))
    assert len(set(ids)) == 1
    holds = platform.sql(
        "SELECT count(*) FROM accounts_credittransaction WHERE kind = 'reserve' AND reference = %s",
        ids[0].removeprefix("video_"),
    )
    assert holds == [(1,)]
    headers = {"Authorization": f"Bearer {platform.keys[0]}", "Idempotency-Key": "twins"}
    other = web.post(f"{platform.url}/v1/videos", json={"prompt": "another"}, headers=headers, timeout=10)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_conflict")
    platform.wait_until_idle(seconds=120)
    platform.check_books()
    row.result = f"{len(ids)} answers, 1 job, 1 reservation; another body 422"
    row.passed = True
