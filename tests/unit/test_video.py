"""Reading: what is exact for good sources, and what is said about bad ones."""

from __future__ import annotations

import contextlib
import gc
import http.server
import re
import socket
import struct
import threading
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from PIL import Image

from openvis_rt.errors import VideoError
from openvis_rt.runtime.options import LiveOptions
from openvis_rt.runtime.video.generated import sample_frames, write_sample_video
from openvis_rt.runtime.video.reading import is_live, open_video

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"width": 160, "height": 96, "objects": 2}
# x264 at crf 20 with half the colours' resolution, on textured pictures
CODEC_ERROR = 6.0  # mean of absolute differences, of 255; a turned picture is 20 and more away


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.mp4"
    write_sample_video(path, seconds=4, **SMALL)
    return path


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (12, 8)) -> None:
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        Image.new("RGB", size, (value * 10, 0, 255)).save(folder / name)


def remuxed(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        tracks = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for packet in reader.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                writer.mux(packet)
    return target


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    target = path.with_name(f"cut_{path.name}")
    target.write_bytes(data[: int(len(data) * share)])
    return target


def count_frames(source: Path | str, **options: bool) -> int:
    with open_video(str(source), **options) as video:
        return sum(1 for _ in video)


def test_sample_video_frames(sample):
    truth = sample_frames(seconds=4, **SMALL)
    with open_video(str(sample)) as video:
        assert (video.width, video.height, video.fps) == (160, 96, 25)
        assert (video.frame_count, video.live, video.warnings) == (100, False, [])
        for index, (frame, (image, masks)) in enumerate(zip(video, truth, strict=True)):
            assert frame.index == index
            assert frame.time == pytest.approx(index / 25, abs=1e-3)
            assert frame.image.dtype == np.uint8
            assert frame.image.flags.c_contiguous
            assert frame.image.flags.writeable
            assert masks.shape == (2, 96, 160)
            assert np.abs(frame.image.astype(int) - image).mean() < CODEC_ERROR
            assert masks.sum(0).max() <= 1  # a pixel shows one object


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_files_come_upright(tmp_path, rotation):
    path = tmp_path / "phone.mp4"
    write_sample_video(path, seconds=0.2, rotation=rotation, **SMALL)
    with av.open(str(path)) as stored:
        video = stored.streams.video[0]
        assert ((video.width, video.height) == (96, 160)) == (rotation != 180)
    with open_video(str(path)) as video:
        assert (video.width, video.height) == (160, 96)
        for frame, (image, _) in zip(video, sample_frames(seconds=0.2, **SMALL), strict=True):
            assert np.abs(frame.image.astype(int) - image).mean() < CODEC_ERROR


def test_mirrored_files_come_upright(tmp_path):
    path = tmp_path / "mirror.mp4"
    image = next(iter(sample_frames(**SMALL)))[0]
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.bit_rate = 160, 96, 4_000_000
        stream.set_display_rotation(0, hflip=True)
        mirrored = np.ascontiguousarray(image[:, ::-1])
        writer.mux(stream.encode(av.VideoFrame.from_ndarray(mirrored)))
        writer.mux(stream.encode())
    with open_video(str(path)) as video:
        assert np.abs(next(video).image.astype(int) - image).mean() < CODEC_ERROR


def test_images_in_natural_order_are_exact(tmp_path):
    names = ["frame10.png", "frame2.bmp", "Frame1.png"]
    write_images(tmp_path / "in", names)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "._frame1.png").write_text("left by macOS")
    (tmp_path / "in" / "sub.png").mkdir()
    with open_video(str(tmp_path / "in")) as video:
        assert (video.width, video.height, video.fps, video.frame_count) == (12, 8, Fraction(25), 3)
        frames = list(video)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [20, 10, 0]
    assert [frame.time for frame in frames] == [0.0, 0.04, 0.08]
    np.testing.assert_array_equal(frames[0].image, np.full((8, 12, 3), (20, 0, 255)))


