"""Percentiles, intervals, parts, power, comparison: figures of known numbers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from openvis_rt.bench.compare import check_slowdown, compare_reports, markdown_from_changes
from openvis_rt.bench.figures import Turn, figures_of
from openvis_rt.bench.machine import CpuWatch, Machine, busy_seconds
from openvis_rt.bench.parts import HOST, NETWORK, PARTS, host_share
from openvis_rt.bench.player import Spent, Window
from openvis_rt.bench.power import Reading
from openvis_rt.bench.products import Peak
from openvis_rt.bench.report import Report, Result, write_report
from openvis_rt.bench.report_reading import read_report
from openvis_rt.bench.statistics import latency_of, ratio_of_groups, ratio_of_pairs
from openvis_rt.errors import InputError, ParityError

# statistics


def test_percentiles_of_known_times():
    found = latency_of([s / 1000 for s in range(1, 102)])
    assert (found.count, found.smallest, found.largest) == (101, 0.001, 0.101)
    assert (found.p50, found.p90, found.p99) == pytest.approx((0.051, 0.091, 0.1))
    assert found.mean == pytest.approx(0.051)


def test_a_latency_of_nothing_is_refused():
    with pytest.raises(InputError, match="none was measured"):
        latency_of([])


def test_pairs_take_out_what_drifts():
    drift = np.linspace(1, 10, 20)
    found = ratio_of_pairs(2 * drift, drift)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    alone = ratio_of_groups(2 * drift, drift)
    assert alone.value == pytest.approx(2)
    assert alone.low < 1.5
    assert alone.high > 2.7


def test_a_paired_interval_is_students():
    logs = np.array([0.1, 0.2, 0.3, 0.2])
    found = ratio_of_pairs(np.exp(logs), np.ones(4))
    reach = 3.182446 * logs.std(ddof=1) / 2  # t of 3 degrees of freedom, two-sided 95 %
    assert np.log([found.low, found.value, found.high]) == pytest.approx(
        [0.2 - reach, 0.2, 0.2 + reach], abs=1e-6
    )


def test_the_reciprocal_ratio_has_the_reciprocal_interval():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, 8), rng.uniform(1, 3, 8)
    there, back = ratio_of_pairs(a, b), ratio_of_pairs(b, a)
    assert (1 / there.high, 1 / there.value) == pytest.approx((back.low, back.value))


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        new, old = np.exp(rng.normal(0.1, 0.2, 10)), np.exp(rng.normal(0, 0.1, 7))
        found = ratio_of_groups(new, old)
        hits += found.low < np.exp(0.1) < found.high
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0], [1.0], "two times"),
        ([1.0, 2.0], [1.0], "pairs are needed"),
        ([1.0, 0.0], [1.0, 1.0], "above 0"),
        ([1.0, float("nan")], [1.0, 1.0], "above 0"),
    ],
)
def test_what_has_no_interval_is_refused(a, b, message):
    with pytest.raises(InputError, match=message):
        ratio_of_pairs(a, b)


# parts and figures


def window(scale=1.0, frames=1):
    seconds = dict.fromkeys(PARTS, 0.001 * scale) | {"propose": 0.1 * scale, "wait": 0.0}
    return Window(
        frames, sum(seconds.values()), seconds, {"propose": 0.1 * scale, "masks": 0.001 * scale}
    )


def turns(scales, counters=None):
    found = []
    for index, scale in enumerate(scales):
        spent = Spent((window(scale), window(scale)), 0.1, counters or {})
        found.append(Turn(float(index), index + 0.5, spent, 0.2))
    return found


def figures(scales, base=None, **options):
    options = {
        **dict.fromkeys(("pid", "flow", "flops", "peak", "log")),
        "peak_bytes": 5,
        **options,
    }
    counters = options.pop("counters", None)
    return figures_of(turns(scales, counters), base and turns(base), **options)


def test_every_part_is_of_the_host_or_of_the_network():
    assert sorted((*HOST, *NETWORK)) == sorted(PARTS)


def test_parts_add_up_and_the_host_has_its_share():
    found = figures([1, 1, 1])
    assert sum(found.parts.values()) == pytest.approx(found.seconds_a_frame)
    assert found.fps == pytest.approx(1 / found.seconds_a_frame)
    assert found.host_share == pytest.approx(0.009 / 0.112)
    assert host_share({}) == 0


def test_operations_over_the_time_of_the_networks_are_held_against_the_peak():
    peak = Peak(1e10, 512, "numpy", 2, "cpu")
    found = figures([1, 1], flops={"propose": 10**8}, peak=peak)
    assert found.flops_a_second == pytest.approx(1e9)  # masks are not among them
    assert found.share_of_peak == pytest.approx(0.1)
    assert figures([1, 1]).flops_a_second is None


def test_a_ratio_is_paired_by_rounds():
    found = figures([2, 4, 8], [1, 2, 4])
    assert str(found.ratio) == str(found.network_ratio) == "2.00 [2.00, 2.00]"


def test_bytes_over_the_bus_are_of_a_frame():
    found = figures([1, 1], counters={"bytes_to_device": 10.0, "bytes_to_host": 4.0})
    assert (found.bytes_to_device, found.bytes_to_host) == (5.0, 2.0)
    assert figures([1, 1]).bytes_to_device is None


class Log:
    """A meter's log of one reading in each turn, but for those of ``silent`` times."""

    def __init__(self, watts, silent=()):
        self.watts, self.silent = watts, silent

    def between(self, begin, _end):
        if begin in self.silent:
            return []
        memory = ((7, 100), (8, 900))
        reading = Reading(self.watts, 1000 + begin, None, 50 + begin, ("power cap",), memory)
        return [(begin, reading)]


