"""The page of a run: its bytes, and what a browser shows of it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from chromium import Chromium
from PIL import Image

from openvis_rt.convert.convert import ConvertOptions, convert_results
from openvis_rt.errors import InputError, VideoError
from openvis_rt.runtime.video.results import (
    FrameLog,
    FrameResult,
    Instance,
    write_categories,
)
from openvis_rt.runtime.video.run_lengths import box_of, decode_mask, encode_masks

HEIGHT, WIDTH, FRAMES, STRIPES = 90, 160, 48, 8
EVIL = '</script><img src=x onerror="document.title=1">&amp;<!--\u2028'
NAMES = ("cat", EVIL, "\u05d7\u05ea\u05d5\u05dc")
READY = "document.body?.dataset.ready === 'true'"
SHOWN = "Number(document.body.dataset.frame)"


def frame_times() -> list[float]:
    """Of a variable rate: 10, 25 and 60 frames a second in turn."""
    steps = np.resize([0.1, 0.04, 1 / 60], FRAMES - 1)
    return [0.0, *(float(time) for time in np.cumsum(steps))]


def striped(index: int) -> np.ndarray:
    """A frame that holds its number: eight stripes, black or white, the lowest bit left."""
    bits = [255 * (index >> bit & 1) for bit in range(STRIPES)]
    row = np.repeat(np.array(bits, np.uint8), WIDTH // STRIPES)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)))


def masks_of(index: int) -> np.ndarray:
    """Uint8 [3, H, W]: one moves, one is seen in the first half only, one lies below the first."""
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[0, 20:60, 2 * index : 2 * index + 40] = 1
    masks[1, 70:85, 100:150] = index < FRAMES // 2
    masks[2, 30:80, 2 * index + 20 : 2 * index + 50] = 1
    return masks


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Results of a video with a variable rate, and the video beside them."""
    folder = tmp_path_factory.mktemp("page") / "run"
    folder.mkdir()
    write_categories(folder / "categories.json", NAMES)
    with FrameLog(folder / "frames.jsonl") as log:
        for index, time in enumerate(frame_times()):
            found = []
            for place, rle in enumerate(encode_masks(masks_of(index))):
                if (box := box_of(rle))[2]:
                    score = (0.9, 0.3, 0.6 - index / 100)[place]
                    found.append(Instance(place + 5, place + 1, NAMES[place], score, box, rle))
            found.sort(key=lambda instance: -instance.score)
            log.write(FrameResult(index, time, HEIGHT, WIDTH, tuple(found)))
    with av.open(str(folder.parent / "video.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(frame_times()):
            frame = av.VideoFrame.from_ndarray(striped(index))
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


@pytest.fixture(scope="module")
def page(run_folder):
    path = run_folder.parent / "page.html"
    video = str(run_folder.parent / "video.mkv")
    assert convert_results(run_folder, "html", path, ConvertOptions(video)) == {}
    return path


def held(page, kind: str) -> list[str]:
    """The texts of the page's data of a kind."""
    return re.findall(rf"<script [^>]*{kind}[^>]*>(.*?)</script>", page.read_text("utf-8"))


def test_names_are_data_and_nothing_is_loaded(page):
    text = page.read_text("utf-8")
    assert "<img" not in text
    assert "<!--" not in text
    [facts] = held(page, 'id="facts"')
    assert json.loads(facts)["names"] == [NAMES[0], NAMES[2], NAMES[1]]
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_the_masks_of_a_page_are_the_results(page):
    frames = [
        frame
        for part in held(page, 'id="masks-')
        for frame in json.loads(gzip.decompress(base64.b64decode(part)))
    ]
    assert len(frames) == FRAMES
    for index, frame in enumerate(frames):
        expected = masks_of(index)
        assert len(frame) == int(expected.any((1, 2)).sum())
        for track, _, _, counts in frame:
            rle = {"size": [HEIGHT, WIDTH], "counts": counts}
            place = (0, 2, 1)[track]
            np.testing.assert_array_equal(decode_mask(rle), expected[place])


def test_the_video_of_a_page_has_every_frame_at_its_time(page):
    film = b"".join(base64.b64decode(piece) for piece in held(page, 'class="film"'))
    with av.open(io.BytesIO(film)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        times = [float(frame.time) for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, frame_times(), atol=1e-3)  # the source counts milliseconds


@pytest.mark.parametrize("cut", [False, True], ids=["source", "overlay"])
def test_results_with_gaps_show_the_frames_that_they_are_of(run_folder, tmp_path, cut):
    """As of a stride or a live source; an overlay has the frames of the results alone."""
    folder, numbers = tmp_path / "run", [0, 5, 6, 40]
    folder.mkdir()
    shutil.copy(run_folder / "categories.json", folder)
    lines = (run_folder / "frames.jsonl").read_text("utf-8").split("\n")
    (folder / "frames.jsonl").write_text("\n".join(lines[n] for n in numbers) + "\n", "utf-8")
    images = tmp_path / "images"
    images.mkdir()
    for place, number in enumerate(numbers if cut else range(FRAMES)):
        Image.fromarray(striped(number)).save(images / f"{place}.png")
    convert_results(folder, "html", tmp_path / "a.html", ConvertOptions(str(images)))
    film = b"".join(base64.b64decode(p) for p in held(tmp_path / "a.html", 'class="film"'))
    with av.open(io.BytesIO(film)) as container:
        rows = [f.to_ndarray(format="gray")[HEIGHT // 2] for f in container.decode(video=0)]
    width = WIDTH // STRIPES
    bits = [[row[width * b + width // 2] > 127 for b in range(STRIPES)] for row in rows]
    assert [sum(int(on) << b for b, on in enumerate(found)) for found in bits] == numbers


def test_another_video_is_refused(run_folder, small_video, tmp_path):
    with pytest.raises(InputError, match=r"is 180x120, and the results are of a video of 160x90"):
        convert_results(run_folder, "html", tmp_path / "a.html", ConvertOptions(str(small_video)))
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_ends_early_is_refused(run_folder, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(striped(0)).save(images / "0.png")
    with pytest.raises(VideoError, match="ends after 1 frames, and the results have 48"):
        convert_results(run_folder, "html", tmp_path / "a.html", ConvertOptions(str(images)))
    assert list(tmp_path.iterdir()) == [images]


# in a browser

STRIPES_NOW = f"""(() => {{
  const video = document.getElementById("video"), canvas = document.createElement("canvas");
  canvas.width = {STRIPES}; canvas.height = 1;
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, {STRIPES}, 1);
  const pixels = context.getImageData(0, 0, {STRIPES}, 1).data;
  let index = 0;
  for (let bit = 0; bit < {STRIPES}; bit++) index |= (pixels[4 * bit] > 128) << bit;
  return index;
}})()"""
COVERED = f"""(() => {{
  const canvas = document.getElementById("canvas");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const rows = [];
  for (let y = 0; y < {HEIGHT}; y++) {{
    let row = "";
    for (let x = 0; x < {WIDTH}; x++) {{
      const at = Math.floor((y + 0.5) * canvas.height / {HEIGHT}) * canvas.width
        + Math.floor((x + 0.5) * canvas.width / {WIDTH});
      row += data[4 * at + 3] > 50 ? "1" : "0";
    }}
    rows.push(row);
  }}
  return rows;
}})()"""


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("chromium"), (1280, 800)) as chromium:
        chromium.open(page, READY)
        yield chromium
        assert chromium.errors == []
        assert chromium.requests == [page.as_uri()]


def go(browser, frame: int) -> None:
    """By the ruler, as a finger would."""
    box = browser.evaluate(
        "(() => { const b = document.getElementById('ruler').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    browser.click(box[0] + (frame + 0.5) * box[2] / FRAMES, box[1] + box[3] / 2)
    browser.wait(f"{SHOWN} === {frame}")


@pytest.mark.parametrize("frame", [0, 1, 2, 3, 24, 46, 47])
def test_the_frame_that_is_named_is_the_frame_that_is_seen(browser, frame):
    go(browser, frame)
    assert browser.evaluate(STRIPES_NOW) == frame


def test_keys_step_by_one_frame_whatever_its_time(browser):
    go(browser, 20)
    for key, by in (("ArrowRight", 1), ("ArrowRight", 1), ("ArrowLeft", -1), ("ArrowLeft", -1)):
        before = browser.evaluate(SHOWN)
        browser.press(key)
        browser.wait(f"{SHOWN} === {before + by}")
        assert browser.evaluate(STRIPES_NOW) == before + by
    for _ in range(5):  # faster than it is decoded
        browser.press("ArrowRight")
    browser.wait(f"{SHOWN} === 25")
    assert browser.evaluate(STRIPES_NOW) == 25


def test_the_masks_lie_where_they_are(browser):
    go(browser, 10)
    browser.evaluate("document.getElementById('show-labels').click()")
    covered = np.array([[int(c) for c in row] for row in browser.evaluate(COVERED)])
    browser.evaluate("document.getElementById('show-labels').click()")
    expected = masks_of(10).any(0)
    differ = np.argwhere(covered != expected)
    assert expected.sum() > 1000
    assert len(differ) < 0.02 * expected.sum()  # pixels of the rim, which the browser blends


def test_a_played_video_runs_on_its_own_clock_and_shows_its_frames(browser):
    go(browser, 0)
    browser.press(" ")
    browser.wait(f"{SHOWN} > 5")
    browser.press(" ")
    browser.wait("document.getElementById('video').paused")
    browser.wait(f"{STRIPES_NOW} === {SHOWN}")


def test_filters_and_clicks_choose_tracks(browser):
    go(browser, 20)
    rows = "document.querySelectorAll('.row:not([hidden])').length"
    assert browser.evaluate(rows) == 3
    names = browser.evaluate("[...document.querySelectorAll('.row .name')].map(n => n.textContent)")
    assert sorted(names) == sorted(NAMES)
    assert browser.evaluate("document.images.length") == 0

    browser.evaluate(
        "(() => { const s = document.getElementById('score'); s.value = 50;"
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert browser.evaluate(rows) == 2
    assert browser.evaluate("document.body.dataset.instances") == "1"  # 0.6 - 0.2 is below
    browser.evaluate("document.getElementById('reset').click()")
    assert browser.evaluate(rows) == 3

    x, y = browser.evaluate(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        f"return [b.left + 45 * b.width / {WIDTH}, b.top + 30 * b.height / {HEIGHT}]; }})()"
    )
    browser.click(x, y)
    chosen = "document.querySelector('.row.chosen .name')?.textContent"
    assert browser.evaluate(chosen) == "cat"
    browser.press("Escape")
    assert browser.evaluate(chosen) is None


def test_a_page_without_a_video_plays_its_masks(run_folder, tmp_path):
    path = tmp_path / "masks.html"
    convert_results(run_folder, "html", path)
    with Chromium(tmp_path / "profile", (390, 844)) as chromium:
        chromium.open(path, READY)
        chromium.press("ArrowRight")
        chromium.wait(f"{SHOWN} === 1")
        assert chromium.evaluate("document.documentElement.scrollWidth") == 390
        chromium.press(" ")
        chromium.wait(f"{SHOWN} === {FRAMES - 1}")
        assert chromium.errors == []
