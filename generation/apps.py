from django.apps import AppConfig


class GenerationConfig(AppConfig):
    name = "generation"

    def ready(self) -> None:
        from generation import audit, receivers  # noqa: F401  (audit checks, bans cancel jobs, first presets)
