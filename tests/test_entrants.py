"""What a text names: canonical keys, names, anatomies, options, and what is refused."""

import inspect
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import permutations

import pytest
import torch

import svag
from svag.anatomy import METHODS, Anatomy, method
from svag.entrants import OPTIONS, SYMBOLS, allowed_options, entrant, in_order, split, with_options
from svag.errors import InvalidOption, SvagError, UnknownName, UnknownOption
from svag.optim.options import Options

GAUSSIAN = "sign(m) * erf(1/sqrt(2 rho s/m^2))"

# text, key, name
OWN = (
    ("m-svag", "m-svag", "M-SVAG"),
    (" m-svag ", "m-svag", "M-SVAG"),
    ("M-SVAG", "m-svag", "M-SVAG"),
    ("MSVAG", "m-svag", "M-SVAG"),
    ("svag.MSVAG", "m-svag", "M-SVAG"),
    ("svag.optim:AdamStar", "adam-star", "Adam*"),
    ("Adam*", "adam-star", "Adam*"),
    ("signum", "m-ssd", "M-SSD"),
    ("signum(beta=0.5)", "m-ssd(beta=0.5)", "M-SSD (beta=0.5)"),
    ("m-svag()", "m-svag", "M-SVAG"),
    ("m-svag(beta=0.9)", "m-svag", "M-SVAG"),
    ("m-svag( beta = .950 )", "m-svag(beta=0.95)", "M-SVAG (beta=0.95)"),
    ("m-svag(beta=0)", "m-svag(beta=0)", "M-SVAG (beta=0)"),
    ("m-svag(beta=-0.0)", "m-svag(beta=0)", "M-SVAG (beta=0)"),
    ("m-sgd(weight_decay=1e-05)", "m-sgd(weight_decay=1e-5)", "M-SGD (weight_decay=1e-5)"),
    # A problem may have a weight decay: 0 is not its default.
    ("adam(weight_decay=0.)", "adam(weight_decay=0)", "Adam (weight_decay=0)"),
    (
        "adam(weight_decay=1e-4, decoupled)",
        "adam(decoupled, weight_decay=0.0001)",
        "Adam (decoupled, weight_decay=0.0001)",
    ),
    (
        "adam(decoupled_weight_decay=True,weight_decay=0.0001)",
        "adam(decoupled, weight_decay=0.0001)",
        "Adam (decoupled, weight_decay=0.0001)",
    ),
    ("adam(decoupled=False, amsgrad=False, eps=1e-8)", "adam", "Adam"),
    ("adam(amsgrad)", "adam(amsgrad)", "Adam (amsgrad)"),
    ("adam(beta=0.8)", "adam(beta=0.8)", "Adam (beta=0.8)"),
    ("adam(betas=(0.9,0.99))", "adam(beta2=0.99)", "Adam (beta2=0.99)"),
    ("adam(betas=[0.8, 0.999])", "adam(beta=0.8)", "Adam (beta=0.8)"),
    ("m-svag@within-batch", "m-svag@within-batch", "M-SVAG (within-batch)"),
    ("m-svag @ within-batch", "m-svag@within-batch", "M-SVAG (within-batch)"),
    ("m-svag(variance=within-batch)", "m-svag@within-batch", "M-SVAG (within-batch)"),
    ("m-svag(variance='moving-average')", "m-svag", "M-SVAG"),
    (
        "m-svag(beta=0.8)@within-batch",
        "m-svag@within-batch(beta=0.8)",
        "M-SVAG (within-batch, beta=0.8)",
    ),
    ("g", "sgd", "SGD"),
    ("m(beta=0.5)", "m-sgd(beta=0.5)", "M-SGD (beta=0.5)"),
    ("sign( m )", "m-ssd", "M-SSD"),
    ("sign(m)*1/sqrt(1+(v-m^2)/m^2)", "adam", "Adam"),
    ("m*1/(1+var[m]/m^2)", "m-svag@within-batch", "M-SVAG (within-batch)"),
    ("sign(m)*erf(1/sqrt(2rho s/m^2))", GAUSSIAN, GAUSSIAN),
    (f"{GAUSSIAN}(beta=0.5)", f"{GAUSSIAN}(beta=0.5)", f"{GAUSSIAN} (beta=0.5)"),
    (
        f"{GAUSSIAN}@within-batch",
        "sign(m) * erf(1/sqrt(2 var[m]/m^2))",
        "sign(m) * erf(1/sqrt(2 var[m]/m^2))",
    ),
)

