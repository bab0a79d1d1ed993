"""The bot's pages in the admin."""

from typing import Any

import pytest

from accounts import notices
from accounts.models import Notice, User
from generation.jobs import lifecycle, submission
from telegram_bot.models import JobMessage, TelegramAccount, TelegramUpdate
from tests.bot.bot_process import NASTY, Bot, user_of


@pytest.fixture
def failed_delivery(user: User) -> JobMessage:
    job = submission.submit(user=user, prompt="a red fox", source="telegram")
    lifecycle.cancel(job=job)
    return JobMessage.objects.create(
        job=job, bot_id=1, chat_id=1, state=JobMessage.State.FAILED, error="gone"
    )


@pytest.mark.django_db
@pytest.mark.parametrize("page", ["telegramaccount", "telegramupdate", "jobmessage"])
def test_staff_can_look_at_everything_and_change_nothing(
    admin_client: Any, failed_delivery: JobMessage, page: str
):
    TelegramAccount.objects.create(telegram_id=1, user=failed_delivery.job.user)
    update = TelegramUpdate.objects.create(bot_id=1, update_id=1, raw="{}", state="failed", error="broken")
    assert admin_client.get(f"/admin/telegram_bot/{page}/").status_code == 200
    assert admin_client.get(f"/admin/telegram_bot/{page}/add/").status_code == 403
    assert admin_client.post(f"/admin/telegram_bot/telegramupdate/{update.pk}/delete/").status_code == 403


def test_what_staff_did_about_a_video_is_told_in_the_chat(bot: Bot, ada: int, settings: Any):
    settings.TELEGRAM_BOT_TOKEN = bot.telegram.token
    bot.answer_to("/start", sender=ada)
    notices.tell(user=user_of(ada), kind=Notice.Kind.REMOVAL, prompt=NASTY, reason="against the <rules>")
    told = bot.next_message(ada, after=1).text
    assert told == f"ℹ️ Your video “{NASTY}” was removed: against the <rules>"


@pytest.mark.django_db
def test_a_forged_selection_is_told_apart_from_rows(admin_client: Any, failed_delivery: JobMessage):
    forged = {"action": "deliver_again", "_selected_action": ["x"]}
    page = admin_client.post("/admin/telegram_bot/jobmessage/", forged, follow=True)
    assert "There are no such rows." in page.content.decode()
