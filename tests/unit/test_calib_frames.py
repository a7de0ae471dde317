"""Which frames are calibrated on: their sources, their choice, and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from int8_bundle import noise_frames
from PIL import Image

from openvis_rt.calib import frames as frames_module
from openvis_rt.calib.frames import choose_frames, colours_of, farthest_points
from openvis_rt.calib.sources import FrameSource, sources_from
from openvis_rt.errors import InputError, VideoError
from openvis_rt.runtime.video.reading import Frame


def write_images(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:05}.png")
    return folder


@pytest.fixture
def noise(tmp_path):
    return write_images(tmp_path / "noise", noise_frames(60))


def few(sources, count=6, **options):
    options = {"stride": 1, "allow_few": True, **options}
    return choose_frames([str(source) for source in sources], count, **options)


def test_points_are_as_far_as_can_be_from_those_before():
    points = np.array([[0.0], [1.5], [100.0], [50.0], [49.9]], np.float32)
    taken = farthest_points(points, 3, seed=0)
    first = taken[0]
    assert taken[1] == int(np.abs(points - points[first]).argmax())
    nearest = np.minimum(np.abs(points - points[first]), np.abs(points - points[taken[1]]))
    assert taken[2] == int(nearest.argmax())
    assert len(farthest_points(points, 5, seed=0)) == 4  # 50 and 49.9 are one


def test_colours_are_means_of_cells():
    image = np.zeros((16, 24, 3), np.uint8)
    image[:2, :3] = (10, 20, 30)
    image[2:4, 3:6, 0] = 200
    colours = colours_of(image).reshape(8, 8, 3)
    assert colours[0, 0].tolist() == [10, 20, 30]
    assert colours[1, 1].tolist() == [200, 0, 0]
    assert colours.sum() == 260
    assert colours_of(np.full((3, 5, 3), 7, np.uint8)).tolist() == [7.0] * 192


def test_the_choice_is_seeded_and_holds_others_out(noise):
    first, again, other = (few([noise], held_out=4, seed=seed) for seed in (0, 0, 1))
    assert (len(first.windows), len(first.held_out)) == (6, 4)
    every = [image.tobytes() for [image] in first.windows + first.held_out]
    assert len(set(every)) == 10
    assert every == [image.tobytes() for [image] in again.windows + again.held_out]
    assert every != [image.tobytes() for [image] in other.windows + other.held_out]


def test_every_kind_of_source_gives_the_same_frames(tmp_path, noise):
    shutil.copytree(noise, tmp_path / "data" / "JPEGImages" / "a")
    names = [f"a/{number:05}.png" for number in range(60)]
    video = {"id": 1, "file_names": names, "height": 24, "width": 32}
    annotations = tmp_path / "data" / "instances.json"
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    annotations.write_text(json.dumps({"videos": [video], "categories": categories}))
    chosen = [
        few([s]) for s in (noise, tmp_path / "data", annotations, tmp_path / "data" / "JPEGImages")
    ]
    [hashes] = {tuple(source.sha256 for source in c.sources) for c in chosen}
    assert len(hashes) == 1
    pixels = {tuple(image.tobytes() for [image] in c.windows) for c in chosen}
    assert len(pixels) == 1
    assert chosen[2].sources[0].name == f"{annotations}: a"
    assert chosen[0].sources[0].frames == 60


def test_a_folder_of_videos_is_a_source_for_each(tmp_path, small_video):
    for name in ("b.mp4", "a.mp4"):
        shutil.copy(small_video, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no video")
    assert [s.name for s in sources_from(str(tmp_path))] == [
        str(tmp_path / "a.mp4"),
        str(tmp_path / "b.mp4"),
    ]
    two = [str(small_video), str(small_video)]
    chosen = choose_frames(two, 4, stride=2, allow_few=True)
    assert [source.candidates for source in chosen.sources] == [6, 6]
    assert sum(source.chosen for source in chosen.sources) == 4
    assert all(image.shape == (120, 180, 3) for [image] in chosen.windows)


def test_only_one_frame_in_a_stride_is_a_candidate(noise):
    every = {frame.tobytes() for frame in noise_frames(60)[::7]}
    chosen = few([noise], 9, stride=7)
    assert {image.tobytes() for [image] in chosen.windows} == every
    assert chosen.places == [f"frame {7 * n} of {noise}" for n in order_of(chosen)]


def order_of(chosen):
    candidates = [frame.tobytes() for frame in noise_frames(60)[::7]]
    return [candidates.index(image.tobytes()) for [image] in chosen.windows]


def test_windows_are_consecutive_frames(noise):
    images = [frame.tobytes() for frame in noise_frames(60)]
    chosen = few([noise], 8, stride=5, window_length=3)
    assert len(chosen.windows) == 3  # 8 frames need three of them
    starts = [images.index(window[0].tobytes()) for window in chosen.windows]
    assert all(start % 5 == 0 for start in starts)
    for start, window in zip(starts, chosen.windows, strict=True):
        assert [image.tobytes() for image in window] == images[start : start + 3]


def test_chosen_frames_are_kept_as_they_are_wanted(noise):
    chosen = few([noise], held_out=2, keep=lambda image: image[::4, ::4])
    assert {image.shape for [image] in chosen.windows + chosen.held_out} == {(6, 8, 3)}


def test_black_frames_are_left_out_with_a_warning(tmp_path):
    black = np.zeros((24, 32, 3), np.uint8)
    images = [black, *noise_frames(8), black, black]
    folder = write_images(tmp_path / "a", images)
    chosen = few([folder], 8)
    assert chosen.warnings == (f"{folder}: 3 of 11 candidates are black; left out",)
    assert all(image.any() for [image] in chosen.windows)


def test_one_frame_again_and_again_is_refused(tmp_path):
    folder = write_images(tmp_path / "still", noise_frames(1) * 40)
    with pytest.raises(
        InputError, match=r"have 1 frames that differ.*40 are wanted.*smaller --stride"
    ):
        few([folder], 40)


def test_black_videos_are_refused_and_said(tmp_path):
    folder = write_images(tmp_path / "night", [np.zeros((32, 32, 3), np.uint8)] * 5)
    with pytest.raises(InputError, match=r"have 0 frames.*5 of 5 candidates are black"):
        few([folder], 2)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (31, {}, r"31 frames are too few.*fewer than 32.*--allow-few"),
        (0, {"allow_few": True}, "frames and stride are 1 or more"),
        (40, {"stride": 0}, "frames and stride are 1 or more"),
    ],
)
def test_wrong_numbers_are_refused(noise, count, options, message):
    with pytest.raises(InputError, match=message):
        choose_frames([str(noise)], count, **options)
    with pytest.raises(InputError, match="at least one video"):
        choose_frames([], 40)


def test_a_damaged_frame_stops_the_run_with_its_name(noise):
    (noise / "00040.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"noise is damaged or cut off.*00040\.png"):
        few([noise])


def test_a_video_that_ends_early_stops_the_run_with_its_name(tmp_path, small_video):
    cut = tmp_path / "cut.mp4"
    whole = small_video.read_bytes()
    cut.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        few([noise_folder(tmp_path), cut])


def noise_folder(tmp_path):
    return write_images(tmp_path / "more", noise_frames(20))


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4 does not exist"):
        few([tmp_path / "none.mp4"])
    with pytest.raises(VideoError, match="holds neither images nor videos"):
        few([tmp_path])
    annotations = tmp_path / "instances.json"
    video = {"id": 1, "file_names": ["a/0.jpg"], "height": 32, "width": 32}
    data = {"videos": [video], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    annotations.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"no a/0\.jpg in .*JPEGImages"):
        few([annotations])


def test_a_source_that_changes_between_the_two_readings_is_noticed(noise):
    taken = []

    def progress(what, done, total):
        if what.startswith("reading") and not taken:
            taken.append(what)
            for path in noise.iterdir():
                Image.fromarray(255 - np.array(Image.open(path))).save(path)

    with pytest.raises(VideoError, match=r"noise changed while it was read"):
        few([noise], progress=progress)


def test_a_stream_is_read_once_and_not_to_its_end(monkeypatch):
    opened = []

    @contextmanager
    def endless():
        opened.append(0)

        def frames():
            rng = np.random.default_rng(0)
            while True:
                opened[-1] += 1
                yield Frame(0, None, rng.integers(0, 256, (32, 32, 3), np.uint8))

        yield frames()

    source = FrameSource("rtsp://camera", True, endless)
    monkeypatch.setattr(frames_module, "sources_from", lambda _: [source])
    monkeypatch.setattr(frames_module, "_SAME", 0.0)
    chosen = few(["rtsp://camera"], 5, stride=2, keep=lambda image: image[:8, :8])
    assert opened == [39]  # 20 candidates for 5 frames, two frames from each to the next
    assert [image.shape for [image] in chosen.windows] == [(8, 8, 3)] * 5
