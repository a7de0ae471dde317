"""Sessions of TensorRT: slots, what they are bound to, and what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from doubles.engines import KINDS, write_plan
from doubles.fake_cuda import SCHEDULES
from graph_bundle import NETWORK_SIZE, window_models, write_bundle

from openvis_rt.errors import BackendError, EngineError, InputError
from openvis_rt.runtime.backends.onnxruntime import OnnxRuntime
from openvis_rt.runtime.backends.tensorrt.launching import SIZES_A_SLOT

PROPOSE = ("queries", "object_logits")

# sessions


def test_outputs_of_a_slot_stay_while_the_other_runs(sessions, built, driver):
    driver.schedule("at once")
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE, slots=2)
    one, two = (np.full((1, 60, 90, 3), v, np.uint8) for v in (10, 200))
    for slot, frame in enumerate((one, two)):
        session.write("frames", frame, slot)
        session.run(slot)
    first, second = (session.fetch("queries", slot) for slot in (0, 1))
    assert not np.array_equal(first, second)
    theirs = OnnxRuntime("cpu").open(built, "propose", "fp32", fetched=PROPOSE)
    for frame, found in ((one, first), (two, second)):
        theirs.write("frames", frame)
        theirs.run()
        np.testing.assert_array_equal(theirs.fetch("queries"), found)


def test_a_run_waits_for_who_reads_its_outputs(sessions, built, driver):
    driver.schedule("others")
    factory = sessions()
    propose = factory.open(built, "propose", "fp32", fetched=PROPOSE)
    masks = factory.open(built, "masks", "fp32", fetched=("masks",))
    masks.bind("mask_logits", propose, "mask_logits")
    masks.write("selected", np.arange(8))
    for name in ("picture_size", "frame_size"):
        masks.write(name, np.array([60, 90]))
    random = np.random.default_rng(0).integers(0, 256, (2, 1, 60, 90, 3)).astype(np.uint8)
    found = []
    for number, overwritten in ((0, False), (0, True), (1, False)):
        propose.write("frames", random[number])
        propose.run()
        masks.run()
        if overwritten:
            propose.write("frames", random[1])
            propose.run()
        found.append(masks.fetch("masks"))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_an_input_is_written_while_the_last_one_is_on_its_way(sessions, built, driver):
    driver.schedule("late")
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    found = []
    for value in (10, 200, 10):
        session.write("frames", np.full((1, 60, 90, 3), value, np.uint8))
        session.run()
        session.write("frames", np.full((1, 60, 90, 3), 77, np.uint8))
        found.append(session.fetch("queries"))
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


def test_what_is_fetched_is_the_callers_own(sessions, built):
    session = sessions().open(built, "text", "fp32", fetched=("embeddings",))
    tokens = np.zeros((3, 77), np.int64)
    tokens[:, 0], tokens[:, 1] = 49406, 49407
    session.write("tokens", tokens)
    session.run()
    found = session.fetch("embeddings")
    kept = found.copy()
    tokens[:, 1], tokens[:, 2] = 320, 49407
    session.write("tokens", tokens[:2])
    session.run()
    assert session.fetch("embeddings").shape == (2, found.shape[1])
    session.close()
    np.testing.assert_array_equal(found, kept)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("frames", np.zeros((1, 60, 90, 3), np.float32), "float32"),
        ("frames", np.zeros((1, 60, 91, 3), np.uint8), r"\[1, 60, 91, 3\]"),
        ("frame", np.zeros((1, 60, 90, 3), np.uint8), "no input 'frame'"),
    ],
)
def test_another_type_shape_or_name_is_refused(sessions, built, name, value, text):
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match=text):
        session.write(name, value)


def test_more_than_the_profile_takes_is_refused_with_what_to_do(sessions, built):
    session = sessions().open(built, "text", "fp32", fetched=("embeddings",))
    with pytest.raises(InputError, match=r"(?s)up to \[128, 77\], got \[129, 77\].*openvis build"):
        session.write("tokens", np.zeros((129, 77), np.int64))


def test_a_run_without_its_inputs_is_refused(sessions, built):
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match=r"'frames'.*never written"):
        session.run()


def test_an_output_that_was_not_asked_for_stays_on_the_device(sessions, built):
    factory = sessions()
    session = factory.open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match="queries, object_logits"):
        session.fetch("queries")  # not run
    session.write("frames", np.zeros((1, 60, 90, 3), np.uint8))
    session.run()
    with pytest.raises(InputError, match="stays on the device"):
        session.fetch("mask_logits")
    with pytest.raises(InputError, match="no output"):
        factory.open(built, "propose", "fp32", fetched=("logits",))


def test_another_backends_session_cannot_be_bound(sessions, built):
    mine = sessions().open(built, "classify", "fp32", fetched=("class_scores",))
    other = OnnxRuntime("cpu").open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match="another backend"):
        mine.bind("features", other, "features")
    with pytest.raises(InputError, match="another backend"):
        other.bind("frames", mine, "class_scores")
    elsewhere = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(InputError, match="another backend"):
        mine.bind("features", elsewhere, "features")


def test_graphs_that_do_not_fit_together_are_not_bound(sessions, built):
    factory = sessions()
    classify = factory.open(built, "classify", "fp32", fetched=("class_scores",))
    propose = factory.open(built, "propose", "fp32", fetched=PROPOSE)
    with pytest.raises(EngineError, match="one precision"):
        classify.bind("features", propose, "pool_mask")


def test_a_session_that_is_closed_is_of_no_use(sessions, built):
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE)
    session.close()
    session.close()
    assert session.closed
    with pytest.raises(InputError, match="closed"):
        session.run()


def test_closing_in_any_order_leaves_nothing(sessions, built, driver, frames):
    factory = sessions()
    session = factory.open(built, "propose", "fp32", fetched=PROPOSE, slots=2)
    session.write("frames", np.zeros((1, 60, 90, 3), np.uint8))
    session.run()
    factory.close()
    assert driver.live() == {}  # though `session` is still referred to
    factory.close()


# windows

LENGTHS = (5, 2, 5, 1)
READ = {"classify": ("class_scores", "brightness"), "masks": ("masks",)}


def window(length):
    random = np.random.default_rng(length)
    return random.integers(0, 256, (length, *NETWORK_SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A bundle of graphs that take windows, with engines of every library."""
    bundle = write_bundle(tmp_path_factory.mktemp("windows"), window_length=5, **window_models())
    for kind in KINDS:
        for graph in bundle.graphs:
            write_plan(bundle, graph, kind)
    return bundle


