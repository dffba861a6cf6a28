"""A look at where tensors lie, in compiled code.

Asking each of a thousand tensors from Python where it is takes longer than updating them does. So
one call of compiled code reads it from memory, as :mod:`svag.compiled.tensors` says. What it finds
is tried on a few tensors when this module is first asked for. Where anything is otherwise,
:func:`available` says no, and Python looks.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from svag.compiled import foreign, machine_code, threads
from svag.compiled import tensors as memory
from svag.compiled.foreign import ask, have_done, tell, test, walk, write
from svag.compiled.machine_code import Address, compiled, fetch, pointer, take
from svag.compiled.tensors import TYPE

TENSOR: Final = np.dtype(
    [
        ("object", np.int64),  # of Python; 0 for a gradient, which is found at its parameter
        ("elements", np.int64),  # the address of the first
        ("layout", np.uint64),  # a digest of dtype, sizes, strides and lazy negation
    ]
)

ITEM: Final = np.dtype([("key", np.int64), ("value", np.int64)])
"""Of a dictionary, objects of Python."""

JOB: Final = np.dtype(
    [
        ("params", np.int64),  # the first of the tensors, and a gradient for each at the end
        ("tensors", np.int64),  # without gradients
        ("tensor_table", np.int64),
        ("counted", np.int64),  # tensors whose changes are counted
        ("counted_table", np.int64),
        ("state_table", np.int64),  # a dictionary for each parameter
        ("item_table", np.int64),  # what they hold, in their order
        ("first_table", np.int64),  # where each dictionary's items begin
        ("recording", np.int64),  # 1 to write down what is seen, 0 to compare
        ("moved", np.int64),  # set to 1 if a gradient is elsewhere
        ("changed", np.int64),  # set to 1 if anything else is otherwise
        ("threads", np.int64),
        ("begun", np.int64),  # how many threads have
        ("glance", np.int64),  # what each thread does
        ("parallel", np.int64),  # what has them do it
        ("offset", np.int64),  # of the C++ tensor in a Python one
        ("storage", np.int64),  # offset of the storage's address in a C++ tensor
        ("slot", np.int64),  # offset of the Python tensor's address there
        ("tensor_type", np.int64),
        ("parameter_type", np.int64),
        ("undefined", np.int64),  # the C++ tensor that stands for none
        ("gradient", np.int64),  # functions, from here on
        ("data", np.int64),
        ("arrangement", np.int64),
        ("dimensions", np.int64),
        ("sizes", np.int64),
        ("strides", np.int64),
        ("dtype", np.int64),
        ("is_negative", np.int64),
        ("is_conjugate", np.int64),
        ("is_inference", np.int64),
        ("count_change", np.int64),
        ("next_item", np.int64),
        ("answers", np.int64),  # a row of ANSWERS for each thread
    ]
)

ANSWERS: Final = np.dtype(
    {
        "names": ["position", "key", "value", "answer"],
        "formats": [np.int64] * 4,
        "itemsize": 128,  # two cache lines, which processors fetch together
    }
)
"""What functions write to."""

_WORTH_A_THREAD: Final = 48  # parameters, measured with cold caches


@compiled
def _word(address):
    return carray(pointer(address), 1, np.int64)[0]


@compiled
def _digest(so_far, number):
    """Take one more number into a digest (Fowler, Noll and Vo's, by words)."""
    mixed = np.uint64(np.uint64(so_far ^ np.uint64(number)) * np.uint64(0x100000001B3))
    return np.uint64(mixed ^ np.uint64(mixed >> np.uint64(29)))


@compiled
def _layout(job, tensor, answer):
    """Return a digest of all but the place of a C++ tensor; 0 if it cannot be asked."""
    # A sparse tensor has no strides: before 2.13 torch prints its stack when asked for them.
    if write(job.arrangement, tensor, answer) != 0 or carray(pointer(answer), 1, np.int32)[0] != 0:
        return np.uint64(0)
    if write(job.dimensions, tensor, answer) != 0:
        return np.uint64(0)
    dimensions = _word(answer)
    digest = _digest(np.uint64(0xCBF29CE484222325), dimensions)
    for function in (job.sizes, job.strides):
        if write(function, tensor, answer) != 0:
            return np.uint64(0)
        numbers = carray(pointer(_word(answer)), dimensions, np.int64)
        for i in range(dimensions):
            digest = _digest(digest, numbers[i])
    if write(job.dtype, tensor, answer) != 0:
        return np.uint64(0)
    digest = _digest(digest, carray(pointer(answer), 1, np.int32)[0])
    for function in (job.is_negative, job.is_conjugate, job.is_inference):
        digest = _digest(digest, np.int64(test(function, tensor) & 1))
    return digest


@compiled
def _is_plain(job, tensor):
    """Whether nothing but PyTorch answers for a C++ tensor.

    One of a class of its own may ask Python. A gradient that Python has not seen has no object.
    """
    python = _word(_word(tensor) + job.slot) & ~7  # the last bits are PyTorch's
    kind = _word(python + TYPE) if python != 0 else job.tensor_type
    return kind == job.tensor_type or kind == job.parameter_type


@compiled
def _fetch_share(job, states, tensors, begin, end):
    """Begin to read what will be looked at, so that its cache misses are waited for together."""
    for i in range(begin, end):
        fetch(states[i])
        for place in range(i, job.tensors, job.params):
            fetch(tensors[place].object)
    for i in range(begin, end):
        for place in range(i, job.tensors, job.params):
            tensor = _word(tensors[place].object + job.offset)
            for line in range(4):
                fetch(tensor + 64 * line)
    for i in range(begin, end):
        tensor = _word(ask(job.gradient, _word(tensors[i].object + job.offset)))
        for line in range(4):
            fetch(tensor + 64 * line)
        for place in range(i, job.tensors, job.params):
            fetch(_word(_word(tensors[place].object + job.offset) + job.storage))
    for i in range(begin, end):
        tensor = _word(ask(job.gradient, _word(tensors[i].object + job.offset)))
        fetch(_word(tensor + job.storage))


@compiled
def _is_as_it_was(job, tensor, place, answer):
    """Look at the C++ tensor to which a pointer points, which stands in some row of the table."""
    tensors = carray(pointer(job.tensor_table), job.tensors + job.params, TENSOR)
    if not _is_plain(job, tensor):
        return False
    layout = _layout(job, tensor, answer)
    if layout == 0 or write(job.data, tensor, answer) != 0:
        return False
    elements = _word(answer)
    if job.recording != 0:
        tensors[place].layout, tensors[place].elements = layout, elements
    elif tensors[place].layout != layout:
        return False
    elif tensors[place].elements != elements:
        if place < job.tensors or elements == 0:  # a gradient that lies nowhere
            return False
        tensors[place].elements, job.moved = elements, 1
    return True


@compiled
def _share_is_as_it_was(job, begin, end, scratch):
    """Look at some parameters: at their states, then at their tensors, then at their gradients."""
    states = carray(pointer(job.state_table), job.params, np.int64)
    firsts = carray(pointer(job.first_table), job.params + 1, np.int64)
    items = carray(pointer(job.item_table), firsts[job.params], ITEM)
    tensors = carray(pointer(job.tensor_table), job.tensors + job.params, TENSOR)
    found = carray(pointer(scratch), 1, ANSWERS)[0]
    key, value, answer = scratch + _KEY, scratch + _VALUE, scratch + _ANSWER
    _fetch_share(job, states, tensors, begin, end)
    for i in range(begin, end):
        seen, found.position = firsts[i], 0
        while walk(job.next_item, states[i], scratch, key, value) != 0:
            if seen >= firsts[i + 1]:
                return False
            if found.key != items[seen].key or found.value != items[seen].value:
                return False
            seen += 1
        if seen != firsts[i + 1]:
            return False
    for i in range(begin, end):
        for place in range(i, job.tensors, job.params):
            if not _is_as_it_was(job, tensors[place].object + job.offset, place, answer):
                return False
    for i in range(begin, end):
        gradient = ask(job.gradient, _word(tensors[i].object + job.offset))
        if _word(gradient) == job.undefined:
            return False
        if not _is_as_it_was(job, gradient, job.tensors + i, answer):
            return False
    return True


_BEGUN: Final = JOB.fields["begun"][1]  # type: ignore[index]
_KEY, _VALUE, _ANSWER = 8, 16, 24
_ANSWER_BYTES: Final = ANSWERS.itemsize


def glance(job_address):
    """Look at shares of the parameters until all have been taken."""
    job = carray(pointer(job_address), 1, JOB)[0]
    while True:
        share = take(pointer(job_address + _BEGUN))
        if share >= job.threads:
            break
        begin = share * job.params // job.threads
        end = (share + 1) * job.params // job.threads
        if not _share_is_as_it_was(job, begin, end, job.answers + share * _ANSWER_BYTES):
            job.changed = 1


def look(job_address):
    """Have threads look at all parameters."""
    job = carray(pointer(job_address), 1, JOB)[0]
    job.moved = job.changed = job.begun = 0
    if job.threads > 1:
        have_done(job.parallel, job.glance, job_address, job.threads, np.int64(0))
    else:
        tell(job.glance, job_address)


def count_changes(job_address):
    """Raise the version that autograd compares of every parameter and average."""
    job = carray(pointer(job_address), 1, JOB)[0]
    counted = carray(pointer(job.counted_table), job.counted, np.int64)
    for i in range(job.counted):
        tell(job.count_change, counted[i] + job.offset)


class Watch:
    """Where the tensors of some parameters lie.

    Args:
        params: plain tensors with gradients.
        states: what their optimizer keeps of each.
        names: the tensors of a state that are updated.

    Attributes:
        places: addresses by column of :data:`~svag.optim.engines.kernel.ADDRESSES`.
    """

    is_compiled = True

    def __init__(
        self, params: Sequence[Tensor], states: Sequence[dict[str, Any]], names: Sequence[str]
    ) -> None:
        columns = [params, *([state[name] for state in states] for name in names)]
        tensors = [tensor for column in columns for tensor in column]
        items = [item for state in states for item in state.items()]
        firsts = [0, *itertools.accumulate(map(len, states))]
        parallel = foreign.address_of(threads.parallel())
        self._shares = max(1, len(params) // _WORTH_A_THREAD) if parallel else 1
        # Nothing else can come to lie where these are while they are held.
        self._held = tensors, states, items
        self._tensors = np.zeros(len(tensors) + len(params), TENSOR)
        self._tensors["object"][: len(tensors)] = list(map(id, tensors))
        tables = {
            "tensor_table": self._tensors,
            # Inference tensors have no version.
            "counted_table": np.array([id(t) for t in tensors if not t.is_inference()], np.int64),
            "state_table": np.array(list(map(id, states)), np.int64),
            "item_table": np.array([(id(key), id(value)) for key, value in items], ITEM),
            "first_table": np.array(firsts, np.int64),
            "answers": np.zeros(self._shares, ANSWERS),
        }
        self._tables = tables
        self._job = np.zeros(1, JOB)
        for name, number in memory.reading().items():
            self._job[name] = number
        self._job["parallel"] = parallel
        self._job["glance"] = _glance()
        for name, table in tables.items():
            self._job[name] = table.ctypes.data
        self._job["params"], self._job["tensors"] = len(params), len(tensors)
        self._job["counted"] = len(tables["counted_table"])
        self._address, self._words = self._job.ctypes.data, machine_code.Words(self._job)
        self._look = machine_code.holding_gil(look, sources=(foreign,))
        self._count_changes = machine_code.holding_gil(count_changes, sources=(foreign,))
        self._job["recording"] = 1
        if self._changed():
            raise AssertionError("a tensor has no address, though an engine was chosen for it")
        self._job["recording"] = 0
        elements = self._tensors["elements"].reshape(-1, len(params))
        self.places = dict(zip(("param", *names, "grad"), elements, strict=True))

    def look(self) -> Mapping[str, Any] | None:
        """Return the columns that lie elsewhere now, None if anything else has changed."""
        if self._changed():
            return None
        return {"grad": self.places["grad"]} if self._words["moved"] else {}

    def count_changes(self) -> None:
        """Bump the versions of all parameters and averages, which autograd compares."""
        self._count_changes(self._address)

    def _changed(self) -> bool:
        shares = self._shares
        if shares > 1 and (shares := min(shares, torch.get_num_threads())) > 1:
            shares = 1 if threads.was_forked() else shares
        self._words["threads"] = shares
        self._look(self._address)
        return self._words["changed"] != 0


@functools.cache
def _glance() -> Address:
    return machine_code.address_of(glance, sources=(foreign,))


@functools.cache
def available() -> bool:
    """Whether this process's PyTorch can be asked, which is tried on tensors of some kinds."""
    try:
        return all(map(_agrees, (torch.float32, torch.bfloat16, torch.complex64)))
    except ImportError:
        return False


class _Odd(Tensor):
    """A tensor that may answer otherwise than PyTorch."""


def _agrees(dtype: torch.dtype) -> bool:
    """Whether looks find tensors where Python does, and what is done to them."""
    vector, matrix = torch.zeros(6, dtype=dtype)[2:], torch.zeros(2, 3, dtype=dtype).t()
    params = [vector.requires_grad_(), matrix.requires_grad_()]
    states = [{"step": torch.zeros(()), "exp_avg": torch.zeros_like(param)} for param in params]
    averages = [state["exp_avg"] for state in states]
    changes: tuple[tuple[Callable[[], object], bool], ...] = (
        (lambda: None, True),
        (lambda: setattr(matrix, "grad", torch.zeros_like(matrix)), True),
        (lambda: setattr(matrix, "grad", torch._neg_view(torch.zeros_like(matrix))), False),
        (lambda: setattr(vector, "grad", None), False),
        (lambda: setattr(vector, "grad", torch.zeros_like(vector).as_subclass(_Odd)), False),
        (lambda: setattr(vector, "data", torch.zeros(4, dtype=dtype)), False),
        (lambda: averages[1].t_(), False),
        (lambda: states[1].update(step=torch.zeros(())), False),
    )
    for change, may_go_on in changes:
        for param in params:
            param.grad = torch.zeros_like(param)
        watch = Watch(params, states, ["exp_avg"])
        change()
        if (watch.look() is not None) != may_go_on:
            return False
        columns: dict[str, list[Any]] = {
            "param": params,
            "exp_avg": averages,
            "grad": [p.grad for p in params],
        }
        for name, tensors in columns.items():
            found = watch.places[name].tolist()
            if may_go_on and found != [tensor.data_ptr() for tensor in tensors]:
                return False
    return True
