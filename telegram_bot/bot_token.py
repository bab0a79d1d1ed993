"""The bot's own id, read from its token: also for processes that never speak to Telegram."""

import re

TOKEN = re.compile(r"(\d{1,20}):[\w-]{1,200}", re.ASCII)


class BadToken(Exception):
    """The token cannot be one from @BotFather: it has to be digits, a colon and letters. Check TELEGRAM_BOT_TOKEN."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def bot_id_of(token: str) -> int:
    """The bot's own id, which its token begins with.

    Raises:
        BadToken: it has another form.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise BadToken
    return int(match[1])