OUTSIDE = (
    ("torch.optim.Muon", "torch.optim.Muon", "Muon", "torch.optim:Muon"),
    ("torch.optim:Muon", "torch.optim.Muon", "Muon", "torch.optim:Muon"),
    ("torch.optim.SGD", "torch.optim.SGD", "torch.optim.SGD", "torch.optim:SGD"),
    (
        "torch.optim.RMSprop(nesterov , momentum = .90)",
        "torch.optim.RMSprop(momentum=0.9, nesterov=True)",
        "RMSprop (momentum=0.9, nesterov=True)",
        "torch.optim:RMSprop",
    ),
    ("mine:Lion", "mine.Lion", "Lion", "mine:Lion"),
    ("my.py:make", "my.py:make", "my.py:make", "my.py:make"),
    ("./a/../my.py:make", "my.py:make", "my.py:make", "my.py:make"),
    ("/a b/c(1)/my.py:make", "/a b/c(1)/my.py:make", "my.py:make", "/a b/c(1)/my.py:make"),
    (
        """my.py:make(k="a,)b", j=(1,[2.0]), i=None)""",
        "my.py:make(i=None, j=(1, [2.0]), k='a,)b')",
        "my.py:make (i=None, j=(1, [2.0]), k='a,)b')",
        "my.py:make",
    ),
    ("a.b(x=1e-05)", "a.b(x=1e-5)", "b (x=1e-5)", "a:b"),
    ("a.b(x='1e-05')", "a.b(x='1e-05')", "b (x='1e-05')", "a:b"),
)


@pytest.mark.parametrize(("text", "key", "name"), OWN)
def test_own_methods(text: str, key: str, name: str) -> None:
    one = entrant(text)
    assert (one.key, one.name, one.outside) == (key, name, False)
    assert entrant(one.key) == one
    assert hash(entrant(one.key)) == hash(one)


@pytest.mark.parametrize(("text", "key", "name", "target"), OUTSIDE)
def test_optimizers_from_outside(text: str, key: str, name: str, target: str) -> None:
    one = entrant(text)
    assert (one.key, one.name, one.optimizer) == (key, name, target)
    assert (one.anatomy, one.row, one.betas, one.lr) == (None, "", (), 1e-3)
    assert (one.outside, one.sign, one.adapted, one.within_batch) == (True, False, False, False)
    assert entrant(one.key) == one


def test_values_from_outside_keep_their_types() -> None:
    options = entrant("a.b(i=1, f=1.0, flag, none=None, t=(1, 2), inf=1e999)").options
    assert dict(options) == {
        "i": 1, "f": 1.0, "flag": True, "none": None, "t": (1, 2), "inf": float("inf"),
    }  # fmt: skip
    assert [type(options[name]) for name in ("i", "f", "flag")] == [int, float, bool]


@pytest.mark.parametrize("row", METHODS.values(), ids=list(METHODS))
def test_rows(row: svag.anatomy.Method) -> None:
    for text in (row.key, row.name, row.optimizer, str(row.anatomy), f"svag.{row.optimizer}"):
        one = entrant(text)
        assert (one.key, one.name, one.row) == (row.key, row.name, row.key)
        assert (one.anatomy, one.lr, one.betas) == (row.anatomy, row.lr, row.betas)
        assert (one.optimizer, dict(one.options)) == (row.optimizer, {})
        assert (one.sign, one.adapted) == (row.anatomy.sign, row.anatomy.adapted)
    assert method(row.key) is row


def test_every_anatomy_has_symbols_of_its_own() -> None:
    # 2 directions, with the sign and without; no factor, or one of 3 with one of 3 variances
    assert len(SYMBOLS) == 2 * 2 * (1 + 3 * 3)
    for symbols, anatomy in SYMBOLS.items():
        assert str(anatomy) == symbols
        for text in (symbols, "".join(symbols.split()), f" {symbols} "):
            assert entrant(text).anatomy == anatomy
        one = entrant(symbols)
        assert one.lr == (METHODS[one.row].lr if one.row else 1e-3 if anatomy.sign else 0.1)
        assert one.row or (one.key, one.name, one.optimizer) == (symbols, symbols, "Dissected")


def test_anatomies_that_differ_in_unused_parts_are_one() -> None:
    unused = Anatomy("momentum", True, "none", "raw", "within-batch")
    assert entrant(str(unused)).key == "m-ssd"


def test_options_as_the_classes_have_them() -> None:
    one = entrant("adam(beta=0.8, decoupled, weight_decay=0.1, eps=0, amsgrad)")
    assert dict(one.options) == {
        "betas": (0.8, 0.999),
        "decoupled_weight_decay": True,
        "weight_decay": 0.1,
        "eps": 0.0,
        "amsgrad": True,
    }
    assert one.betas == (0.8, 0.999)
    assert dict(entrant("m-svag(beta=0.8)").options) == {"beta": 0.8}
    assert entrant("m-svag(beta=0.8)").betas == (0.8,)
    assert entrant("svag@within-batch").betas == ()
    assert entrant("m-svag@within-batch").betas == (0.9,)


