"""The first signal ends a run, the next one aborts it."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest

from openvis_rt.runtime.recording import FrameLines
from openvis_rt.runtime.stopping import stoppable
from openvis_rt.runtime.video.results import FrameResult, line_of


def press(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_first_signal_is_an_event_and_the_next_one_aborts():
    before = signal.getsignal(signal.SIGTERM)
    with stoppable() as stopped:
        assert not stopped.is_set()
        press(signal.SIGTERM)
        assert stopped.is_set()
        with pytest.raises(KeyboardInterrupt):
            press(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_after_the_block_does_what_it_did():
    with stoppable() as stopped:
        pass
    with pytest.raises(KeyboardInterrupt):
        press(signal.SIGINT)
    assert not stopped.is_set()


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stoppable() as stopped:
            press(signal.SIGTERM)
            assert not stopped.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_taken():
    before, found = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with stoppable() as stopped:
            found.append((stopped.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_a_reader_that_stalls_does_not_keep_a_stopped_run():
    read, write = os.pipe()
    stopped, gone = threading.Event(), []
    frame = FrameResult(0, 0.0, 4, 4, ())
    with os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0) as file:
        lines = FrameLines(file, lambda: gone.append(True), stopped)
        while select.select([], [write], [], 0)[1]:
            lines.write(frame)
        stopper = threading.Timer(0.2, stopped.set)
        stopper.start()
        lines.write(frame)  # returns
        assert stopped.is_set()
        lines.write(frame)  # at once
    assert not gone


def test_a_slow_reader_gets_every_line_whole_and_one_that_leaves_ends_them():
    read, write = os.pipe()
    gone, taken = [], bytearray()
    frames = [FrameResult(number, 0.0, 4, 4, ()) for number in range(3000)]
    with os.fdopen(write, "wb", 0) as file:
        lines = FrameLines(file, lambda: gone.append(True))

        def slowly() -> None:
            while len(taken) < wanted:
                time.sleep(0.001)
                taken.extend(os.read(read, 7000))
            os.close(read)

        wanted = sum(len(line_of(frame)) for frame in frames)
        reader = threading.Thread(target=slowly)
        reader.start()
        for frame in frames:
            lines.write(frame)
        reader.join()
        lines.write(frames[0])
        lines.write(frames[0])
    assert bytes(taken) == b"".join(line_of(frame) for frame in frames)
    assert gone == [True]
