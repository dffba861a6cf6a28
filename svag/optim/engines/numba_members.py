"""Whether an optimizer's groups and states still hold the same objects, in compiled code.

Comparing the identities of a thousand objects from Python takes as long as a step with them does.
"""

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from svag.compiled import foreign, machine_code
from svag.compiled.foreign import ask, pick, walk
from svag.compiled.machine_code import pointer

LISTS: Final = np.dtype(
    [
        ("count", np.int64),
        ("list_table", np.int64),
        ("first_table", np.int64),  # where each one's items begin
        ("item_table", np.int64),  # and, behind them, keys and values of the dictionary
        ("dictionary", np.int64),
        ("entries", np.int64),
        ("same", np.int64),  # set to 1 if all is as it was
        ("size_of", np.int64),  # functions
        ("item_of", np.int64),
        ("next_item", np.int64),
        ("position", np.int64),  # what functions write to
        ("key", np.int64),
        ("value", np.int64),
    ]
)


_POSITION: Final = LISTS.fields["position"][1]  # type: ignore[index]


def compare_members(job_address):
    """Go through lists and a dictionary, and compare what they hold with what they held."""
    job = carray(pointer(job_address), 1, LISTS)[0]
    lists = carray(pointer(job.list_table), job.count, np.int64)
    firsts = carray(pointer(job.first_table), job.count + 1, np.int64)
    items = carray(pointer(job.item_table), firsts[job.count] + 2 * job.entries, np.int64)
    position = job_address + _POSITION
    job.same, job.position = 0, 0
    for i in range(job.count):
        size = ask(job.size_of, lists[i])
        if size != firsts[i + 1] - firsts[i]:
            return
        for n in range(size):
            if pick(job.item_of, lists[i], n) != items[firsts[i] + n]:
                return
    seen = firsts[job.count]
    while walk(job.next_item, job.dictionary, position, position + 8, position + 16) != 0:
        if seen >= len(items) or job.key != items[seen] or job.value != items[seen + 1]:
            return
        seen += 2
    job.same = seen == len(items)


class Members:
    """Which parameters an optimizer has, and which states.

    Args:
        lists: of parameters.
        states: by parameter.
    """

    def __init__(
        self, lists: Sequence[Sequence[Tensor]], states: dict[Tensor, dict[str, Any]]
    ) -> None:
        entries = itertools.chain.from_iterable(states.items())
        held = [*itertools.chain.from_iterable(lists), *entries]
        self._held = lists, states, held
        self._tables = {
            "list_table": np.array(list(map(id, lists)), np.int64),
            "first_table": np.array([0, *itertools.accumulate(map(len, lists))], np.int64),
            "item_table": np.array(list(map(id, held)), np.int64),
        }
        self._job = np.zeros(1, LISTS)
        for name, table in self._tables.items():
            self._job[name] = table.ctypes.data
        self._job["count"], self._job["entries"] = len(lists), len(states)
        self._job["dictionary"] = id(states)
        self._job["next_item"] = foreign.address_of(ctypes.pythonapi.PyDict_Next)
        self._job["size_of"] = foreign.address_of(ctypes.pythonapi.PyList_Size)
        self._job["item_of"] = foreign.address_of(ctypes.pythonapi.PyList_GetItem)
        self._address, self._words = self._job.ctypes.data, machine_code.Words(self._job)
        self._compare = machine_code.holding_gil(compare_members, sources=(foreign,))

    def are_the_same(self) -> bool:
        """Whether the lists and the dictionary still hold the same objects."""
        self._compare(self._address)
        return self._words["same"] != 0