def open_windows(factory, bundle, slots=2):
    """`propose`, and `classify` and `masks` that read it; `frames` is shared."""
    propose = factory.open(bundle, "propose", "fp32", fetched=("mask_area",), slots=slots)
    readers = {g: factory.open(bundle, g, "fp32", fetched=f) for g, f in READ.items()}
    for name in ("frames", "mask_logits", "queries"):
        readers["classify"].bind(name, propose, name)
    readers["masks"].bind("mask_logits", propose, "mask_logits")
    text = np.random.default_rng(0).standard_normal((3, NETWORK_SIZE[1])).astype(np.float32)
    readers["classify"].write("text_embeddings", text)
    readers["masks"].write("selected", np.array([7, 2, 3]))
    for name in ("picture_size", "frame_size"):
        readers["masks"].write(name, np.array(NETWORK_SIZE))
    return propose, readers


def fetched(propose, readers, slot):
    found = {"mask_area": propose.fetch("mask_area", slot)}
    for graph, outputs in READ.items():
        readers[graph].run(slot)
        found |= {name: readers[graph].fetch(name, slot) for name in outputs}
    return found


def by_onnx_runtime(bundle, lengths):
    propose, readers = open_windows(OnnxRuntime("cpu"), bundle, slots=1)
    found = []
    for length in lengths:
        propose.write("frames", window(length))
        propose.run()
        found.append(fetched(propose, readers, 0))
    return found


