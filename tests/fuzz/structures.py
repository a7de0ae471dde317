"""Pictures and films whose structure is changed, with all lengths and checksums right again."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

from hypothesis import strategies as st
from PIL import Image

__all__ = ["boxes_changed", "ebml_changed", "packets_changed", "pictures"]

Part = tuple[bytes, bytes]  # name and content
SIZES = st.sampled_from([0, 1, 16, 255, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1])


@st.composite
def _parts_changed(draw: st.DrawFn, parts: list[Part]) -> list[Part]:
    """One to three parts dropped, doubled, moved, renamed, emptied, or with other numbers in it."""
    out = list(parts)
    for _ in range(draw(st.integers(1, 3))):
        if not out:
            break
        at = draw(st.integers(0, len(out) - 1))
        name, body = out[at]
        how = draw(st.sampled_from(["number", "number", "byte", "drop", "twice", "move", "name"]))
        if how == "number" and body:
            place = draw(st.integers(0, min(len(body), 200) - 1))
            raw = struct.pack(">I", draw(SIZES))[-draw(st.sampled_from([1, 2, 4])) :]
            out[at] = (name, body[:place] + raw + body[place + len(raw) :])
        elif how == "byte":
            out[at] = (name, draw(st.binary(max_size=40)))
        elif how == "drop":
            del out[at]
        elif how == "twice":
            out[at:at] = [out[at]] * draw(st.sampled_from([1, 2, 300]))
        elif how == "move":
            out.insert(draw(st.integers(0, len(out) - 1)), out.pop(at))
        else:
            out[at] = (draw(st.binary(min_size=len(name), max_size=len(name))), body)
    return out


def _png_parts(data: bytes) -> list[Part]:
    parts, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def _png_of(parts: list[Part]) -> bytes:
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _jpeg_parts(data: bytes) -> list[Part]:
    """Segments up to the scan, and then the scan as a part without a name."""
    parts, at = [], 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return [*parts, (b"", data[at:])]


def _jpeg_of(parts: list[Part]) -> bytes:
    segments = [
        name + struct.pack(">H", min(len(body) + 2, 65_535)) + body if name else body
        for name, body in parts
    ]
    return b"\xff\xd8" + b"".join(segments)


def _tiff_parts(data: bytes) -> list[Part]:
    """The tags, little-endian, and what lies before them."""
    [start] = struct.unpack("<I", data[4:8])
    [count] = struct.unpack("<H", data[start : start + 2])
    tags = [data[start + 2 + 12 * i :][:12] for i in range(count)]
    return [(b"", data[8:start]), *((tag[:2], tag[2:]) for tag in tags)]


def _tiff_of(parts: list[Part]) -> bytes:
    before = b"".join(body for name, body in parts if not name)
    tags = [(name + body)[:12].ljust(12, b"\0") for name, body in parts if name]
    head = b"II*\0" + struct.pack("<I", 8 + len(before))
    return head + before + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


def pictures() -> st.SearchStrategy[bytes]:
    """Pictures of 16x12 whose chunks, segments or tags are strange, checksums right."""
    kinds: list[tuple[str, str, Callable[[bytes], list[Part]], Callable[[list[Part]], bytes]]] = [
        *((mode, "PNG", _png_parts, _png_of) for mode in ("RGB", "P", "I;16", "RGBA", "LA", "1")),
        *((mode, "JPEG", _jpeg_parts, _jpeg_of) for mode in ("RGB", "L", "CMYK")),
        *((mode, "TIFF", _tiff_parts, _tiff_of) for mode in ("RGB", "F", "I;16", "CMYK", "LAB")),
    ]
    return st.one_of(
        [_parts_changed(parts(_picture(mode, kind))).map(of) for mode, kind, parts, of in kinds]
    )


def _picture(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (16, 12), 77 if len(Image.new(mode, (1, 1)).getbands()) == 1 else None).save(
        buffer, kind
    )
    return buffer.getvalue()


CONTAINERS = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"),
}


def _boxes(data: bytes, at: int, end: int) -> list[tuple[int, int, bytes]]:
    """Begin, end and name of every box, the boxes in boxes too."""
    found = []
    while at + 8 <= end:
        size = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        stop = min(at + size, end) if size >= 8 else end
        found.append((at, stop, name))
        if name in CONTAINERS:
            found += _boxes(data, at + 8, stop)
        at = stop
    return found


@st.composite
def boxes_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """An MP4 in which one to three boxes have other numbers, names or lengths."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        known = [box for box in _boxes(bytes(out), 0, len(out)) if box[2] != b"mdat"]
        if not known:
            break
        begin, end, _ = known[draw(st.integers(0, len(known) - 1))]
        how = draw(st.sampled_from(["number", "number", "number", "length", "name", "free"]))
        if how == "number" and end - begin >= 12:
            place = draw(st.integers(begin + 8, min(end, begin + 200) - 4))
            out[place : place + 4] = struct.pack(">I", draw(SIZES))
        elif how == "length":
            out[begin : begin + 4] = struct.pack(">I", draw(SIZES))
        elif how == "name":
            names = [b"moov", b"trak", b"stts", b"stsz", b"wide", b"\0\0\0\0", b"\xff\x1b[m"]
            out[begin + 4 : begin + 8] = draw(st.sampled_from(names))
        else:
            out[begin + 4 : begin + 8] = b"free"
    return bytes(out)


@st.composite
def ebml_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """A Matroska file in which known elements have other lengths or numbers, not only bytes."""
    names = {
        *(b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b"),
        *(b"\x1f\x43\xb6\x75", b"\xae", b"\xe0", b"\xb0", b"\xba", b"\x2a\xd7\xb1", b"\x44\x89"),
        *(b"\xe7", b"\xa3", b"\x86", b"\x63\xa2", b"\x23\xe3\x83", b"\xd7", b"\x83"),
    }
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(names)))
        places = [i for i in range(len(out)) if out.startswith(name, i)][:40]
        if not places:
            continue
        at = draw(st.sampled_from(places)) + len(name)
        value = draw(
            st.sampled_from(
                [b"\xff", b"\x80", b"\x81\0", b"\x88" + b"\xff" * 8, b"\x01" + bytes(7)]
            )
            | st.binary(min_size=1, max_size=9)
        )
        out[at : at + len(value)] = value
    return bytes(out)


@st.composite
def packets_changed(draw: st.DrawFn, data: bytes) -> bytes:
    """A transport stream whose packets of 188 bytes are dropped, doubled, moved or relabelled."""
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    for _ in range(draw(st.integers(1, 6))):
        if not packets:
            break
        at = draw(st.integers(0, len(packets) - 1))
        how = draw(st.sampled_from(["drop", "twice", "move", "header", "header", "body"]))
        if how == "drop":
            del packets[at : at + draw(st.integers(1, 5))]
        elif how == "twice":
            packets.insert(at, packets[at])
        elif how == "move":
            packets.insert(draw(st.integers(0, len(packets) - 1)), packets.pop(at))
        else:
            place = draw(st.integers(1, 11) if how == "header" else st.integers(12, 180))
            raw = draw(st.binary(min_size=1, max_size=4))
            packets[at] = packets[at][:place] + raw + packets[at][place + len(raw) :]
    return b"".join(packets)
