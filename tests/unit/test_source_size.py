"""What --source-size takes."""

from __future__ import annotations

import pytest

from openvis_rt.cli.ui import parse_source_size
from openvis_rt.errors import InputError, VideoError


def test_sizes_names_and_videos(small_video, tmp_path):
    assert parse_source_size(None) is None
    assert parse_source_size("480x864") == (480, 864)
    assert parse_source_size("1080p") == (1080, 1920)
    assert parse_source_size("4K") == (2160, 3840)
    assert parse_source_size(str(small_video)) == (120, 180)
    with pytest.raises(InputError, match="1080p"):
        parse_source_size("8k")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError):
        parse_source_size(str(tmp_path / "text.mp4"))
