"""Which thread updates which elements."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svag.optim.engines.work_partition import partition

LARGEST = 131072  # elements that a thread takes at once


@given(
    sizes=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 400_000)), min_size=1, max_size=8),
    threads=st.integers(1, 64),
)
def test_every_element_is_in_one_chunk(sizes, threads):
    chunks, portions, ranges = partition(sizes, threads)
    ends = dict.fromkeys((n for n, size in enumerate(sizes) if size), 0)
    for chunk in chunks:
        assert chunk["begin"] == ends[chunk["tensor"]] < chunk["end"]
        ends[chunk["tensor"]] = chunk["end"]
    assert ends == {n: size for n, size in enumerate(sizes) if size}
    assert chunks["tensor"].tolist() == sorted(chunks["tensor"])
    for outer, inner in ((portions, chunks), (ranges, portions)):
        assert outer["begin"].tolist() == [0, *outer["end"]][: len(outer)]
        assert [0, *outer["end"]][-1] == len(inner)
        assert (outer["begin"] < outer["end"]).all()
    assert len(ranges) <= threads
    assert (chunks["begin"] % 64 == 0).all()


def test_every_thread_has_a_range_of_the_same_size_in_one_piece():
    chunks, portions, ranges = partition([3_000_000, 40, 2_000_000, 10_000], 4)
    for taken in ranges:
        first, last = portions["begin"][taken["begin"]], portions["end"][taken["end"] - 1]
        elements = (chunks["end"] - chunks["begin"])[first:last].sum()
        assert elements == pytest.approx(5_010_040 / 4, abs=64)


@pytest.mark.parametrize("late", [0.0, 0.1, 0.5])
def test_threads_end_together_though_one_begins_late(late):
    chunks, portions, ranges = partition([3_000_000, 40, 2_000_000, 10_000], 4)
    elements = chunks["end"] - chunks["begin"]
    total = elements.sum()
    left = [list(range(taken["begin"], taken["end"])) for taken in ranges]
    clocks = [(late * total / 4 if thread == 0 else 0.0, thread) for thread in range(4)]
    ended = []
    while clocks:
        clock, thread = heapq.heappop(clocks)
        own = next((left[(thread + n) % 4] for n in range(4) if left[(thread + n) % 4]), None)
        if own is None:
            ended.append(clock)
        else:
            portion = portions[own.pop(0)]
            time = elements[portion["begin"] : portion["end"]].sum()
            heapq.heappush(clocks, (clock + time, thread))
    assert max(ended) - min(ended) <= LARGEST / 3
    assert max(ended) <= total / 4 * (1 + late / 4) + LARGEST / 3
