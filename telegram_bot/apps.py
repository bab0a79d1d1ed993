from django.apps import AppConfig


class TelegramBotConfig(AppConfig):
    name = "telegram_bot"
    verbose_name = "Telegram"

    def ready(self) -> None:
        from telegram_bot import receivers  # noqa: F401  (a finished job makes its delivery due, in any process)
