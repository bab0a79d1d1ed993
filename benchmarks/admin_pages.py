"""Time the staff's pages with a few rows and with very many: `python -m benchmarks.admin_pages`.

Fills a scratch PostgreSQL with 1,000 jobs and 2,000 entries of the ledger, times each page, adds rows up to a million
jobs and two million entries, and times them again. A page may take 3 times as long then, and fewer than 20 queries;
else it ends with 1. The rows are spread over a year, as they would be; only their books do not add up.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ALLOWED_RATIO = 3.0
MOST_QUERIES = 20
PEOPLE = 1000
# Milliseconds, and number of queries.
Taken = tuple[float, int]
PAGES = {
    "home": "/admin/",
    "jobs": "/admin/generation/generationjob/",
    "failed jobs": "/admin/generation/generationjob/?state__exact=failed",
    "jobs, page 20": "/admin/generation/generationjob/?p=20",
    "search, all fit": "/admin/generation/generationjob/?q=paper+boat",
    "search, one fits": "/admin/generation/generationjob/?q=boat+777",
    "search, a name": "/admin/generation/generationjob/?q=u7",
    "transactions": "/admin/accounts/credittransaction/",
    "refunds": "/admin/accounts/credittransaction/?kind__exact=refund",
    "one wallet": "/admin/accounts/credittransaction/?account__id__exact={account}",
    "users": "/admin/accounts/user/",
    "find a user": "/admin/accounts/user/find/?q=u7",
    "nodes": "/admin/generation/gpunode/",
    "one node": "/admin/generation/gpunode/{node}/change/",
    "audit log": "/admin/accounts/auditevent/",
    "bulk refunds": "/admin/generation/bulkrefund/",
    "reports": "/admin/generation/report/",
    "deliveries": "/admin/telegram_bot/jobmessage/",
}

JOBS = """
INSERT INTO generation_generationjob (id, user_id, source, prompt, negative_prompt, preset_id, num_frames, fps,
    num_inference_steps, seed, model, size, cost, request_digest, state, attempt_count, step, error_code, error_message,
    created_at, started_at, finished_at, deadline_at, video, poster, generation_ms)
SELECT md5('job' || n)::uuid, %(first_user)s + n %% {people}, 'web', 'A paper boat ' || n, '', %(preset)s, 16, 8,
    20, n, '', '', 50, '', state, 1, 20, '', '', born, born,
    CASE WHEN state = 'queued' THEN NULL ELSE born + span END,
    born + interval '30 minutes',
    CASE WHEN state = 'completed' THEN 'videos/' || n || '.mp4' ELSE '' END, '', 28000
FROM (SELECT n, now() - (n::float / %(last)s) * interval '365 days' AS born,
        (5 + n %% 60) * interval '1 second' AS span,
        CASE WHEN n <= 20 THEN 'queued' WHEN n %% 20 = 0 THEN 'failed' WHEN n %% 33 = 0 THEN 'canceled'
             ELSE 'completed' END AS state
      FROM generate_series(%(first)s::int, %(last)s::int) AS n) AS row
ON CONFLICT DO NOTHING
"""
ATTEMPTS = """
INSERT INTO generation_jobattempt (id, job_id, node_id, protocol, state, remote_id, file_name, step, generation_ms,
    posted_at, opened_at, closed_at, lease_expires_at, profile, error)
SELECT md5('attempt' || n)::uuid, md5('job' || n)::uuid, %(node)s, 'videos',
    CASE WHEN n %% 20 = 0 THEN 'failed' ELSE 'succeeded' END, n, '', 20, 28000, born, born,
    born + interval '30 seconds', born, '', ''
FROM (SELECT n, now() - (n::float / %(last)s) * interval '365 days' AS born
      FROM generate_series(greatest(21, %(first)s)::int, %(last)s::int) AS n) AS row
ON CONFLICT DO NOTHING
"""
ENTRIES = """
INSERT INTO accounts_credittransaction (account_id, kind, posted_delta, held_delta, posted_after, held_after, reference,
    reason, created_at)
SELECT %(first_account)s + (n / 2) %% {people}, CASE WHEN n %% 500 = 0 THEN 'refund' WHEN n %% 2 = 0 THEN 'reserve'
        ELSE 'capture' END, CASE WHEN n %% 2 = 0 THEN 0 ELSE -50 END, CASE WHEN n %% 2 = 0 THEN 50 ELSE -50 END,
    500, 50, md5('job' || n / 2)::uuid, 'Video completed', now() - (1 - n::float / %(last)s) * interval '365 days'
FROM generate_series(%(first)s::int, %(last)s::int) AS n
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--few", type=int, default=1_000, help="jobs at first; twice as many entries")
    parser.add_argument("--many", type=int, default=1_000_000, help="jobs in the end; twice as many entries")
    parser.add_argument(
        "--rounds", type=int, default=8, help="each asks for each page twice; the median counts"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="admin-pages-") as folder:
        _settings(Path(folder))
        from django.conf import settings

        from videoplatform import embedded_postgres

        with embedded_postgres.hold(settings.DATA_DIR):
            return _measure(options)


def _settings(folder: Path) -> None:
    os.environ |= {
        "DATA_DIR": str(folder),
        "DATABASE_URL": "",
        "SECRET_KEY": "for-a-benchmark",
        "DEBUG": "false",
        "STAFF_REQUIRE_MFA": "false",
        "ALLOWED_HOSTS": "testserver",
        "DJANGO_SETTINGS_MODULE": "videoplatform.settings",
    }
    import django

    django.setup()


