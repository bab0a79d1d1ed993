"""Why an act of the staff was not carried out. The message is what the clerk reads."""


class Refused(Exception):
    """This is not possible."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class DoneBefore(Refused):
    """This form was sent before, and what it asks for is done."""
