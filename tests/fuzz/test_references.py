"""PyTorch's answers in a bundle, by a stranger: what is read of them can be computed with."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from borders import few, survives
from hypothesis import given
from hypothesis import strategies as st
from sealing import replaced
from strange import changed, damaged

from openvis_rt.bundle.bundle import MANIFEST, Bundle
from openvis_rt.bundle.recorded import ARRAYS, RECORD, frame_name
from openvis_rt.verify.reference import RESULTS, read_reference
from openvis_rt.verify.stages import check_host

DTYPES = ["<f2", "<f4", "<f8", ">f4", "<i8", "u1", "?", "<U3", "<c8", "<M8[s]"]
NUMBERS = [np.nan, np.inf, -np.inf, -1, 0, 1, 20, 1e9, 3e38]


@pytest.fixture(scope="session")
def recorded(tiny_bundle, tmp_path_factory) -> Path:
    """A tiny bundle with PyTorch's answers in it."""
    from tiny import tiny_model

    from openvis_rt.verify.torch_recording import add_reference

    path = tmp_path_factory.mktemp("recorded") / "bundle"
    shutil.copytree(tiny_bundle, path, copy_function=os.link)
    add_reference(Bundle.open(path), tiny_model())
    return path


@pytest.fixture
def use(recorded, tmp_path):
    """What `openvis verify` does with one other file, but for the graphs themselves."""
    path = tmp_path / "bundle"
    shutil.copytree(recorded, path, copy_function=os.link)

    def verify(name: str, data: bytes) -> None:
        (path / MANIFEST).unlink()
        shutil.copyfile(recorded / MANIFEST, path / MANIFEST)
        replaced(path, name, data)
        try:
            bundle = Bundle.open(path, verify=False)
            reference = read_reference(bundle)
            list(check_host(bundle, reference))
            for call in reference.record.calls:
                reference.inputs(call)
                for value in (*call.outputs.values(), *([call.masks] if call.masks else [])):
                    reference.value(value)
        finally:
            (path / name).unlink()
            os.link(recorded / name, path / name)

    return verify


@pytest.fixture(scope="session")
def arrays(recorded) -> dict[str, np.ndarray]:
    with np.load(recorded / ARRAYS) as file:
        return dict(file)


@given(data=st.data())
def test_a_record_with_strange_values(recorded, use, data):
    value = data.draw(changed(json.loads((recorded / RECORD).read_text())))
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    survives(lambda: use(RECORD, text))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that no model gives
@few(60)
@given(data=st.data())
def test_arrays_of_other_types_shapes_and_numbers(arrays, use, data):
    made = dict(arrays)
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(arrays)))
        made[key] = _other(data, made.get(key, arrays[key]))
        if data.draw(st.integers(0, 9)) == 0:
            made[data.draw(st.sampled_from([f"{key}x", "output/x", "output/a/b"]))] = made.pop(key)
    buffer = io.BytesIO()
    # its stub takes allow_pickle for one of the names
    np.savez(buffer, **made)  # type: ignore[arg-type]
    survives(lambda: use(ARRAYS, buffer.getvalue()))


def _other(data: st.DataObject, array: np.ndarray) -> np.ndarray:
    how = data.draw(st.sampled_from(["number", "numbers", "dtype", "shape"]))
    with np.errstate(all="ignore"):
        if how == "dtype":
            to = data.draw(st.sampled_from(DTYPES))
            return array.astype("i8" if "M" in to else array.dtype).astype(to)
        if how == "shape":
            shape = data.draw(st.lists(st.integers(0, 30), max_size=4))
            return np.resize(array, shape)
        number = np.array(data.draw(st.sampled_from(NUMBERS))).astype(array.dtype)
        if how == "numbers" or not array.size:
            return np.full_like(array, number)
        out = array.copy()
        out.flat[data.draw(st.integers(0, array.size - 1))] = number
        return out


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(data=st.data())
def test_files_with_changed_bytes(recorded, use, data):
    name = data.draw(st.sampled_from([ARRAYS, RECORD, RESULTS, frame_name(2)]))
    made = damaged(data, (recorded / name).read_bytes())
    survives(lambda: use(name, made))
