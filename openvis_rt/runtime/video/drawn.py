"""Drawing and encoding the frames of a video, each in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from openvis_rt.geometry import frames_at_once, is_very_large
from openvis_rt.runtime.stages import Stage
from openvis_rt.runtime.video.drawing import Drawer
from openvis_rt.runtime.video.overlay import Canvas, OverlayWriter
from openvis_rt.runtime.video.results import FrameResult

__all__ = ["DrawnVideo"]

_Pair = tuple[npt.NDArray[np.uint8], FrameResult]
_Drawn = tuple[Canvas, float | None]


class DrawnVideo:
    """Draws frames and writes them, a few frames behind its caller; use it in a ``with`` block.

    Very large frames are drawn and written in the caller's thread, so that one is there at a time.

    The block ends when every frame is written; after an error nothing is written any longer.

    Args:
        writer: open; it is only used within the block, and stays open.
        also: is called with each frame that was drawn, green, blue and red of even size, and with
            what was drawn. It must not wait, and not write into the frame.
    """

    def __init__(
        self,
        writer: OverlayWriter,
        also: Callable[[VideoFrame, FrameResult], None] | None = None,
    ) -> None:
        self._writer, self._drawer, self._stack = writer, Drawer(), ExitStack()
        self._also = also
        waiting = frames_at_once(writer.height, writer.width, 2)
        self._one_by_one = is_very_large(writer.height, writer.width)
        self._encode = Stage("encode overlay", self._encoded, waiting)
        self._draw = Stage("draw overlay", self._drawn, waiting)

    def __enter__(self) -> DrawnVideo:
        with ExitStack() as stack:
            stack.enter_context(self._encode)
            stack.enter_context(self._draw)  # ends first, so that its last frame is encoded
            self._stack = stack.pop_all()
        return self

    def write(self, image: npt.NDArray[np.uint8], result: FrameResult) -> None:
        """Append a frame, which is shown at its result's time.

        Args:
            image: uint8 [H, W, 3] RGB; it is read later, so its caller changes it no more.
            result: its objects and its time.

        Raises:
            OutputError: an earlier frame could not be written.
        """
        if self._one_by_one:
            self._drawn((image, result))
        else:
            self._draw.put((image, result))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _drawn(self, pair: _Pair) -> None:
        image, result = pair
        canvas = Canvas(image)
        self._drawer.paint(canvas.planes, result)
        if self._also is not None:
            self._also(canvas.frame(), result)
        if self._one_by_one:
            self._encoded((canvas, result.time))
        else:
            self._encode.put((canvas, result.time))

    def _encoded(self, drawn: _Drawn) -> None:
        self._writer.write_canvas(*drawn)
