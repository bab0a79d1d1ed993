"""Settings as other processes get them."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_node.settings import NodeSettings
from tests.environment import REPOSITORY
from videoplatform import run
from videoplatform.bootstrap import SECRETS, write_secrets

POOL = "from django.conf import settings; print('pool' in settings.DATABASES['default'].get('OPTIONS', {}))"


def has_a_pool(*, before: str = "", **environment: str) -> bool:
    """Ask a process with this environment whether it shares connections from a pool."""
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


def starting_with(**environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from django.conf import settings; print(settings.ALLOWED_HOSTS)"]
    values = {**os.environ, "DJANGO_SETTINGS_MODULE": "videoplatform.settings"} | environment
    return subprocess.run(command, cwd=REPOSITORY, env=values, capture_output=True, text=True, check=False)


def test_names_by_commas_may_have_space_around_them():
    assert starting_with(ALLOWED_HOSTS="a.example, b.example,").stdout == "['a.example', 'b.example']\n"


@pytest.mark.parametrize("value", [{"SIGNUP_CREDITS": "-5"}, {"WORKER_PROCESSES": "0"}, {"DEBUG": "maybe"}])
def test_a_value_that_makes_no_sense_stops_the_start_and_is_named(value: dict[str, str]):
    ended = starting_with(**value)
    assert ended.returncode == 1
    assert f'"{next(iter(value))}" invalid' in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"SITE_URL": "https://example.org/videos/"}, "cannot be served below a path"),
        ({"SITE_URL": "video.example.org"}, "SITE_URL must be an address such as https://"),
        ({"DATABASE_LISTEN_URL": "postgres://db/x"}, "set that, too"),
        (
            {"DATABASE_URL": "postgres://pooler/x", "DATABASE_LISTEN_URL": "db:5432"},
            "must start with postgres://",
        ),
    ],
)
def test_an_address_that_cannot_work_is_refused_in_a_sentence(value: dict[str, str], said: str) -> None:
    command = [sys.executable, "-m", "videoplatform.bootstrap"]
    values = {name: text for name, text in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | value
    ended = subprocess.run(command, cwd=REPOSITORY, env=values, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["PORT", "GPU_NODE_PORT"])
def test_make_run_says_in_a_sentence_which_setting_it_cannot_read(name: str, monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(run, "write_secrets", lambda path: None)
    monkeypatch.setenv(name, "99999")
    assert run.main([]) == 2
    assert f'"{name}" invalid' in capsys.readouterr().err


@pytest.mark.parametrize("line", ["SECRET_KEY=mine", "export SECRET_KEY=mine", " SECRET_KEY = mine"])
def test_a_secret_that_is_there_stays_and_one_that_is_missing_is_made(
    line: str, tmp_path: Path, monkeypatch: Any
):
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / ".env"
    file.write_text(f"{line}\nexport VIDEO_API_KEY=\n")
    write_secrets(file)
    written = file.read_text()
    assert written.count("SECRET_KEY") == written.count("VIDEO_API_KEY") == 1
    assert line in written
    assert len(written.partition("VIDEO_API_KEY=")[2]) > 40
    assert file.stat().st_mode & 0o777 == 0o600


# --- docs/configuration.md --------------------------------------------------------------------------------------------


def documented(*, node: bool) -> dict[str, str]:
    """Names and defaults of the platform, or of the node, as the tables have them."""
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    platform, _, rest = text.partition("## The GPU node")
    table = rest.partition("\n## ")[0] if node else platform
    rows = re.findall(r"^\| ((?:`[A-Z0-9_]+` ?)+)\| (.*?) \|", table, re.MULTILINE)
    return {name: default for names, default in rows for name in re.findall(r"`([A-Z0-9_]+)`", names)}


def read_by_the_platform() -> dict[str, Any]:
    """Names that settings.py and run.py read, with their defaults where these are plain values."""
    read: dict[str, Any] = {"WEB_PROCESSES": 2}  # handed on to gunicorn
    not_for_people = {"VIDEOPLATFORM_WEB_PID", "GPU_NODE_PORT"}  # set by asgi.py; among the node's
    for file in ("settings.py", "run.py"):
        tree = ast.parse((REPOSITORY / "videoplatform" / file).read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        for call in (each for each in calls if re.fullmatch(r"env\.\w+|names", ast.unparse(each.func))):
            if call.args and isinstance(call.args[0], ast.Constant):
                read.setdefault(call.args[0].value, default_of(call.args[1]))
    return {name: value for name, value in read.items() if name not in not_for_people}


def default_of(expression: ast.expr) -> Any:
    try:
        return eval(compile(ast.Expression(expression), "settings", "eval"), {"__builtins__": {}})
    except NameError:
        return None  # it follows from others


def test_every_setting_of_the_platform_is_documented_and_every_documented_one_is_read():
    assert set(documented(node=False)) == set(read_by_the_platform())


def test_every_setting_of_the_node_is_documented_and_every_documented_one_is_read():
    fields = NodeSettings.model_fields.items()
    assert set(documented(node=True)) == {
        str(field.validation_alias or f"GPU_NODE_{name.upper()}") for name, field in fields
    }


def test_the_defaults_of_the_platform_are_the_documented_ones():
    said = documented(node=False)
    plain = {
        name: value for name, value in read_by_the_platform().items() if type(value) in (bool, int, float)
    }
    assert len(plain) > 25
    for name, value in plain.items():
        words = str(value).lower() if isinstance(value, bool) else f"{value:.15g}"
        assert said[name].startswith(f"`{words}`"), name


def test_what_is_unset_is_documented_as_unset():
    empty = {name for name, value in read_by_the_platform().items() if value == ""}
    unset = {name for name, default in documented(node=False).items() if default == "unset"}
    assert empty - {"SECRET_KEY", "VIDEO_API_KEY"} == unset
