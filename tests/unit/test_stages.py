"""A stage: order, errors wherever they arise, early ends, bounds, and no thread that stays."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time

import pytest

from openvis_rt.runtime.stages import Stage


@pytest.fixture(autouse=True)
def _no_threads_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(1)  # it has told its end, and is on its last line
    assert set(threading.enumerate()) == before


def test_items_are_done_in_order_in_another_thread_before_the_block_ends():
    done = []
    with Stage("work", lambda item: done.append((item, threading.current_thread().name))) as stage:
        for item in range(100):
            stage.put(item)
    assert done == [(item, "work") for item in range(100)]


def test_one_stage_feeds_another_to_the_last_item():
    done = []
    with Stage("second", done.append) as second, Stage("first", second.put) as first:
        for item in range(50):
            first.put(item)
    assert done == list(range(50))


@pytest.mark.parametrize("failing", ["first", "second"])
def test_an_error_of_any_stage_reaches_the_caller_and_ends_the_work(failing):
    done = []

    def work(name, item):
        if name == failing and item == 3:
            raise OSError(f"{name} failed")
        if name == "first":
            second.put(item)
        else:
            done.append(item)

    def run():
        for item in range(10**6):  # it would take minutes without the error
            first.put(item)

    with (
        pytest.raises(OSError, match=f"{failing} failed"),
        Stage("second", lambda item: work("second", item)) as second,
        Stage("first", lambda item: work("first", item)) as first,
    ):
        run()
    assert done == [0, 1, 2][: len(done)]  # what waits when the first one fails is dropped
    assert failing == "first" or len(done) == 3


def test_an_error_of_the_last_item_is_raised_at_the_end():
    def fail(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="7"), Stage("work", fail) as stage:
        stage.put(7)


def test_a_callers_error_drops_what_waits_and_stays_the_error():
    begun, go, done = threading.Event(), threading.Event(), []

    def work(item):
        begun.set()
        go.wait(10)
        done.append(item)
        raise OSError("of the item in hand")

    def run(stage):
        for item in range(3):
            stage.put(item)
        begun.wait(10)
        threading.Timer(0.05, go.set).start()
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"), Stage("work", work) as stage:
        run(stage)
    assert done == [0]
    wait_for_timers()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_at_the_end_waits_for_the_item_in_hand_alone():
    begun, done = threading.Event(), []

    def work(item):
        begun.set()
        time.sleep(0.2)
        done.append(item)

    def interrupt():
        begun.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def run(stage):
        interrupter.start()
        for item in range(5):
            stage.put(item)

    interrupter = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt), Stage("work", work, size=5) as stage:
        run(stage)
    interrupter.join()
    assert done == [0]


def test_no_more_than_the_queue_and_the_item_in_hand_are_held():
    taken, most = threading.Semaphore(0), []
    held = [0]

    def work(item):
        taken.acquire(timeout=10)
        held[0] -= 1

    def feed(stage):
        for item in range(20):
            stage.put(item)
            held[0] += 1
            most.append(held[0])

    with Stage("work", work, size=2) as stage:
        feeder = threading.Thread(target=feed, args=(stage,))
        feeder.start()
        while len(most) < 3:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(most) == 3  # one in hand, two that wait
        for _ in range(20):
            taken.release()
        feeder.join()
    assert len(most) == 20
    assert max(most) <= 4  # counted after the put


def wait_for_timers():
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            with contextlib.suppress(RuntimeError):
                thread.join()
