"""Checks of jobs against the ledger: one hold of its price each, and one right resolution at its end."""

from accounts.ledger_check import register

register(
    "job {} is {} and costs {}, but its entries are: {}",
    """
SELECT job.id, job.state, job.cost,
       coalesce(string_agg(entry.kind || ' ' || abs(entry.held_delta), ', ' ORDER BY entry.id), 'none')
FROM generation_generationjob job
LEFT JOIN accounts_credittransaction entry ON entry.reference = job.id
GROUP BY job.id
HAVING count(*) FILTER (WHERE entry.kind = 'reserve' AND entry.held_delta = job.cost) <> 1
    OR count(*) FILTER (WHERE entry.kind = 'capture') <> (job.state = 'completed' OR job.cancel_fee > 0)::int
    OR count(*) FILTER (WHERE entry.kind = 'release')
       <> (job.state = 'failed' OR job.state = 'canceled' AND job.cancel_fee = 0)::int
    OR coalesce(sum(entry.posted_delta) FILTER (WHERE entry.kind = 'capture'), 0)
       <> -CASE job.state WHEN 'completed' THEN job.cost ELSE job.cancel_fee END
""",
)
# A wallet that was merged leads to another one, and that maybe to a third.
register(
    "job {} belongs to user {}, but was held on the wallet of user {}, never merged into theirs",
    """
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
""",
)
register(
    "entry {} holds credits for {}, which is no job",
    """
SELECT entry.id, entry.reference FROM accounts_credittransaction entry
LEFT JOIN generation_generationjob job ON job.id = entry.reference
WHERE entry.kind = 'reserve' AND job.id IS NULL
""",
)
