"""Checks of payments against the ledger: each charge is credited once and at its invoice's worth, and a refund of
Stars has its refund of credits.
"""

from accounts.ledger_check import register

register(
    "payment {} (charge {}, {}) does not fit its purchase or its invoice",
    """
SELECT payment.id, payment.charge_id, payment.state FROM telegram_bot_starpayment payment
LEFT JOIN accounts_credittransaction entry ON entry.id = payment.purchase_id
LEFT JOIN telegram_bot_starinvoice invoice ON invoice.id = payment.invoice_id
WHERE (entry.id IS NOT NULL OR payment.state = 'paid')
  AND (entry.kind, entry.external_id, entry.posted_delta, payment.stars)
      IS DISTINCT FROM ('purchase', payment.charge_id, invoice.credits::bigint, invoice.stars)
""",
)
register(
    "entry {} is a purchase for charge {}, of which no payment is known",
    """
SELECT entry.id, entry.external_id FROM accounts_credittransaction entry
LEFT JOIN telegram_bot_starpayment payment ON payment.purchase_id = entry.id
WHERE entry.kind = 'purchase' AND payment.id IS NULL
""",
)
register(
    "payment {} is {}, which does not fit the refund of its credits that stands",
    """
SELECT payment.id, payment.state FROM telegram_bot_starpayment payment
LEFT JOIN accounts_credittransaction standing ON standing.kind = 'purchase_refund'
 AND standing.resolves_id = payment.purchase_id AND NOT EXISTS (
    SELECT 1 FROM accounts_credittransaction back WHERE back.kind = 'adjust' AND back.resolves_id = standing.id
)
WHERE payment.refund_id IS DISTINCT FROM standing.id
""",
)
