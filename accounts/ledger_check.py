"""The check that the books add up: everything the database holds is added up again, from the entries alone.

Other apps register what they know of the references; the ledger itself does not know what a job is.
"""

import logging
import time
from datetime import timedelta

from django.db import connection, transaction
from django.db.models.functions import Now
from django_q.tasks import async_task

from accounts.models import AuditRun, CreditAccount, CreditTransaction
from accounts.staff.audit_log import Operation, operation

MOST_KEPT = 100
EVERY = timedelta(days=1)
logger = logging.getLogger(__name__)
# What each row of a statement means, by the statement.
_checks: dict[str, str] = {}


def register(sentence: str, statement: str) -> None:
    """Make every row of a statement a discrepancy. The sentence is formatted with its columns."""
    _checks[statement] = sentence


def audit() -> AuditRun:
    """Run every check on one snapshot, so that what happens meanwhile looks like no discrepancy.

    The result is not saved; its discrepancies are sentences, and there should be none.
    """
    began = time.monotonic()
    snapshot = not connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        if snapshot:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        found = []
        for statement, sentence in _checks.items():
            cursor.execute(statement)
            found += [sentence.format(*row) for row in cursor.fetchall()]
        return AuditRun(
            accounts=CreditAccount.objects.count(),
            entries=CreditTransaction.objects.count(),
            found=len(found),
            discrepancies=found,
            seconds=time.monotonic() - began,
        )


def audit_and_keep() -> AuditRun:
    """Run every check, and keep the result, with the first discrepancies, where staff see it."""
    result = audit()
    found, result.discrepancies = result.discrepancies, result.discrepancies[:MOST_KEPT]
    result.save()
    result.discrepancies = found
    return result


def audit_daily() -> None:
    """Run every check as a task, unless that was done within a day."""
    if not AuditRun.objects.filter(at__gt=Now() - EVERY).exists():
        for sentence in audit_and_keep().discrepancies:
            logger.error("the books are wrong: %s", sentence)


@operation("accounts.run_audit", "books.audit")
def begin(op: Operation) -> None:
    """Have the books added up in the background. The entry in the audit log names the audit that was the latest."""
    op.record(AuditRun.objects.first() or op.actor.user)
    async_task("accounts.ledger_check.audit_and_keep")


register(
    "account {} says {} posted, {} held; its entries sum to {} and {}",
    """
SELECT account.id, account.posted, account.held,
       coalesce(sum(entry.posted_delta), 0), coalesce(sum(entry.held_delta), 0)
FROM accounts_creditaccount account LEFT JOIN accounts_credittransaction entry ON entry.account_id = account.id
GROUP BY account.id
HAVING account.posted <> coalesce(sum(entry.posted_delta), 0) OR account.held <> coalesce(sum(entry.held_delta), 0)
    OR account.held < 0 OR account.held > account.posted
""",
)
register(
    "entry {} says {} and {} after it; the entries up to it sum to {} and {}",
    """
SELECT * FROM (
    SELECT id, posted_after, held_after,
           sum(posted_delta) OVER upto AS posted, sum(held_delta) OVER upto AS held
    FROM accounts_credittransaction WINDOW upto AS (PARTITION BY account_id ORDER BY id)
) entry WHERE posted_after <> posted OR held_after <> held
""",
)
register(
    "entry {}, a {}, does not fit entry {}, which it resolves",
    """
SELECT entry.id, entry.kind, origin.id
FROM accounts_credittransaction entry JOIN accounts_credittransaction origin ON origin.id = entry.resolves_id
WHERE origin.account_id <> entry.account_id OR origin.reference IS DISTINCT FROM entry.reference
   OR origin.kind <> CASE entry.kind WHEN 'capture' THEN 'reserve' WHEN 'release' THEN 'reserve'
                                     WHEN 'refund' THEN 'capture' WHEN 'purchase_refund' THEN 'purchase'
                                     WHEN 'adjust' THEN 'purchase_refund' END
   OR (entry.kind IN ('capture', 'release') AND entry.held_delta <> -origin.held_delta)
   OR (entry.kind IN ('refund', 'purchase_refund', 'adjust') AND entry.posted_delta <> -origin.posted_delta)
""",
)
register(
    "transfer {} creates {} credits",
    """
SELECT reference, sum(posted_delta) FROM accounts_credittransaction WHERE kind = 'transfer'
GROUP BY reference HAVING sum(posted_delta) <> 0 OR count(*) <> 2
""",
)
register(
    "purchase {} has {} refunds that stand",
    """
SELECT refund.resolves_id, count(*) FROM accounts_credittransaction refund
WHERE refund.kind = 'purchase_refund' AND NOT EXISTS (
    SELECT 1 FROM accounts_credittransaction back WHERE back.kind = 'adjust' AND back.resolves_id = refund.id
)
GROUP BY refund.resolves_id HAVING count(*) > 1
""",
)
# The transfer of a merge is the first one between its wallets after it.
register(
    "merge {} says that {} credits moved; its transfer has {}",
    """
SELECT merge.id, merge.moved, coalesce(entry.posted_delta, 0) FROM accounts_walletmerge merge
LEFT JOIN LATERAL (
    SELECT posted_delta FROM accounts_credittransaction
    WHERE kind = 'transfer' AND account_id = merge.target_id AND counterpart_id = merge.source_id
      AND id > merge.after_entry ORDER BY id LIMIT 1
) entry ON true
WHERE merge.moved > 0 AND merge.moved IS DISTINCT FROM coalesce(entry.posted_delta, 0)
""",
)
# Merges of the same two wallets are undone newest first. So all that were made before the oldest one that stands were
# undone before it was made, and are judged together, by the order of the entries. A merge undone while an older one
# stands is judged by the time of its undo, because refunds follow the older one later.
register(
    "merge {} was undone, but {} credits have not come back",
    """
WITH merge AS (
    SELECT *, least(source_id, target_id) AS low, greatest(source_id, target_id) AS high FROM accounts_walletmerge
), pair AS (
    SELECT low, high, min(id) AS oldest, min(id) FILTER (WHERE undone_at IS NULL) AS standing,
           min(after_entry) FILTER (WHERE undone_at IS NULL) AS standing_after
    FROM merge GROUP BY low, high
)
SELECT merge.id, sum(entry.posted_delta) FROM merge JOIN pair USING (low, high)
JOIN accounts_credittransaction entry ON entry.kind = 'transfer' AND entry.account_id = merge.target_id
 AND entry.counterpart_id = merge.source_id AND entry.id > merge.after_entry
WHERE merge.undone_at IS NOT NULL AND CASE
    WHEN merge.id > pair.standing THEN entry.created_at <= merge.undone_at
    ELSE merge.id = pair.oldest AND entry.id <= coalesce(pair.standing_after, entry.id)
END
GROUP BY merge.id HAVING sum(entry.posted_delta) <> 0
""",
)
