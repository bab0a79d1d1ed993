"""The deployment files start the same as `make run`: nothing is left out, nothing differs by mistake."""

import os
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
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


def test_the_proxies_examples_can_be_read(tmp_path: Path) -> None:
    """By nginx itself where it is installed; in any case, each line of nginx.conf ends as one must."""
    nginx = (REPOSITORY / "deploy" / "nginx.conf").read_text()
    for text in (nginx, (REPOSITORY / "deploy" / "Caddyfile").read_text()):
        lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        assert sum(line.endswith("{") for line in lines) == lines.count("}")
        assert text is not nginx or all(line[-1] in "{};" for line in lines)
        assert "127.0.0.1:8000" in text
    if not (program := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")):
        return
    key, day = ec.generate_private_key(ec.SECP256R1()), datetime(2026, 1, 1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "video.example.org")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day.replace(year=2040))
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "site.pem").write_bytes(pem)
    nginx = re.sub(r"/etc/letsencrypt/\S+\.pem", f"{tmp_path}/site.pem", nginx)
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid; events {{}} http {{ {nginx} }}")
    command = [program, "-t", "-q", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("part", ["platform", "node", "test"])
def test_what_is_pinned_is_locked_with_its_hash(part: str) -> None:
    """`make lock` was run after the last change. torch is installed before, from the index that fits the card."""
    folder = REPOSITORY / "requirements"
    pins = re.findall(r"^([\w-]+)(?:\[[\w,-]+\])?==(\S+)", (folder / f"{part}.txt").read_text(), re.MULTILINE)
    pinned = {name.lower().replace("_", "-"): version for name, version in pins if name != "torch"}
    locked = dict(
        re.findall(
            r"^([\w-]+)==([^\s;]+).*?\\\n    --hash=sha256:",
            (folder / f"{part}.lock").read_text(),
            re.MULTILINE,
        )
    )
    assert len(pinned) > 10
    assert {name: locked.get(name) for name in pinned} == pinned
