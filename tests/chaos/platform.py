"""The whole platform as the chaos tests use it: its doors, its processes, its database, and the proof of its books."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from tests import web
from tests.bot_api_server import BotApiServer
from tests.processes import is_gone, wait_for
from tests.stack import Stack

SIGNUP_CREDITS = 100_000
PROMPT = "a red ball moving right"
PATIENCE_SECONDS = 90.0
NEW_KEYS = """
from accounts import api_keys
from accounts.models import User
for name in ("ada", "bob", "eve"):
    print(api_keys.issue(user=User.objects.create_user(name))[1])
"""


class Platform(Stack):
    """A Stack with a few people who have API keys, small clips, and Telegram at its side."""

    def __init__(self, folder: Path, telegram: BotApiServer) -> None:
        self.telegram = telegram
        super().__init__(
            folder,
            {
                **telegram.environment,
                "VIDEO_COOLDOWN_SECONDS": "0",
                "SIGNUP_CREDITS": str(SIGNUP_CREDITS),
                "JOB_DEADLINE_SECONDS": "900",
                "LEASE_SECONDS": "6",
                "NODE_HEALTH_SECONDS": "1",
                "NODE_TRIAL_SECONDS": "2",
                "GPU_NODE_MODEL": "tiny-random",
                "GPU_NODE_QUEUE_SIZE": "8",
            },
        )
        self.keys: list[str] = []

    def __enter__(self) -> "Platform":
        super().__enter__()
        # The least clip that is a clip: the platform's faults are under test here, not the model.
        self.sql("UPDATE generation_preset SET num_frames = 9, num_inference_steps = 2 WHERE name = 'quick'")
        self.keys = self.manage("shell", "--no-imports", "-c", NEW_KEYS).split()
        return self

    def database_pid(self) -> int:
        return int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])

    # --- Its processes ---

    def victim(self, role: str, rng: random.Random) -> psutil.Process:
        """The process that plays a role now. Raises LookupError while it is down."""
        try:
            return self._find(role, rng)
        except (psutil.NoSuchProcess, IndexError, FileNotFoundError):
            raise LookupError(f"{role} is not there now") from None

    def _find(self, role: str, rng: random.Random) -> psutil.Process:
        if role in ("worker main", "reconciler", "web main", "bot", "node front"):
            program = {"worker main": "worker", "web main": "web", "node front": "gpu_node"}.get(role, role)
            return psutil.Process(self.pid_of(program))
        if role == "web worker":
            return rng.choice(self.family_of(psutil.Process(self.pid_of("web")), recursive=False))
        if role == "node worker":
            return self.node_worker()
        below = self.family_of(psutil.Process(self.pid_of("worker")), recursive=False)
        if not below:
            raise LookupError("the worker is starting")
        sentinel = below[0]
        if role == "worker sentinel":
            return sentinel
        # Forked in this order: the dispatcher, two workers, the monitor and the pusher.
        children = sorted(sentinel.children(), key=lambda child: child.pid)
        if len(children) < 5:
            raise LookupError("the worker is starting")
        return rng.choice(children[:3]) if role == "worker child" else rng.choice(children[3:])

    def kill(self, role: str, rng: random.Random) -> None:
        """Send SIGKILL to the process in this role, once there is one, and see that it is gone."""
        process = wait_for(lambda: self._victim_or_none(role, rng), message=f"{role} did not come back")
        process.send_signal(signal.SIGKILL)
        wait_for(lambda: is_gone(process), message=f"{role} survived a SIGKILL")

    def age_of(self, role: str, rng: random.Random) -> float:
        """Return the seconds since the process in this role was started; 0 while there is none."""
        process = self._victim_or_none(role, rng)
        return time.time() - process.create_time() if process else 0.0

    def _victim_or_none(self, role: str, rng: random.Random) -> psutil.Process | None:
        try:
            return self.victim(role, rng)
        except LookupError:
            return None

    # --- Its doors ---

    def submit(self, number: int, *, key: str | None = None, prompt: str = PROMPT) -> str:
        """A job by REST; repeated with the same key until it is accepted, as a client would. Returns its id."""
        headers = {
            "Authorization": f"Bearer {self.keys[number % len(self.keys)]}",
            "Idempotency-Key": key or f"chaos-{number}",
        }

        def post() -> str | None:
            try:
                answer = web.post(
                    f"{self.url}/v1/videos", json={"prompt": prompt}, headers=headers, timeout=10
                )
            except httpx.TransportError:
                time.sleep(0.3)
                return None
            if answer.status_code >= 500:
                time.sleep(0.3)
                return None
            assert answer.status_code < 300, answer.text
            return str(answer.json()["id"])

        return wait_for(post, seconds=PATIENCE_SECONDS, message="no submit was accepted")

    def status(self, video_id: str, number: int = 0) -> str | None:
        """Read a video from the API; None while it cannot be asked."""
        headers = {"Authorization": f"Bearer {self.keys[number % len(self.keys)]}"}
        try:
            answer = web.get(f"{self.url}/v1/videos/{video_id}", headers=headers, timeout=5)
        except httpx.TransportError:
            return None
        return str(answer.json()["status"]) if answer.status_code == 200 else None

    def makes_a_clip(self, number: int, *, seconds: float = PATIENCE_SECONDS) -> float:
        """Submit a job and wait until it is completed; the seconds it took."""
        begun = time.monotonic()
        video = self.submit(number)
        wait_for(
            lambda: self.status(video, number) == "completed",
            seconds=seconds,
            message="the job did not complete",
            every=0.2,
        )
        return time.monotonic() - begun

    def bot_answers(self, text: str, *, sender: int, seconds: float = PATIENCE_SECONDS) -> float:
        """Write to the bot and wait for a message; the seconds it took."""
        begun, before = time.monotonic(), len(self.telegram.shown(sender))
        self.telegram.say(text, sender=sender)
        wait_for(
            lambda: len(self.telegram.shown(sender)) > before, seconds=seconds, message="the bot is silent"
        )
        return time.monotonic() - begun

    # --- The proof ---

    def wait_until_idle(self, *, seconds: float) -> None:
        def idle() -> bool:
            try:
                return self.live_jobs() == 0
            except psycopg.OperationalError:
                return False

        wait_for(idle, seconds=seconds, message="jobs are stuck", every=0.2)

    def check_books(self) -> dict[str, int]:
        """Nothing lost, charged twice or stuck, and `audit_credits` agrees (R12); the number of jobs by state."""
        self.manage("audit_credits")  # raises unless it ends with 0
        unresolved = self.sql(CHARGED_WRONGLY)
        assert not unresolved, f"charged wrongly: {unresolved[:5]}"
        late = self.sql(
            "SELECT id FROM generation_generationjob WHERE finished_at > deadline_at + interval '60 seconds'"
        )
        assert not late, f"past their deadline: {late[:5]}"
        self._check_files()
        return dict(self.sql("SELECT state, count(*) FROM generation_generationjob GROUP BY state"))

    def _check_files(self) -> None:
        media_root = Path(self.environment["MEDIA_ROOT"])
        stored = self.sql(
            "SELECT video, size_bytes FROM generation_generationjob WHERE state = 'completed' AND deleted_at IS NULL"
        )
        for name, size in stored:
            assert (media_root / name).stat().st_size == size, f"charged, but {name} is not whole"


# Jobs without exactly one hold and, once they are over, exactly one resolution of the right kind.
CHARGED_WRONGLY = """
SELECT job.id, job.state, array_agg(entry.kind ORDER BY entry.id)
FROM generation_generationjob job LEFT JOIN accounts_credittransaction entry ON entry.reference = job.id
GROUP BY job.id
HAVING count(*) FILTER (WHERE entry.kind = 'reserve') <> 1
    OR count(*) FILTER (WHERE entry.kind = 'capture') <> (job.state = 'completed')::int
    OR count(*) FILTER (WHERE entry.kind = 'release') <> (job.state IN ('failed', 'canceled'))::int
"""


def measured(work: Callable[[], Any]) -> float:
    """Seconds that `work` took."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun
