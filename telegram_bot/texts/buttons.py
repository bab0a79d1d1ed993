"""Buttons below messages, and the data they carry. `routes.button` names the handler of a press."""

from telegram import InlineKeyboardButton, InlineKeyboardMarkup

# Telegram's limit for the data of a button, in bytes.
MAX_DATA = 64


def data(name: str, argument: str = "") -> str:
    """The data of a button, for `@button(name)`.

    Raises:
        ValueError: more than Telegram lets a button carry.
    """
    carried = f"{name}:{argument}"
    if len(carried.encode()) > MAX_DATA:
        raise ValueError(f"a button cannot carry {carried!r}")
    return carried


def button(label: str, name: str, argument: str = "") -> InlineKeyboardButton:
    return InlineKeyboardButton(label, callback_data=data(name, argument))


def row(*named: tuple[str, str], argument: str = "") -> InlineKeyboardMarkup:
    """Buttons side by side, each a label and a name, which all carry the same argument."""
    return InlineKeyboardMarkup.from_row([button(label, name, argument) for label, name in named])
