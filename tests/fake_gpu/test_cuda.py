"""Both CUDA bindings over a driver that is none, stricter than a GPU; see ``doubles/libcuda.c``."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from types import ModuleType

import numpy as np
import pytest
from doubles.fake_cuda import SCHEDULES

from openvis_rt.errors import BackendError, DependencyError, InputError
from openvis_rt.runtime.backends.tensorrt.bindings import open_cuda
from openvis_rt.runtime.backends.tensorrt.cuda_python import CudaPython
from openvis_rt.runtime.backends.tensorrt.pycuda import PyCuda

SIZE = 1000
POISON = 0xCD


@pytest.fixture(params=["cuda-python", "pycuda"])
def binding(request, driver):
    module = {"cuda-python": "cuda.bindings.driver", "pycuda": "pycuda.driver"}[request.param]
    pytest.importorskip(module, exc_type=ImportError)  # pycuda's needs libcurand at import
    return request.param


@pytest.fixture
def cuda(binding):
    opened = open_cuda(binding)
    yield opened
    opened.close()


@pytest.fixture
def graphs(driver):
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    opened = CudaPython()
    yield opened
    opened.close()


@pytest.fixture
def owner(request):
    """What the test makes; it is closed before the device is."""
    opened = request.getfixturevalue("cuda" if "cuda" in request.fixturenames else "graphs")
    with ExitStack() as stack:
        yield stack
        with suppress(BackendError):  # of a lost context
            opened.synchronize_all()


class Lane:
    """A stream with device memory and page-locked memory on both sides."""

    def __init__(self, cuda, owner, size=SIZE):
        self.cuda = cuda
        self.stream, self.event = cuda.stream(owner), cuda.event(owner)
        self.memory = cuda.allocate(owner, size)
        self.source, self.target = cuda.pinned(owner, size), cuda.pinned(owner, size)

    def send(self, value):
        self.source[:] = value
        self.cuda.copy_in(self.memory, self.source, self.stream)
        self.cuda.record(self.event, self.stream)

    def receive(self, memory=None):
        self.cuda.copy_out(self.target, memory or self.memory, self.stream)
        self.cuda.record(self.event, self.stream)

    def wait(self):
        self.cuda.synchronize(self.event)
        return self.target


# opening


def test_the_device_is_described(cuda, binding, driver):
    assert (cuda.device_name, cuda.capability) == ("Fake GPU", "sm87")
    assert cuda.binding.startswith(binding)
    assert cuda.has_graphs is (binding == "cuda-python")
    assert driver.live() == {"context": 1, "pushed": 1}


def test_closing_gives_the_context_back_and_twice_does_no_harm(cuda, driver):
    cuda.close()
    assert driver.live() == {}
    cuda.close()
    assert driver.live() == {}


def test_two_share_the_primary_context(binding, driver):
    first, second = open_cuda(binding), open_cuda(binding)
    assert driver.live()["context"] == 2
    second.close()
    with ExitStack() as owner:
        lane = Lane(first, owner)
        lane.send(3)
        lane.receive()
        assert (lane.wait() == 3).all()
    first.close()


def test_no_gpu_is_said_so(binding, driver):
    driver.set_devices(0)
    with pytest.raises(BackendError, match=r"no NVIDIA GPU|no CUDA-capable device"):
        open_cuda(binding)


def test_a_device_that_cannot_be_opened_leaves_nothing(binding, driver):
    driver.fail_next("cuDevicePrimaryCtxRetain", "OUT_OF_MEMORY")
    with pytest.raises(BackendError, match="memory"):
        open_cuda(binding)


def test_a_context_that_cannot_be_made_current_is_given_back(binding, driver):
    driver.fail_next("cuCtxPushCurrent", "UNKNOWN")
    with pytest.raises(BackendError, match="CUDA failed"):
        open_cuda(binding)


def test_there_is_no_third_binding(driver):
    with pytest.raises(InputError, match="cupy"):
        open_cuda("cupy")


def test_auto_takes_cuda_python_then_pycuda_then_says_what_to_install(driver, monkeypatch):
    asked = []

    def installed(*names):
        def make(name):
            def open_it():
                asked.append(name)
                if name not in names:
                    raise DependencyError(name, "tensorrt")
                return name

            return open_it

        asked.clear()
        monkeypatch.setattr(
            "openvis_rt.runtime.backends.tensorrt.bindings.CudaPython", make("cuda-python")
        )
        monkeypatch.setattr("openvis_rt.runtime.backends.tensorrt.bindings.PyCuda", make("pycuda"))

    installed("cuda-python", "pycuda")
    assert open_cuda() == "cuda-python"
    assert asked == ["cuda-python"]
    installed("pycuda")
    assert open_cuda() == "pycuda"
    installed()
    with pytest.raises(DependencyError, match="cuda-python"):
        open_cuda()


@pytest.mark.parametrize(("name", "kind"), [("cuda", CudaPython), ("pycuda", PyCuda)])
def test_a_binding_that_is_not_installed_is_named(driver, monkeypatch, name, kind):
    for module in [m for m in sys.modules if m.split(".")[0] == name] + [name]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=r"cuda-python|pycuda"):
        kind()


WITHOUT_DRIVER = """
import ctypes
try:
    ctypes.CDLL("libcuda.so.1")
