"""R5: many processes spend from one wallet at the same moment."""

import os
import subprocess
import sys
from typing import Any

import pytest
from django.core.management import call_command

from generation.models import GenerationJob
from tests.environment import REPOSITORY

pytestmark = pytest.mark.django_db(transaction=True)


def test_many_processes_on_one_wallet_accept_exactly_what_it_can_pay(
    user: Any, database_url: str, amount: Any, score: Any
) -> None:
    count, tries = amount(32, 4), amount(10, 10)
    row = score(
        "R5",
        test="one wallet of 500 credits",
        load=f"{count} processes with {tries} submits each",
        faults="none",
        bar="exactly ⌊500 / 50⌋ = 10 accepted",
    )
    environment = {**os.environ, "DATABASE_URL": database_url, "VIDEO_COOLDOWN_SECONDS": "0"}
    command = [sys.executable, "-m", "tests.chaos.spender", user.username, str(tries)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    spenders = [subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes) for _ in range(count)]
    for spender in spenders:
        spender.stdin.write("\n")
        spender.stdin.flush()
    accepted = [int(spender.communicate(timeout=120)[0]) for spender in spenders]
    user.credit_account.refresh_from_db()
    assert sum(accepted) == GenerationJob.objects.count() == 10
    assert (user.credit_account.posted, user.credit_account.held) == (500, 500)
    call_command("audit_credits")
    winners = sum(n > 0 for n in accepted)
    row.result = f"{sum(accepted)} accepted, by {winners} of the processes; {count * tries - 10} refused"
    row.passed = True
