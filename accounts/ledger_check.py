"""The books added up because somebody of the staff wants to know."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from django.db import connection, transaction
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts.models import AuditRun, CreditAccount, CreditTransaction
from accounts.staff.audit_log import Operation, operation

Check = Callable[[], Iterable[str]]
_checks: list[Check] = []
MOST_KEPT = 100
EVERY = timedelta(days=1)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """What was looked at, and every discrepancy as a sentence; none is what it should be."""

    accounts: int
    entries: int
    discrepancies: list[str]


def register(check: Check) -> Check:
    """Make a function that yields discrepancies part of every audit."""
    if check not in _checks:
        _checks.append(check)
    return check


def audit() -> Audit:
    """Run every check on one snapshot, so that what happens meanwhile looks like no discrepancy."""
    snapshot = not connection.in_atomic_block
    with transaction.atomic():
        if snapshot:
            query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = [sentence for check in _checks for sentence in check()]
        return Audit(
            accounts=CreditAccount.objects.count(),
            entries=CreditTransaction.objects.count(),
            discrepancies=found,
        )


def audit_daily() -> None:
    """A task: add the books up, unless somebody did within a day. Staff see the result on their home page."""
    if not AuditRun.objects.filter(at__gt=Now() - EVERY).exists():
        result = audit_and_keep()
        for sentence in result.discrepancies:
            logger.error("the books are wrong: %s", sentence)


def audit_and_keep() -> Audit:
    """The same, and keep the result where staff see it."""
    began = time.monotonic()
    result = audit()
    AuditRun.objects.create(
        seconds=time.monotonic() - began,
        accounts=result.accounts,
        entries=result.entries,
        found=len(result.discrepancies),
        discrepancies=result.discrepancies[:MOST_KEPT],
    )
    return result


def query(statement: str) -> list[tuple[object, ...]]:
    """Rows of a statement, or none where it returns none."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@register
def balances_are_the_sums_of_their_entries() -> Iterable[str]:
    for account, posted, held, sum_posted, sum_held in query(SUMS):
        yield f"account {account} says {posted} posted, {held} held; its entries sum to {sum_posted} and {sum_held}"


@register
def running_balances_follow_from_the_entries_before() -> Iterable[str]:
    for entry, posted, held, running_posted, running_held in query(RUNNING):
        sums = f"{running_posted} and {running_held}"
        yield f"entry {entry} says {posted} and {held} after it; the entries up to it sum to {sums}"


@register
def resolutions_fit_what_they_resolve() -> Iterable[str]:
    for entry, kind, origin in query(RESOLUTIONS):
        yield f"entry {entry}, a {kind}, does not fit entry {origin}, which it resolves"


@register
def transfers_sum_to_nothing() -> Iterable[str]:
    for reference, total in query(TRANSFERS):
        yield f"transfer {reference} creates {total} credits"


@register
def a_purchase_is_refunded_once() -> Iterable[str]:
    for purchase, standing in query(REFUNDS):
        yield f"purchase {purchase} has {standing} refunds that stand"


@register
def merges_moved_what_they_say() -> Iterable[str]:
    for merge, moved, entered in query(MERGES):
        yield f"merge {merge} says that {moved} credits moved; its transfer has {entered}"


@register
def undone_merges_moved_nothing() -> Iterable[str]:
    for merge, left in query(UNDONE):
        yield f"merge {merge} was undone, but {left} credits have not come back"


SUMS = """
SELECT account.id, account.posted, account.held,
       coalesce(sum(entry.posted_delta), 0), coalesce(sum(entry.held_delta), 0)
FROM accounts_creditaccount account LEFT JOIN accounts_credittransaction entry ON entry.account_id = account.id
GROUP BY account.id
HAVING account.posted <> coalesce(sum(entry.posted_delta), 0) OR account.held <> coalesce(sum(entry.held_delta), 0)
    OR account.held < 0 OR account.held > account.posted
"""

RUNNING = """
SELECT * FROM (
    SELECT id, posted_after, held_after,
           sum(posted_delta) OVER upto AS posted, sum(held_delta) OVER upto AS held
    FROM accounts_credittransaction WINDOW upto AS (PARTITION BY account_id ORDER BY id)
) entry WHERE posted_after <> posted OR held_after <> held
"""

RESOLUTIONS = """
SELECT entry.id, entry.kind, origin.id
FROM accounts_credittransaction entry JOIN accounts_credittransaction origin ON origin.id = entry.resolves_id
WHERE origin.account_id <> entry.account_id OR origin.reference IS DISTINCT FROM entry.reference
   OR origin.kind <> CASE entry.kind WHEN 'capture' THEN 'reserve' WHEN 'release' THEN 'reserve'
                                     WHEN 'refund' THEN 'capture' WHEN 'purchase_refund' THEN 'purchase'
                                     WHEN 'adjust' THEN 'purchase_refund' END
   OR (entry.kind IN ('capture', 'release') AND entry.held_delta <> -origin.held_delta)
   OR (entry.kind IN ('refund', 'purchase_refund', 'adjust') AND entry.posted_delta <> -origin.posted_delta)
"""

TRANSFERS = """
SELECT reference, sum(posted_delta) FROM accounts_credittransaction WHERE kind = 'transfer'
GROUP BY reference HAVING sum(posted_delta) <> 0 OR count(*) <> 2
"""

REFUNDS = """
SELECT refund.resolves_id, count(*) FROM accounts_credittransaction refund
WHERE refund.kind = 'purchase_refund' AND NOT EXISTS (
    SELECT 1 FROM accounts_credittransaction back WHERE back.kind = 'adjust' AND back.resolves_id = refund.id
)
GROUP BY refund.resolves_id HAVING count(*) > 1
"""

# The transfer of a merge is the first one between its wallets after it.
MERGES = """
SELECT merge.id, merge.moved, coalesce(entry.posted_delta, 0) FROM accounts_walletmerge merge
LEFT JOIN LATERAL (
    SELECT posted_delta FROM accounts_credittransaction
    WHERE kind = 'transfer' AND account_id = merge.target_id AND counterpart_id = merge.source_id
      AND id > merge.after_entry ORDER BY id LIMIT 1
) entry ON true
WHERE merge.moved > 0 AND merge.moved IS DISTINCT FROM coalesce(entry.posted_delta, 0)
"""

# Of the newest merge of a wallet only: an older one's credits may have moved again.
UNDONE = """
SELECT merge.id, sum(entry.posted_delta) FROM accounts_walletmerge merge
JOIN accounts_credittransaction entry ON entry.kind = 'transfer' AND entry.account_id = merge.target_id
 AND entry.counterpart_id = merge.source_id AND entry.id > merge.after_entry
WHERE merge.undone_at IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM accounts_walletmerge newer WHERE newer.source_id = merge.source_id AND newer.id > merge.id
)
GROUP BY merge.id HAVING sum(entry.posted_delta) <> 0
"""


# Prove the books: everything the database holds is added up again, from the entries alone.
#
# Other apps add what they know of the references (`register`); the ledger itself does not know what a job is.
#


@operation("accounts.run_audit", "books.audit")
def begin(op: Operation) -> None:
    """Have the books added up in the background. The entry in the audit log names the audit that was the latest."""
    op.record(AuditRun.objects.first() or op.actor.user)
    async_task("accounts.ledger_check.audit_and_keep")