def test_images_follow_their_exif_orientation(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.new("RGB", (30, 20)).save(folder / "a.jpg", exif=exif)
    with open_video(str(folder)) as video:
        assert (video.width, video.height) == (20, 30)


def test_one_frame_and_one_image(tmp_path):
    write_sample_video(tmp_path / "one.mp4", seconds=0.04, audio=False, **SMALL)
    assert count_frames(tmp_path / "one.mp4") == 1
    write_images(tmp_path / "in", ["a.webp"])
    assert count_frames(tmp_path / "in") == 1


def test_odd_sizes(tmp_path):
    write_images(tmp_path / "in", ["a.png", "b.png"], size=(13, 7))
    with open_video(str(tmp_path / "in")) as video:
        assert [frame.image.shape for frame in video] == [(7, 13, 3)] * 2
    # 4:2:0 has even sizes only; FFV1 keeps odd ones, and every value
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 33, 21, "bgr0"
        picture = np.random.default_rng(0).integers(0, 255, (21, 33, 3), np.uint8)
        writer.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        writer.mux(stream.encode())
    with open_video(str(path)) as video:
        np.testing.assert_array_equal(next(video).image, picture)


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".ts", ".flv"])
def test_whole_files_of_other_kinds(sample, tmp_path, suffix):
    assert count_frames(remuxed(sample, tmp_path / f"a{suffix}")) == 100


def test_edited_file_is_whole(sample, tmp_path):
    """An edit list hides frames that the index counts; sound goes on after the pictures."""
    path = tmp_path / "edited.mp4"
    with av.open(str(sample)) as reader, av.open(str(path), "w") as writer:
        tracks = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for packet in reader.demux():
            if packet.dts is None:
                continue
            shift = round(1 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            video = packet.stream.type == "video"
            if video or packet.pts >= 0:
                packet.stream = tracks[packet.stream.index]
                writer.mux(packet)
    assert 70 <= count_frames(path) <= 100


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv"])
def test_cut_files(sample, tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    path = cut(remuxed(sample, tmp_path / f"a{suffix}", **options))
    with (
        open_video(str(path)) as video,
        pytest.raises(VideoError, match=r"frames were read.*--allow-truncated") as caught,
    ):
        list(video)
    if suffix == ".mp4":
        assert " of 100 frames were read" in str(caught.value)
    with open_video(str(path), allow_truncated=True) as video:
        kept = sum(1 for _ in video)
        assert 30 < kept < 90
        assert len(video.warnings) == 1
        assert str(kept) in video.warnings[0]


def test_error_stays_an_error(sample, tmp_path):
    path = cut(remuxed(sample, tmp_path / "a.mkv"))
    with open_video(str(path)) as video:
        for _ in range(2):
            with pytest.raises(VideoError):
                list(video)


def test_cut_file_without_index_cannot_be_opened(sample, tmp_path):
    path = cut(remuxed(sample, tmp_path / "plain.mp4"))
    with pytest.raises(VideoError, match="cut off lacks its index"):
        open_video(str(path))
    with pytest.raises(VideoError, match="cut off lacks its index"):
        open_video(str(path), allow_truncated=True)


def test_file_cut_in_its_last_frame(tmp_path):
    write_sample_video(tmp_path / "a.mp4", seconds=0.4, audio=False, **SMALL)
    path = cut(tmp_path / "a.mp4", 0.999)
    with open_video(str(path)) as video, pytest.raises(VideoError, match="within a frame"):
        list(video)


def test_file_that_lost_only_sound_is_whole(sample, tmp_path):
    """The index declares 100 frames and all are there."""
    assert count_frames(cut(sample, 0.9995)) == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "empty"),
        (b"hello, this is no video\n" * 200, "cannot be opened"),
        (bytes(range(256)) * 40, "cannot be opened"),
    ],
)
def test_files_that_are_no_videos(tmp_path, content, message):
    path = tmp_path / "video.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        open_video(str(path))


