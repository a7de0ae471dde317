"""Meters of power over doubles: NVML, jtop and tegrastats, and boards that have none of them."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from openvis_rt.bench import power
from openvis_rt.bench.power import (
    Jtop,
    Nvml,
    PowerLog,
    Reading,
    Tegrastats,
    mean_watts,
    open_meter,
    reading_from_tegrastats,
)

ORIN = (
    "11-28-2026 09:00:00 RAM 3175/15656MB (lfb 12x4MB) SWAP 0/7828MB (cached 0MB) "
    "CPU [12%@1190,8%@1190,off,off] EMC_FREQ 3%@2133 GR3D_FREQ 45%@[918] VIC_OFF "
    "cpu@46.2C gpu@44.8C tj@46.2C VDD_IN 4993mW/4812mW VDD_CPU_GPU_CV 1021mW/998mW "
    "VDD_SOC 1420mW/1400mW"
)
XAVIER = (
    "RAM 5000/31918MB (lfb 100x4MB) CPU [2%@1190,0%@1190] EMC_FREQ 0%@1600 GR3D_FREQ 99%@1377 "
    "AO@35C GPU@37.5C CPU@36C GPU 620/310 CPU 310/310 SOC 1240/1240 CV 0/0 VDDRQ 155/155 "
    "SYS5V 2110/2110"
)
NANO = "RAM 1404/3964MB CPU [7%@102] GR3D_FREQ 0%@76 POM_5V_IN 2532/2500 POM_5V_GPU 40/40"


@pytest.mark.parametrize(
    ("line", "watts", "mhz", "celsius"),
    [(ORIN, 4.993, 918, 44.8), (XAVIER, 4.435, 1377, 37.5), (NANO, 2.532, 76, None)],
    ids=["orin", "agx xavier", "nano"],
)
def test_lines_of_tegrastats(line, watts, mhz, celsius):
    found = reading_from_tegrastats(line)
    assert (found.watts, found.gpu_mhz, found.celsius) == (pytest.approx(watts), mhz, celsius)


@pytest.mark.parametrize("line", ["", "RAM 1404/3964MB (lfb 2x4MB) SWAP 0/1982MB", "\x00\xff 1/2"])
def test_a_line_without_power_tells_none(line):
    assert reading_from_tegrastats(line) == Reading()


class NVMLError(Exception):
    pass


def nvml(**changes):
    """A module that answers as NVML of a GPU that is held down by its power cap."""

    def refuse(*_):
        raise NVMLError("Not Supported")

    module = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksThrottleReasonGpuIdle=1,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonHwThermalSlowdown=64,
        shut=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda _: b"A GPU",
        nvmlDeviceGetPowerUsage=lambda _: 71_500,
        nvmlDeviceGetClockInfo=lambda _, which: {1: 1500, 2: 7000}[which],
        nvmlDeviceGetTemperature=lambda *_: 66,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 4 + 1,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [
            SimpleNamespace(pid=7, usedGpuMemory=100),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ],
    )
    module.nvmlShutdown = lambda: setattr(module, "shut", module.shut + 1)
    for name, change in changes.items():
        setattr(module, name, refuse if change is None else change)
    return module


def test_a_gpu_by_nvml():
    module = nvml()
    meter = Nvml(module)
    assert meter.name == "NVML: A GPU, power of the GPU's board"
    assert meter.read() == Reading(71.5, 1500, 7000, 66, ("power cap",), ((7, 100),))
    meter.close()
    assert module.shut == 1


def test_what_a_gpu_does_not_tell_is_none():
    meter = Nvml(
        nvml(
            nvmlDeviceGetClockInfo=None,
            nvmlDeviceGetTemperature=None,
            nvmlDeviceGetCurrentClocksThrottleReasons=None,
            nvmlDeviceGetComputeRunningProcesses=None,
        )
    )
    assert meter.read() == Reading(71.5)


@pytest.mark.parametrize(
    "missing", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetPowerUsage"]
)
def test_a_board_whose_nvml_does_not_serve_is_left(missing):
    module = nvml(**{missing: None})
    with pytest.raises(OSError, match="Not Supported"):
        Nvml(module)
    assert module.shut == 1


class Board:
    """jtop's class as it is used here."""

    def __init__(self, interval):
        self.interval, self.closed = interval, False
        self.power = {"tot": {"power": 8200, "avg": 8000}, "rail": {}}
        self.gpu = {"ga10b": {"freq": {"cur": 918_000, "max": 918_000}}}
        self.temperature = {"CPU": {"temp": 50.0}, "gpu": {"temp": 47.5}}

    def start(self):
        pass

    def ok(self):
        return True

    def close(self):
        self.closed = True


