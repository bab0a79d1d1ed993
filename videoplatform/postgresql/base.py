"""Django's PostgreSQL backend with a pool that recovers at once from a restart of the server.

A restart kills every connection of the pool. The pool's own check finds the dead ones one after the other, and sleeps
1, 2, 4 … seconds after each: with ten of them the first requests waited for DATABASE_POOL_SECONDS and were answered
with 503.
"""

from typing import Any

from django.db.backends.postgresql import base
from psycopg import Error


class DatabaseWrapper(base.DatabaseWrapper):
    """Checks the pool's connections itself, so CONN_HEALTH_CHECKS must be off."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Take a connection from the pool. When it is dead, replace all dead ones and take another.

        The other one is not checked: a server that accepts connections and drops them gets an error, not a loop.
        """
        connection = super().get_new_connection(conn_params)
        try:
            self.pool.check_connection(connection)
        except Error:
            self.pool.putconn(connection)
            self.pool.check()
            connection = super().get_new_connection(conn_params)
        return connection
