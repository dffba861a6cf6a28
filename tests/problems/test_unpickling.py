"""Pickles: those of the original CIFAR files are read, anything that could run code is refused."""

import codecs
import os
import pickle
import pickletools
from collections import OrderedDict

import numpy as np
import pytest

from svag.errors import DataError
from svag.problems.unpickling import read_plain

from .cifar_forms import python2_pickle

ARRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read_plain(content, "the batch")
    assert str(caught.value).startswith("the batch ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_python_2():
    batch = {"labels": [3, 1], "data": ARRAY, "filenames": ["a.png"], "long": "x" * 300}
    content = python2_pickle(batch)
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(content)}
    assert {"SHORT_BINSTRING", "BINSTRING"} <= opcodes
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    found = read_plain(content, "")
    assert list(found) == [b"labels", b"data", b"filenames", b"long"]
    assert found[b"labels"] == [3, 1]
    assert found[b"filenames"] == [b"a.png"]
    assert found[b"long"] == b"x" * 300
    assert np.array_equal(found[b"data"], ARRAY)


@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY[:0], ARRAY[0]])
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_of_numpy_today(array, protocol):
    found = read_plain(pickle.dumps({"data": array}, protocol), "")["data"]
    assert found.shape == array.shape
    assert np.array_equal(found, array)


class Harmful:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec, os.mkdir, getattr, __import__])
def test_code_is_not_run(tmp_path, monkeypatch, protocol, function):
    monkeypatch.chdir(tmp_path)
    arguments = {os.system: "mkdir harm", os.mkdir: "harm", __import__: "this"}
    argument = arguments.get(function, "__import__('os').mkdir('harm')")
    content = pickle.dumps({"labels": [Harmful(function, argument)]}, protocol)
    assert "which is not read" in refused(content)
    assert not list(tmp_path.iterdir())


def test_harm_would_be_done_by_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harmful(os.mkdir, "harm")))
    assert (tmp_path / "harm").is_dir()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"data": ARRAY.astype(np.int16)}, "something else than unsigned bytes"),
        ({"data": np.array([None])}, "something else than unsigned bytes"),
        ({"data": np.array([print])}, "names builtins.print"),
        ({"data": np.array(["text"])}, "something else than unsigned bytes"),
        ({"data": OrderedDict()}, "names collections.OrderedDict"),
        ({"data": Harmful(codecs.encode, "a", "rot13")}, "names _codecs.encode"),
        ({"data": np.float64(1)}, "which is not read"),
        ([1, 2], "holds no dictionary"),
        (None, "holds no dictionary"),
        (ARRAY, "holds no dictionary"),
    ],
)
def test_other_content(value, words):
    assert words in refused(pickle.dumps(value, 3))


@pytest.mark.parametrize("end", [0, 1, 2, 10, 30, -1, -20])
def test_cut_off(end):
    assert "get it again" in refused(python2_pickle({"labels": [3, 1], "data": ARRAY})[:end])


@pytest.mark.parametrize(
    "content",
    [
        b"no pickle at all",
        b"\x80\x02cnumpy\nndarray\n}U\x01ab.",  # sets an attribute of a name
        b"\x80\x02cnumpy\ndtype\n)R(K\x01K\x02tb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R)b.",  # an array of no state
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)cnumpy\ndtype\nU\x02u1\x85R\x89U\x00tb.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(K\x01)NNNtb.",  # a state of the name
        b"\x80\x02U\x01a\x94jR\x00\x00\x00.",
        b"\x80\x02Pother\n.",
        b"\x82\x01.",
        b"\x80\x09.",
    ],
)
def test_damaged_or_forged(content):
    assert refused(content)


def test_every_flipped_byte_is_read_or_refused():
    content = python2_pickle({"labels": [3, 1], "data": ARRAY})
    outcomes = set()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x15
        try:
            outcomes.add(type(read_plain(bytes(damaged), "the batch")))
        except DataError:
            outcomes.add(DataError)
    assert outcomes == {dict, DataError}
