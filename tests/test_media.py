"""Checking, converting and storing clips: real files, good ones, odd ones and hostile ones."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage

from generation import media
from generation.jobs import stored_files
from generation.media import MediaFailure, UnplayableVideo, VideoFacts, sandbox
from tests.clips import facts_of, write_clip
from tests.environment import REPOSITORY
from tests.processes import still_alive, wait_for

ASKING = """
import sys
from pathlib import Path
from generation.media import sandbox
sandbox.DECODER, folder = Path(sys.argv[1]), Path(sys.argv[2])
sandbox.prepare(folder / "a.mp4", folder / "b.mp4", folder / "b.jpg")
"""


def prepare(clip: Path, **limits: float) -> VideoFacts:
    """Prepare a clip into `playable.mp4` and `poster.jpg` beside it."""
    return media.prepare(clip, clip.with_name("playable.mp4"), clip.with_name("poster.jpg"), **limits)


def write(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (96, 64),
    frames: int = 16,
    fps: int = 8,
    container: str = "mp4",
    movflags: str = "+faststart",
    sound: str = "",
    blank: int = 0,
) -> Path:
    """A clip of a moving gradient in any codec and container; its first `blank` frames are black."""
    options = {"movflags": movflags} if container == "mp4" and movflags else {}
    with av.open(str(path), "w", format=container, options=options) as out:
        video = out.add_stream(codec, rate=fps, options={"x265-params": "log-level=none"})
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        audio: Any = out.add_stream(sound, rate=48_000, options={"strict": "-2"}) if sound else None
        for number in range(frames):
            picture = av.VideoFrame(*size, "rgb24")
            row = bytes((x * 2 + number * 6 + 40 * c) % 256 for x in range(size[0]) for c in range(3))
            line = bytes(picture.planes[0].line_size) if number < blank else row
            picture.planes[0].update(line.ljust(picture.planes[0].line_size, b"\0") * size[1])
            picture.pts = number
            out.mux(video.encode(picture.reformat(format=pix_fmt)))
        out.mux(video.encode(None))
        if audio:
            for number in range(94):
                silence = av.AudioFrame(format="s16", layout="stereo", samples=1024)
                silence.planes[0].update(bytes(silence.planes[0].buffer_size))
                silence.sample_rate, silence.pts = 48_000, number * 1024
                out.mux(audio.encode(silence))
            out.mux(audio.encode(None))
    return path


def pictures(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype("int16") for frame in container.decode(video=0)]


def assert_plays_everywhere(path: Path, facts: VideoFacts) -> None:
    assert (facts.codec, facts.pix_fmt, facts.faststart) == ("h264", "yuv420p", True)
    assert facts.width % 2 == facts.height % 2 == 0
    assert facts.size_bytes == path.stat().st_size
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.profile in ("High", "Main", "Constrained Baseline")
        assert sum(1 for _ in container.decode(video=0)) == facts.frames


# --- Facts -----------------------------------------------------------------------------------------------------


def test_the_facts_of_a_clip_are_what_its_frames_say(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", frames=49, fps=8, size=(128, 96))
    assert prepare(clip) == VideoFacts(
        codec="h264",
        pix_fmt="yuv420p",
        width=128,
        height=96,
        frames=49,
        fps=8.0,
        duration_ms=6125,
        size_bytes=clip.stat().st_size,
        faststart=True,
    )


def test_a_plain_interpreter_can_prepare_a_clip(tmp_path: Path) -> None:
    """Other programs do, without Django's settings."""
    clip = write(tmp_path / "clip.mp4", codec="mpeg4")
    program = (
        "import sys; from pathlib import Path; from generation.media import prepare\n"
        "facts = prepare(*map(Path, sys.argv[1:]))\n"
        "print(facts.width, facts.height, facts.frames, facts.duration_ms)"
    )
    plain = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", program, "clip.mp4", str(tmp_path / "playable.mp4"), "poster.jpg"],
        cwd=tmp_path,
        env=plain | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "96 64 16 2000\n"
    assert clip.with_name("poster.jpg").exists()


# --- Making it play --------------------------------------------------------------------------------------------


