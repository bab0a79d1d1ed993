"""Settings as other processes get them."""

import os
import subprocess
import sys

from tests.environment import REPOSITORY

POOL = "from django.conf import settings; print('pool' in settings.DATABASES['default'].get('OPTIONS', {}))"


def has_a_pool(*, before: str = "", **environment: str) -> bool:
    """Whether a process with this environment shares connections from a pool."""
    command = [sys.executable, "-c", f"{before}\n{POOL}"]
    settings = {**os.environ, "DJANGO_SETTINGS_MODULE": "videoplatform.settings"} | environment
    ran = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, check=True)
    return ran.stdout.strip() == "True"


def test_the_web_process_has_a_pool_and_what_it_starts_has_none():
    """A pool that is forked, as the worker forks, gives one connection to two processes."""
    assert has_a_pool(before="import videoplatform.asgi")
    assert not has_a_pool(VIDEOPLATFORM_WEB_PID=str(os.getpid()))
    assert not has_a_pool(VIDEOPLATFORM_WEB_PID=str(os.getpid()), DATABASE_POOL_SIZE="10")


def test_the_pool_can_be_switched_off():
    assert not has_a_pool(before="import videoplatform.asgi", DATABASE_POOL_SIZE="0")
