"""The sound of a video, copied packet by packet beside new pictures (PyAV)."""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

import av

from openvis_rt.runtime.video.timeline import LONGEST_GAP, RESTART

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

__all__ = ["SoundCopy"]

# what so many channels are where a file does not say, as FFmpeg has it
_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")


class SoundCopy:
    """Copies packets of sound beside the pictures; one packet is held at a time.

    Where the sound's clock begins anew, or pauses for more than an hour, what follows continues
    where the sound before it ended. A packet that would lie over the one before is left out.

    Args:
        source: is read to its end, and belongs to this object.
        stream: of the source.
        output: not begun yet; it gets a track.
        begin: of the pictures by the source's clock, in seconds; None to take the first track's.
        warnings: gets what a user should know.

    Raises:
        ValueError: the container of the output cannot hold this kind of sound.
    """

    def __init__(
        self,
        source: InputContainer,
        stream: AudioStream,
        output: OutputContainer,
        begin: float | None,
        warnings: list[str],
    ) -> None:
        self._output, self._warnings = output, warnings
        self._packets: Iterator[Packet[AudioStream]] = source.demux(stream)
        first = next(self._packets, None)
        self._packets = itertools.chain(() if first is None else (first,), self._packets)
        _try_track(output.format.name, stream, first)
        self._track = _track_like(output, stream)
        self._next: Packet[AudioStream] | None = None
        if begin is None and source.streams.video:
            video = source.streams.video[0]
            if video.start_time is not None and video.time_base is not None:
                begin = float(video.start_time * video.time_base)
        self._begin = begin or 0.0
        self._shift: int | None = None  # in units of the packets' clock
        self._last, self._end = 0, 0  # of the packet before: where it stands, and where it ends
        self._restarted = False

    def copy_until(self, time: float) -> None:
        """Write the packets that begin before ``time`` in seconds of the output."""
        while (packet := self._next or self._placed(time)) is not None:
            self._next = None
            if packet.pts is None or packet.time_base is None:
                continue
            if float(packet.pts * packet.time_base) >= time:
                self._next = packet
                return
            if packet.pts + (packet.duration or 0) >= 0:  # sound before the first picture is cut
                packet.stream = self._track
                try:
                    self._output.mux(packet)
                except (av.InvalidDataError, av.ArgumentError) as exc:  # a full disk is an OSError
                    self._stop(time, exc)

    def _placed(self, time: float) -> Packet[AudioStream] | None:
        """The next packet, whose times are those of the output; None at the end."""
        while (packet := self._read(time)) is not None:
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue  # the empty packet at the end
            unit = float(packet.time_base)
            if self._shift is None:  # the first one
                self._shift = -round(self._begin / unit)
            elif (step := packet.dts + self._shift - self._last) <= 0 or step * unit > LONGEST_GAP:
                if -RESTART < step * unit <= 0:
                    continue
                self._shift = self._end - packet.dts
                self._tell_restart(self._end * unit)
            packet.dts += self._shift
            packet.pts += self._shift
            self._last, self._end = packet.dts, packet.dts + max(1, packet.duration or 0)
            return packet
        return None

    def _read(self, time: float) -> Packet[AudioStream] | None:
        """The next packet; None at the end, and where the source breaks."""
        try:
            return next(self._packets, None)
        except av.FFmpegError as exc:
            self._stop(time, exc)
            return None

    def _tell_restart(self, time: float) -> None:
        if not self._restarted:
            self._restarted = True
            self._warnings.append(
                f"the clock of the sound jumps, first at {time:.1f} s: what follows is put right "
                "after the sound before it"
            )

    def _stop(self, time: float, error: av.FFmpegError) -> None:
        self._packets = iter(())
        self._warnings.append(f"the sound ends at {time:.1f} s: it is damaged ({error.strerror})")


def _track_like(output: OutputContainer, stream: AudioStream) -> AudioStream:
    """A track for the packets of a stream, ValueError where the container knows no such codec."""
    track = output.add_stream_from_template(stream)
    channels = stream.codec_context.channels
    if f"{channels} channels" == stream.layout.name and channels <= len(_LAYOUTS):
        # of AVI and Matroska; MP4 must say which, and would refuse it after the last frame
        track.codec_context.layout = _LAYOUTS[channels - 1]
    return track


def _try_track(kind: str, stream: AudioStream, first: Packet[AudioStream] | None) -> None:
    """ValueError where a container cannot hold a stream: some say so at their end only."""
    try:
        with av.open(io.BytesIO(), "w", format=kind) as trial:
            track = _track_like(trial, stream)
            if first is None or not first.size:
                return
            packet = av.Packet(bytes(first))
            packet.pts, packet.dts, packet.duration = 0, 0, first.duration
            packet.time_base, packet.stream = first.time_base, track
            trial.mux(packet)
    except av.InvalidDataError:  # of a packet that is damaged; that is told where it is copied
        return
    except av.FFmpegError as exc:
        raise ValueError(exc.strerror) from exc