def test_the_order_of_options_is_no_matter() -> None:
    parts = ("beta=0.8", "eps=0", "amsgrad", "weight_decay=1")
    keys = {entrant(f"adam({', '.join(order)})").key for order in permutations(parts)}
    assert keys == {"adam(amsgrad, beta=0.8, eps=0, weight_decay=1)"}


KEYWORDS = {"beta": "beta", "beta2": "betas", "decoupled": "decoupled_weight_decay"}
NOT_COMPARED = {
    *("self", "params", "lr", "variance", "maximize", "foreach", "fused", "capturable"),
    *("differentiable", "state_dtype", "stochastic_rounding", "seed", "options"),
}


@pytest.mark.parametrize("row", METHODS.values(), ids=list(METHODS))
def test_the_options_are_those_of_the_classes(row: svag.anatomy.Method) -> None:
    signature = inspect.signature(getattr(svag, row.optimizer).__init__).parameters
    taken = {*signature, *(Options.__annotations__ if "options" in signature else ())}
    allowed = {KEYWORDS.get(name, name) for name in allowed_options(row.anatomy)}
    if row.anatomy.raw:
        allowed.remove("beta")
    assert taken - NOT_COMPARED == allowed
    varies = row.anatomy.adapted and not row.anatomy.raw
    assert ("variance" in taken) == varies


@pytest.mark.parametrize("anatomy", SYMBOLS.values(), ids=list(SYMBOLS))
def test_defaults_are_those_of_the_optimizer(anatomy: Anatomy) -> None:
    group = svag.Dissected([torch.ones(2)], anatomy=anatomy).param_groups[0]
    betas = group.get("betas", (group["beta"],) if "beta" in group else ())
    assert entrant(str(anatomy)).betas == betas
    for name in set(allowed_options(anatomy)) - {"beta", "beta2", "weight_decay"}:
        assert group[KEYWORDS.get(name, name)] == OPTIONS[name].default
    if not entrant(str(anatomy)).row:
        assert group["lr"] == entrant(str(anatomy)).lr


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", UnknownName, "unknown method ''; known: sgd, m-sgd"),
        ("m-svga", UnknownName, "Did you mean 'm-svag'"),
        ("adamw", UnknownName, "torch.optim.AdamW"),
        ("sign(x)", UnknownName, "unknown method 'sign(x)'"),
        ("sign(m) * tanh(1/sqrt(2 r))", UnknownName, "symbols are g, m, sign(g) or sign(m)"),
        ("m * 1/(1 + s/m^2)", UnknownName, "rho s/m^2 for m"),
        ("svag.Dissected", UnknownName, "anatomies in symbols"),
        ("svag.lab.train.train", UnknownName, "known: sgd"),
        ("my.py", UnknownName, "my.py:make"),
        ("my.py:2x", UnknownName, "unknown method"),
        ("torch..x:y", UnknownName, "unknown method"),
        ("a b.c", UnknownName, "unknown method"),
        ("adam(", UnknownName, "parentheses do not match"),
        ("adam)", UnknownName, "parentheses do not match"),
        ("a.b(x=')", UnknownName, "parentheses do not match"),
        ("adam@within-batch", UnknownName, "m-svag@within-batch"),
        ("m-sgd@within-batch", UnknownName, "m-svag@within-batch"),
        ("adam(variance=within-batch)", UnknownName, "m-svag@within-batch"),
        ("m-svag@elsewhere", UnknownName, "m-svag@within-batch"),
        ("torch.optim.SGD@within-batch", UnknownName, "m-svag@within-batch"),
        ("nothing@within-batch", UnknownName, "known: sgd"),
        ("m-svag(bta=0.8)", UnknownOption, "Did you mean 'beta'"),
        ("m-svag(eps=1)", UnknownOption, "options are beta, weight_decay, decoupled, variance"),
        ("sgd(beta=0.9)", UnknownOption, "options are weight_decay, decoupled."),
        ("svag@within-batch(beta=0.9)", UnknownOption, "no option 'beta'"),
        ("adam(maximize)", UnknownOption, "no option 'maximize'"),
        ("adam(lr=0.1)", UnknownOption, "--lr KEY=VALUE"),
        ("torch.optim.SGD(lr=0.1)", UnknownOption, "--lr KEY=VALUE"),
        ("adam(beta=1)", InvalidOption, "beta is in [0, 1)"),
        ("adam(beta=-0.1)", InvalidOption, "beta is in [0, 1)"),
        ("adam(beta=True)", InvalidOption, "beta is in [0, 1)"),
        ("adam(beta='0.9')", InvalidOption, "beta is in [0, 1)"),
        ("adam(beta)", InvalidOption, "beta is in [0, 1)"),
        ("adam(beta=nan)", InvalidOption, "no Python literal"),
        ("adam(beta=)", InvalidOption, "no Python literal"),
        ("adam(eps=1e999)", InvalidOption, "finite number >= 0"),
        (f"adam(eps=1{'0' * 400})", InvalidOption, "finite number >= 0"),
        ("adam(weight_decay=-1)", InvalidOption, "finite number >= 0"),
        ("adam(amsgrad=1)", InvalidOption, "a flag"),
        ("adam(betas=0.9)", InvalidOption, "betas=(0.9, 0.999)"),
        ("adam(betas=(0.9, 1))", InvalidOption, "beta2 is in [0, 1)"),
        ("adam(beta=0.8, beta=0.8)", InvalidOption, "beta twice"),
        ("adam(beta=0.8, betas=(0.8, 0.9))", InvalidOption, "beta twice"),
        ("adam(decoupled, decoupled_weight_decay)", InvalidOption, "decoupled twice"),
        ("m-svag@within-batch(variance=within-batch)", InvalidOption, "variance twice"),
        ("adam(0.9)", InvalidOption, "NAME=VALUE"),
        ("torch.optim.SGD(momentum=abs(1))", InvalidOption, "no Python literal"),
    ],
)
def test_what_is_refused(text: str, error: type[SvagError], said: str) -> None:
    with pytest.raises(error) as caught:
        entrant(text)
    assert said in str(caught.value)
    assert repr(text) in str(caught.value)