def same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_windows_of_any_length_in_two_slots(sessions, windows, driver, kind, schedule):
    driver.schedule(schedule)
    propose, readers = open_windows(sessions(kind), windows)
    made, before = ("cuMemAllocHost", "cuEventCreate", "cuStreamCreate"), {}
    lengths, found = (*LENGTHS, *LENGTHS[::-1], 3, 3, 3, 3), []
    for number, length in enumerate(lengths):
        if number == 2:  # both slots were written
            before = {f: driver.calls(f) for f in made}
        propose.write("frames", window(length), number % 2)
        propose.run(number % 2)
        if number:  # the window before, in the other slot
            found.append(fetched(propose, readers, (number - 1) % 2))
    found.append(fetched(propose, readers, (len(lengths) - 1) % 2))
    same(found, by_onnx_runtime(windows, lengths))
    assert {f: driver.calls(f) for f in made} == before


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_are_made_ahead_in_slots_that_read_the_same_window(
    sessions, windows, driver, schedule
):
    """Two runs for each of two windows, all queued before the first is fetched."""
    driver.schedule(schedule)
    backend = sessions()
    propose = backend.open(windows, "propose", "fp32", fetched=("mask_area",), slots=2)
    masks = backend.open(windows, "masks", "fp32", fetched=("masks",), slots=4)
    masks.bind("mask_logits", propose, "mask_logits")
    chosen = [np.array(q) for q in ([7, 2, 3], [1], [0, 5], [9, 8, 7, 6])]
    for slot in range(4):
        for name in ("picture_size", "frame_size"):
            masks.write(name, np.array(NETWORK_SIZE), slot)
    for lengths in ((5, 2), (1, 3), (2, 5), (5, 2)):
        for slot, length in enumerate(lengths):
            propose.write("frames", window(length), slot)
            propose.run(slot)
        for slot, queries in enumerate(chosen):
            masks.write("selected", queries, slot)
            masks.run(slot)
        for slot in range(2):  # which waits until the masks are made
            propose.write("frames", window(4), slot)
            propose.run(slot)
        found = [masks.fetch("masks", slot) for slot in range(4)]
        for slot, queries in enumerate(chosen):
            wanted = masks_by_onnx_runtime(windows, lengths[slot % 2], queries)
            np.testing.assert_array_equal(found[slot], wanted)


def masks_by_onnx_runtime(bundle, length, queries):
    propose, readers = open_windows(OnnxRuntime("cpu"), bundle, slots=1)
    propose.write("frames", window(length))
    propose.run()
    readers["masks"].write("selected", queries)
    readers["masks"].run()
    return readers["masks"].fetch("masks")


# streams


