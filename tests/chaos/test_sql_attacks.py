"""R8: the books attacked in ordinary SQL. The attacks stand in tests/test_ledger_guards.py."""

import uuid
from typing import Any

import pytest
from django.db import DatabaseError

from accounts.ledger_check import audit
from tests.test_ledger_guards import ENTRIES, INSERT, NOTHING, STATEMENTS, attempt, books

pytestmark = pytest.mark.django_db

__all__ = ["books"]


def test_every_attack_on_the_books_in_sql_is_refused(books: dict[str, Any], score: Any) -> None:
    row = score(
        "R8",
        test="attacks in ordinary SQL",
        load=f"{len(STATEMENTS) + len(ENTRIES)} attacks",
        faults=", ".join([*STATEMENTS, *ENTRIES]),
        bar="all rejected",
    )
    names = {**books, "new": uuid.uuid4()}
    for statement in STATEMENTS.values():
        with pytest.raises(DatabaseError):
            attempt(statement, books)
    for attack in ENTRIES.values():
        values = {"account": "mine", **attack}
        with pytest.raises(DatabaseError):
            attempt(INSERT, NOTHING | {key: names.get(value, value) for key, value in values.items()})
    # Holds under attack are of made-up jobs, purchases of made-up payments: the audit rightly finds those; it
    # must find nothing else.
    made_up = ("which is no job", "of which no payment is known")
    found = audit().discrepancies
    assert not [line for line in found if not any(words in line for words in made_up)]
    row.result = f"{len(STATEMENTS) + len(ENTRIES)} rejected"
    row.passed = True
