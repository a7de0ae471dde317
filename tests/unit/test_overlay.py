"""Writing of overlays: frames, colours, sound, and what is left after an error."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from openvis_rt.errors import OutputError
from openvis_rt.runtime.video.generated import write_sample_video
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.reading import open_video

if TYPE_CHECKING:
    from pathlib import Path


def write_video(path: Path, shape: tuple[int, int], count: int = 10, **options: str) -> list[str]:
    height, width = shape
    with OverlayWriter(path, width, height, 25, **options) as writer:
        for value in range(count):
            writer.write(np.full((height, width, 3), 60 + 10 * (value % 10), np.uint8))
    return writer.warnings


def tracks(path: Path) -> dict[str, int]:
    """Packets of each kind of track."""
    counts: dict[str, int] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.dts is not None:
                kind = packet.stream.type
                counts[kind] = counts.get(kind, 0) + 1
    return counts


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".MP4"])
def test_written_video(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    assert write_video(path, (48, 64)) == []
    with open_video(str(path)) as video:
        frames = list(video)
    assert [round(float(frame.image.mean()) - 60, -1) for frame in frames] == [
        10 * i for i in range(10)
    ]
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(10)], abs=2e-3)
    assert list(tmp_path.iterdir()) == [path]


def test_colors_survive_encoding(tmp_path):
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :32], image[:, 32:64], image[:, 64:] = (220, 40, 40), (40, 200, 60), (50, 60, 210)
    with OverlayWriter(tmp_path / "a.mp4", 96, 64, 25) as writer:
        writer.write(image)
    with open_video(str(tmp_path / "a.mp4")) as video:
        read = next(video).image
    for column in (16, 48, 80):
        np.testing.assert_allclose(read[32, column].astype(int), image[32, column], atol=8)


def test_odd_sizes_are_padded_by_the_last_row_and_column(tmp_path):
    write_video(tmp_path / "a.mp4", (47, 63))
    with open_video(str(tmp_path / "a.mp4")) as video:
        assert (video.width, video.height) == (64, 48)
        image = next(video).image
    np.testing.assert_allclose(image[47, 63].astype(int), image[40, 40], atol=3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_sound_is_copied(tmp_path, suffix):
    source, target = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    write_sample_video(source, width=64, height=48, seconds=2, objects=1)
    assert write_video(target, (48, 64), 50, audio_from=str(source)) == []
    expected = tracks(source)["audio"]
    assert expected > 80
    # the packet that begins with the last frame's end is left out
    assert expected - 1 <= tracks(target)["audio"] <= expected
    with av.open(str(target)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples / 44100 == pytest.approx(2, abs=0.06)


def test_sound_ends_with_the_pictures(tmp_path):
    source = tmp_path / "in.mp4"
    write_sample_video(source, width=64, height=48, seconds=2, objects=1)
    write_video(tmp_path / "out.mp4", (48, 64), 25, audio_from=str(source))
    assert tracks(tmp_path / "out.mp4")["audio"] == pytest.approx(
        tracks(source)["audio"] / 2, abs=2
    )


def test_source_without_sound(tmp_path):
    source = tmp_path / "in.mp4"
    write_sample_video(source, width=64, height=48, seconds=0.4, audio=False, objects=1)
    assert write_video(tmp_path / "a.mp4", (48, 64), audio_from=str(source)) == []
    assert write_video(tmp_path / "b.mp4", (48, 64), audio_from=str(tmp_path)) == []
    assert list(tracks(tmp_path / "a.mp4")) == ["video"]
    assert write_video(tmp_path / "c.mp4", (48, 64), audio_from="rtsp://host/x") == [
        "the sound of a stream is not copied"
    ]


def test_sound_that_the_container_cannot_hold(tmp_path):
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as writer:
        stream = writer.add_stream("pcm_u8", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.uint8), "u8", "mono")
        frame.sample_rate = 44100
        writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    [warning] = write_video(tmp_path / "out.mp4", (48, 64), audio_from=str(source))
    assert "pcm_u8" in warning
    assert list(tracks(tmp_path / "out.mp4")) == ["video"]


def test_sound_that_breaks_ends_there_and_the_video_is_kept(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_sample_video(source, width=64, height=48, seconds=2, objects=1)

    def broken(packets):
        yield from itertools.islice(packets, 20)
        raise av.InvalidDataError(1, "Invalid data found", str(source))

    with OverlayWriter(target, 64, 48, 25, str(source)) as writer:
        writer._audio._packets = broken(writer._audio._packets)
        for _ in range(50):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    [warning] = writer.warnings
    assert "the sound ends at 0.4 s" in warning  # 20 packets of 1024 samples at 44.1 kHz: 0.46 s
    assert "Invalid data found" in warning
    assert tracks(target) == {"video": 50, "audio": 20}


def test_a_damaged_packet_ends_the_sound_and_the_video_is_kept(tmp_path):
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    write_sample_video(source, width=64, height=48, seconds=2, objects=1)
    with av.open(str(source)) as reader, av.open(str(tmp_path / "in.ts"), "w") as writer:
        copies = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for packet in reader.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                writer.mux(packet)

    def damaged(packets):
        for index, packet in enumerate(packets):
            if index == 20:
                noise = av.Packet(bytes(64))  # no header of ADTS
                noise.pts, noise.dts, noise.time_base = packet.pts, packet.dts, packet.time_base
                yield noise
            else:
                yield packet

    with OverlayWriter(target, 64, 48, 25, str(tmp_path / "in.ts")) as writer:
        writer._audio._packets = damaged(writer._audio._packets)
        for _ in range(50):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    [warning] = writer.warnings
    assert "the sound ends at 0." in warning
    found = tracks(target)
    assert found["video"] == 50
    assert 15 <= found["audio"] <= 20  # of sound before the first picture nothing is kept


def test_unknown_suffix(tmp_path):
    with pytest.raises(OutputError, match=r"\.gif.*\.mp4, \.mkv, \.mov"):
        OverlayWriter(tmp_path / "out.gif", 64, 48, 25)


def test_video_without_frames(tmp_path):
    with pytest.raises(OutputError, match="no frame"):
        write_video(tmp_path / "a.mp4", (48, 64), 0)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_an_error(tmp_path):
    path = tmp_path / "out.mp4"

    def fail():
        with OverlayWriter(path, 64, 48, 25) as writer:
            writer.write(np.zeros((48, 64, 3), np.uint8))
            raise FileNotFoundError("of the caller")

    with pytest.raises(FileNotFoundError, match="of the caller"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size(tmp_path):
    with (
        pytest.raises(ValueError, match="got an image"),
        OverlayWriter(tmp_path / "a.mp4", 64, 48, 25) as writer,
    ):
        writer.write(np.zeros((40, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_killed_process(tmp_path, number):
    code = """
import sys
from pathlib import Path
import numpy as np
from openvis_rt.runtime.video.overlay import OverlayWriter
with OverlayWriter(Path(sys.argv[1]), 64, 48, 25) as writer:
    for index in range(10**9):
        writer.write(np.full((48, 64, 3), index % 255, np.uint8))
        if index == 100:
            print("writing", flush=True)
"""
    path = tmp_path / "out.mp4"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(20) != 0
    assert not path.exists()
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []
