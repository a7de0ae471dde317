"""The first signal ends a run, the next one aborts it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from openvis_rt.runtime.stopping import stoppable


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
