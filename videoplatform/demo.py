"""`make demo`: a clip from a prompt, through the same processes and the same HTTP as `make run`.

Signs up a new user on the web, makes an API key, posts to `/v1/videos`, follows the job, downloads `demo.mp4`, prints
the receipt, and stops everything. Exits with 0, or with 1 and the end of the log when any of it fails.
"""

import argparse
import re
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import httpx
from tqdm import tqdm

from videoplatform.process import Instance, InstanceFailed
from videoplatform.run import BASE_DIR
from videoplatform.utf8 import use_utf8

PROMPT = "A golden star flies right at night"
JOB_SECONDS = 300.0
POLL_SECONDS = 0.1


class DemoFailed(Exception):
    """A step of the demo did not do what it should."""


def sign_up(url: str) -> str:
    """Make a new user by the web's sign-up page, as a browser would. Returns the user name."""
    username = f"demo-{secrets.token_hex(4)}"
    with httpx.Client(base_url=url, timeout=30) as browser:
        page = browser.get("/accounts/signup/")
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        if page.status_code != 200 or token is None:
            raise DemoFailed(f"The sign-up page answered {page.status_code}.")
        form = {"csrfmiddlewaretoken": token[1], "username": username, "password1": secrets.token_urlsafe(16)}
        answer = browser.post("/accounts/signup/", data=form)
        if answer.status_code != 302:
            raise DemoFailed(
                f"Signing up answered {answer.status_code}: {re.findall(r'errorlist.*', answer.text)}"
            )
    return username


def follow(api: httpx.Client, video: dict[str, Any]) -> dict[str, Any]:
    """Show a job's denoising steps as a progress bar until it ends. Returns the finished video object."""
    deadline = time.monotonic() + JOB_SECONDS
    interval = 0.1 if sys.stdout.isatty() else 1.0  # a log file needs fewer lines
    with tqdm(
        total=video.get("steps") or None, desc="Denoising", unit="step", file=sys.stdout, mininterval=interval
    ) as bar:
        while time.monotonic() < deadline:
            bar.total = video.get("steps") or bar.total
            bar.set_postfix_str(video["status"], refresh=False)
            bar.update((video.get("step") or 0) - bar.n)
            if video["status"] in {"completed", "failed"}:
                break
            time.sleep(POLL_SECONDS)
            video = checked(api.get(f"videos/{video['id']}"))
    if video["status"] != "completed":
        raise DemoFailed(f"The job ended as {video['status']}: {video.get('error')}")
    return video


def checked(answer: httpx.Response) -> dict[str, Any]:
    """Return the answer's JSON object. Raises DemoFailed when it is an error."""
    if answer.status_code >= 400:
        raise DemoFailed(
            f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}: {answer.text}"
        )
    body: dict[str, Any] = answer.json()
    return body


def describe(clip: Path) -> str:
    """Describe the file as a player would find it: every frame is decoded."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        rate = float(stream.average_rate or 0)
        codec = {"h264": "H.264"}.get(stream.codec_context.name, stream.codec_context.name)
        pixels = stream.codec_context.pix_fmt
    return f"{codec} {pixels}, {frames} frames at {rate:g} fps, {size}, {clip.stat().st_size:,} bytes"


def receipt(account: dict[str, Any], video_id: str) -> str:
    """Describe the ledger entries of this job: reserved 50, captured 50, 450 left."""
    moves = {move["kind"]: move for move in account["transactions"] if move["video_id"] == video_id}
    if set(moves) != {"reserve", "capture"}:
        raise DemoFailed(f"The job's credits were not settled: {account['transactions']}")
    reserved, captured = moves["reserve"]["held_delta"], -moves["capture"]["posted_delta"]
    return f"reserved {reserved}, captured {captured}, {account['balance']} left"


def make_clip(platform: Instance, prompt: str, destination: Path) -> None:
    """Sign up, submit the prompt, follow it and download the clip, printing each step."""
    username = sign_up(platform.url)
    key = platform.manage("create_api_key", username).strip()
    print(f"Signed up {username} on the web, made an API key.")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{platform.url}/v1/", headers=headers, timeout=60) as api:
        video = checked(
            api.post("videos", json={"prompt": prompt}, headers={"Idempotency-Key": secrets.token_hex(16)})
        )
        print(f'POST /v1/videos "{prompt}" → {video["id"]}', flush=True)
        video = follow(api, video)
        answer = api.get(f"videos/{video['id']}/content")
        if answer.status_code != 200:
            raise DemoFailed(f"The download answered {answer.status_code}: {answer.text}")
        destination.write_bytes(answer.content)
        print(f"Receipt: {receipt(checked(api.get('credits')), video['id'])}")
    print(f"{destination}: {describe(destination)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the platform, make the clip, stop the platform."""
    use_utf8(["-m", "videoplatform.demo", *(sys.argv[1:] if arguments is None else arguments)])
    parser = argparse.ArgumentParser(
        prog="python -m videoplatform.demo", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--output", type=Path, default=Path("demo.mp4"))
    parser.add_argument("--data-dir", type=Path, default=BASE_DIR / ".data" / "demo")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    platform = Instance(options.data_dir)
    began = time.monotonic()
    print("Starting the platform …", flush=True)
    try:
        with platform:
            print(
                f"Up after {time.monotonic() - began:.1f} s: {platform.url}, GPU node {platform.node_url}",
                flush=True,
            )
            make_clip(platform, options.prompt, options.output)
    except (DemoFailed, InstanceFailed, httpx.HTTPError, av.FFmpegError) as error:
        print(f"\nThe demo failed: {error}\n\n{platform.log_tail()}", file=sys.stderr)
        return 1
    print(
        f"Done in {time.monotonic() - began:.1f} s; everything has been stopped.\n"
        "The tiny demonstration model made the clip. It knows 8 colours, 5 shapes, 8 motions and 6 backgrounds\n"
        '(docs/embedded-model.md). Try: make demo PROMPT="a pink heart growing over the sea". `make run` serves it.\n'
        "For real clips, set VIDEO_API_URL and VIDEO_API_KEY in .env to a GPU node that runs CogVideoX-5B (README)."
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