def test_what_plays_already_is_taken_over_byte_by_byte(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4")
    facts = prepare(clip)
    assert (tmp_path / "playable.mp4").read_bytes() == clip.read_bytes()
    assert facts.size_bytes == clip.stat().st_size


@pytest.mark.parametrize(
    "kind",
    [
        {"codec": "mpeg4"},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv420p10le"},
        {"codec": "libx264rgb", "pix_fmt": "rgb24"},
        {"codec": "libx265"},
        {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
        {"codec": "libvpx-vp9", "container": "webm"},
        {"codec": "libvpx", "container": "webm"},
        {"container": "matroska"},
        {"codec": "mpeg4", "size": (97, 65)},
        {"movflags": "frag_keyframe+empty_moov"},
        {"codec": "mpeg4", "sound": "aac"},
        {"codec": "libvpx-vp9", "container": "webm", "sound": "opus"},
    ],
    ids=lambda kind: "-".join(str(value) for value in kind.values()),
)
def test_whatever_else_comes_is_made_to_play_with_the_same_pictures(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    clip, playable = write(tmp_path / "clip", **kind), tmp_path / "playable.mp4"
    facts = prepare(clip)
    assert_plays_everywhere(playable, facts)
    assert (facts.frames, facts.fps, facts.duration_ms) == (16, 8.0, 2000)
    if "size" not in kind:
        for before, after in zip(pictures(clip), pictures(playable), strict=True):
            assert abs(before - after).mean() < 8
    with av.open(str(playable)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"] * (
            "sound" in kind
        )


@pytest.mark.parametrize("movflags", ["", "frag_keyframe+empty_moov"])
def test_pictures_that_fit_are_not_encoded_again(tmp_path: Path, movflags: str) -> None:
    clip = write(tmp_path / "clip.mp4", movflags=movflags, sound="aac")
    facts = prepare(clip)
    assert_plays_everywhere(tmp_path / "playable.mp4", facts)
    before, after = pictures(clip), pictures(tmp_path / "playable.mp4")
    assert all((one == other).all() for one, other in zip(before, after, strict=True))


def test_preparing_does_it_all_at_once(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", codec="mpeg4")
    facts = prepare(clip)
    assert facts == facts_of(tmp_path / "playable.mp4")
    assert (tmp_path / "poster.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "playable.mp4", "poster.jpg"]


# --- Posters ---------------------------------------------------------------------------------------------------


def jpeg(path: Path) -> Any:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
        return next(container.decode(video=0))


def test_a_poster_shows_half_a_second_into_the_clip(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4")
    assert prepare(clip).frames == 16
    shown = jpeg(tmp_path / "poster.jpg").to_ndarray(format="rgb24").astype("int16")
    differences = [abs(frame - shown).mean() for frame in pictures(clip)]
    assert differences.index(min(differences)) == 4


def test_a_poster_is_not_a_blank_frame_while_there_is_another(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", blank=10)
    prepare(clip)
    assert jpeg(tmp_path / "poster.jpg").to_ndarray(format="gray").std() > 20
    prepare(write(tmp_path / "dark.mp4", blank=16))
    assert jpeg(tmp_path / "poster.jpg").to_ndarray(format="gray").std() < 2


def test_a_poster_is_bounded(tmp_path: Path) -> None:
    prepare(write(tmp_path / "clip.mp4", size=(1920, 1080), frames=3))
    frame = jpeg(tmp_path / "poster.jpg")
    assert (frame.width, frame.height) == (1280, 720)
    assert (tmp_path / "poster.jpg").stat().st_size <= 300_000


# --- What does not play ----------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"x"), "neither MP4 nor WebM"),
        (lambda p: p.write_bytes(b"<!doctype html>" * 99), "neither MP4 nor WebM"),
        (lambda p: p.write_bytes(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "neither MP4 nor WebM"),
        (lambda p: p.write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(5000)), "cut short or damaged|no video"),
        (lambda p: p.write_bytes(b"\x1aE\xdf\xa3" + bytes(5000)), "cut short or damaged|no video"),
        (lambda p: cut(write(p), 0.9), "cut short"),
        (lambda p: cut(write(p), 0.5), "cut short"),
        # The index at its end is gone whole or in part; what is left of it may still tell how many frames there were.
        (
            lambda p: cut(write(p, movflags=""), 0.9),
            "cut short or damaged|cut short: 0 of 16 frames|no video",
        ),
        (lambda p: write(p, frames=1), "single picture"),
        (lambda p: write(p, codec="png", pix_fmt="rgb24", frames=1, container="mov"), "single picture"),
        (lambda p: write(p, size=(8, 8)), "8x8 pixels is out of bounds"),
    ],
)
def test_what_is_no_video_is_unplayable_and_says_why(tmp_path: Path, make: Any, why: str) -> None:
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(UnplayableVideo, match=why):
        prepare(path)
    assert [left.name for left in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_file_with_sound_only_is_unplayable(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        audio = out.add_stream("aac", rate=48_000)
        silence = av.AudioFrame(format="s16", layout="stereo", samples=1024)
        silence.planes[0].update(bytes(silence.planes[0].buffer_size))
        silence.sample_rate = 48_000
        out.mux(audio.encode(silence))
        out.mux(audio.encode(None))
    with pytest.raises(UnplayableVideo, match="no video in it"):
        prepare(tmp_path / "sound.mp4")


def test_pictures_that_are_noise_are_unplayable(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4")
    data = clip.read_bytes()
    start = data.index(b"mdat") + 4
    clip.write_bytes(data[:start] + random.Random(1).randbytes(len(data) - start))
    with pytest.raises(UnplayableVideo, match=r"does not decode|damaged"):
        prepare(clip)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_side": 64}, "96x64 pixels is out of bounds"),
        ({"max_duration": 1.0}, "longer than 1 s"),
        ({"max_frames": 5}, "longer than"),
        ({"max_bytes": 1000}, "larger than is allowed"),
    ],
)
def test_what_outgrows_a_limit_is_unplayable(tmp_path: Path, limits: dict[str, Any], why: str) -> None:
    clip = write(tmp_path / "clip.mp4", codec="mpeg4")
    with pytest.raises(UnplayableVideo, match=why):
        prepare(clip, **limits)
    assert [left.name for left in tmp_path.iterdir()] == ["clip.mp4"]


def test_what_needs_too_much_memory_is_unplayable(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", codec="mpeg4", size=(1920, 1920), frames=12)
    with pytest.raises(UnplayableVideo, match=r"memory|does not decode|crashed"):
        prepare(clip, memory=240 * 1024**2)


def test_what_takes_too_long_is_no_fault_of_the_file_and_its_process_is_gone(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", size=(1280, 720), frames=40, codec="mpeg4")
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(MediaFailure, match=r"more than 0\.3 s"):
        prepare(clip, seconds=0.3)
    assert {child.pid for child in psutil.Process().children()} <= before
    assert [left.name for left in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_decoder_that_crashes_takes_nothing_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "crashing.py"
    crashing.write_text("import os, signal\ndef main(*_): os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(sandbox, "DECODER", crashing)
    before = None
    for _ in range(2):
        with pytest.raises(UnplayableVideo, match=r"crashed \(signal 11\)"):
            prepare(write_clip(tmp_path / "clip.mp4"))
        forking = next(child.pid for child in psutil.Process().children() if str(crashing) in child.cmdline())
        assert before in (None, forking), "a crash is one clip's, and the next is decoded by the same program"
        before = forking


def test_a_clip_is_not_answered_with_what_is_said_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import json, time\n"
        "def main(limits, source, *_):\n"
        "    name = open(source).read()\n"
        "    time.sleep(30 if name == 'slow.mp4' else 0)\n"
        "    print(json.dumps({'unplayable': name}))\n"
    )
    monkeypatch.setattr(sandbox, "DECODER", slow)
    for name in ("slow.mp4", "quick.mp4"):
        (tmp_path / name).write_text(name)
    with pytest.raises(MediaFailure, match=r"more than 0\.3 s"):
        prepare(tmp_path / "slow.mp4", seconds=0.3)
    with pytest.raises(UnplayableVideo, match=r"quick\.mp4"):
        prepare(tmp_path / "quick.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a process with its parent")
def test_decoders_end_with_the_process_that_asked(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ndef main(*_): time.sleep(60)\n")
    (tmp_path / "a.mp4").touch()
    asking = subprocess.Popen([sys.executable, "-c", ASKING, str(slow), str(tmp_path)], cwd=REPOSITORY)
    wait_for(lambda: len(psutil.Process(asking.pid).children(recursive=True)) == 2)
    below = psutil.Process(asking.pid).children(recursive=True)
    asking.kill()
    asking.wait()
    assert still_alive(below, seconds=10) == []


def test_a_fault_of_our_own_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4")
    with pytest.raises(MediaFailure, match="No such file"):
        prepare(tmp_path / "nowhere.mp4")
    with pytest.raises(MediaFailure, match="No such file"):
        media.prepare(clip, tmp_path / "nowhere" / "out.mp4", tmp_path / "out.jpg")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "kind", [{}, {"movflags": ""}, {"codec": "mpeg4"}], ids=["copied", "remuxed", "encoded"]
)
def test_a_full_disk_is_a_fault_of_our_own(tmp_path: Path, kind: dict[str, str]) -> None:
    clip = write(tmp_path / "clip.mp4", **kind)  # type: ignore[arg-type]
    done = subprocess.run(
        [sys.executable, sandbox.DECODER, '{"seconds": 60}', clip, "/dev/full", tmp_path / "poster.jpg"],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"failed": os.strerror(28)}


def test_the_decoder_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "spy.py"
    spy.write_text(
        "import json, os\ndef main(*_): print(json.dumps({'failed': ' '.join(sorted(os.environ))}))\n"
    )
    monkeypatch.setattr(sandbox, "DECODER", spy)
    monkeypatch.setenv("SECRET_KEY", "secret")
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(MediaFailure) as caught:
        prepare(tmp_path / "clip.mp4")
    assert "MALLOC_ARENA_MAX" in str(caught.value)
    assert not {"SECRET_KEY", "DATABASE_URL", "HOME", "PATH"} & set(str(caught.value).split())


# What one who has taken the decoder over by a file would try next.
HOSTILE = """
import ctypes, json, os, signal, socket, subprocess, threading
parent = os.getppid()
def attempt(what, name):
    try:
        return name if what() is not False else ""
    except OSError:
        return ""
def connect(kind, place):
    with socket.socket(kind) as s:
        s.settimeout(2); s.connect(place)
def thread():
    threading.Thread(target=lambda: None).start(); return False
def main(limits, source, video, poster):
    secret, port, path, folder = open(source).read().split()
    open(video, "wb").write(b"x"); open(poster, "wb").write(b"x")
    tried = {
        "read a secret": lambda: open(secret).read(),
        "read the parent's environment": lambda: open(f"/proc/{parent}/environ").read(),
        "read the parent's memory": lambda: open(f"/proc/{parent}/mem", "rb").read(1),
        "read the passwords of the system": lambda: open("/etc/passwd").read(),
        "list a folder": lambda: os.listdir("/"),
        "write elsewhere": lambda: open(os.path.join(folder, "mine"), "w"),
        "write what it may only read": lambda: open(source, "r+"),
        "remove a file": lambda: os.remove(secret),
        "connect by TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", int(port))),
        "connect to a socket": lambda: connect(socket.AF_UNIX, path),
        "start a program": lambda: subprocess.run(["/bin/true"]),
        "become a program": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "end the parent": lambda: os.kill(parent, signal.SIGTERM),
        "end all": lambda: os.kill(-1, signal.SIGTERM),
        "trace the parent": lambda: ctypes.CDLL(None).ptrace(16, parent, 0, 0) == 0,
        "make a namespace": lambda: ctypes.CDLL(None).unshare(0x10000000) == 0,
        "not make a thread": thread,
    }
    print(json.dumps({"failed": "; ".join(filter(None, (attempt(what, name) for name, what in tried.items())))}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have neither Landlock nor seccomp")
def test_who_takes_the_decoder_over_gains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile, secret, clip = (tmp_path / name for name in ("hostile.py", "secret", "clip.mp4"))
    hostile.write_text(HOSTILE)
    secret.write_text("SECRET_KEY=secret")
    tmp_path.chmod(0o777)
    secret.chmod(0o666)
    monkeypatch.setattr(sandbox, "DECODER", hostile)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        place = str(tmp_path / "s")
        local.bind(place)
        local.listen()
        Path(place).chmod(0o777)
        clip.write_text(f"{secret} {tcp.getsockname()[1]} {place} {tmp_path}")
        with pytest.raises(MediaFailure) as caught:
            prepare(clip)
    assert str(caught.value) == "The clip could not be worked on: ."
    assert secret.read_text() == "SECRET_KEY=secret"
    assert (clip.stat().st_uid, clip.stat().st_gid) == (os.geteuid(), os.getegid())


def test_a_system_without_guards_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "confinement.py"
    bare.write_text("def missing(): return ['all that there is']\ndef confine(*paths): return list(paths)\n")
    monkeypatch.setattr(sandbox, "CONFINEMENT", bare)
    monkeypatch.setattr(sandbox, "decoders", sandbox.Decoders())
    for _ in range(2):
        assert prepare(write(tmp_path / "clip.mp4")).frames
    sandbox.decoders.stop()
    assert caplog.text.count("all that there is") == 1


def in_the_decoder(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may import the decoder, and nothing else of the project."""
    decoder = {"PYTHONPATH": str(sandbox.DECODER.parent)}
    command = [sys.executable, "-P", "-c", program]
    return subprocess.run(command, env=decoder, capture_output=True, text=True, timeout=60, check=False)


def test_the_decoder_knows_no_django() -> None:
    done = in_the_decoder("import decoder, sys; print({'django', 'generation'} & set(sys.modules))")
    assert done.stdout.strip() == "set()"


def test_the_decoder_ends_when_its_worker_was_killed() -> None:
    """Its own alarm ends it, whatever it is at: the parent that would do so is gone."""
    started = time.monotonic()
    done = in_the_decoder(
        "import time; from decoder import Limits, confine; confine(Limits(-1)); time.sleep(60)"
    )
    assert done.returncode == -14
    assert time.monotonic() - started < 50


@pytest.mark.parametrize("seed", range(12))
def test_damaged_files_are_facts_or_unplayable_and_never_anything_else(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {},
        {"codec": "mpeg4", "sound": "aac"},
        {"codec": "libvpx-vp9", "container": "webm"},
    ]
    clip = write(tmp_path / "clip.mp4", **kinds[seed % 3])
    data = bytearray(clip.read_bytes())
    for _ in range(chance.choice([1, 3, 30])):
        data[chance.randrange(min(len(data), 1500))] = chance.randrange(256)
    clip.write_bytes(data)
    try:
        facts = prepare(clip)
    except UnplayableVideo as error:
        assert str(error).startswith("The file is unplayable: ")
    else:
        assert_plays_everywhere(tmp_path / "playable.mp4", facts)


# --- Where they are kept ---------------------------------------------------------------------------------------


def test_a_stored_clip_is_under_a_name_of_its_job(tmp_path: Path, clip: Path) -> None:
    job = uuid.uuid4()
    (tmp_path / "poster.jpg").write_bytes(b"\xff\xd8\xffposter")
    names = stored_files.new_names(job)
    stored_files.store(clip, tmp_path / "poster.jpg", names)
    assert names[0].startswith(f"videos/{job.hex[:2]}/{job.hex}-")
    assert names[0].endswith(".mp4")
    assert names[1].endswith(".jpg")
    with default_storage.open(names[0]) as file:
        assert file.read() == clip.read_bytes()


def test_storing_a_job_twice_touches_nothing_of_the_first(tmp_path: Path, clip: Path) -> None:
    job = uuid.uuid4()
    (tmp_path / "poster.jpg").write_bytes(b"\xff\xd8\xffposter")
    first, second = stored_files.new_names(job), stored_files.new_names(job)
    for names in (first, second):
        stored_files.store(clip, tmp_path / "poster.jpg", names)
    for name in second * 2:
        default_storage.delete(name)
    assert all(default_storage.exists(name) for name in first)
    assert not default_storage.exists(second[0])


@pytest.mark.parametrize("taken", [0, 1], ids=["video", "poster"])
def test_a_name_that_is_taken_is_left_as_it_is(tmp_path: Path, clip: Path, taken: int) -> None:
    names = stored_files.new_names(uuid.uuid4())
    default_storage.save(names[taken], ContentFile(b"another's"))
    (tmp_path / "poster.jpg").write_bytes(b"\xff\xd8\xffposter")
    with pytest.raises(FileExistsError):
        stored_files.store(clip, tmp_path / "poster.jpg", names)
    with default_storage.open(names[taken]) as file:
        assert file.read() == b"another's"
    assert [default_storage.exists(name) for name in names].count(True) == 1


def test_a_poster_that_cannot_be_stored_takes_the_video_with_it(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileSystemStorage(location=tmp_path / "kept")
    monkeypatch.setattr(stored_files, "default_storage", storage)
    storage.save("posters", ContentFile(b"a file where a folder should be"))
    (tmp_path / "poster.jpg").write_bytes(b"\xff\xd8\xffposter")
    with pytest.raises(OSError, match="posters"):
        stored_files.store(clip, tmp_path / "poster.jpg", stored_files.new_names(uuid.uuid4()))
    assert not list((tmp_path / "kept").rglob("*.mp4"))
