"""`make clips`: the clips of the front page anew, ordered from the real stack over its API, kept as they came."""

import json
import sys
import tempfile
from pathlib import Path

import httpx

from tests.stack import Stack

FOLDER = Path(__file__).resolve().parent.parent / "videoplatform" / "static" / "clips"
PROMPTS = [
    "A golden star flying right at night",
    "A pink heart growing on a black background",
    "A cyan ball moving left in the desert",
    "An orange triangle moving up over the sea",
    "A red heart growing on a meadow",
    "A blue square moving left on a white background",
]
MOST_BYTES = 100_000
WAIT_SECONDS = 600


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as data,
        Stack(Path(data), {"VIDEO_COOLDOWN_SECONDS": "0"}) as stack,
    ):
        stack.manage("shell", "-c", "from accounts.models import User; User.objects.create_user('front')")
        key = stack.manage("create_api_key", "front").strip()
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=stack.url, headers=headers, timeout=WAIT_SECONDS) as api:
            rows = [make(api, number, prompt) for number, prompt in enumerate(PROMPTS, start=1)]
    (FOLDER / "clips.json").write_text(json.dumps(rows, indent=2) + "\n")
    sys.stdout.write(f"{len(rows)} clips in {FOLDER}\n")


def make(api: httpx.Client, number: int, prompt: str) -> dict:
    """Order a clip, wait for it, store it and its poster; its line of clips.json."""
    video = checked(api.post("/v1/videos", json={"prompt": prompt, "seed": number})).json()
    with api.stream("GET", f"/v1/videos/{video['id']}/events") as events:
        for _ in events.iter_lines():
            pass  # the stream ends with the video
    video = checked(api.get(f"/v1/videos/{video['id']}")).json()
    assert video["status"] == "completed", video
    name = f"clip-{number}"
    for variant, suffix in (("video", ".mp4"), ("thumbnail", ".jpg")):
        content = checked(api.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})).content
        assert len(content) < MOST_BYTES, f"{prompt}: {len(content)} bytes"
        (FOLDER / f"{name}{suffix}").write_bytes(content)
    width, height = map(int, video["size"].split("x"))
    model = video["model"]
    return {"name": name, "prompt": prompt, "model": model, "width": width, "height": height}


def checked(answer: httpx.Response) -> httpx.Response:
    assert answer.is_success, answer.text
    return answer


if __name__ == "__main__":
    main()
