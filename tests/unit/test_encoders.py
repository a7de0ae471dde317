"""Encoders: what is chosen, what is refused, and that a chosen one has encoded a frame."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from openvis_rt.errors import InputError, UnavailableError
from openvis_rt.runtime.video import encoders
from openvis_rt.runtime.video.encoders import (
    ENCODERS,
    PRESETS,
    Encoder,
    EncoderOptions,
    choose_encoder,
)
from openvis_rt.runtime.video.overlay import Canvas, OverlayWriter
from openvis_rt.runtime.video.reading import open_video

RATE = Fraction(25)


X264 = {"x264-params": "force-cfr=1"}


def chosen(**options) -> Encoder:
    return choose_encoder(EncoderOptions(**options), 320, 240, RATE)


@pytest.fixture
def hardware(monkeypatch):
    """Encoders of hardware that work, as names: none of them but those that a test adds."""
    working: set[str] = set()
    tried = []

    def why_not(self, *size):
        tried.append(self.name)
        return None if self.name in working else "no device"

    monkeypatch.setattr(Encoder, "why_not", why_not)
    monkeypatch.setattr(av, "codecs_available", av.codecs_available | set(ENCODERS))
    return working, tried


def test_auto_is_x264_with_its_usual_options_where_no_hardware_works(hardware):
    found = chosen()
    assert (found.name, found.options) == ("libx264", {**X264, "preset": "veryfast", "crf": "20"})
    assert hardware[1] == [name for name in ENCODERS if name.startswith("h264_")]  # all tried


def test_auto_takes_the_first_hardware_that_encodes_a_frame(hardware):
    hardware[0].update({"h264_qsv", "h264_v4l2m2m"})
    assert chosen().name == "h264_qsv"


def test_auto_takes_no_hardware_that_lacks_what_is_asked_for(hardware):
    hardware[0].add("h264_v4l2m2m")
    assert chosen().name == "h264_v4l2m2m"
    assert chosen(preset="slow").options == {**X264, "preset": "slow", "crf": "20"}
    assert chosen(quality=30).options == {**X264, "preset": "veryfast", "crf": "30"}


def test_presets_and_quality_are_translated(hardware):
    hardware[0].update(ENCODERS)
    found = chosen(encoder="h264_nvenc", preset="veryslow", quality=24)
    assert found.options == {"preset": "p7", "rc": "vbr", "cq": "24", "b": "0"}
    for name in ENCODERS:
        kind = encoders._KINDS[name]
        assert len(kind.presets) in (0, len(PRESETS))


def test_hardware_that_does_not_work_is_refused_with_the_reason(hardware):
    with pytest.raises(UnavailableError, match=r"h264_nvenc .*no device.*libx264") as found:
        chosen(encoder="h264_nvenc")
    assert found.value.exit_code == 3


def test_an_encoder_that_pyav_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with pytest.raises(UnavailableError, match="built without it"):
        chosen(encoder="libx264")
    assert encoders.software_encoder().name == "mpeg4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "h265"}, "no encoder 'h265'.*libx264"),
        ({"preset": "quick"}, "no preset 'quick'.*veryfast"),
        ({"quality": 52}, "0 to 51.*52"),
        ({"encoder": "mpeg4", "preset": "fast"}, "mpeg4 takes no preset"),
        ({"encoder": "h264_v4l2m2m", "quality": 20}, "h264_v4l2m2m takes no quality"),
    ],
)
def test_what_no_machine_has_is_bad_input(options, message):
    with pytest.raises(InputError, match=message) as found:
        chosen(**options)
    assert found.value.exit_code == 2


@pytest.mark.parametrize("options", [{"encoder": "mpeg4"}, {"preset": "ultrafast"}])
def test_a_video_is_written_by_the_chosen_encoder(tmp_path, options):
    encoder = chosen(**{"encoder": "libx264", **options})
    with OverlayWriter(tmp_path / "a.mp4", 320, 240, RATE, encoder=encoder) as writer:
        for _ in range(5):
            writer.write(np.full((240, 320, 3), 90, np.uint8))
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context.name
        assert codec == {"libx264": "h264"}.get(encoder.name, encoder.name)
        assert sum(1 for _ in container.decode(video=0)) == 5


def test_a_higher_quality_makes_a_larger_file(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    sizes = []
    for quality in (10, 40):
        path = tmp_path / f"{quality}.mp4"
        encoder = chosen(encoder="libx264", quality=quality)
        with OverlayWriter(path, 320, 240, RATE, encoder=encoder) as writer:
            writer.write(image)
        sizes.append(path.stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def test_what_fails_while_it_is_tried_is_the_reason(monkeypatch):
    found = chosen(encoder="libx264")
    monkeypatch.setattr(encoders.av.VideoFrame, "reformat", refused)
    assert found.why_not(320, 240, RATE) == "no such pixels"


def refused(*_, **__):
    raise ValueError("no such pixels")


@pytest.mark.parametrize("shape", [(48, 64), (47, 63), (47, 64), (48, 63)])
def test_a_canvas_is_written_like_the_image_that_it_shows(tmp_path, shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    drawn = image.copy()
    drawn[10:20, -9:] = (200, 30, 90)
    for name in ("image", "canvas"):
        with OverlayWriter(tmp_path / f"{name}.mp4", shape[1], shape[0], RATE) as writer:
            if name == "image":
                writer.write(drawn)
                continue
            canvas = Canvas(image)
            for plane, value in zip(canvas.planes, (200, 30, 90), strict=True):
                plane[10:20, -9:] = value
            writer.write_canvas(canvas)
    one, other = (open_video(str(tmp_path / f"{n}.mp4")) for n in ("image", "canvas"))
    with one, other:
        np.testing.assert_array_equal(next(one).image, next(other).image)
