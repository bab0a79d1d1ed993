"""Checks of payments against the ledger: each charge is credited once and at its invoice's worth, and a refund of
Stars has its refund of credits.
"""

from collections.abc import Iterable

from accounts.ledger_check import query, register


@register
def payments_and_their_credits_agree() -> Iterable[str]:
    for payment, charge, state in query(CREDITED):
        yield f"payment {payment} (charge {charge}, {state}) does not fit its purchase or its invoice"


@register
def purchases_were_paid() -> Iterable[str]:
    for entry, charge in query(UNPAID):
        yield f"entry {entry} is a purchase for charge {charge}, of which no payment is known"


@register
def refunds_of_stars_and_of_credits_agree() -> Iterable[str]:
    for payment, state in query(REFUNDED):
        yield f"payment {payment} is {state}, which does not fit the refund of its credits that stands"


CREDITED = """
SELECT payment.id, payment.charge_id, payment.state FROM telegram_bot_starpayment payment
LEFT JOIN accounts_credittransaction entry ON entry.id = payment.purchase_id
LEFT JOIN telegram_bot_starinvoice invoice ON invoice.id = payment.invoice_id
WHERE (entry.id IS NOT NULL OR payment.state = 'paid')
  AND (entry.kind, entry.external_id, entry.posted_delta, payment.stars)
      IS DISTINCT FROM ('purchase', payment.charge_id, invoice.credits::bigint, invoice.stars)
"""

UNPAID = """
SELECT entry.id, entry.external_id FROM accounts_credittransaction entry
LEFT JOIN telegram_bot_starpayment payment ON payment.purchase_id = entry.id
WHERE entry.kind = 'purchase' AND payment.id IS NULL
"""

REFUNDED = """
SELECT payment.id, payment.state FROM telegram_bot_starpayment payment
LEFT JOIN accounts_credittransaction standing ON standing.kind = 'purchase_refund'
 AND standing.resolves_id = payment.purchase_id AND NOT EXISTS (
    SELECT 1 FROM accounts_credittransaction back WHERE back.kind = 'adjust' AND back.resolves_id = standing.id
)
WHERE payment.refund_id IS DISTINCT FROM standing.id
"""
