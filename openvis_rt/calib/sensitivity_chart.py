"""What each block costs beside what it saves, cheapest first, as one SVG without dependencies.

It stands on a ground of its own, light or dark by the reader's scheme, so that it is legible on any
page. No script, no font file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from openvis_rt.calib.sensitivity_record import BlockCost, Sensitivity

__all__ = ["svg_from_sensitivity"]

_WIDTH, _MARGIN, _TOP, _ROW = 900, 24, 122, 38
_COST, _SAVED, _PANEL = 320, 620, 170  # left edges of the two panels, and the longest bar in them
_STYLE = """
text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}.head{font-weight:600}.soft{fill:#59636e}
.ground{fill:#ffffff;stroke:#d1d9e0}.axis{stroke:#d1d9e0}
.cost{fill:#d1495b}.work{fill:#2f6db3}.size{fill:#9cc6ec}.left{opacity:0.4}
@media (prefers-color-scheme: dark){
text{fill:#f0f6fc}.soft{fill:#b1bac4}.ground{fill:#0d1117;stroke:#3d444d}.axis{stroke:#3d444d}}
"""


def svg_from_sensitivity(found: Sensitivity) -> str:
    """The picture; one file, in UTF-8."""
    height = _TOP + _ROW * len(found.blocks) + 16
    title = f"{found.variant}: what each block costs in INT8, and what it saves"
    pieces = [
        _text(_MARGIN, 34, title, "title"),
        *(_text(_MARGIN, 54 + 16 * i, line, "soft") for i, line in enumerate(_subtitle(found))),
        _text(_COST, 98, "cost: noise of the masks, alone", "head"),
        _text(_COST, 113, "thousandths of the signal's power", "soft"),
        *_legend(),
        *_rows(found.blocks),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img"><style>{_STYLE}</style>'
        f'<rect class="ground" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>'
    )
    return "\n".join([head, *pieces, "</svg>"]) + "\n"


def _subtitle(found: Sensitivity) -> tuple[str, str]:
    """How it was measured, and what was picked: a line each."""
    chosen = [block for block in found.blocks if block.chosen]
    how = f"Ranges by {found.method}; {found.windows} windows held out; cheapest first."
    if found.bound is None:
        return how, "All blocks are INT8."
    share = sum(block.share for block in chosen)
    words = {
        "min_sqnr": f"mask logits at {found.bound.value:g} dB or more",
        "max_ap_drop": f"at most {found.bound.value:g} points of AP lost",
    }[found.bound.measure]
    return (
        how,
        f"For {words}, {len(chosen)} of {len(found.blocks)} blocks are INT8, with {share:.0%} of "
        "the multiply-adds; the others are pale.",
    )


def _legend() -> Iterator[str]:
    yield _text(_SAVED, 98, "saved: share of", "head")
    for x, kind, words in (
        (_SAVED, "work", "all multiply-adds"),
        (_SAVED + 128, "size", "the blocks' weights"),
    ):
        yield f'<rect class="{kind}" x="{x}" y="104" width="10" height="10" rx="2"/>'
        yield _text(x + 15, 113, words, "soft")


def _rows(blocks: Sequence[BlockCost]) -> Iterator[str]:
    weights = sum(block.weight_bytes for block in blocks) or 1
    noisiest = max(block.noise for block in blocks) or 1.0
    largest = max(max(block.share, block.weight_bytes / weights) for block in blocks) or 1.0
    one_graph = len({block.graph for block in blocks}) == 1
    for number, block in enumerate(blocks):
        y = _TOP + _ROW * number
        pale = "" if block.chosen else " left"
        name = block.block if one_graph else block.label
        yield _text(_COST - 10, y + 18, _shortened(name), f"name{pale}", anchor="end")
        yield _bar("cost" + pale, _COST, y + 5, block.noise / noisiest, 16, _cost_words(block))
        end = _COST + _PANEL * block.noise / noisiest + 6
        yield _text(end, y + 18, _cost_words(block), "soft")
        for kind, value, down in (
            ("work", block.share, 1),
            ("size", block.weight_bytes / weights, 15),
        ):
            yield _bar(kind + pale, _SAVED, y + down, value / largest, 10, f"{value:.1%}")
            end = _SAVED + _PANEL * value / largest + 6
            yield _text(end, y + down + 9, f"{value:.1%}", "soft")
        yield (
            f'<line class="axis" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y + 31}" '
            f'y2="{y + 31}"/>'
        )


def _cost_words(block: BlockCost) -> str:
    if not block.noise:
        return "none"
    return f"{1000 * block.noise:.2g} ({-10 * math.log10(block.noise):.1f} dB)"


def _shortened(name: str) -> str:
    """The end of a long name, which tells more than its beginning."""
    return name if len(name) <= 42 else f"...{name[-39:]}"


def _bar(kind: str, x: float, y: float, part: float, height: int, words: str) -> str:
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{max(_PANEL * part, 0.5):.1f}" '
        f'height="{height}"><title>{escape(words)}</title></rect>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{of_kind}{at}>{escape(text)}</text>'
