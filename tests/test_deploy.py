"""The deployment files start the same as `make run`: nothing is left out, nothing differs by mistake."""

import re
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command

from tests.environment import REPOSITORY

DOCKERFILE = (REPOSITORY / "deploy" / "platform.Dockerfile").read_text()


def copied() -> set[str]:
    return set(re.findall(r"^COPY (\S+) ", DOCKERFILE, re.MULTILINE))


def test_everything_that_the_platform_reads_is_in_its_image() -> None:
    folders = [Path(app.path) for app in apps.get_app_configs()]
    folders += [Path(folder) for template in settings.TEMPLATES for folder in template["DIRS"]]
    folders += [Path(folder) for folder in (*settings.LOCALE_PATHS, *settings.STATICFILES_DIRS)]
    ours = {folder.relative_to(REPOSITORY).parts[0] for folder in folders if _is_ours(folder)}
    assert {"accounts", "generation", "telegram_bot", "templates", "locale", "videoplatform"} <= ours
    assert ours <= copied()


def _is_ours(folder: Path) -> bool:
    return folder.is_relative_to(REPOSITORY) and ".venv" not in folder.relative_to(REPOSITORY).parts


def test_the_web_server_is_started_alike_everywhere() -> None:
    """But for its address and the number of its processes."""

    def options(text: str) -> dict[str, str]:
        command = text[text.index("-m gunicorn videoplatform.asgi:application") :]
        found = re.findall(
            r"--([a-z-]+)(?: (?!--)([^\s\"\]]+))?", command[: command.index("--log-level") + 25]
        )
        return {name: value for name, value in found if name not in ("bind", "workers")}

    of_make_run = options((REPOSITORY / "supervisord.conf").read_text())
    assert of_make_run == options(DOCKERFILE)
    assert of_make_run["worker-class"] == "videoplatform.web_worker.WebWorker"


@pytest.mark.django_db
def test_the_migrations_make_what_the_models_say() -> None:
    """Ends with SystemExit, and the missing operations in the output, where they differ."""
    call_command("makemigrations", "--check", "--dry-run")