except OSError:
    from openvis_rt.errors import BackendError
    from openvis_rt.runtime.backends.tensorrt.bindings import open_cuda
    try:
        open_cuda("cuda-python")
    except BackendError as exc:
        print(exc)
else:
    print("a driver is here")
"""


def test_no_driver_is_said_so():
    pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    command = [sys.executable, "-c", WITHOUT_DRIVER]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
    if ended.stdout == "a driver is here\n":
        pytest.skip("there is an NVIDIA driver")
    assert "no NVIDIA driver" in ended.stdout, ended.stderr


# memory


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bytes_go_to_the_device_and_back(cuda, driver, owner, schedule):
    driver.schedule(schedule)
    lane = Lane(cuda, owner)
    sent = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)
    lane.send(sent)
    lane.receive()
    np.testing.assert_array_equal(lane.wait(), sent)
    assert (cuda.bytes_in, cuda.bytes_out) == (SIZE, SIZE)


def test_a_part_of_a_buffer_is_copied_alone(cuda, owner):
    lane = Lane(cuda, owner)
    lane.send(1)
    lane.source[:10] = 2  # the copy was not run: it takes what is there when it is
    cuda.synchronize(lane.event)
    lane.source[:] = 3
    cuda.copy_in(lane.memory + 20, lane.source[5:25], lane.stream)
    lane.receive()
    found = lane.wait()
    assert (found[:10] == 2).all()
    assert (found[10:20] == 1).all()
    assert (found[20:40] == 3).all()
    assert (found[40:] == 1).all()
    assert cuda.bytes_in == SIZE + 20


def test_nothing_takes_no_copy_and_still_has_an_address(cuda, driver, owner):
    memory, empty = cuda.allocate(owner, 0), cuda.pinned(owner, 0)
    assert memory
    assert empty.size == 0
    stream = cuda.stream(owner)
    cuda.copy_in(memory, empty, stream)
    cuda.copy_out(empty, memory, stream)
    assert driver.calls("cuMemcpyHtoDAsync") == driver.calls("cuMemcpyDtoHAsync") == 0


def test_addresses_suit_every_library(cuda, owner):
    for size in (1, 7, 4097):
        assert cuda.allocate(owner, size) % 256 == 0


def test_free_memory_is_counted(cuda, owner):
    free, total = cuda.memory()
    cuda.allocate(owner, 1 << 20)
    assert cuda.memory() == (free - (1 << 20), total)


def test_too_large_a_buffer_is_refused_with_sizes_and_the_rest_goes_on(cuda, driver, owner):
    driver.set_memory(10_000_000)
    first = cuda.allocate(owner, 4_000_000)
    with pytest.raises(BackendError, match=r"(?s)8 MB.*\(6 of 10 MB are free\).*--precision fp16"):
        cuda.allocate(owner, 8_000_000)
    assert cuda.allocate(owner, 5_000_000) != first


def test_page_locked_memory_that_runs_out_is_refused(cuda, driver, owner):
    driver.fail_next("cuMemAllocHost", "OUT_OF_MEMORY")
    with pytest.raises(BackendError, match="8 MB"):
        cuda.pinned(owner, 8_000_000)


def test_an_owner_frees_what_is_its_own_and_no_more(cuda, driver, owner):
    kept = Lane(cuda, owner)
    before = driver.live()
    with ExitStack() as other:
        lane = Lane(cuda, other)
        lane.send(1)
        cuda.synchronize(lane.event)
        assert driver.live() != before
    del lane
    assert driver.live() == before
    kept.send(5)
    kept.receive()
    assert (kept.wait() == 5).all()


# order


def crossed(cuda, owner, *, wait):
    """What a second stream reads of what a first one wrote."""
    writer, reader = Lane(cuda, owner), Lane(cuda, owner)
    writer.send(7)
    if wait:
        cuda.wait(reader.stream, writer.event)
    reader.receive(writer.memory)
    return reader.wait()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stream_that_waits_reads_what_another_wrote(cuda, driver, owner, schedule):
    driver.schedule(schedule)
    assert (crossed(cuda, owner, wait=True) == 7).all()


def test_a_stream_that_does_not_wait_reads_what_was_there(cuda, owner):
    assert (crossed(cuda, owner, wait=False) == POISON).all()  # or the tests above prove nothing


def overwritten(cuda, owner, *, wait):
    """What a stream reads of memory that another one then writes anew."""
    writer, reader = Lane(cuda, owner), Lane(cuda, owner)
    writer.send(7)
    cuda.synchronize(writer.event)
    reader.receive(writer.memory)
    if wait:
        cuda.wait(writer.stream, reader.event)
    writer.send(8)
    return reader.wait()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stream_that_waits_overwrites_nothing_too_early(cuda, driver, owner, schedule):
    driver.schedule(schedule)
    assert (overwritten(cuda, owner, wait=True) == 7).all()


def test_a_stream_that_does_not_wait_overwrites_too_early(cuda, driver, owner):
    driver.schedule("others")
    assert (overwritten(cuda, owner, wait=False) == 8).all()


def test_an_event_that_was_never_recorded_is_done(cuda, owner):
    lane, event = Lane(cuda, owner), cuda.event(owner)
    cuda.synchronize(event)
    cuda.wait(lane.stream, event)
    lane.send(1)
    lane.receive()
    assert (lane.wait() == 1).all()


def test_a_wait_is_for_the_record_before_it_and_for_no_later_one(cuda, owner):
    writer, reader = Lane(cuda, owner), Lane(cuda, owner)
    writer.send(7)
    cuda.wait(reader.stream, writer.event)
    reader.receive(writer.memory)
    cuda.synchronize(reader.event)
    writer.send(8)
    assert (reader.wait() == 7).all()


def test_the_host_waits_for_everything(cuda, owner):
    lanes = [Lane(cuda, owner) for _ in range(3)]
    for number, lane in enumerate(lanes):
        lane.send(number)
        lane.receive()
    cuda.synchronize_all()
    assert [int(lane.target[0]) for lane in lanes] == [0, 1, 2]


def test_time_between_two_events_is_in_seconds(cuda, driver, owner):
    lane, begin = Lane(cuda, owner, 1 << 24), cuda.event(owner)
    cuda.record(begin, lane.stream)
    for _ in range(4):
        lane.send(1)
    cuda.synchronize(lane.event)
    assert 1e-4 < cuda.elapsed(begin, lane.event) < 5  # 64 MB take milliseconds


def test_time_of_an_event_that_is_not_done_is_refused(cuda, owner):
    lane, begin = Lane(cuda, owner), cuda.event(owner)
    cuda.record(begin, lane.stream)
    lane.send(1)
    with pytest.raises(BackendError, match=r"(?i)not.ready"):
        cuda.elapsed(begin, lane.event)
    cuda.synchronize_all()


# graphs


def test_a_captured_graph_runs_at_each_launch_and_not_before(graphs, driver, owner):
    lane = Lane(graphs, owner)

    def work():
        graphs.copy_in(lane.memory, lane.source, lane.stream)
        graphs.copy_out(lane.target, lane.memory, lane.stream)

    graph = graphs.capture(owner, lane.stream, work)
    graphs.synchronize_all()
    assert (lane.target == POISON).all()
    assert driver.live()["executable"] == 1
    assert "graph" not in driver.live()  # only needed to make the other
    for value in (3, 4):
        lane.source[:] = value
        graphs.launch(graph, lane.stream)
        graphs.record(lane.event, lane.stream)
        assert (lane.wait() == value).all()


def test_a_stream_that_failed_to_capture_works_on(graphs, driver, owner):
    lane = Lane(graphs, owner)

    def fails():
        raise BackendError("no such layer")

    def waits():
        graphs.synchronize_all()

    with pytest.raises(BackendError, match="no such layer"):
        graphs.capture(owner, lane.stream, fails)
    with pytest.raises(BackendError, match="CAPTURE"):
        graphs.capture(owner, lane.stream, waits)
    driver.fail_next("cuGraphInstantiate", "UNKNOWN")
    with pytest.raises(BackendError, match="cuGraphInstantiate"):
        graphs.capture(owner, lane.stream, lambda: None)
    lane.send(1)
    lane.receive()
    assert (lane.wait() == 1).all()
    assert "graph" not in driver.live()


# what must not go on quietly


@pytest.mark.parametrize(
    "call",
    ["allocate", "pinned", "stream", "copy_in", "copy_out", "synchronize", "close"],
)
def test_another_thread_is_refused(cuda, owner, call):
    lane = Lane(cuda, owner)
    arguments = {
        "allocate": (owner, 10),
        "pinned": (owner, 10),
        "stream": (owner,),
        "copy_in": (lane.memory, lane.source, lane.stream),
        "copy_out": (lane.target, lane.memory, lane.stream),
        "synchronize": (lane.event,),
        "close": (),
    }[call]
    raised = []

    def elsewhere():
        try:
            getattr(cuda, call)(*arguments)
        except Exception as exc:
            raised.append(exc)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [type(exc) for exc in raised] == [InputError]
    assert "thread" in str(raised[0])


def test_work_that_fails_on_the_device_is_seen_when_the_host_waits(cuda, driver, owner):
    lane = Lane(cuda, owner)
    driver.fail_next("work", "LAUNCH_FAILED")
    lane.send(1)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"(?s)context is lost.*Start the process again"):
            cuda.synchronize(lane.event)
    with pytest.raises(BackendError, match="context is lost"):
        cuda.allocate(owner, 1)
    with pytest.raises(BackendError, match="context is lost"):
        cuda.copy_in(lane.memory, lane.source, lane.stream)


def test_a_lost_context_is_closed_in_peace(cuda, driver):
    with ExitStack() as owner:
        lane = Lane(cuda, owner)
        lane.send(1)
        driver.lose("ILLEGAL_ADDRESS")
    cuda.close()
    assert driver.live() == {}


def test_a_lost_context_has_no_memory_to_tell_of(cuda, driver):
    driver.lose()
    with pytest.raises(BackendError, match="context is lost"):
        cuda.memory()


def test_another_error_is_named_with_its_function(cuda, driver, owner):
    lane = Lane(cuda, owner)
    driver.fail_next("cuEventRecord", "UNKNOWN")
    with pytest.raises(BackendError, match=r"(?i)cuEventRecord.*unknown"):
        lane.send(1)
    lane.send(2)
    cuda.synchronize(lane.event)


def test_a_binding_that_is_newer_than_the_driver_is_refused_with_the_pin(driver, monkeypatch):
    bindings = pytest.importorskip("cuda.bindings", reason="cuda-python is not installed")
    from cuda.bindings import driver as functions

    success = functions.CUresult.CUDA_SUCCESS
    monkeypatch.setattr(functions, "cuDriverGetVersion", lambda: (success, 12_040))
    monkeypatch.setattr(bindings, "__version__", "13.0.1")
    with pytest.raises(BackendError, match=r"CUDA 12\.8.*CUDA 12\.4.*'cuda-python<13'"):
        CudaPython()
    monkeypatch.setattr(bindings, "__version__", "12.9.0")
    CudaPython().close()


def test_a_function_that_the_driver_lacks_is_an_error_of_ours(graphs, owner, monkeypatch):
    def missing(*_: object) -> None:
        raise RuntimeError("Function 'cuEventElapsedTime_v2' not found")

    missing.__name__ = "cuEventElapsedTime"
    monkeypatch.setattr(graphs._driver, "cuEventElapsedTime", missing)
    event = graphs.event(owner)
    with pytest.raises(BackendError, match=r"cuEventElapsedTime.*not found.*'cuda-python<13'"):
        graphs.elapsed(event, event)


@pytest.fixture
def stand_in(monkeypatch):
    """A module in the place of pycuda, and its driver, whose functions are given."""
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.VERSION_TEXT, package.driver = "2026.1", driver
    driver.Error = type("Error", (Exception,), {})
    for name, module in (("pycuda", package), ("pycuda.driver", driver)):
        monkeypatch.setitem(sys.modules, name, module)
    return driver


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (RuntimeError("symbol cuInit is missing"), r"pycuda 2026\.1 cannot call cuInit.*missing"),
        (TypeError("No registered converter"), r"TypeError: No registered converter.*--cuda"),
    ],
)
def test_what_pycuda_raises_of_others_is_an_error_of_ours(stand_in, raised, text):
    def init():
        raise raised

    stand_in.init = init
    with pytest.raises(BackendError, match=text) as caught:
        PyCuda()
    assert caught.value.__cause__ is raised


def test_its_own_errors_keep_their_meaning(stand_in):
    def init():
        raise stand_in.Error("cuInit failed: no CUDA-capable device is detected")

    stand_in.init = init
    with pytest.raises(BackendError, match="no NVIDIA GPU here"):
        PyCuda()


def test_a_foreign_error_at_the_end_does_not_hide_the_first(stand_in):
    """Such as where the context is lost, and pycuda cannot give it back."""

    class Context:
        def push(self):
            pass

        def pop(self):
            raise RuntimeError("the context is gone")

        def detach(self):
            raise RuntimeError("the context is gone")

    class Device:
        def __init__(self, _number):
            pass

        def name(self):
            return "GPU"

        def compute_capability(self):
            return 8, 7

        def retain_primary_context(self):
            return Context()

    stand_in.init, stand_in.Device = (lambda: None), Device
    PyCuda().close()


def test_pycuda_that_cannot_be_loaded_says_why(stand_in, monkeypatch):
    def load(_name):
        raise ImportError("libcurand.so.10: cannot open shared object file")

    package = sys.modules["pycuda"]
    monkeypatch.delattr(package, "driver")
    package.__getattr__ = load
    with pytest.raises(BackendError, match=r"installed and cannot be loaded: libcurand\.so\.10"):
        PyCuda()
