"""Clips and records on disk."""

import logging
import os
import time
from pathlib import Path

import numpy
import pytest

from gpu_node.queue import PART_SECONDS, Job, RecordStore, round_up_frames
from gpu_node.video import write_mp4
from tests.gpu_node.client import frames_of

HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("asked", "made"), [(1, 1), (2, 9), (8, 9), (9, 9), (10, 17), (16, 17), (17, 17), (49, 49)]
)
def test_frames_are_rounded_up_to_what_the_model_makes(asked: int, made: int) -> None:
    assert round_up_frames(asked) == made


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (16, 17), (17, 17), (18, 33), (81, 81)])
def test_the_newer_models_make_sixteen_frames_and_one(asked: int, made: int) -> None:
    assert round_up_frames(asked, unit=16) == made


class TestWriting:
    def test_colours_survive(self, tmp_path: Path) -> None:
        frames = numpy.zeros((8, 64, 96, 3), dtype=numpy.uint8)
        frames[:, :, :48], frames[:, :, 48:] = (220, 40, 30), (20, 60, 200)

        write_mp4(frames=[frames], fps=8, path=tmp_path / "a.mp4")

        seen = frames_of((tmp_path / "a.mp4").read_bytes()).astype(int)
        assert abs(seen[:, 8:56, 8:40] - (220, 40, 30)).max() < 12
        assert abs(seen[:, 8:56, 56:88] - (20, 60, 200)).max() < 12

    def test_the_same_pictures_are_the_same_file(self, tmp_path: Path) -> None:
        frames = numpy.random.default_rng(1).integers(0, 255, (16, 64, 96, 3), dtype=numpy.uint8)
        files = set()
        for number in range(8):
            write_mp4(frames=[frames], fps=8, path=tmp_path / f"{number}.mp4")
            files.add((tmp_path / f"{number}.mp4").read_bytes())

        assert len(files) == 1

    @pytest.mark.parametrize("shape", [(0, 64, 96, 3), (4, 63, 96, 3), (4, 64, 96), (4, 64, 96, 4)])
    def test_what_is_no_video_is_refused_and_leaves_no_file(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match=r"even|expected"):
            write_mp4(frames=[numpy.zeros(shape, dtype=numpy.uint8)], fps=8, path=tmp_path / "a.mp4")

        assert not list(tmp_path.iterdir())

    def test_pieces_make_the_same_file_as_the_whole(self, tmp_path: Path) -> None:
        frames = numpy.random.default_rng(1).integers(0, 255, (17, 64, 96, 3), dtype=numpy.uint8)

        write_mp4(frames=[frames], fps=8, path=tmp_path / "whole.mp4")
        write_mp4(frames=iter([frames[:9], frames[9:]]), fps=8, path=tmp_path / "pieces.mp4")

        assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "pieces.mp4").read_bytes()

    def test_no_frames_are_no_video(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="got none"):
            write_mp4(frames=[], fps=8, path=tmp_path / "a.mp4")

        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    def test_a_full_disk_leaves_no_broken_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4.part").symlink_to("/dev/full")

        with pytest.raises(OSError, match="No space left"):
            write_mp4(frames=[numpy.zeros((4, 64, 96, 3), dtype=numpy.uint8)], fps=8, path=tmp_path / "a.mp4")

        assert not list(tmp_path.iterdir())


def a_job(**fields: object) -> Job:
    values = {
        "id": f"video_{HEX}",
        "created_at": 1.0,
        "prompt": "x",
        "negative_prompt": "",
        "fingerprint": "f",
    }
    sizes = {
        "width": 96,
        "height": 64,
        "num_frames": 16,
        "fps": 8,
        "steps": 20,
        "guidance_scale": 6.0,
        "seed": 1,
    }
    return Job.model_validate(values | sizes | fields)


class TestRecords:
    def test_a_record_comes_back_as_it_was(self, tmp_path: Path) -> None:
        job = a_job(status="completed", step=20, completed_at=9.5, idempotency_key="k", prompt="schön 🎬")

        RecordStore(tmp_path).save(job)

        assert [loaded.model_dump() for loaded in RecordStore(tmp_path).load()] == [job.model_dump()]

    def test_a_broken_record_is_named_and_harms_no_other(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        RecordStore(tmp_path).save(a_job())
        broken = tmp_path / ("f" * 32 + ".json")
        broken.write_text('{"id": "video_')

        with caplog.at_level(logging.ERROR):
            jobs = RecordStore(tmp_path).load()

        assert [job.id for job in jobs] == [f"video_{HEX}"]
        assert str(broken) in caplog.text

    def test_files_that_are_not_ours_are_left_alone(self, tmp_path: Path) -> None:
        stranger, ours, part = tmp_path / "holiday.mp4", tmp_path / f"{HEX}.mp4", tmp_path / f"{HEX}.mp4.part"
        for path in (stranger, ours, part):
            path.write_bytes(b"x")
            os.utime(path, (1, 1))

        RecordStore(tmp_path).sweep(older_than=time.time())

        assert list(tmp_path.iterdir()) == [stranger]

    def test_an_unfinished_file_is_left_to_the_one_who_writes_it(self, tmp_path: Path) -> None:
        young, old = tmp_path / f"{HEX}.mp4.part", tmp_path / f"{HEX}.json.part"
        for path in (young, old):
            path.write_bytes(b"x")
        an_hour_ago = time.time() - PART_SECONDS - 60
        os.utime(old, (an_hour_ago, an_hour_ago))

        RecordStore(tmp_path).sweep(older_than=time.time() + 60)

        assert list(tmp_path.iterdir()) == [young]
