"""The process of the window that shows a run (Tk, in its main thread); see :mod:`.child`."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvis_rt.runtime.views.child import pictures_from, say_event, told_to_live

if TYPE_CHECKING:
    import tkinter

    from PIL import ImageTk

__all__ = ["main"]

_LOOK = 10  # milliseconds between two looks for a newer picture
_SHARE = 0.85  # of the display that the window takes at most, at first

Picture = npt.NDArray[np.uint8]


def main() -> None:
    """Show what comes until stdin ends, q or Escape is pressed, or the window is closed."""
    _, source, events = told_to_live()
    try:
        import tkinter
    except ImportError as exc:
        words = f"Python lacks Tk ({exc}); Debian and Ubuntu have it as python3-tk"
        say_event(events, {"failed": words})
        sys.exit(3)
    try:
        root = tkinter.Tk(className="openvis")
    except tkinter.TclError as exc:
        say_event(events, {"failed": str(exc)})
        sys.exit(3)
    window = _Window(root, source)
    say_event(events, {"opened": True})
    root.mainloop()
    if window.closed_by_hand:
        say_event(events, {"closed": True})


class _Window:
    """The newest picture, as large as the window allows."""

    def __init__(self, root: tkinter.Tk, source: BinaryIO) -> None:
        import tkinter

        self._root, self._source = root, source
        self._pictures: queue.Queue[Picture | None] = queue.Queue(1)
        self._shown: Picture | None = None
        self._photo: ImageTk.PhotoImage | None = None
        self._size, self.closed_by_hand = (0, 0), False
        root.title("openvis")
        root.configure(background="black")
        self._label = tkinter.Label(root, background="black", borderwidth=0)
        self._label.pack(expand=True, fill="both")
        root.geometry("640x360")
        for key in ("q", "Q", "<Escape>"):
            root.bind(key, lambda _: self._close())
        root.bind("f", lambda _: self._turn_full())
        root.protocol("WM_DELETE_WINDOW", self._close)
        threading.Thread(target=self._read, name="read pictures", daemon=True).start()
        root.after(_LOOK, self._look)

    def _read(self) -> None:
        for picture in pictures_from(self._source):
            self._put(picture)
        self._put(None)

    def _put(self, picture: Picture | None) -> None:
        """Keep the newest only; this thread alone puts."""
        with contextlib.suppress(queue.Empty):
            self._pictures.get_nowait()
        self._pictures.put(picture)

    def _look(self) -> None:
        room = (self._root.winfo_width(), self._root.winfo_height())
        try:
            picture = self._pictures.get_nowait()
        except queue.Empty:
            if self._shown is not None and room != self._size:
                self._draw(self._shown, room)
        else:
            if picture is None:
                self._root.destroy()
                return
            if self._shown is None:
                room = self._fit(picture)
            self._draw(picture, room)
        self._root.after(_LOOK, self._look)

    def _fit(self, picture: Picture) -> tuple[int, int]:
        """Make the window as large as the first picture, as far as the display allows."""
        height, width = picture.shape[:2]
        most = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
        scale = min(1.0, _SHARE * most[0] / width, _SHARE * most[1] / height)
        room = max(1, round(width * scale)), max(1, round(height * scale))
        self._root.geometry(f"{room[0]}x{room[1]}")
        return room

    def _draw(self, picture: Picture, room: tuple[int, int]) -> None:
        from PIL import ImageTk

        height, width = picture.shape[:2]
        scale = min(room[0] / width, room[1] / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = Image.fromarray(picture)
        if size != (width, height):
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if self._photo is None or (self._photo.width(), self._photo.height()) != size:
            self._photo = ImageTk.PhotoImage(image, master=self._root)
            self._label.configure(image=str(self._photo))
        else:
            self._photo.paste(image)
        self._shown, self._size = picture, room

    def _turn_full(self) -> None:
        self._root.attributes("-fullscreen", not self._root.attributes("-fullscreen"))

    def _close(self) -> None:
        self.closed_by_hand = True
        self._root.destroy()


if __name__ == "__main__":
    main()
