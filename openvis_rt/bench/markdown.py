"""A report as Markdown tables, for people and for documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from openvis_rt.bench.parts import GRAPHS, PARTS
from openvis_rt.bench.report import Measured, Report, Result

__all__ = ["markdown_from_report", "table"]

_TIMES = (
    *("contender", "s a frame", "p50 ms", "p90 ms", "p99 ms", "FPS", "time, {base} = 1"),
    *("in the graphs, {base} = 1", "host", "GFLOP/s", "of the matrix product", "peak MB"),
    *("GPU MB", "FPS in flight", "MB to the device", "MB to the host", "W", "J a frame"),
    *("SQNR dB, least", "mask IoU"),
)


def markdown_from_report(report: Report) -> str:
    """Title, table of times, table of parts, table of graphs, and what a reader must know."""
    base, settings = report.base, report.settings
    ran = [(r.name, r.measured) for r in report.results if r.measured is not None]
    height, width = base.network_size
    source = "x".join(map(str, base.source_size))
    lines = [
        f"## {base.model} at {height}x{width} from {source}, {report.made}",
        "",
        f"{report.machine.cpu}, {settings['threads']} threads of {report.machine.cores} cores"
        f"{f', {report.machine.gpu}' if report.machine.gpu else ''}; {_versions(report)}. "
        f"{_counts(ran[0][1])}, {settings['warm_up']} windows to warm up, mode "
        f"{settings['mode']}, {settings['classes']} classes, at most "
        f"{settings['selection']['limit']} instances a frame.",
        "",
        *_times(report),
        "",
        "Milliseconds a frame, by part:",
        "",
        *_parts(ran),
        "",
        "Milliseconds of each graph in a window:",
        "",
        *_graphs(ran),
        "",
        *_notes(report),
    ]
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _times(report: Report) -> list[str]:
    """One row for each contender; columns that nobody has are left out."""
    base = report.base
    header = [text.format(base=base.name) for text in _TIMES]
    rows = [_row(result) for result in report.results if result.measured is not None]
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = table([header[i] for i in used], [[row[i] for i in used] for row in rows])
    for result in report.results:
        if result.not_run:
            lines += ["", f"{result.name} has no figures: {result.not_run}"]
    return lines


def _row(result: Result) -> list[str]:
    found, held = result.measured, result.agreement
    assert found is not None
    power = found.electricity
    gpu_bytes = None if power is None else power.gpu_bytes
    bus = (found.bytes_to_device, found.bytes_to_host)
    return [
        result.name,
        f"{found.seconds_a_frame:.3f}",
        *(f"{s * 1e3:.1f}" for s in (found.window.p50, found.window.p90, found.window.p99)),
        f"{found.fps:.2f}",
        "1" if found.ratio is None else str(found.ratio),
        "1" if found.network_ratio is None else str(found.network_ratio),
        f"{found.host_share:.1%}",
        "" if found.flops_a_second is None else f"{found.flops_a_second / 1e9:.1f}",
        "" if found.share_of_peak is None else f"{found.share_of_peak:.0%}",
        f"{found.peak_bytes / 1e6:.0f}",
        "" if gpu_bytes is None else f"{gpu_bytes / 1e6:.0f}",
        "" if found.fps_in_flight is None else f"{found.fps_in_flight:.2f}",
        *("" if count is None else f"{count / 1e6:.2f}" for count in bus),
        "" if power is None else f"{power.watts:.1f}",
        "" if power is None else f"{power.joules_a_frame:.2f}",
        "" if held is None else f"{min(held.sqnr.values()):.0f}",
        "" if held is None or held.mask_iou is None else f"{held.mask_iou:.4f}",
    ]


def _parts(ran: list[tuple[str, Measured]]) -> list[str]:
    parts = [part for part in PARTS if any(part in found.parts for _, found in ran)]
    rows = [
        [name, *(f"{found.parts.get(part, 0.0) * 1e3:.2f}" for part in parts)]
        for name, found in ran
    ]
    return table(["contender", *(part.replace("_", " ") for part in parts)], rows)


def _graphs(ran: list[tuple[str, Measured]]) -> list[str]:
    rows = []
    for name, found in ran:
        for graph in (g for g in GRAPHS if g in found.graphs):
            seconds = found.graphs[graph]
            values = (seconds.p50, seconds.p90, seconds.p99)
            flops = (found.flops or {}).get(graph)
            rows.append(
                [
                    name,
                    graph,
                    *(f"{value * 1e3:.2f}" for value in values),
                    "" if flops is None else f"{flops / 1e9:.2f}",
                ]
            )
    return table(["contender", "graph", "p50", "p90", "p99", "GFLOP"], rows)


def _versions(report: Report) -> str:
    held = report.machine.versions
    backends = dict.fromkeys(r.backend.split()[0] for r in report.results if r.measured)
    named = [f"{name} {held[name]}" for name in backends if name in held]
    return ", ".join([*named, f"Python {report.machine.python}"])


def _counts(found: Measured) -> str:
    windows = len(found.rounds[0])
    frames = sum(window.frames for turn in found.rounds for window in turn)
    return f"{frames} frames of each contender in {len(found.rounds)} rounds of {windows} windows"


def _notes(report: Report) -> list[str]:
    notes = [f"- Timed: {report.timed}"]
    if report.peak is not None:
        peak = report.peak
        where = f"{peak.threads} threads" if peak.device == "cpu" else "the GPU"
        notes.append(
            f"- The matrix product: {peak.flops / 1e9:.1f} GFLOP/s, n = {peak.size}, by "
            f"{peak.library} on {where}."
        )
    if report.others is not None:
        notes.append(
            f"- Other processes took {report.others:.1%} of the cores in the timed turns; load "
            f"{report.load[0]:.1f} before and {report.load[1]:.1f} after."
        )
    if report.cpu_mhz is not None:
        slowest, mean, fastest = report.cpu_mhz
        notes.append(f"- CPU clock {slowest:.0f} to {fastest:.0f} MHz, mean {mean:.0f}.")
    if report.cpu_throttled:
        notes.append(f"- The CPU was throttled {report.cpu_throttled} times.")
    if report.meter:
        notes.append(f"- Power by {report.meter}.")
    for result in report.results:
        power = result.measured.electricity if result.measured else None
        if power is not None and power.gpu_mhz is not None:
            slowest, mean, fastest = power.gpu_mhz
            heat = "" if power.celsius is None else f", at most {power.celsius:.0f} degrees Celsius"
            notes.append(
                f"- {result.name}: GPU clock {slowest:.0f} to {fastest:.0f} MHz, mean "
                f"{mean:.0f}{heat}."
            )
        if power is not None and power.throttled:
            notes.append(f"- {result.name}: the GPU was held down by {', '.join(power.throttled)}.")
    if any(r.measured and r.measured.window.count < 100 for r in report.results):
        notes.append("- p99 of fewer than 100 windows lies between the two slowest ones.")
    if report.machine.environment:
        listed = ", ".join(f"{k}={v}" for k, v in report.machine.environment.items())
        notes.append(f"- Environment: {listed}.")
    return notes + [f"- {text[0].upper()}{text[1:]}." for text in report.not_measured]