def test_the_next_frame_goes_over_the_bus_while_this_one_is_computed(use, sessions, built, driver):
    driver.schedule("late")  # only what is waited for runs
    session = sessions().open(built, "propose", "fp32", fetched=PROPOSE, slots=2)
    computed = []
    use.doubles[-1].edit = lambda stem, _outputs: computed.append(stem)
    frame = np.zeros((1, 60, 90, 3), np.uint8)
    session.write("frames", frame, slot=0)
    session.run(0)
    session.write("frames", frame, slot=1)
    session.input_view("frames", frame.shape, slot=1)  # waits for the copy before it
    assert computed == []
    session.fetch("queries", 0)
    assert computed == ["propose"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_upload_waits_for_the_run_that_reads_what_it_overwrites(
    propose, areas, driver, schedule
):
    """In one slot, three frames that the host gives before it fetches anything of them."""
    driver.schedule(schedule)
    for length in LENGTHS:
        propose.write("frames", window(length))
        propose.run()
        propose.write("frames", window(3))
        np.testing.assert_array_equal(propose.fetch("mask_area"), areas(window(length)))


def test_a_result_that_is_waited_for_goes_before_the_next_frame(sessions, built, driver):
    backend = sessions()
    streams = []
    for graph in ("propose", "classify", "masks"):
        backend.open(built, graph, "fp32")
        streams.append((driver.made("stream", priority=0), driver.made("stream", priority=-5)))
    assert streams == [(2, 0), (2, 2), (2, 4)]


@pytest.mark.parametrize(("cores", "blocking"), [(1, True), (4, True), (5, False)])
def test_the_host_sleeps_while_it_waits_where_it_has_few_cores(
    sessions, built, driver, monkeypatch, cores, blocking
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    sessions().open(built, "propose", "fp32")
    events = driver.made("event", flags=1), driver.made("event", flags=0)
    assert events == ((5, 0) if blocking else (0, 5))


# CUDA graphs of several sizes


def captures(driver):
    return driver.calls("cuStreamBeginCapture")


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt 10"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_length_of_a_window_has_a_graph_that_stays(sessions, windows, driver, kind, schedule):
    """A length that comes between changes nothing for the others, in any of the three graphs."""
    driver.schedule(schedule)
    propose, readers = open_windows(sessions(kind), windows)
    lengths = (5, 2, 3) * 4
    found, captured = [], []
    for length in lengths:
        propose.write("frames", window(length))
        propose.run()
        found.append(fetched(propose, readers, 0))
        captured.append(captures(driver))
        launched = driver.calls("cuGraphLaunch")
    same(found, by_onnx_runtime(windows, lengths))
    sessions_of_all = 1 + len(readers)
    first, second = [0] * 3, [sessions_of_all * n for n in (1, 2, 3)]
    assert captured == first + second + second[-1:] * 6
    assert launched == sessions_of_all * 9  # all but the first run of each length


def test_graphs_of_a_slot_are_of_that_slot(sessions, windows, driver):
    """A session of one slot reads other addresses where its source has two."""
    propose, readers = open_windows(sessions(), windows)
    lengths, found = (2, 5) * 4, []
    for number, length in enumerate(lengths):
        propose.write("frames", window(length), number % 2)
        propose.run(number % 2)
        found.append(fetched(propose, readers, number % 2))
    same(found, by_onnx_runtime(windows, lengths))
    assert captures(driver) == 2 * (1 + len(readers))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_size_that_was_not_used_for_long_makes_room(sessions, built, driver, schedule):
    """And the one that is used between keeps its graph."""
    driver.schedule(schedule)
    session = sessions().open(built, "text", "fp32", fetched=("embeddings",))
    theirs = OnnxRuntime("cpu").open(built, "text", "fp32", fetched=("embeddings",))
    counts = [1, 1, *(c for size in range(2, SIZES_A_SLOT + 3) for c in (size, size, 1))]
    for number, count in enumerate(counts):
        tokens = np.random.default_rng(number).integers(1, 400, (count, 77))
        tokens[:, -1] = 49407
        for one in (session, theirs):
            one.write("tokens", tokens)
            one.run()
        ours, wanted = (one.fetch("embeddings") for one in (session, theirs))
        np.testing.assert_array_equal(ours, wanted)
    sizes = len(set(counts))
    assert sizes > SIZES_A_SLOT
    assert captures(driver) == sizes
    assert driver.live()["executable"] == SIZES_A_SLOT
    before = captures(driver)
    for count in (1, 2, 2):  # the first was used all the time, the second long ago
        session.write("tokens", np.full((count, 77), 49407))
        session.run()
    assert captures(driver) == before + 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sizes_that_the_library_reads_on_the_host_have_graphs_too(
    sessions, windows, driver, schedule
):
    """Their values may be written anew while the device has not come to the run before."""
    driver.schedule(schedule)
    backends = sessions(), OnnxRuntime("cpu")
    logits = np.random.default_rng(1).standard_normal((10, 2, *NETWORK_SIZE)).astype(np.float32)
    found = []
    for backend in backends:
        masks = backend.open(windows, "masks", "fp32", fetched=("masks",))
        masks.write("mask_logits", logits)
        masks.write("selected", np.array([7, 2, 3]))
        masks.write("picture_size", np.array(NETWORK_SIZE))
        for height in (40, 60) * 4:
            masks.write("frame_size", np.array((height, 50)))
            masks.run()
            if backend is backends[0]:
                masks.write("frame_size", np.array((77, 88)))
            found.append(masks.fetch("masks"))
    assert captures(driver) == 2
    for ours, theirs in zip(found[:8], found[8:], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sizes_without_room_for_a_context_go_without_a_graph_of_their_own(
    sessions, built, driver, told
):
    session = sessions().open(built, "text", "fp32", fetched=("embeddings",))
    found = []
    for number, count in enumerate((3, 5, 3, 5, 5)):
        if number == 1:
            driver.fail_next("cuMemAlloc", "OUT_OF_MEMORY")
        session.write("tokens", np.full((count, 77), 49407))
        session.run()
        found.append(session.fetch("embeddings").shape[0])
    assert found == [3, 5, 3, 5, 5]
    assert captures(driver) == 1  # where one size came twice in turn
    assert [text for text in told if "no memory for more than" in text] == told
    assert len(told) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_input_is_read_before_the_session_that_owns_it_runs(sessions, windows, driver, schedule):
    driver.schedule(schedule)
    factory = sessions("tensorrt")
    propose, readers = open_windows(factory, windows)
    embed = factory.open(windows, "embed", "fp32", fetched=("image_embeddings",), slots=2)
    embed.bind("pictures", readers["classify"], "frames")  # which reads it from `propose`
    for number, length in enumerate(LENGTHS * 2):
        propose.write("frames", window(length), number % 2)
        embed.run(number % 2)
        propose.write("frames", window(3), 1 - number % 2)
        wanted = window(length).mean((1, 2))
        found = embed.fetch("image_embeddings", number % 2)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_window_that_is_not_read_yet_is_not_written_over(sessions, windows, driver):
    driver.schedule("late")
    factory = sessions("tensorrt")
    propose, readers = open_windows(factory, windows)
    for length, next_length in ((5, 2), (1, 5)):
        propose.write("frames", window(length))
        propose.run()
        for reader in readers.values():
            reader.run()
        propose.write("frames", window(next_length))
        propose.run()
        found = {n: readers[g].fetch(n) for g, names in READ.items() for n in names}
        (wanted,) = by_onnx_runtime(windows, [length])
        del wanted["mask_area"]
        same([found], [wanted])


def test_a_window_longer_than_the_profile_is_refused(sessions, windows):
    propose, _ = open_windows(sessions("tensorrt"), windows)
    text = r"(?s)'frames'.*up to \[5, 24, 32, 3\], got \[6, 24, 32, 3\].*openvis build"
    with pytest.raises(InputError, match=text):
        propose.write("frames", window(6))


def test_nothing_is_read_that_was_never_made(sessions, windows):
    propose, readers = open_windows(sessions("tensorrt"), windows)
    with pytest.raises(InputError, match="'frames' of graph 'propose' was never written"):
        readers["classify"].run(1)
    propose.write("frames", window(2), slot=1)
    for reader in readers.values():
        with pytest.raises(InputError, match="'propose' was never run, to read 'mask_logits'"):
            reader.run(1)
    propose.run(1)
    same([fetched(propose, readers, 1)], by_onnx_runtime(windows, [2]))
    with pytest.raises(InputError, match="never run"):  # that slot
        readers["masks"].run(0)


def test_one_axis_of_two_sizes_is_refused(sessions, windows):
    propose, readers = open_windows(sessions("tensorrt"), windows)
    propose.write("frames", window(5))
    propose.run()
    propose.write("frames", window(2))
    with pytest.raises(BackendError, match=r"(?s)fails to run in graph 'classify'.*must be equal"):
        readers["classify"].run()


@pytest.mark.parametrize(
    ("name", "output"),
    [("mask_logits", "mask_area"), ("frames", "mask_logits"), ("queries", "mask_area")],
    ids=["rank", "type", "dynamic"],
)
def test_windows_that_do_not_fit_together_are_not_bound(sessions, windows, name, output):
    propose, readers = open_windows(sessions("tensorrt"), windows)
    with pytest.raises(EngineError, match="build both anew"):
        readers["classify"].bind(name, propose, output)


# memory that the caller fills


def seen(session, slot=0):
    """What `propose` makes of its frames: the numbers of pixels above each level."""
    session.run(slot)
    return session.fetch("mask_area", slot)


@pytest.fixture
def areas(windows):
    """What `propose` gives for frames, by ONNX Runtime."""
    session = OnnxRuntime("cpu").open(windows, "propose", "fp32")

    def of(frames):
        session.write("frames", frames)
        session.run()
        return session.fetch("mask_area")

    return of


@pytest.fixture
def propose(sessions, windows):
    return sessions().open(windows, "propose", "fp32", fetched=("mask_area",), slots=2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_filled_is_what_the_next_run_reads(propose, areas, driver, schedule):
    driver.schedule(schedule)
    for length in LENGTHS:
        view = propose.input_view("frames", (length, *NETWORK_SIZE, 3))
        assert (view.dtype, view.shape) == (np.uint8, (length, *NETWORK_SIZE, 3))
        assert view.flags.c_contiguous
        view[...] = window(length)
        np.testing.assert_array_equal(seen(propose), areas(window(length)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_view_that_is_filled_twice_holds_the_last_frames(propose, areas, driver, schedule):
    driver.schedule(schedule)
    view = propose.input_view("frames", (3, *NETWORK_SIZE, 3))
    view[...] = window(3)
    view[...] = window(3)[::-1]
    np.testing.assert_array_equal(seen(propose), areas(window(3)[::-1]))
    propose.input_view("frames", (5, *NETWORK_SIZE, 3))[...] = window(5)
    propose.input_view("frames", (2, *NETWORK_SIZE, 3))[...] = window(2)
    np.testing.assert_array_equal(seen(propose), areas(window(2)))


def test_a_view_holds_what_was_in_it_until_it_is_filled(propose, areas):
    propose.write("frames", window(4))
    seen(propose)
    view = propose.input_view("frames", (4, *NETWORK_SIZE, 3))
    np.testing.assert_array_equal(view, window(4))
    view[1] = 255
    changed = window(4)
    changed[1] = 255
    np.testing.assert_array_equal(seen(propose), areas(changed))


def test_a_slot_that_was_not_filled_is_not_run(propose):
    propose.input_view("frames", (2, *NETWORK_SIZE, 3), slot=1)[...] = window(2)
    with pytest.raises(InputError, match="'frames' of graph 'propose' was never written"):
        propose.run(0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_slots_are_filled_apart(propose, areas, driver, schedule):
    """While the device may still copy and read what the other slot was given."""
    driver.schedule(schedule)
    for number in range(8):
        slot, length = number % 2, LENGTHS[number % 4]
        propose.input_view("frames", (length, *NETWORK_SIZE, 3), slot)[...] = window(length)
        propose.run(slot)
        if number:
            wanted = areas(window(LENGTHS[(number - 1) % 4]))
            np.testing.assert_array_equal(propose.fetch("mask_area", 1 - slot), wanted)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_another_input_that_is_written_leaves_a_view_alone(sessions, windows, driver, schedule):
    driver.schedule(schedule)
    classify = sessions().open(windows, "classify", "fp32", fetched=("brightness",))
    found = []
    for late in (False, True):
        view = classify.input_view("frames", (2, *NETWORK_SIZE, 3))
        view[...] = 0 if late else window(2)
        classify.write("mask_logits", np.ones((10, 2, *NETWORK_SIZE), np.float32))
        classify.write("queries", np.ones((10, NETWORK_SIZE[1]), np.float32))
        classify.write("text_embeddings", np.ones((3, NETWORK_SIZE[1]), np.float32))
        view[...] = window(2)
        classify.run()
        found.append(classify.fetch("brightness"))
    np.testing.assert_array_equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_who_is_bound_to_a_view_reads_what_is_filled(sessions, windows, driver, schedule):
    """Also where it runs before the session that owns the input, and while that one runs."""
    driver.schedule(schedule)
    backend = sessions()
    propose, _ = open_windows(backend, windows)
    embed = backend.open(windows, "embed", "fp32", fetched=("image_embeddings",))
    embed.bind("pictures", propose, "frames")
    for number, length in enumerate(LENGTHS * 2):
        slot = number % 2
        propose.input_view("frames", (length, *NETWORK_SIZE, 3), slot)[...] = window(length)
        if number % 3:
            propose.run(slot)
        embed.run(slot)
        propose.input_view("frames", (3, *NETWORK_SIZE, 3), slot)[...] = 77
        propose.run(slot)
        found = embed.fetch("image_embeddings", slot)
        np.testing.assert_allclose(found, window(length).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_buffer_for_both_slots_is_not_written_over_too_early(
    sessions, windows, driver, schedule
):
    """A source of one slot, whose reader has not come to the other slot's run yet."""
    driver.schedule(schedule)
    propose, readers = open_windows(sessions(), windows, slots=1)
    found = []
    for number, length in enumerate((5, 2, 3)):
        propose.write("frames", window(length))
        propose.run(number % 2)
        propose.write("frames", window(1))
        readers["masks"].run((number + 1) % 2)
        propose.run(number % 2)
        found.append({"masks": readers["masks"].fetch("masks")})
    wanted = [{"masks": w["masks"]} for w in by_onnx_runtime(windows, (5, 2, 3))]
    same(found, wanted)


def test_a_value_written_later_takes_the_place_of_what_was_bound(sessions, windows):
    propose, readers = open_windows(sessions(), windows)
    masks = readers["masks"]
    propose.write("frames", window(5))
    propose.run()
    masks.run()
    bound = masks.fetch("masks")
    masks.write("mask_logits", np.full((10, 2, *NETWORK_SIZE), -1, np.float32))
    masks.run()
    assert masks.fetch("masks").shape == (3, 2, 24, 4)
    assert not masks.fetch("masks").any()
    masks.bind("mask_logits", propose, "mask_logits")
    masks.run()
    np.testing.assert_array_equal(masks.fetch("masks"), bound)


def test_what_is_bound_anew_is_read_though_the_run_was_captured(sessions, built, driver):
    backend = sessions()
    sources = [backend.open(built, "propose", "fp32", fetched=PROPOSE) for _ in range(2)]
    for source, value in zip(sources, (10, 200), strict=True):
        source.write("frames", np.full((1, 60, 90, 3), value, np.uint8))
    reader = backend.open(built, "propose", "fp32", fetched=PROPOSE)
    found = []
    for source in sources:
        reader.bind("frames", source, "frames")
        for _ in range(3):
            reader.run()
        found.append(reader.fetch("queries"))
        source.run()
        np.testing.assert_array_equal(source.fetch("queries"), found[-1])
    assert driver.calls("cuStreamBeginCapture") == 2
    assert not np.array_equal(*found)


@pytest.mark.parametrize("name", ["picture_size", "frame_size"])
def test_sizes_have_no_view(sessions, windows, name):
    masks = sessions().open(windows, "masks", "fp32")
    with pytest.raises(InputError, match=f"'{name}'.*holds sizes.*write"):
        masks.input_view(name, (2,))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 24, 33, 3), r"takes uint8 \['T', 24, 32, 3\], got \[2, 24, 33, 3\]"),
        ((6, 24, 32, 3), r"up to \[5, 24, 32, 3\], got \[6, 24, 32, 3\].*openvis build"),
        ((24, 32, 3), "takes uint8"),
    ],
)
def test_a_view_of_another_shape_is_refused(propose, areas, shape, text):
    propose.write("frames", window(2))
    with pytest.raises(InputError, match=f"(?s){text}"):
        propose.input_view("frames", shape)
    np.testing.assert_array_equal(seen(propose), areas(window(2)))  # as it was


def test_a_session_that_is_closed_hands_out_no_memory(sessions, windows):
    propose, readers = open_windows(sessions(), windows)
    propose.write("frames", window(2))
    propose.run()
    propose.close()
    for call in (
        lambda: propose.input_view("frames", (2, *NETWORK_SIZE, 3)),
        lambda: propose.write("frames", window(2)),
        lambda: propose.fetch("mask_area"),
        readers["masks"].run,  # which is bound to it
    ):
        with pytest.raises(InputError, match="'propose' is closed"):
            call()