def _measure(options: argparse.Namespace) -> int:
    from django.conf import settings
    from django.core.management import call_command

    settings.STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    call_command("migrate", verbosity=0)
    client, ids = _furnish()
    _fill(1, options.few, ids)
    few, many = _copy(), _name()
    _switch(many)
    began = time.monotonic()
    _fill(options.few + 1, options.many, ids)
    sys.stdout.write(
        f"{options.many:,} jobs and {2 * options.many:,} entries in {time.monotonic() - began:.0f} s\n"
    )
    _first_view(client)
    return _report(*_times(client, ids, few, many, options.rounds))


def _first_view(client: Any) -> None:
    """Time the first view of the home page ever, which does not wait for statistics added up in the background."""
    from generation.staff import stats

    took, _ = _once(client, PAGES["home"])
    began = time.monotonic()
    stats.keep()
    background = time.monotonic() - began
    sys.stdout.write(
        f"the first view of the home page ever: {took:.0f} ms; 30 days are added up meanwhile in "
    )
    sys.stdout.write(f"{background:.1f} s\n\n")


def _name() -> str:
    from django.db import connection

    return str(connection.settings_dict["NAME"])


def _copy() -> str:
    """The database as it is now, under another name."""
    from django.db import connection

    copy, original = "few_rows", _name()
    _switch("postgres")
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {copy} TEMPLATE {connection.ops.quote_name(original)}")
    _switch(original)
    return copy


def _switch(name: str) -> None:
    from django.db import connection

    connection.close()
    connection.settings_dict["NAME"] = name
    connection.ensure_connection()


def _furnish() -> tuple[Any, dict[str, int]]:
    """Staff, people and a node; a browser that is signed in."""
    from django.test import Client

    from accounts.models import CreditAccount, User
    from generation.models import GpuNode, Preset

    staff = User.objects.create_superuser("grace", password="x")
    people = User.objects.bulk_create(User(username=f"u{number}", password="!") for number in range(PEOPLE))
    accounts = CreditAccount.objects.bulk_create(CreditAccount(user=user) for user in people)
    node = GpuNode.objects.create(name="node", base_url="http://127.0.0.1:9", detected_protocol="videos")
    client = Client()
    client.force_login(staff)
    return client, {
        "first_user": people[0].pk,
        "first_account": accounts[0].pk,
        "account": accounts[7].pk,
        "preset": Preset.objects.earliest("pk").pk,
        "node": node.pk,
    }


def _fill(first: int, last: int, ids: dict[str, int]) -> None:
    """Insert rows by plain SQL with the guards off: pages are measured, not the way that rows come to be."""
    from django.db import connection

    jobs = JOBS.format(people=PEOPLE)
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute("ALTER TABLE accounts_credittransaction DISABLE TRIGGER USER")
        cursor.execute(
            "ALTER TABLE accounts_credittransaction DROP CONSTRAINT IF EXISTS transaction_shape_of_its_kind"
        )
        cursor.execute(jobs, ids | {"first": first, "last": last})
        cursor.execute(ATTEMPTS, ids | {"first": first, "last": last})
        cursor.execute(ENTRIES.format(people=PEOPLE), ids | {"first": 2 * first - 1, "last": 2 * last})
        cursor.execute("VACUUM ANALYZE")


def _times(client: Any, ids: dict[str, int], few: str, many: str, rounds: int) -> list[dict[str, Taken]]:
    """Median milliseconds and number of queries of each page, in each database.

    Both are asked in turn, so that whatever else the machine does slows both; the first call after each change of the
    database counts for nothing.
    """
    runs: dict[tuple[str, str], list[Taken]] = {}
    for _ in range(rounds):
        for database in (few, many):
            _switch(database)
            for name, address in PAGES.items():
                calls = [_once(client, address.format(**ids)) for _ in range(3)]
                runs.setdefault((database, name), []).extend(calls[1:])
    return [{name: _median(runs[database, name]) for name in PAGES} for database in (few, many)]


def _median(calls: list[Taken]) -> Taken:
    return statistics.median(milliseconds for milliseconds, _ in calls), max(queries for _, queries in calls)


def _once(client: Any, address: str) -> Taken:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as queries:
        began = time.perf_counter()
        answer = client.get(address)
        took = time.perf_counter() - began
    if answer.status_code != 200:
        raise SystemExit(f"{address} answered {answer.status_code}")
    return 1000 * took, len(queries)


def _report(few: dict[str, Taken], many: dict[str, Taken]) -> int:
    sys.stdout.write(f"{'page':<16}{'few':>10}{'many':>10}{'ratio':>8}{'queries':>9}\n")
    missed = []
    for name, (before, _) in few.items():
        after, queries = many[name]
        ratio = after / before
        sys.stdout.write(f"{name:<16}{before:>7.0f} ms{after:>7.0f} ms{ratio:>8.2f}{queries:>9}\n")
        if ratio > ALLOWED_RATIO or queries >= MOST_QUERIES:
            missed.append(name)
    sys.stdout.write(f"missed: {', '.join(missed)}\n" if missed else "all within 3 times and 20 queries\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
