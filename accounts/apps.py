from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"

    def ready(self) -> None:
        from accounts import recovery, security_log, signals  # noqa: F401  (their receivers)