def test_a_jetson_by_jtop():
    meter = Jtop(Board)
    assert meter.read() == Reading(8.2, 918.0, celsius=47.5)
    meter.close()


class WithoutService(Board):
    def start(self):
        raise RuntimeError("The jtop.service is not active")


class WithoutPower(Board):
    def __init__(self, interval):
        super().__init__(interval)
        self.power = {}


@pytest.mark.parametrize(
    ("board", "message"), [(WithoutService, "not active"), (WithoutPower, "no power")]
)
def test_a_jetson_whose_jtop_does_not_serve_is_left(board, message):
    with pytest.raises(OSError, match=message):
        Jtop(board)


def printing(*lines):
    """A command that prints these lines and then waits."""
    code = "import sys, time\nfor line in sys.argv[1:]: print(line, flush=True)\ntime.sleep(60)"
    return sys.executable, "-c", code, *lines


def test_a_jetson_by_tegrastats():
    meter = Tegrastats(printing("starting", ORIN))
    assert meter.read().watts == pytest.approx(4.993)
    meter.close()


def test_tegrastats_without_power_is_left(monkeypatch):
    monkeypatch.setattr(power, "_PATIENCE", 0.5)
    with pytest.raises(OSError, match="no line that tells power"):
        Tegrastats(printing("RAM 1404/3964MB"))


def test_a_command_that_is_not_there_is_left():
    with pytest.raises(OSError, match="no-such-command"):
        Tegrastats(("/no-such-command",))


def raising(error):
    def opened():
        raise error

    return opened


def test_a_board_without_any_meter_says_why(monkeypatch):
    kinds = {
        "NVML": OSError("no driver"),
        "jtop": ImportError("jtop"),
        "tegrastats": OSError("not a Jetson"),
    }
    monkeypatch.setattr(power, "_METERS", {name: raising(e) for name, e in kinds.items()})
    meter, why = open_meter()
    assert meter is None
    assert why == (
        "power is not measured. NVML: no driver; jtop: not installed (jetson-stats, on a Jetson); "
        "tegrastats: not a Jetson"
    )


def test_a_missing_nvml_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    _, why = open_meter()
    assert "NVML: pynvml is not installed" in why
    assert "openvis-rt[bench]" in why


def test_the_first_meter_that_works_is_taken(monkeypatch):
    serving = SimpleNamespace(name="it", read=lambda: Reading(1.0), close=lambda: None)
    meters = {"NVML": raising(OSError("none")), "jtop": lambda: serving, "tegrastats": None}
    monkeypatch.setattr(power, "_METERS", meters)
    assert open_meter() == (serving, "")


def test_this_machine_has_a_meter_or_a_reason():
    meter, why = open_meter()
    assert (meter is None) == bool(why)
    if meter is not None:
        assert meter.read().watts is not None
        meter.close()


def test_a_log_reads_until_it_is_closed():
    taken = []

    def read():
        taken.append(None)
        return Reading(float(len(taken)))

    closed = []
    meter = SimpleNamespace(name="counter", read=read, close=lambda: closed.append(True))
    begin = time.perf_counter()
    log = PowerLog(meter, every=0.001)
    while len(taken) < 3:
        time.sleep(0.001)
    log.close()
    found = log.between(begin, time.perf_counter())
    assert [r.watts for _, r in found] == [float(i + 1) for i in range(len(taken))]
    assert mean_watts(found) == pytest.approx((len(taken) + 1) / 2)
    assert log.between(begin - 2, begin - 1) == []
    assert closed == [True]


def test_the_mean_of_no_power_is_none():
    assert mean_watts([(0.0, Reading())]) is None
