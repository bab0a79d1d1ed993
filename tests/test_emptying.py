"""Between tests the database is emptied while a bot or a worker of the test may still be writing into it."""

from threading import Thread

import psycopg
import pytest
from django.db import connection

from accounts.models import User
from tests.emptying import Emptying


@pytest.mark.django_db(transaction=True)
def test_it_waits_for_whoever_writes_and_never_stands_in_the_way(database_url: str) -> None:
    empty = Emptying()
    User.objects.create_user(username="ada", password="a long enough password")

    def run() -> None:
        empty()
        connection.close()

    waiting = Thread(target=run)
    with psycopg.connect(database_url) as writer:
        writer.execute("LOCK TABLE generation_generationjob IN ROW EXCLUSIVE MODE")
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive(), "it did not wait for the writer"
        # Of a table whose turn comes before: had it been taken already, each would wait for the other.
        assert writer.execute("UPDATE accounts_user SET first_name = 'Ada'").rowcount == 1
    waiting.join(30)
    assert not waiting.is_alive()
    assert not User.objects.exists()
