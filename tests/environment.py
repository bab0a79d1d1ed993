"""The environment of the tests' settings. Loaded by `-p tests.environment`, before Django's settings are."""

import os
import sys
import uuid
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# A run starts some hundred processes; each would compile the product and the tests again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Nothing of the machine's own configuration, and nothing of `make run`'s data, may reach the tests.
os.environ["SECRET_KEY"] = "for-tests-only"
os.environ["DEBUG"] = "false"
os.environ["DATA_DIR"] = os.environ.get("TEST_DATA_DIR", str(REPOSITORY / ".data" / "test"))
os.environ["VIDEO_API_URL"] = ""
os.environ["VIDEO_API_KEY"] = ""
os.environ["TELEGRAM_BOT_TOKEN"] = ""
os.environ["SITE_URL"] = "http://localhost:8000"
# The tests of it switch it on.
os.environ["STAFF_REQUIRE_MFA"] = "false"
# All processes of a run have it in their environment, so that none is left behind unseen. A run that a test starts
# has the run of the test before its own, with a slash between them.
RUN = os.environ.setdefault("TEST_RUN", uuid.uuid4().hex[:12])
