from django.apps import AppConfig


class GenerationConfig(AppConfig):
    name = "generation"

    def ready(self) -> None:
        from generation import receivers  # noqa: F401  (bans cancel live jobs, presets are seeded after migrate)
