"""Clips as phones, editors, recorders and cameras make them come out as a person sees and hears them."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy
import pytest

from generation import media
from generation.jobs import lifecycle, locks, submission, tasks
from generation.media import MediaFailure, UnplayableVideo, VideoFacts, sandbox
from generation.models import JobAttempt
from tests.field_node import FieldNode

RED, GREEN, BLUE, GREY = (200, 40, 40), (40, 180, 60), (40, 60, 200), (128, 128, 128)
TWENTY = range(0, 800, 40)
IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def picture(number: int, size: tuple[int, int] = (96, 64)) -> Any:
    """Four fields, each of its colour, and a white bar that moves to the right: which way up, and which frame it is."""
    width, height = size
    pixels = numpy.zeros((height, width, 3), dtype=numpy.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, GREY
    pixels[height // 2 - 8 : height // 2 + 8, number * 4 : number * 4 + 8] = 255
    return pixels


def film(
    path: Path,
    *,
    times: Iterable[int] = TWENTY,
    codec: str = "libx264",
    container: str = "mp4",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (96, 64),
    shape: Fraction | None = None,
    options: dict[str, str] | None = None,
    sound: Any = None,
    sound_codec: str = "aac",
    rate: int = 48_000,
) -> Path:
    """A clip whose frames are shown at these milliseconds, in twos where they are given twice, with these samples."""
    movflags = {"movflags": "+faststart"} if container == "mp4" else {}
    due = list(times)
    with av.open(str(path), "w", format=container, options=movflags) as out:
        defaults = {"x265-params": "log-level=none:keyint=5"}
        video: Any = out.add_stream(codec, rate=25, options=defaults | (options or {}))
        # Many groups of pictures, so that an edit list hides some of them whole.
        video.codec_context.gop_size = 5
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.codec_context.time_base = Fraction(1, 1000)
        if shape:
            video.codec_context.sample_aspect_ratio = shape
        audio: Any = out.add_stream(sound_codec, rate=rate, layout="mono") if sound is not None else None
        for number in range(len(due)):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24").reformat(format=pix_fmt)
            # What stands still in `times` goes on for the encoder; its packet gets the time that was asked for.
            frame.pts, frame.time_base = due[number] + due[:number].count(due[number]), Fraction(1, 1000)
            out.mux(_at(video.encode(frame), due))
        out.mux(_at(video.encode(None), due))
        if audio:
            frame = av.AudioFrame.from_ndarray(sound[None, :], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            resampler = av.AudioResampler(format=audio.codec_context.format, frame_size=1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
    return path


def _at(packets: list[Any], due: list[int]) -> list[Any]:
    for packet in packets if len(set(due)) < len(due) else []:
        packet.pts = packet.dts = max(moment for moment in due if moment <= packet.pts)
    return packets


def tone(seconds: float, *, rate: int = 48_000, silent: float = 0.0) -> Any:
    """Samples of a tone of 440 Hz that begins after a silence."""
    moments = numpy.arange(round(seconds * rate)) / rate
    return (numpy.sin(moments * 440 * 2 * numpy.pi) * 9000 * (moments >= silent)).astype(numpy.int16)


def turned(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Give the first track a display matrix (ISO/IEC 14496-12, 6.2.2)."""
    data = path.read_bytes()
    place = data.index(IDENTITY, data.index(b"tkhd"))
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:place] + matrix + data[place + len(IDENTITY) :])
    return path


def edited(path: Path, *, begin: float = 0.0, seconds: float) -> Path:
    """Have the edit list of the first track show a part of it only (ISO/IEC 14496-12, 8.6.6)."""
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
    data = path.read_bytes()
    place = data.index(b"elst") + 12
    start = struct.unpack(">i", data[place + 4 : place + 8])[0] + round(begin / unit)
    path.write_bytes(data[:place] + struct.pack(">Ii", round(seconds * 1000), start) + data[place + 8 :])
    return path