def test_file_without_pictures(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video track; found audio"):
        open_video(str(path))


def test_file_without_a_decodable_frame(tmp_path):
    """The header is whole and every byte of the pictures is gone."""
    write_sample_video(tmp_path / "a.mp4", seconds=0.4, audio=False, **SMALL)
    data = (tmp_path / "a.mp4").read_bytes()
    begin = data.index(b"mdat") + 4
    (tmp_path / "b.mp4").write_bytes(data[:begin] + b"\xff" * (len(data) - begin))
    with pytest.raises(VideoError, match=r"b\.mp4"):
        open_video(str(tmp_path / "b.mp4"))


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(VideoError, match=r"holds no images.*\.png"):
        open_video(str(tmp_path))


def test_damaged_image(tmp_path):
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with (
        open_video(str(tmp_path)) as video,
        pytest.raises(VideoError, match=r"2\.png.*1 of 3 frames were read"),
    ):
        list(video)
    assert count_frames(tmp_path, allow_truncated=True) == 1


@pytest.mark.parametrize("allow_truncated", [False, True])
def test_images_that_change_their_size(tmp_path, allow_truncated):
    write_images(tmp_path, ["1.png", "2.png"])
    Image.new("RGB", (20, 10)).save(tmp_path / "3.png")
    with (
        open_video(str(tmp_path), allow_truncated=allow_truncated) as video,
        pytest.raises(VideoError, match=r"frame 2: from 12x8 to 20x10.*scale=12:8"),
    ):
        list(video)


def test_stream_that_changes_its_size(tmp_path):
    parts = []
    for width in (160, 192):
        path = tmp_path / f"{width}.mp4"
        write_sample_video(path, width=width, height=96, seconds=0.4, audio=False, objects=1)
        parts.append(remuxed(path, path.with_suffix(".ts")).read_bytes())
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    with (
        open_video(str(tmp_path / "both.ts")) as video,
        pytest.raises(VideoError, match="from 160x96 to 192x96"),
    ):
        list(video)


def test_closing_early_stops_the_thread(sample):
    with open_video(str(sample), queue_size=1) as video:
        first, second = next(video), next(video)
        assert threading.active_count() >= 2
    assert (first.index, second.index) == (0, 1)
    assert list(video) == []
    video.close()


def test_closing_without_reading(sample):
    open_video(str(sample)).close()


def test_any_error_of_the_thread_reaches_the_consumer(sample, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    with open_video(str(sample)) as video:
        next(video)
        monkeypatch.setattr("openvis_rt.runtime.video.container._upright", fail)
        with pytest.raises(MemoryError):
            list(video)


def test_decoding_stays_within_the_queue(tmp_path, monkeypatch):
    write_images(tmp_path, [f"{i}.png" for i in range(20)])
    opened = []
    open_image = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or open_image(path))
    with open_video(str(tmp_path), queue_size=2) as video:
        for frame in video:
            # handed out, waiting in the queue, and one in the thread's hands
            assert len(opened) <= frame.index + 1 + 2 + 2


def test_pictures_of_the_decoder_are_freed_at_once(sample):
    """PyAV's side data hold their picture in a cycle, and a picture of 720p is 1.4 MB."""
    gc.collect()
    gc.disable()
    try:
        with open_video(str(sample)) as video:
            for _ in video:
                pass
            held = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert held < 20  # of 100


def test_a_missing_camera():
    with pytest.raises(VideoError, match="camera 97"):
        open_video("97")


@contextlib.contextmanager
def answering(status: int):
    """The address of a web server that answers everything with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            if status == 200:
                self.wfile.write(b"<!DOCTYPE html><html><title>a web page</title></html>" * 9)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False  # so that closing waits for what is being answered

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/street.mp4"
        finally:
            server.shutdown()
            thread.join()


def why_not(address: str, live: LiveOptions | None = None) -> str:
    """Why a stream cannot be opened; the advice for cut files is none for streams."""
    with pytest.raises(VideoError) as caught:
        open_video(address, live=live)
    message = str(caught.value)
    assert message.startswith(f"{address} cannot be opened: ")
    advice = message.removeprefix(address)
    assert "mp4 whose" not in advice
    assert "index" not in advice
    return advice


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp", "rtmp"])
def test_a_refused_connection_is_called_so(scheme):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        message = why_not(f"{scheme}://127.0.0.1:{unused.getsockname()[1]}/live")
    assert "127.0.0.1 refused the connection. Check the port" in message


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"404 Not Found. Check the path, which is /street\.mp4 here"),
        (410, "Check the path"),
        (401, r"Check user and password.*http://user:password@127\.0\.0\.1/"),
        (403, "Check user and password"),
        (503, r"The fault is 127\.0\.0\.1's own"),
        (200, "Check that the address gives a video"),
    ],
)
def test_what_a_web_server_says_is_passed_on(status, message):
    with answering(status) as address:
        assert re.search(message, why_not(address))


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_host_that_keeps_silent_is_given_up(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/live"
        message = why_not(address, LiveOptions(timeout=0.5))
    assert "nothing came from 127.0.0.1 within 0.5 s" in message


def test_a_host_that_nobody_knows():
    assert "no host camera.invalid is known. Check its spelling" in why_not("rtsp://camera.invalid")


def test_a_protocol_that_nobody_knows():
    message = why_not("udp-nothing://127.0.0.1:1")
    assert "knows no udp-nothing:// here" in message
    assert "rtsp://" in message


@contextlib.contextmanager
def served(data: bytes):
    """The address of a server that sends ``data`` and then breaks the connection."""
    ended = threading.Event()

    def send() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(data)
            ended.wait(20)
            # closing resets the connection, as a host does that starts anew
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}", ended
        finally:
            ended.set()
            thread.join()


def test_a_stream_that_breaks_off_ends_with_a_warning(sample, tmp_path):
    data = remuxed(sample, tmp_path / "a.ts").read_bytes()
    every = LiveOptions(every_frame=True, reconnect=0)
    with served(data) as (address, ended), open_video(address, live=every) as video:
        assert video.live
        first = next(video)
        ended.set()
        count = 1 + sum(1 for _ in video)
    assert (first.index, first.image.shape) == (0, (96, 160, 3))
    assert 50 < count <= 100
    [warning] = video.warnings
    assert warning.startswith(f"{address} was lost after {count} frames: reading fails")


def test_a_stream_that_breaks_off_before_its_first_frame_is_an_error(sample, tmp_path):
    data = remuxed(sample, tmp_path / "a.ts").read_bytes()[:400]
    with served(data) as (address, ended):
        ended.set()
        with pytest.raises(VideoError, match="tcp://"):
            open_video(address)


@pytest.mark.parametrize(
    "source", ["0", "12", "rtsp://host/x", "http://host/a.mp4", "-", "/dev/video0"]
)
def test_cameras_and_streams_are_live(source):
    assert is_live(source)


@pytest.mark.parametrize("source", ["a.mp4", "0.mp4", "/dev/video", "-1", "", "a:/b"])
def test_files_are_not_live(source):
    assert not is_live(source)


def test_a_source_that_the_system_refuses(tmp_path):
    with pytest.raises(VideoError, match="cannot be read: File name too long"):
        open_video(str(tmp_path / ("x" * 300)))


def test_queue_size_must_be_positive(sample):
    with pytest.raises(ValueError, match="queue_size"):
        open_video(str(sample), queue_size=0)


def test_without_reading_ahead_no_thread_is_started(sample):
    before = threading.active_count()
    with open_video(str(sample), ahead=False) as alone, open_video(str(sample)) as ahead:
        frame = next(alone)
        next(alone)
        assert threading.active_count() == before
        images = [frame.image, *(frame.image for frame in alone)]
        wanted = [frame.image for frame in ahead]
    assert len(images) == len(wanted) - 1
    assert np.array_equal(images[-1], wanted[-1])


def test_damage_is_raised_without_reading_ahead_too(sample, tmp_path):
    cut = tmp_path / "cut.mkv"
    write_sample_video(cut, width=64, height=48, fps=10, seconds=2, audio=False)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with open_video(str(cut), ahead=False) as video, pytest.raises(VideoError, match="cut off"):
        for _ in video:
            pass
