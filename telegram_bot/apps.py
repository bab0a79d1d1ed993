from django.apps import AppConfig


class TelegramBotConfig(AppConfig):
    name = "telegram_bot"
    verbose_name = "Telegram"

    def ready(self) -> None:
        # In any process: a finished job makes its delivery due, what people are told goes into the outbox.
        from telegram_bot import ledger_check, receivers  # noqa: F401
