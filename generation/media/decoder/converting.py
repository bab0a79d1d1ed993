"""Bring a clip to the form that plays everywhere: MP4, H.264, yuv420p, index in front."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol, cast

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from .limits import Limits, decoding_errors
from .looking import Survey, opened, sounds, survey, video_stream


def bring_to_form(source: Path, destination: Path, found: Survey, limits: Limits) -> dict[str, Any]:
    """Write a clip that plays everywhere; what does already is taken over byte by byte."""
    if found.playable:
        shutil.copyfile(source, destination)
        return found.facts
    convert(source, destination, found, limits)
    return survey(destination, limits).facts


def convert(source: Path, destination: Path, found: Survey, limits: Limits) -> None:
    """Into MP4 with its index in front; frames that fit are copied, others become H.264 High yuv420p."""
    options = {"movflags": "+faststart"}
    with (
        opened(source) as container,
        decoding_errors(),
        av.open(str(destination), "w", format="mp4", options=options) as out,
    ):
        video = video_stream(container)
        video.codec_context.thread_count = limits.threads
        tracks: dict[int, _Track] = {video.index: _video_track(out, video, found, limits)}
        for sound in sounds(container)[:1]:
            tracks[sound.index] = _sound_track(out, sound)
        for packet in container.demux([container.streams[index] for index in tracks]):
            tracks[packet.stream_index].take(packet)
        for track in tracks.values():
            track.close()


class _Track(Protocol):
    """One stream of the new file."""

    def take(self, packet: Packet[Any]) -> None:
        """Work on one packet of the source."""

    def close(self) -> None:
        """Write what was held back."""


class _Copied(_Track):
    """As it is."""

    def __init__(self, out: OutputContainer, stream: VideoStream | AudioStream) -> None:
        self.out = out
        self.stream = out.add_stream_from_template(stream)

    def take(self, packet: Packet[Any]) -> None:
        if packet.dts is not None:
            packet.stream = self.stream
            self.out.mux(packet)

    def close(self) -> None:
        """A copy holds nothing back."""


class _EncodedVideo(_Track):
    """Frames as H.264, at their own times."""

    def __init__(self, out: OutputContainer, source: VideoStream, found: Survey, limits: Limits) -> None:
        self.out = out
        options = {"preset": "medium", "crf": "18", "profile": "high", "threads": str(limits.threads)}
        self.video = out.add_stream("libx264", rate=found.rate, options=options)
        self.video.width, self.video.height = found.facts["width"] & ~1, found.facts["height"] & ~1
        self.video.pix_fmt = "yuv420p"
        self.video.codec_context.time_base = source.time_base or 1 / found.rate
        _tag_colours(self.video, found.still)

    def take(self, packet: Packet[Any]) -> None:
        for frame in packet.decode():
            fitted = frame.reformat(
                width=self.video.width,
                height=self.video.height,
                format="yuv420p",
                dst_colorspace="ITU709" if frame.format.is_rgb else None,
                dst_color_range="MPEG",
            )
            fitted.pict_type = PictureType.NONE
            self.out.mux(self.video.encode(fitted))

    def close(self) -> None:
        self.out.mux(self.video.encode(None))


class _EncodedSound(_Track):
    """Sound as AAC."""

    def __init__(self, out: OutputContainer, source: AudioStream) -> None:
        self.out = out
        rate = min(source.rate or 48_000, 48_000)
        self.sound = out.add_stream("aac", rate=rate)
        self.resampler = AudioResampler(format="fltp", layout="stereo", rate=rate, frame_size=1024)

    def take(self, packet: Packet[Any]) -> None:
        for frame in cast(list[AudioFrame], packet.decode()):
            for piece in self.resampler.resample(frame):
                self.out.mux(self.sound.encode(piece))

    def close(self) -> None:
        for piece in self.resampler.resample(None):
            self.out.mux(self.sound.encode(piece))
        self.out.mux(self.sound.encode(None))


def _video_track(out: OutputContainer, video: VideoStream, found: Survey, limits: Limits) -> _Track:
    return _Copied(out, video) if found.codec_fits else _EncodedVideo(out, video, found, limits)


def _sound_track(out: OutputContainer, sound: AudioStream) -> _Track:
    return (
        _Copied(out, sound)
        if sound.codec_context.codec.canonical_name == "aac"
        else _EncodedSound(out, sound)
    )


def _tag_colours(video: VideoStream, frame: VideoFrame) -> None:
    """Say which matrix the numbers are in, or players guess by the size of the picture."""
    bt709 = 1
    context = video.codec_context
    if frame.format.is_rgb:
        context.colorspace = context.color_primaries = context.color_trc = bt709
    else:
        context.colorspace, context.color_primaries = frame.colorspace, frame.color_primaries
        context.color_trc = frame.color_trc