def prepare(clip: Path, **limits: float) -> VideoFacts:
    """Prepare a clip into `playable.mp4` and `poster.jpg` beside it."""
    return media.prepare(clip, clip.with_name("playable.mp4"), clip.with_name("poster.jpg"), **limits)


def shown(path: Path) -> list[Any]:
    """The frames of a file as a player that knows nothing of rotation or pixel shapes decodes them."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype("int16") for frame in container.decode(video=0)]


def times_of(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [round(frame.time * 1000) for frame in container.decode(video=0)]


def numbers_of(path: Path) -> list[int]:
    """Which of the pictures of `film` the frames of a file are."""
    pictures = [picture(number).astype("int16") for number in range(20)]
    return [int(numpy.argmin([abs(frame - each).mean() for each in pictures])) for frame in shown(path)]


def heard(path: Path) -> tuple[int, Any]:
    """The rate of the sound, and its samples from the beginning."""
    with av.open(str(path)) as container:
        pieces = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return container.streams.audio[0].rate, numpy.concatenate(pieces)


def assert_same(one: Any, other: Any, *, within: float = 6) -> None:
    assert one.shape == other.shape
    assert abs(one.astype("int16") - other).mean() < within


# --- Edit lists ---


@pytest.mark.parametrize(
    ("codec", "part", "numbers"),
    [
        ("libx264", {"seconds": 0.24}, range(6)),
        ("libx265", {"begin": 0.2, "seconds": 0.6}, range(5, 20)),
        ("libx264", {"begin": 0.2, "seconds": 0.2}, range(5, 10)),
    ],
    ids=["tail", "head", "both"],
)
def test_what_an_edit_list_hides_is_gone_and_the_rest_plays(
    tmp_path: Path, codec: str, part: dict[str, float], numbers: range
) -> None:
    facts = prepare(edited(film(tmp_path / "clip.mp4", codec=codec), **part))
    assert numbers_of(tmp_path / "playable.mp4") == list(numbers)
    assert (facts.frames, facts.fps, facts.duration_ms) == (len(numbers), 25, len(numbers) * 40)
    assert times_of(tmp_path / "playable.mp4") == [40 * place for place in range(len(numbers))]


def test_an_edit_list_does_not_make_a_file_whole_that_is_cut_short(tmp_path: Path) -> None:
    clip = edited(film(tmp_path / "clip.mp4"), seconds=0.2)
    clip.write_bytes(clip.read_bytes()[:-200])
    with pytest.raises(UnplayableVideo, match="cut short"):
        prepare(clip)


def test_a_webm_that_is_cut_short_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    clip = film(tmp_path / "clip.webm", codec="libvpx-vp9", container="webm")
    clip.write_bytes(clip.read_bytes()[:-400])
    with pytest.raises(UnplayableVideo, match="cut short"):
        prepare(clip)


def remuxed(path: Path, **options: str) -> Path:
    """The same packets in another MP4."""
    other = path.with_name("other.mp4")
    with av.open(str(path)) as source, av.open(str(other), "w", options=options) as out:
        stream: Any = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return other


def test_an_mp4_in_fragments_plays_and_is_missed_when_it_is_cut_short(tmp_path: Path) -> None:
    clip = remuxed(film(tmp_path / "clip.mp4"), movflags="frag_keyframe+empty_moov")
    facts = prepare(clip)
    assert (facts.frames, facts.duration_ms, facts.faststart) == (20, 800, True)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    with pytest.raises(UnplayableVideo, match="cut short"):
        prepare(clip)


@pytest.mark.parametrize("head", [b"", b"\0\0\0\x08wide", b"\0\0\0\x08free"], ids=["none", "wide", "free"])
def test_a_movie_needs_no_mark_of_its_kind_in_front(tmp_path: Path, head: bytes) -> None:
    clip = remuxed(film(tmp_path / "clip.mp4"))  # its index is at the end, and says where its pictures are
    data = clip.read_bytes()
    size = int.from_bytes(data[:4])
    mark = head + b"\0\0\0" + bytes([size - len(head)]) + b"free" if size - len(head) >= 8 else head
    clip.write_bytes((mark + data[len(mark) :])[:size] + data[size:])
    facts = prepare(clip)
    assert (facts.frames, facts.duration_ms) == (20, 800)


# --- Time ---


@pytest.mark.parametrize(
    ("times", "mended"),
    [
        ([0, 40, 40, 120, 160], [0, 40, 80, 120, 160]),
        ([0, 0, 80, 120], [0, 40, 80, 120]),
        ([0, 40, 80, 80], [0, 40, 80, 120]),
        ([0, 40, 80, 80, 80, 200, 240], [0, 40, 80, 120, 160, 200, 240]),
        ([0, 40, 80, 80, 1080, 1120], [0, 40, 80, 120, 1080, 1120]),
    ],
    ids=["between", "first", "last", "three", "before a pause"],
)
def test_frames_that_share_a_time_move_into_the_gap_after_them(
    tmp_path: Path, times: list[int], mended: list[int]
) -> None:
    options = {"lag-in-frames": "0"}
    clip = film(tmp_path / "clip.webm", times=times, codec="libvpx-vp9", container="webm", options=options)
    assert times_of(clip) == times
    facts = prepare(clip)
    assert times_of(tmp_path / "playable.mp4") == mended
    assert numbers_of(tmp_path / "playable.mp4") == list(range(len(times)))
    assert (facts.frames, facts.duration_ms) == (len(times), mended[-1] + 40)


@pytest.mark.parametrize(
    "kind",
    [{}, {"codec": "mpeg4"}, {"codec": "libvpx-vp9", "container": "webm"}],
    ids=["copied", "encoded", "webm"],
)
def test_a_changing_rate_is_timed_by_its_time_stamps(tmp_path: Path, kind: dict[str, str]) -> None:
    times = [0, 40, 80, 500, 540, 1000, 1040, 1900, 1940]
    facts = prepare(film(tmp_path / "clip", times=times, **kind))  # type: ignore[arg-type]
    assert times_of(tmp_path / "playable.mp4") == times
    assert (facts.frames, facts.duration_ms, facts.fps) == (9, 1980, round(8 / 1.94, 3))
    with av.open(str(tmp_path / "playable.mp4")) as container:
        assert container.duration is not None
        assert abs(container.duration / 1000 - 1980) < 5


@pytest.mark.parametrize(
    "kind", [{}, {"codec": "libvpx-vp9", "container": "webm"}], ids=["copied", "encoded"]
)
def test_a_first_picture_that_comes_late_comes_at_once(tmp_path: Path, kind: dict[str, str]) -> None:
    clip = film(tmp_path / "clip", times=range(3_600_000, 3_600_800, 40), **kind)  # type: ignore[arg-type]
    facts = prepare(clip)
    assert times_of(tmp_path / "playable.mp4") == list(TWENTY)
    assert (facts.frames, facts.fps, facts.duration_ms) == (20, 25, 800)
    if not kind:
        assert all(
            (one == other).all()
            for one, other in zip(shown(clip), shown(tmp_path / "playable.mp4"), strict=True)
        )


def test_sound_stays_with_the_pictures_that_come_late(tmp_path: Path) -> None:
    sound = tone(1.3, silent=0.8)
    prepare(film(tmp_path / "clip.mp4", times=range(500, 1300, 40), sound=sound))
    rate, samples = heard(tmp_path / "playable.mp4")
    assert times_of(tmp_path / "playable.mp4")[0] == 0
    begins = numpy.flatnonzero(abs(samples) > 0.05)[0] / rate
    assert abs(begins - 0.3) < 0.03


# --- Sound ---


@pytest.mark.parametrize(
    ("rate", "codec", "container", "becomes"),
    [
        (37_800, "pcm_s16le", "mov", 44_100),
        (5_000, "pcm_s16le", "mov", 8_000),
        (31_250, "flac", "matroska", 32_000),
        (192_000, "pcm_s16le", "mov", 48_000),
    ],
)
def test_sound_in_a_rate_that_aac_has_not_gets_the_next_one(
    tmp_path: Path, rate: int, codec: str, container: str, becomes: int
) -> None:
    clip = film(
        tmp_path / "clip", container=container, sound=tone(0.8, rate=rate), sound_codec=codec, rate=rate
    )
    facts = prepare(clip)
    assert (facts.frames, facts.duration_ms) == (20, 800)
    new, samples = heard(tmp_path / "playable.mp4")
    assert new == becomes
    # The last packet of AAC is full, whatever is left.
    assert abs(len(samples) - 0.8 * becomes) < 2048
    middle = samples[new // 5 : new * 3 // 5]
    loudest = numpy.argmax(abs(numpy.fft.rfft(middle))) * new / len(middle)
    assert abs(loudest - 440) < 5


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_sound_that_goes_on_after_the_pictures_is_cut(tmp_path: Path, codec: str) -> None:
    prepare(film(tmp_path / "clip.mp4", codec=codec, sound=tone(2.5)))
    rate, samples = heard(tmp_path / "playable.mp4")
    assert abs(len(samples) / rate - 0.8) < 0.05
    with av.open(str(tmp_path / "playable.mp4")) as container:
        assert container.duration is not None
        assert abs(container.duration / 1_000_000 - 0.8) < 0.05


def test_sound_that_does_not_decode_is_left_out_and_the_pictures_stay(tmp_path: Path) -> None:
    clip = film(tmp_path / "clip.mp4", sound=tone(0.8))
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.pos]
    for place, size in packets:
        data[place : place + size] = b"\xff" * size
    clip.write_bytes(data)
    facts = prepare(clip)
    assert facts.frames == 20
    with av.open(str(tmp_path / "playable.mp4")) as container:
        assert not container.streams.audio
    assert all(
        (one == other).all() for one, other in zip(shown(clip), shown(tmp_path / "playable.mp4"), strict=True)
    )


# --- Shape and direction ---


@pytest.mark.parametrize(
    ("codec", "matrix", "upright"),
    [
        ("libx264", (0, 1, -1, 0), lambda stored: numpy.rot90(stored, -1)),
        ("libx265", (0, -1, 1, 0), lambda stored: numpy.rot90(stored)),
        ("libx264", (-1, 0, 0, -1), lambda stored: stored[::-1, ::-1]),
        ("libx265", (-1, 0, 0, 1), lambda stored: stored[:, ::-1]),
        ("libx264", (0, 1, 1, 0), lambda stored: stored.transpose(1, 0, 2)),
    ],
    ids=["90", "270", "180", "mirrored", "90 and mirrored"],
)
def test_a_clip_is_stored_upright(tmp_path: Path, codec: str, matrix: Any, upright: Any) -> None:
    clip = turned(film(tmp_path / "clip.mp4", times=range(0, 200, 40), codec=codec), *matrix)
    facts = prepare(clip)
    wanted = [upright(stored) for stored in shown(clip)]
    assert (facts.height, facts.width) == wanted[0].shape[:2]
    for one, other in zip(wanted, shown(tmp_path / "playable.mp4"), strict=True):
        assert_same(one, other)
    with av.open(str(tmp_path / "playable.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0
    assert_same(wanted[4], shown(tmp_path / "poster.jpg")[0])


@pytest.mark.parametrize(
    ("kind", "shape", "matrix", "size"),
    [
        ({}, Fraction(4, 3), None, (128, 64)),
        ({}, Fraction(8, 9), None, (84, 64)),
        ({"container": "matroska"}, Fraction(4, 3), None, (128, 64)),
        ({"codec": "mpeg4"}, Fraction(4, 3), (0, 1, -1, 0), (64, 128)),
    ],
    ids=["wide", "narrow", "matroska", "turned"],
)
def test_pixels_become_square(
    tmp_path: Path, kind: dict[str, str], shape: Fraction, matrix: Any, size: tuple[int, int]
) -> None:
    clip = film(tmp_path / "clip.mp4", times=range(0, 200, 40), shape=shape, **kind)  # type: ignore[arg-type]
    facts = prepare(turned(clip, *matrix) if matrix else clip)
    assert (facts.width, facts.height) == size
    for path in (tmp_path / "playable.mp4", tmp_path / "poster.jpg"):
        assert shown(path)[0].shape[:2] == size[::-1]
    with av.open(str(tmp_path / "playable.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)


def test_a_size_that_changes_on_the_way_becomes_the_first(tmp_path: Path) -> None:
    clip = tmp_path / "clip.webm"
    with av.open(str(clip), "w", format="webm") as out:
        stream: Any = out.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for at, size in ((0, (96, 64)), (200, (192, 128))):
            encoder: Any = av.CodecContext.create("libvpx-vp9", "w")
            encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
            encoder.time_base = Fraction(1, 1000)
            for number in range(5):
                frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = at + number * 40, Fraction(1, 1000)
                for packet in [*encoder.encode(frame), *(encoder.encode(None) if number == 4 else [])]:
                    packet.stream = stream
                    out.mux(packet)
    facts = prepare(clip)
    assert (facts.width, facts.height, facts.frames, facts.duration_ms) == (96, 64, 10, 400)


# --- Colours ---


def pq(light: Any) -> Any:
    """The number that stands for a light in candela a square metre (SMPTE ST 2084)."""
    power = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: Any) -> Any:
    """The number that a camera writes for what a screen shows with that light (ARIB STD-B67)."""
    scene = (light / 1000) ** (1 / 1.2)
    bright = 0.17883277 * numpy.log(numpy.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return numpy.where(scene <= 1 / 12, numpy.sqrt(3 * scene), bright)


def in_hdr(path: Path, curve: Any, transfer: int, *, codec: str, pix_fmt: str) -> Path:
    """Stripes of 0, 26, 100, 203 and 1000 cd/m², a red one, and one of the colour of skin, in BT.2020."""
    light = numpy.zeros((64, 112, 3))
    for place, colour in enumerate([0, 26, 100, 203, 1000, (100, 0, 0), (100, 60, 45)]):
        light[:, place * 16 : place * 16 + 16] = colour
    pixels = (numpy.clip(curve(light), 0, 1) * 65535).astype(numpy.uint16)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        video: Any = out.add_stream(codec, rate=25, options={"x265-params": "log-level=none", "crf": "10"})
        video.width, video.height, video.pix_fmt = 112, 64, pix_fmt
        context = video.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            transfer,
            9,
            9,
            1,
        )
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb48le")
            frame = frame.reformat(format=pix_fmt, dst_colorspace="BT2020", dst_color_range="MPEG")
            frame.color_trc, frame.color_primaries, frame.pts = transfer, 9, number
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


@pytest.mark.parametrize(
    ("curve", "transfer", "codec", "pix_fmt"),
    [
        (pq, 16, "libx265", "yuv420p10le"),
        (hlg, 18, "libx265", "yuv420p10le"),
        (pq, 16, "libx264", "yuv420p"),
        (hlg, 18, "libx264", "yuv422p10le"),
    ],
    ids=["PQ", "HLG", "PQ in H.264 of 8 bit", "HLG in 4:2:2"],
)
def test_hdr_is_brought_into_the_range_of_a_screen_and_says_so(
    tmp_path: Path, curve: Any, transfer: int, codec: str, pix_fmt: str
) -> None:
    facts = prepare(in_hdr(tmp_path / "clip.mp4", curve, transfer, codec=codec, pix_fmt=pix_fmt))
    assert (facts.pix_fmt, facts.frames) == ("yuv420p", 5)
    with av.open(str(tmp_path / "playable.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_trc, frame.color_primaries, frame.colorspace) == (1, 1, 1)
    for path in (tmp_path / "playable.mp4", tmp_path / "poster.jpg"):
        stripes = [shown(path)[0][32, place * 16 + 8] for place in range(7)]
        black, dark, middle, white, bright = (int(stripe.mean()) for stripe in stripes[:5])
        # A screen's white is 203 cd/m²: what is darker keeps its place, what is brighter shares what is left.
        assert black < 8
        assert abs(dark - 255 * (26 / 203) ** (1 / 2.4)) < 12
        assert abs(middle - 255 * (100 / 203) ** (1 / 2.4)) < 16
        assert 200 < white < 240 < bright
        assert all(abs(stripe - stripe.mean()).max() < 8 for stripe in stripes[:5])
        red, skin = stripes[5], stripes[6]
        assert red[0] > 170 and max(red[1:]) < 30
        assert skin[0] > skin[1] > skin[2] > 110


def test_a_poster_is_not_a_blank_frame_of_ten_bits(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as out:
        video: Any = out.add_stream("libx265", rate=10, options={"x265-params": "log-level=none"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p10le"
        for number in range(12):
            pixels = picture(number) * (number > 8)
            frame = av.VideoFrame.from_ndarray(pixels.astype(numpy.uint8), format="rgb24")
            out.mux(video.encode(frame.reformat(format="yuv420p10le")))
        out.mux(video.encode(None))
    prepare(tmp_path / "clip.mp4")
    assert shown(tmp_path / "poster.jpg")[0].std() > 20


# --- Whose fault it is ---


def ended_by(number: int, folder: Path) -> Path:
    """A decoder that a signal ends."""
    program = folder / "decoder.py"
    program.write_text(f"import os\ndef main(*_): os.kill(os.getpid(), {number})\n")
    return program


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["restart", "out of memory"])
def test_a_decoder_that_is_stopped_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sandbox, "DECODER", ended_by(number, tmp_path))
    with pytest.raises(MediaFailure, match="stopped"):
        prepare(film(tmp_path / "clip.mp4", times=range(0, 80, 40)))


def test_a_file_that_costs_too_much_computing_is_at_fault_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = tmp_path / "busy.py"
    busy.write_text(
        f"import sys\nsys.path.insert(0, {str(sandbox.DECODER.parent)!r})\nimport decoder\n"
        "decoder.prepare = lambda *paths, limits: [None for _ in iter(int, 1)]\nmain = decoder.main\n"
    )
    monkeypatch.setattr(sandbox, "DECODER", busy)
    with pytest.raises(UnplayableVideo, match="more computing"):
        prepare(film(tmp_path / "clip.mp4", times=range(0, 80, 40)), cpu_seconds=1)


@pytest.mark.django_db
def test_a_restart_while_a_clip_is_checked_costs_no_second_run_of_the_gpu(
    user: Any, node: Any, start_job: Any, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WORK_DIR = tmp_path / "work"
    with FieldNode.start(fault="turned") as field:
        node.base_url, node.api_key, node.detected_protocol = field.url, field.key, "generate_video"
        node.save()
        job = submission.submit(user=user, prompt="a red ball", source="api")
        attempt = start_job(job)
        headers = {"x-api-key": field.key}
        made = httpx.post(
            f"{field.url}/generate_video", json={"prompt": "a red ball"}, headers=headers
        ).json()
        name = Path(made["video_path"]).name
        assert locks.take(attempt_id=attempt.pk, token=attempt.pk)
        assert lifecycle.begin_storing(attempt_id=attempt.pk, token=attempt.pk, file_name=name)
        locks.drop(attempt_id=attempt.pk, token=attempt.pk)
        with monkeypatch.context() as restart:
            restart.setattr(sandbox, "DECODER", ended_by(signal.SIGTERM, tmp_path))
            with pytest.raises(MediaFailure):
                tasks.store(str(attempt.pk))
        attempt.refresh_from_db()
        assert attempt.state == JobAttempt.State.OPEN
        JobAttempt.objects.update(lease_token=None)  # as when the lease has run out
        tasks.store(str(attempt.pk))
    job.refresh_from_db()
    assert (job.state, job.attempts.count()) == ("completed", 1)
    # What the web, the API and Telegram say of its shape is what a person sees.
    assert (job.width, job.height, job.stored_frames) == (64, 96, 16)
    assert shown(Path(job.poster.path))[0].shape[:2] == (96, 64)