def test_energy_is_power_over_the_turns_also_where_one_was_too_short_for_a_reading():
    found = figures([1, 1, 1], log=Log(20.0, silent=(1.0,)), pid=7).electricity
    assert (found.watts, found.celsius, found.gpu_bytes) == (20, 52, 100)
    assert found.joules_a_frame == pytest.approx(20 * 1.5 / 6)
    assert found.gpu_mhz == (1000, 1001, 1002)
    assert found.throttled == ("power cap",)


def test_a_meter_that_tells_no_power_gives_none():
    assert figures([1, 1], log=Log(None)).electricity is None


# the machine


def test_the_kernels_figures_of_a_cpu(tmp_path):
    for core, (khz, count) in enumerate(((1_000_000, 3), (3_000_000, 4))):
        for folder, name, value in (
            ("cpufreq", "scaling_cur_freq", khz),
            ("thermal_throttle", "core_throttle_count", count),
        ):
            file = tmp_path / f"cpu{core}" / folder / name
            file.parent.mkdir(parents=True)
            file.write_text(f"{value}\n")
    watch = CpuWatch(tmp_path)
    watch.sample()
    assert (watch.mhz, watch.throttled) == ([2000.0], 0)
    (tmp_path / "cpu1/thermal_throttle/core_throttle_count").write_text("9\n")
    assert watch.throttled == 5


def test_a_kernel_that_tells_nothing(tmp_path):
    watch = CpuWatch(tmp_path)
    watch.sample()
    assert (watch.mhz, watch.throttled) == ([], None)
    assert busy_seconds(tmp_path / "stat") is None
    (tmp_path / "stat").write_text("cpu none of them\n")
    assert busy_seconds(tmp_path / "stat") is None


