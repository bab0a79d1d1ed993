"""What jobs say about the books: one hold of its price each, and one resolution of the right kind once it is over."""

from collections.abc import Iterable

from accounts.ledger_check import query, register


@register
def jobs_and_their_credits_agree() -> Iterable[str]:
    for job, state, cost, kinds in query(JOBS):
        yield f"job {job} is {state} and costs {cost}, but its entries are: {kinds or 'none'}"


@register
def videos_belong_to_who_paid() -> Iterable[str]:
    for job, owner, payer in query(FOREIGN):
        yield f"job {job} belongs to user {owner}, but was held on the wallet of user {payer}, never merged into theirs"


@register
def every_hold_belongs_to_a_job() -> Iterable[str]:
    for entry, reference in query(STRAY_HOLDS):
        yield f"entry {entry} holds credits for {reference}, which is no job"


JOBS = """
SELECT job.id, job.state, job.cost, string_agg(entry.kind || ' ' || abs(entry.held_delta), ', ' ORDER BY entry.id)
FROM generation_generationjob job
LEFT JOIN accounts_credittransaction entry ON entry.reference = job.id
GROUP BY job.id
HAVING count(*) FILTER (WHERE entry.kind = 'reserve' AND entry.held_delta = job.cost) <> 1
    OR count(*) FILTER (WHERE entry.kind = 'capture') <> (job.state = 'completed')::int
    OR count(*) FILTER (WHERE entry.kind = 'release') <> (job.state IN ('failed', 'canceled'))::int
"""

STRAY_HOLDS = """
SELECT entry.id, entry.reference FROM accounts_credittransaction entry
LEFT JOIN generation_generationjob job ON job.id = entry.reference
WHERE entry.kind = 'reserve' AND job.id IS NULL
"""

# A wallet that was merged leads to another one, and that maybe to a third.
FOREIGN = """
SELECT job.id, job.user_id, payer.user_id
FROM generation_generationjob job
JOIN accounts_credittransaction hold ON hold.kind = 'reserve' AND hold.reference = job.id
JOIN accounts_creditaccount payer ON payer.id = hold.account_id
WHERE payer.user_id <> job.user_id AND job.user_id NOT IN (
    WITH RECURSIVE led_to AS (
        SELECT target_id FROM accounts_walletmerge WHERE source_id = payer.id AND undone_at IS NULL
        UNION
        SELECT merge.target_id FROM accounts_walletmerge merge JOIN led_to ON merge.source_id = led_to.target_id
        WHERE merge.undone_at IS NULL
    )
    SELECT account.user_id FROM led_to JOIN accounts_creditaccount account ON account.id = led_to.target_id
)
"""
