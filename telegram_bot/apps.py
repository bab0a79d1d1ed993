from django.apps import AppConfig


class TelegramBotConfig(AppConfig):
    name = "telegram_bot"
    verbose_name = "Telegram"

    def ready(self) -> None:
        from telegram_bot import ledger_check, receivers  # noqa: F401
