from django.apps import AppConfig


class GenerationConfig(AppConfig):
    name = "generation"

    def ready(self) -> None:
        from generation import ledger_check, receivers  # noqa: F401  (audit checks, bans cancel jobs, first presets)
