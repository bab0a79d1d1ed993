"""With a guard taken away the suite must go red: what cannot fail proves nothing.

Each control runs a part of the suite in a pytest of its own, with its own database, and expects it to fail for the
reason that the guard is there for.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import REPOSITORY, RUN

CONTROLS = {
    # guard: the tests that hold it, and what only a failure of this kind prints
    "fencing": (
        "tests/chaos/test_state_machine.py",
        "AlreadyResolved|InsufficientBalance|state == before|on_paper",
    ),
    "unique_index": ("tests/chaos/test_sql_attacks.py", "DID NOT RAISE"),
    "fail_fast": ("tests/test_cluster.py::{kill}[idle worker]", "TimeoutExpired"),
}
KILL = "test_a_sigkill_of_any_part_ends_the_whole_group_and_a_new_worker_goes_on"


@pytest.mark.parametrize("guard", CONTROLS)
def test_the_suite_goes_red_without(guard: str) -> None:
    tests, reason = CONTROLS[guard]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CHAOS"))
    }
    environment |= {
        "SABOTAGE": guard,
        "TEST_RUN": f"{RUN}/{guard}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).with_name("sabotage")), str(REPOSITORY)]),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests.format(kill=KILL)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert "left running" not in ran.stdout
    assert ran.returncode == 1, f"{guard} is not held by {tests}:\n{ran.stdout[-2000:]}\n{ran.stderr[-1000:]}"
    assert re.search(reason, ran.stdout)
