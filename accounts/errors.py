"""What can go wrong with credits. Each class's docstring is its message unless one is given."""


class LedgerError(Exception):
    """The ledger refused this entry."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class InsufficientBalance(LedgerError):
    """Not enough credits."""

    def __init__(self, *, needed: int, balance: int) -> None:
        super().__init__(f"{needed} credits are needed, {balance} are free.")
        self.needed = needed
        self.balance = balance


class NotFound(LedgerError):
    """There is no such entry to resolve."""


class AlreadyResolved(LedgerError):
    """This entry was resolved before, the other way."""


class InvalidAmount(LedgerError):
    """The amount must be a whole number of credits of the right sign."""
