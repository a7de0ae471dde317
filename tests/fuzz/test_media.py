"""Pictures and films whose structure is strange: chunks, segments, tags, boxes, elements."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from borders import few, survives
from hypothesis import given
from hypothesis import strategies as st
from structures import boxes_changed, ebml_changed, packets_changed, pictures

from openvis_rt import open_video

KINDS = {"mp4": boxes_changed, "mkv": ebml_changed, "ts": packets_changed}
FRAMES = 12  # of the small video
MOST = 20 * FRAMES  # what a film of its bytes may have at the most


@pytest.fixture(scope="module")
def films(small_video, tmp_path_factory) -> dict[str, bytes]:
    """The same film in each container."""
    made = {}
    for kind in KINDS:
        path = tmp_path_factory.mktemp("films") / f"film.{kind}"
        with av.open(str(small_video)) as source, av.open(str(path), "w") as target:
            taken = source.streams.video[0]
            given_stream = target.add_stream_from_template(taken)
            for packet in source.demux(taken):
                if packet.dts is not None:
                    packet.stream = given_stream
                    target.mux(packet)
        made[kind] = path.read_bytes()
    return made


def watch(path: Path) -> None:
    """Read a film to its end; its frames have a size, and are not without end."""
    with open_video(str(path)) as video:
        for count, frame in enumerate(video):
            assert frame.image.ndim == 3
            assert count < MOST, "frames without end"


@few(15)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_a_film_of_strange_structure(films, tmp_path, kind, data):
    path = tmp_path / f"film.{kind}"
    path.write_bytes(data.draw(KINDS[kind](films[kind])))
    survives(lambda: watch(path))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the file
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(data=pictures())
def test_a_picture_of_strange_structure(tmp_path, data):
    folder = tmp_path / "frames"
    folder.mkdir(exist_ok=True)
    (folder / "0.png").write_bytes(data)
    survives(lambda: watch(folder))
