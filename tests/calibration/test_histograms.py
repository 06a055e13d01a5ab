"""Collecting over pictures: the same result however the work is cut, and nothing that goes wrong is passed over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.calibration.histograms import Counter, collect
from edge.errors import DataError, ModelError
from edge.quantization.statistics import Statistics

NAMES = ["input", "double", "shifted", "few"]
PICTURES = [f"{i:02d}.jpg" for i in range(11)]


def load(index: int) -> np.ndarray:
    """Picture ``index``: later ones are larger, so that the histograms have to grow now and then."""
    rng = np.random.default_rng(index)
    return (rng.normal(size=(3, 5, 4)) * 1.7**index).astype(np.float32)


def network(batch: np.ndarray) -> list[np.ndarray]:
    return [batch, batch * 2, batch.transpose(0, 2, 3, 1) - np.float32(3), batch[:, 0, 0, 0]]


def run(**options: object) -> Statistics:
    found = collect(PICTURES, load, network, NAMES, **{"with_histogram": True, **options})  # type: ignore[arg-type]
    assert found is not None
    return found


EXPECTED = run()


# the same result


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
@pytest.mark.parametrize("batch", [1, 2, 4, 11, 50])
@pytest.mark.parametrize("with_histogram", [True, False], ids=["histogram", "ranges"])
def test_batch_size_and_threads_do_not_matter(batch: int, threads: int, with_histogram: bool) -> None:
    found = run(batch=batch, threads=threads, with_histogram=with_histogram)
    assert found.to_bytes() == (EXPECTED if with_histogram else run(with_histogram=False)).to_bytes()
    assert found.pictures == 11


@given(st.permutations(range(11)), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20)
def test_the_order_does_not_matter(order: list[int], batch: int, threads: int) -> None:
    found = collect(
        [PICTURES[i] for i in order], lambda i: load(order[i]), network, NAMES, with_histogram=True, batch=batch,
        threads=threads,
    )  # fmt: skip
    assert found is not None
    assert found.to_bytes() == EXPECTED.to_bytes()


@pytest.mark.parametrize("cut", [1, 5, 10])
def test_shards_add_up(cut: int) -> None:
    one = collect(PICTURES[:cut], load, network, NAMES, with_histogram=True)
    two = collect(PICTURES[cut:], lambda i: load(cut + i), network, NAMES, with_histogram=True)
    assert one is not None
    assert two is not None
    two.merge(one)
    assert two.to_bytes() == EXPECTED.to_bytes()


def test_what_is_counted_is_what_the_network_gave() -> None:
    everything = [network(load(i)[None]) for i in range(11)]
    for at, name in enumerate(NAMES):
        values = np.concatenate([outputs[at].ravel() for outputs in everything])
        tensor = EXPECTED.tensors[name]
        assert (tensor.low, tensor.high, tensor.count) == (values.min(), values.max(), values.size)
        assert tensor.counts is not None
        assert tensor.counts.sum() == values.size


def test_the_last_batch_is_shorter_and_not_padded() -> None:
    sizes = []

    def noting(batch: np.ndarray) -> list[np.ndarray]:
        sizes.append(len(batch))
        return network(batch)

    assert collect(PICTURES, load, noting, NAMES, with_histogram=False, batch=4) is not None
    assert sizes == [4, 4, 3]


def test_empty_outputs_are_no_values() -> None:
    counter = Counter(["a", "b"], with_histogram=True)
    counter.add([np.empty((1, 0), np.float32), np.float32([1])], pictures=1, what="")
    assert (counter.statistics.tensors["a"].count, counter.statistics.tensors["b"].count) == (0, 1)


# values that are none


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("with_histogram", [True, False], ids=["histogram", "ranges"])
@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_value_that_is_no_number_names_tensor_and_picture(value: float, with_histogram: bool, at: int) -> None:
    def overflowing(batch: np.ndarray) -> list[np.ndarray]:
        outputs = [output.copy() for output in network(batch)]
        if np.array_equal(batch[0], load(6)):
            outputs[2].reshape(-1)[at] = value
        return outputs

    with pytest.raises(ModelError) as caught:
        collect(PICTURES, load, overflowing, NAMES, with_histogram=with_histogram, threads=2)
    assert caught.value.what == "tensor 'shifted' contains NaN or infinity for 06.jpg"
    assert caught.value.hint is not None


def test_a_value_that_is_no_number_in_a_batch_names_its_first_and_last_picture() -> None:
    def overflowing(batch: np.ndarray) -> list[np.ndarray]:
        return [output * np.float32(np.nan if np.array_equal(batch[-1], load(7)) else 1) for output in network(batch)]

    with pytest.raises(ModelError, match=r"tensor 'input' contains NaN or infinity for 04\.jpg … 07\.jpg"):
        collect(PICTURES, load, overflowing, NAMES, with_histogram=True, batch=4)


def test_the_largest_floats_are_numbers() -> None:
    counter = Counter(["x"], with_histogram=True)
    counter.add([np.array([np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)], pictures=1, what="")
    tensor = counter.statistics.tensors["x"]
    assert (tensor.exponent, tensor.count) == (128, 2)


# what goes wrong


def test_no_pictures() -> None:
    with pytest.raises(DataError, match="no images to calibrate with"):
        collect([], load, network, NAMES, with_histogram=True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [0, 5, 10])
@pytest.mark.parametrize("exception", [DataError("cut off", where="05.jpg"), KeyboardInterrupt(), MemoryError()],
                         ids=lambda exc: type(exc).__name__)  # fmt: skip
def test_a_picture_that_cannot_be_read_ends_it(exception: BaseException, bad: int, threads: int) -> None:
    """Never a table of fewer pictures than were asked for."""

    def failing(index: int) -> np.ndarray:
        if index == bad:
            raise exception
        return load(index)

    with pytest.raises(type(exception)) as caught:
        collect(PICTURES, failing, network, NAMES, with_histogram=True, threads=threads)
    assert caught.value is exception


def test_the_other_threads_stop_soon_after_a_failure() -> None:
    done = []
    guard = threading.Lock()

    def failing(index: int) -> np.ndarray:
        if index == 0:
            raise DataError("bad")
        time.sleep(0.01)
        with guard:
            done.append(index)
        return load(1)

    names = [str(i) for i in range(500)]
    with pytest.raises(DataError):
        collect(names, failing, network, NAMES, with_histogram=False, threads=3)
    # All would take two seconds: the thread that fails may stand still for most of them.
    assert len(done) < 400


@pytest.mark.parametrize("change", [lambda outputs: outputs[:-1], lambda outputs: [*outputs, outputs[0]]],
                         ids=["too-few", "too-many"])  # fmt: skip
def test_outputs_that_are_not_the_named_ones_are_a_mistake(change: Callable[[list[np.ndarray]], object]) -> None:
    def wrong(batch: np.ndarray) -> Sequence[np.ndarray]:
        return change(network(batch))  # type: ignore[return-value]

    with pytest.raises(ValueError, match="zip"):
        collect(PICTURES, load, wrong, NAMES, with_histogram=True)


# stopping, and saying how far it is


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 6])
def test_stopping_gives_nothing_rather_than_less(after: int, threads: int) -> None:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more

    stopped = collect(
        PICTURES, load, network, NAMES, with_histogram=True, threads=threads, advance=advance,
        should_stop=lambda: done >= after,
    )  # fmt: skip
    assert stopped is None
    assert after <= done <= after + threads


def test_stopping_after_the_last_picture_keeps_the_result() -> None:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more

    found = collect(
        PICTURES, load, network, NAMES, with_histogram=True, advance=advance, should_stop=lambda: done >= len(PICTURES)
    )
    assert found is not None
    assert found.to_bytes() == EXPECTED.to_bytes()


@pytest.mark.parametrize(("batch", "threads", "steps"), [(1, 1, [1] * 11), (4, 1, [4, 4, 3]), (11, 4, [11])])
def test_advance_hears_of_every_picture_once(batch: int, threads: int, steps: list[int]) -> None:
    heard: list[int] = []
    run(batch=batch, threads=threads, advance=heard.append)
    assert heard == steps


def test_advance_is_never_called_twice_at_once() -> None:
    """A progress bar is not made for it."""
    inside, most = [0], [0]

    def advance(_more: int) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)
        inside[0] -= 1

    run(threads=4, advance=advance)
    assert most == [1]


def test_no_more_threads_than_batches() -> None:
    seen = set()

    def noting(batch: np.ndarray) -> list[np.ndarray]:
        seen.add(threading.current_thread().name)
        time.sleep(0.005)
        return network(batch)

    collect(PICTURES[:2], load, noting, NAMES, with_histogram=False, threads=8)
    assert len(seen) <= 2
    assert all(name.startswith("calibrate") for name in seen)