def test_general_options_hold_where_they_have_a_meaning() -> None:
    texts = ("sgd", "svag", "svag@within-batch", "m-svag@within-batch", "adam", GAUSSIAN)
    assert [with_options(text, beta=0.95).key for text in texts] == [
        *("sgd", "svag(beta=0.95)", "svag@within-batch", "m-svag@within-batch(beta=0.95)"),
        *("adam(beta=0.95)", f"{GAUSSIAN}(beta=0.95)"),
    ]
    assert with_options("torch.optim.SGD(momentum=0.9)", beta=0.95, weight_decay=1.0) == entrant(
        "torch.optim.SGD(momentum=0.9)"
    )
    assert with_options("m-svag", beta=None) == entrant("m-svag")


@pytest.mark.parametrize("stated", [0.8, 0.9])
def test_stated_options_come_before_general_ones(stated: float) -> None:
    assert with_options(f"m-svag(beta={stated})", beta=0.95) == entrant(f"m-svag(beta={stated})")
    assert with_options(f"adam(betas=({stated}, 0.99))", beta=0.95).betas == (stated, 0.99)


def test_general_options_are_checked() -> None:
    with pytest.raises(UnknownOption, match=r"'bta'.*Did you mean 'beta'"):
        with_options("m-svag", bta=0.9)
    with pytest.raises(InvalidOption, match=r"beta=1.5.*\[0, 1\)"):
        with_options("m-svag", beta=1.5)


def test_lists_are_split_at_commas_outside_parentheses() -> None:
    assert split("m-sgd,adam") == ["m-sgd", "adam"]
    assert split(" m-sgd , adam(beta=0.8, betas=(1, 2)),") == [
        "m-sgd",
        "adam(beta=0.8, betas=(1, 2))",
    ]
    assert split("""a.b(x="),", y=',('),g""") == ["""a.b(x="),", y=',(')""", "g"]
    everything = [entrant(text).key for text, *_ in (*OWN, *OUTSIDE)]
    assert split(",".join(everything)) == everything
    for nothing in ("", " , "):
        with pytest.raises(UnknownName, match="names no method"):
            split(nothing)
    with pytest.raises(UnknownName, match="parentheses"):
        split("adam(beta=0.8,m-sgd")


def test_order() -> None:
    ordered = [
        *("sgd", "m-sgd", "m-sgd(beta=0.5)", "m-svag", "m-svag(beta=0.5)", "m-svag@within-batch"),
        *("adam", GAUSSIAN, "my.py:make", "torch.optim.SGD"),
    ]
    assert in_order(reversed(ordered)) == ordered
    assert in_order([*ordered, *ordered]) == ordered


def test_entrants_travel() -> None:
    for text in ("adam(beta=0.8)", "torch.optim.SGD(momentum=0.9)"):
        one = entrant(text)
        assert pickle.loads(pickle.dumps(one)) == one
        assert asdict(one)["options"] == dict(one.options)
        assert replace(one, lr=1.0) != one


def test_reading_imports_nothing() -> None:
    code = (
        "import sys; from svag.entrants import entrant\n"
        "entrant('m-svag(beta=0.8)'); entrant('torch.optim.Muon'); entrant('no_such.module:x')\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