def test_busy_time_counts_what_the_host_took_and_not_idling(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 5000 70 0 0 200 0 0\ncpu0 1 1 1 1\n")
    assert busy_seconds(stat) == pytest.approx(4.0)  # at 100 ticks a second


# two reports


def report(scales=(1, 1.01, 0.99), against=None, **changes):
    def result(name, measured):
        size = (96, 160), (192, 320)
        return Result(
            name, "bundle", "clip-vis-r50", "fp32", "onnxruntime", "cpu", *size, 1, 0.5, "", None,
            measured,
        )  # fmt: skip

    results = [result("onnxruntime fp32", figures(scales))]
    if against is not None:
        results.append(result("torch fp32", figures(against, scales)))
    made = Report(
        made="2026-01-01T00:00:00+00:00",
        machine=Machine("a CPU", 2, "", "Linux", "3.11"),
        settings={"mode": "stream", "threads": 2, "warm_up": 1},
        results=tuple(results),
        timed="",
        peak=None,
        not_measured=(),
        load=(0.0, 0.0),
        others=None,
        cpu_mhz=None,
        cpu_throttled=None,
        meter="",
        warnings=(),
    )
    return replace(made, **changes)


def test_a_report_is_read_as_it_was_written(tmp_path):
    written = report(against=(2, 2, 2))
    write_report(written, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == written


def test_what_got_slower_is_said_with_its_interval():
    changes = compare_reports(report((2, 2.02, 1.98)), report())
    whole = next(change for change in changes if change.what == "end to end")
    assert (round(whole.ratio.value, 2), whole.verdict) == (2.0, "slower")
    assert 1.9 < whole.ratio.low < 2 < whole.ratio.high < 2.1
    assert {c.what for c in changes} >= {"network", "graph propose", "run lengths", "encode"}
    text = markdown_from_changes(changes)
    assert "| onnxruntime fp32 | end to end | 112.00 ms | 224.00 ms | 2.00 [" in text


def test_noise_is_no_change():
    changes = compare_reports(report((1, 1.2, 0.8)), report((0.9, 1.1, 1.0)))
    assert {change.verdict for change in changes} == {"the same"}


def test_a_busier_machine_does_not_change_the_ratio_to_the_base():
    slow, quick = report((3, 3.1, 2.9), (6, 6.2, 5.8)), report((1, 1.1, 0.9), (2, 2.2, 1.8))
    changes = compare_reports(slow, quick)
    relative = [c for c in changes if c.what.startswith("ratio")]
    assert [(c.contender, c.verdict) for c in relative] == [("torch fp32", "the same")]
    assert relative[0].old == pytest.approx(2)
    assert {c.verdict for c in changes if c.what == "end to end"} == {"slower"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": Machine("another", 2, "", "Linux", "3.11")}, "CPU a CPU here, another there"),
        ({"settings": {"mode": "video", "threads": 2}}, "mode stream here, video there"),
    ],
)
def test_reports_of_other_measurements_are_compared_only_if_told(changes, message):
    old = report(**changes)
    with pytest.raises(InputError, match="--allow-different") as refused:
        compare_reports(report(), old)
    assert message in str(refused.value)
    assert compare_reports(report(), old, different=True)


def test_another_model_is_refused():
    new = report()
    old = replace(new, results=(replace(new.base, model="minvis-r50"),))
    with pytest.raises(InputError, match="model clip-vis-r50 here, minvis-r50 there"):
        compare_reports(new, old)


def test_reports_without_a_common_contender_are_refused():
    new = report()
    old = replace(new, results=(replace(new.base, name="torch fp32"),))
    with pytest.raises(InputError, match="no contender ran in both"):
        compare_reports(new, old)


def test_the_gate_fails_for_a_slowdown_only():
    check_slowdown(compare_reports(report(), report((2, 2, 2.1))), 1.05)
    slower = compare_reports(report((2, 2, 2.1)), report())
    check_slowdown(slower, 2.5)
    with pytest.raises(ParityError, match="onnxruntime fp32: 2") as failed:
        check_slowdown(slower, 1.05)
    assert failed.value.exit_code == 4
    with pytest.raises(InputError, match="1 or more"):
        check_slowdown(slower, 0.9)
    with pytest.raises(InputError, match="1 or more"):
        check_slowdown(slower, float("nan"))  # nothing is above it


def test_the_gate_lets_noise_pass():
    check_slowdown(compare_reports(report((1, 3, 0.8)), report()), 1.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "no report"),
        ("[]", "schema 'none'"),
        ('{"schema": "9.0"}', "schema '9.0'"),
        ('{"schema": "1.0"}', "no whole report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path, text, message):
    file = tmp_path / "old.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_report(file)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("results",), [], "there are none"),
        (("results", 1, "name"), "onnxruntime fp32", "two contenders have the same name"),
        (("results", 0, "measured"), None, "the base, which comes first, has no figures"),
        (("results", 1, "not_run"), "it failed", "either figures or a reason"),
        (("results", 1, "measured", "rounds"), [], "the same number, at least 2"),
        (("results", 0, "measured", "rounds", 0), [], "it has no window"),
        (("results", 0, "measured", "rounds", 0, 0, "frames"), 0, "1 or more; found 0"),
        (("results", 0, "measured", "rounds", 0, 0, "seconds"), -1, "above 0 and up to"),
        (("results", 0, "measured", "rounds", 0, 0, "parts", "encode"), 9, "encode has 9 s of"),
        (("results", 1, "measured", "fps"), 1e9, "and its windows have"),
    ],
)
def test_figures_that_no_benchmark_gives_are_refused(tmp_path, place, value, message):
    file = tmp_path / "old.json"
    write_report(report(against=(2, 2, 2)), file)
    data = json.loads(file.read_text())
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read_report(file)


def test_a_long_setting_is_told_in_short():
    old = report(settings={"mode": "x" * 50_000, "overlay": False})
    with pytest.raises(InputError) as refused:
        compare_reports(report(), old)
    assert "overlay none here, False there" in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_missing_report_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no report .*old\.json cannot be read"):
        read_report(tmp_path / "old.json")


def test_trtexecs_names():
    found = figures([1, 1]).trtexec()
    assert found["Throughput"]["qps"] == pytest.approx(10)
    assert found["Latency"]["median"] == found["Latency"]["percentile(99%)"] == pytest.approx(100)
