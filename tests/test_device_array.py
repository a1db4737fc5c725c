"""Arrays in a device's memory behave as numpy's where they are used alike, and never outlive or outgrow it."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeblt.runtime.state.device_array import DeviceArray, empty, zeros
from host_memory import HostMemory

TYPES = st.sampled_from([np.float16, np.float32, np.int64, np.bool_])


def filled(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    count = int(np.prod(shape))
    return (np.arange(count) % 251).reshape(shape).astype(dtype)


@st.composite
def parts(draw: st.DrawFn, size: int) -> slice:
    start = draw(st.integers(0, size))
    return slice(start, draw(st.integers(start, size)))


@given(st.data(), TYPES, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)))
def test_parts_are_copied_as_numpys(data: st.DataObject, dtype: type, sizes: tuple[int, int, int]) -> None:
    """A cache's shape, cut along its slots: from the host, within the array where it overlaps itself, and back."""
    heads, slots, width = sizes
    memory, shape = HostMemory(), (1, heads, slots, width)
    host = filled(shape, dtype)
    array = empty(shape, dtype, memory)
    array[:] = host
    np.testing.assert_array_equal(array.numpy(), host)

    source = data.draw(parts(slots))
    count = source.stop - source.start
    start = data.draw(st.integers(0, slots - count))
    target = slice(start, start + count)
    everything = slice(None)
    array[everything, everything, target] = array[everything, everything, source]
    host[:, :, target] = host[:, :, source].copy()
    np.testing.assert_array_equal(array.numpy(), host)

    part = array[everything, everything, source]
    assert (part.shape, part.size, part.nbytes) == (
        host[:, :, source].shape,
        host[:, :, source].size,
        host[:, :, source].nbytes,
    )
    np.testing.assert_array_equal(part.numpy(), host[:, :, source])
    np.testing.assert_array_equal(part.copy().numpy(), host[:, :, source])

    larger = zeros((1, heads, 2 * slots, width), dtype, memory)
    larger[everything, everything, :slots] = array
    np.testing.assert_array_equal(larger.numpy()[:, :, :slots], host)
    assert not larger.numpy()[:, :, slots:].any()


@given(st.data(), TYPES, st.integers(1, 9), st.integers(1, 5))
def test_rows_are_views(data: st.DataObject, dtype: type, count: int, width: int) -> None:
    memory = HostMemory()
    host = filled((count, width), dtype)
    array = empty((count, width), dtype, memory)
    array[:] = host
    rows = data.draw(parts(count))
    view = array[rows]
    assert len(view) == len(host[rows]) and view.is_contiguous
    assert view.address == array.address + rows.start * width * host.itemsize
    inner = data.draw(parts(len(view)))
    view[inner] = 0
    host[rows][inner] = 0
    np.testing.assert_array_equal(array.numpy(), host)
    view[inner] = np.ones((inner.stop - inner.start, width), np.int64)  # converted to the array's type
    host[rows][inner] = 1
    np.testing.assert_array_equal(array.numpy(), host)


def test_memory_lives_while_any_part_does() -> None:
    memory = HostMemory()
    array = zeros((4, 3), np.float32, memory)
    view = array[1:3]
    other = array.copy()
    assert memory.allocated == 2
    del array, other
    gc.collect()
    assert memory.allocated == 1 and not view.numpy().any()
    del view
    gc.collect()
    assert memory.allocated == 0


def test_what_does_not_fit_is_refused() -> None:
    array = zeros((4, 3), np.float32, HostMemory())
    with pytest.raises(AssertionError):
        array[:2] = array[:3]
    with pytest.raises(AssertionError):
        array[:] = np.zeros((4, 2), np.float32)
    with pytest.raises(AssertionError):
        array[:] = zeros((4, 3), np.float16, HostMemory())


def test_an_array_on_the_host_is_numpys() -> None:
    assert isinstance(zeros((2,), np.float32, None), np.ndarray) and isinstance(
        empty((2,), np.float16, None), np.ndarray
    )
    assert isinstance(zeros((2,), np.float32, HostMemory()), DeviceArray)
