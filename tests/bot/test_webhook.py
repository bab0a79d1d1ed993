"""Updates that Telegram brings itself: who is let in, what is kept, and that the bot's process hears of it."""

import json
from typing import Any

import pytest
from django.test import Client

from telegram_bot.models import TelegramUpdate
from telegram_bot.receiving import updates
from tests.bot.bot_process import Bot, inbox_is_empty
from tests.bot_api_server import TOKEN
from tests.processes import wait_for

PATH = "/telegram/webhook"
ADDRESS = "https://videos.example.org" + PATH


@pytest.fixture
def by_webhook(settings: Any, db: None) -> None:
    settings.TELEGRAM_BOT_TOKEN = TOKEN
    settings.TELEGRAM_WEBHOOK_URL = ADDRESS


def bring(body: object, *, secret: str | None = None) -> int:
    """The status that Telegram gets; `body` as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = updates.secret() if secret is None else secret
    client = Client(enforce_csrf_checks=True)
    headers = {updates.HEADER: said} if said else {}
    return client.post(PATH, content, content_type="application/json", headers=headers).status_code


def update(number: int, sender: int = 77, text: str = "/start") -> dict[str, Any]:
    person = {"id": sender, "is_bot": False, "first_name": "Ada", "language_code": "en"}
    chat = {"id": sender, "type": "private", "first_name": "Ada"}
    message = {"message_id": number, "date": 1, "chat": chat, "from": person, "text": text}
    return {"update_id": number, "message": message}


def test_an_update_is_stored_once_however_often_it_is_brought(by_webhook):
    assert [bring(update(5, text="a\x00b\ud800")) for _ in range(3)] == [200, 200, 200]
    row = TelegramUpdate.objects.get()
    assert (row.bot_id, row.update_id, row.state) == (4242, 5, "received")
    assert json.loads(row.raw)["message"]["text"] == "a\x00b\ud800"


@pytest.mark.parametrize("secret", ["", "wrong", "é" * 64, "0" * 64])
def test_nobody_without_the_secret_is_let_in(by_webhook, secret):
    assert bring(update(5), secret=secret) == 403
    assert not TelegramUpdate.objects.exists()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b"[" * 5000, b'{"update_id": "5"}', b'{"update_id": 1e400}', b"{}", b"7"],
)
def test_what_is_no_update_is_refused(by_webhook, body):
    assert bring(body) == 400
    assert not TelegramUpdate.objects.exists()


def test_while_updates_are_fetched_there_is_no_webhook(settings, db):
    settings.TELEGRAM_BOT_TOKEN = TOKEN
    assert bring(update(5)) == 404
    settings.TELEGRAM_BOT_TOKEN, settings.TELEGRAM_WEBHOOK_URL = "", ADDRESS
    assert bring(update(5), secret="x") == 404


def test_it_cannot_be_looked_at(by_webhook):
    assert Client().get(PATH).status_code == 405


def test_the_bot_is_called_and_answers_and_goes_back_to_fetching(own_bot: Bot, ada: int, settings: Any):
    telegram = own_bot.telegram
    settings.TELEGRAM_BOT_TOKEN, settings.TELEGRAM_WEBHOOK_URL = telegram.token, ADDRESS
    own_bot.processes.start("run_bot", **telegram.environment, TELEGRAM_WEBHOOK_URL=ADDRESS)
    wait_for(lambda: telegram.webhook == ADDRESS, message=own_bot.log)
    assert telegram.webhook_facts["secret_token"] == updates.secret()
    assert "pre_checkout_query" in json.loads(telegram.webhook_facts["allowed_updates"])
    telegram.push_message(update(1, ada)["message"])  # makes the chat known; it is not fetched
    assert bring(update(900, ada)) == 200
    assert "Welcome" in own_bot.next_message(ada).text
    wait_for(inbox_is_empty)
    assert bring(update(900, ada)) == 200
    assert not telegram.called("getUpdates")
    own_bot.stop()
    own_bot.start()
    assert telegram.webhook == ""
    wait_for(lambda: len(telegram.shown(ada)) == 2, message=own_bot.log)  # what was waiting there
