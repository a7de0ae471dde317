"""Memory that this library's own lines hold, whatever else the process does meanwhile."""

from __future__ import annotations

import gc
import tracemalloc


def held_by(pattern: str) -> int:
    """Bytes that were allocated under a line of the files that match, and are still held.

    The total of tracemalloc counts other tests' threads and Python's own lists, too: it has been
    seen to breathe by 10 KB. Needs ``tracemalloc.start(8)``: numpy's functions lie between.
    """
    gc.collect()
    only = tracemalloc.Filter(True, pattern, all_frames=True)
    traces = tracemalloc.take_snapshot().filter_traces([only]).traces
    return sum(trace.size for trace in traces)
