"""The bot's figures, as `/metrics` tells them."""

import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.bot.bot_process import Bot, inbox_is_empty
from tests.processes import wait_for


def figures() -> dict[tuple[str, ...], float]:
    """Samples by name and labels, these in the order of their names."""
    families = text_string_to_metric_families(Client().get("/metrics").content.decode())
    samples = (sample for family in families for sample in family.samples)
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in samples}


@pytest.fixture(autouse=True)
def _no_other_bot(_shared_bot: list[Bot]) -> None:
    """Its figures would be added to ours. The next test that wants it starts it again."""
    while _shared_bot:
        bot = _shared_bot.pop()
        bot.processes.stop_all()
        bot.telegram.__exit__()


def test_requests_and_updates_are_counted_by_outcome(own_bot: Bot, ada: int):
    before = figures()  # another bot's, which it added when it was stopped
    own_bot.telegram.fail("sendMessage", 500, "Internal Server Error")
    own_bot.telegram.hold("sendMessage")
    own_bot.start()
    own_bot.telegram.say("/start", sender=ada)
    wait_for(lambda: figures()["videoplatform_telegram_update_lag_seconds",] > 1, message=own_bot.log)
    own_bot.telegram.release()
    own_bot.next_message(ada)
    own_bot.telegram.push({"message": {"chat": "nonsense"}})
    own_bot.telegram.drop("sendMessage")
    own_bot.answer_to("/help", sender=ada)
    wait_for(inbox_is_empty)
    own_bot.stop()
    told = {key: value - before.get(key, 0) for key, value in figures().items()}
    requests, updates = "videoplatform_telegram_requests_total", "videoplatform_telegram_updates_total"
    sent = {how: told[requests, "sendMessage", how] for how in ("ok", "error", "unreachable")}
    assert (sent["ok"], sent["error"]) == (2, 1)
    # The one that was dropped; and on a slow machine, one that was held for longer than the bot waits.
    assert sent["unreachable"] == len(own_bot.telegram.called("sendMessage")) - 3 >= 1
    assert [told[updates, how] for how in ("done", "failed")] == [2, 1]
    assert told["videoplatform_telegram_update_seconds_total", "done"] > 1
    assert told["videoplatform_telegram_request_seconds_total", "sendMessage", "ok"] > 0
    assert told["videoplatform_telegram_update_lag_seconds",] == 0
