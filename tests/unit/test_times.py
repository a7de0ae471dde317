"""Each frame's own time, from the source to the overlay, and the sound beside it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from openvis_rt.runtime.options import Selection
from openvis_rt.runtime.pipeline import Pipeline
from openvis_rt.runtime.run import run_video
from openvis_rt.runtime.video.encoders import EncoderOptions, choose_encoder
from openvis_rt.runtime.video.overlay import OverlayWriter
from openvis_rt.runtime.video.reading import open_video
from openvis_rt.runtime.video.timeline import Timeline

WIDTH, HEIGHT, RATE, SAMPLES = 96, 64, 44_100, 1_024
UNIT = Fraction(1, 12_800)
VARIABLE = np.cumsum([0, 0.3, 0.02, 0.04, 0.55, 0.1, 0.02, 0.02, 0.25, 0.04, 0.3]).tolist()
SECOND = [index / 25 for index in range(25)]


def image_of(index: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 20 + 15 * (index % 15), np.uint8)


def write_source(path: Path, times: Sequence[float]) -> Path:
    """A video whose frames stand at some times, with sound as long as these."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.time_base = UNIT
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(image_of(index), "rgb24")
            frame.pts, frame.time_base = round(time / UNIT), UNIT
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, round(times[-1] * RATE), SAMPLES):
            wave = np.sin(np.arange(start, start + SAMPLES) / 20) * 8_000
            sound = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
            sound.sample_rate, sound.pts = RATE, start
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    return path


def times_of(path: Path, kind: str) -> list[float]:
    """When the frames or the packets of sound in a file begin, in seconds."""
    with av.open(str(path)) as container:
        if kind == "video":
            return [float(frame.time) for frame in container.decode(video=0)]
        packets = container.demux(audio=0)
        return [float(p.pts * p.time_base) for p in packets if p.pts is not None]


@pytest.mark.parametrize("mode", ["video", "stream"])
def test_the_overlay_of_a_variable_rate_keeps_times_and_sound(cached_bundle, tmp_path, mode):
    source = write_source(tmp_path / "in.mp4", VARIABLE)
    selection = Selection(threshold=0.0)
    with Pipeline.open(
        cached_bundle, vocabulary=["cat"], backend="onnxruntime", mode=mode, selection=selection
    ) as pipeline:
        run_video(pipeline, str(source), tmp_path / "out")
    overlay = tmp_path / "out/overlay.mp4"
    # a unit of the overlay's clock is 17 to 33 microseconds
    assert times_of(overlay, "video") == pytest.approx(VARIABLE, abs=5e-5)
    assert times_of(overlay, "audio") == pytest.approx(times_of(source, "audio"), abs=5e-5)


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(120_000, 1001), Fraction(1, 2)])
def test_frames_without_times_have_the_rate(tmp_path, encoder, rate):
    chosen = choose_encoder(EncoderOptions(encoder), WIDTH, HEIGHT, rate)
    with OverlayWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, rate, encoder=chosen) as writer:
        for index in range(5):
            writer.write(image_of(index))
    found = times_of(tmp_path / "a.mp4", "video")
    assert found == pytest.approx([index / rate for index in range(5)], abs=5e-5)
    if encoder == "libx264":  # whose pictures say it too
        with av.open(str(tmp_path / "a.mp4")) as container:
            guessed = container.streams.video[0].guessed_rate
        assert float(guessed) == pytest.approx(float(rate), rel=2e-3)  # FFmpeg's is rounded


def test_times_that_repeat_go_back_or_pause_for_hours_still_come_in_order(tmp_path):
    given = [0.0, 0.04, 0.04, 0.03, 0.16, 90_000.0, 90_000.5]
    with OverlayWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, 25) as writer:
        for index, time in enumerate(given):
            writer.write(image_of(index), time)
    found = times_of(tmp_path / "a.mp4", "video")
    assert found == pytest.approx([0, 0.04, 0.04, 0.04, 0.16, 0.20, 0.70], abs=1e-3)
    assert np.all(np.diff(found) > 0)


def test_a_source_whose_clocks_begin_anew_goes_on_with_its_sound(tmp_path):
    piece = write_source(tmp_path / "piece.ts", SECOND).read_bytes()
    source = tmp_path / "in.ts"
    source.write_bytes(piece + piece)
    with open_video(str(source)) as video:
        frames = list(video)
        warnings = list(video.warnings)
    assert [f.time for f in frames] == pytest.approx([i / 25 for i in range(50)], abs=1e-4)
    assert any("goes back, or far ahead, first at 1.00 s" in warning for warning in warnings)
    with OverlayWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, 25, str(source)) as writer:
        for frame in frames:
            writer.write(frame.image, frame.time)
    [warning] = writer.warnings
    assert "the clock of the sound jumps, first at 1.0" in warning
    steps = np.diff(times_of(tmp_path / "a.mp4", "audio"))
    assert len(steps) > 75  # of two seconds
    np.testing.assert_allclose(steps, SAMPLES / RATE, atol=2e-3)


def test_sound_begins_with_the_first_frame_that_could_be_decoded(tmp_path):
    source = write_source(tmp_path / "in.mp4", SECOND)
    with OverlayWriter(
        tmp_path / "a.mp4", WIDTH, HEIGHT, 25, str(source), audio_begin=0.4
    ) as writer:
        for index in range(10):
            writer.write(image_of(index))
    first = times_of(tmp_path / "a.mp4", "audio")[0]
    wanted = next(t for t in times_of(source, "audio") if t + SAMPLES / RATE >= 0.4) - 0.4
    assert first == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("rate", ["0:1", "0:0", "-25:1", "1:100000", "2000000000:1"])
def test_a_rate_that_cannot_be_is_not_believed(tmp_path, rate):
    path = tmp_path / "in.y4m"
    picture = b"FRAME\n" + bytes(WIDTH * HEIGHT * 3 // 2)
    head = f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{rate} Ip A1:1 C420jpeg\n"
    path.write_bytes(head.encode() + 3 * picture)
    with open_video(str(path)) as video:
        times = [frame.time for frame in video]
    assert video.fps == 25
    if video.warnings:
        assert "frames a second, which is taken for an error: 25 are assumed" in video.warnings[0]
        assert times == [None] * 3
    else:  # FFmpeg does not believe it either
        assert times == pytest.approx([0, 0.04, 0.08])


def test_a_clock_that_jitters_is_not_taken_for_one_that_begins_anew():
    timeline = Timeline()
    places = [timeline.place(time, 0.04) for time in (0, 0.04, 0.03, 0.12, 5.0, 1.0, 1.04)]
    assert places == pytest.approx([0, 0.04, 0.04, 0.12, 5.0, 5.04, 5.08])
    assert timeline.restarts == 1


def test_a_clock_that_jumps_beyond_a_lifetime_is_taken_for_one_that_begins_anew():
    timeline = Timeline()
    places = [timeline.place(time, 0.04) for time in (0.0, 0.04, 2e9, 2e9 + 0.04)]
    assert places == pytest.approx([0, 0.04, 0.08, 0.12])
