"""`make demo`: one command, a clip and a receipt, or a failure that says why; nothing stays behind either way."""

import os
import subprocess
import sys
from pathlib import Path

import av
import psutil
import pytest

from tests.stack import copy_database
from videoplatform.process import BASE_DIR
from videoplatform.run import MARK

pytestmark = pytest.mark.e2e


def demo(tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "videoplatform.demo", "--prompt", "A green square turns"]
    command += ["--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "demo.mp4")]
    return subprocess.run(
        command,
        cwd=BASE_DIR,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def left_behind(tmp_path: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == str(tmp_path / "data")
            served = str(tmp_path / "data" / "postgres") in process.cmdline()
        except (psutil.Error, OSError):
            continue
        found += [process] if marked or served else []
    return found


def test_it_makes_a_playable_clip_and_shows_the_way_and_the_receipt(tmp_path: Path) -> None:
    result = demo(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "reserved 50, captured 50, 450 left" in result.stdout
    assert "H.264 yuv420p, 16 frames at 8 fps" in result.stdout
    assert "20/20" in result.stdout, "the bar counts true steps"
    assert "A green square turns" in result.stdout
    assert "tiny demonstration model" in result.stdout
    with av.open(str(tmp_path / "demo.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert sum(1 for _ in container.decode(video=0)) == 16
    assert left_behind(tmp_path) == []


def test_a_failure_exits_with_1_and_says_what_went_wrong(tmp_path: Path) -> None:
    copy_database(tmp_path / "data")  # the first demo's was made as it comes
    result = demo(tmp_path, SIGNUP_CREDITS="10")
    assert result.returncode == 1
    assert "The demo failed" in result.stderr
    assert "insufficient" in result.stderr.lower()
    assert "run.log" in result.stderr
    assert not (tmp_path / "demo.mp4").exists()
    assert left_behind(tmp_path) == []
