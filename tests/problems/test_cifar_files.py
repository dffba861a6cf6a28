"""CIFAR in each of its forms, and every way in which a form can be wrong; images are real ones."""

import re
import resource
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from svag.errors import DataError, UnknownName
from svag.problems import cifar_sets
from svag.problems.cifar_files import Cifar, load_cifar, read_cifar
from svag.problems.cifar_sets import CIFAR_10, CIFAR_100

from .cifar_forms import Sample, python2_pickle, sample

NAMES = ("cifar-10", "cifar-100")
FORMS = ("extracted", "archive", "encoded")


def photographs(name: str) -> Sample:
    """26 pieces of real photographs as if they were a CIFAR set: 20 to train on.

    More would have the decoder multiply in several threads, which spin where cores are shared.
    """
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    pieces = [
        photograph[top : top + 32, left : left + 32].transpose(2, 0, 1)
        for photograph in images
        for top in (50, 350)
        for left in range(0, 600, 46)
    ]
    pixels = np.stack(pieces[:26]) if name == "cifar-10" else np.stack(pieces[:26])[::-1]
    labels = np.random.RandomState(0).randint(10, size=26)
    return sample(name, pixels[:20], labels[:20], pixels[20:], labels[20:])


@pytest.fixture(scope="module", params=NAMES)
def small(request) -> Sample:
    return photographs(request.param)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache folder, and no data directory but the one that is given."""
    monkeypatch.delenv("SVAG_DATA", raising=False)
    monkeypatch.setenv("SVAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def assert_equal(found: Cifar, wanted: Sample) -> None:
    pixels, cut = wanted.pixels.transpose(0, 3, 1, 2), wanted.known.train
    for images, labels, rows in (
        (found.train_images, found.train_labels, slice(0, cut)),
        (found.test_images, found.test_labels, slice(cut, None)),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert np.array_equal(images, pixels[rows])
        assert np.array_equal(labels, wanted.labels[rows])


def refused(known, root=None) -> str:
    with pytest.raises(DataError) as caught:
        read_cifar(known, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The three forms


@pytest.mark.parametrize("below", ["", "name"])
def test_extracted(small, root, below):
    home = root / (small.known.name if below else "")
    written = small.write_extracted(home)
    assert_equal(read_cifar(written.known, root), small)
    assert_equal(read_cifar(written.known, home / written.known.folder), small)


@pytest.mark.parametrize("below", ["", "name"])
def test_archive(small, root, below):
    home = root / (small.known.name if below else "")
    home.mkdir(exist_ok=True)
    written = small.write_archive(home)
    assert_equal(read_cifar(written.known, root), small)
    assert not any(path.is_dir() for path in home.iterdir())  # nothing was extracted


@pytest.mark.parametrize("place", ["cache", "data", "home"])
def test_decoded(small, root, cache, data_dir, place, capsys):
    written = small.write_encoded(root, data_dir)
    folder = {"cache": cache, "data": root, "home": root / small.known.name}[place]
    folder.mkdir(exist_ok=True)
    np.save(folder / small.known.decoded_name, small.pixels)
    (root / "decode_cifar.py").unlink()
    assert_equal(read_cifar(written.known, root), small)
    assert_equal(read_cifar(written.known, root / small.known.name), small)
    assert capsys.readouterr().err == ""


def test_decoding_once(small, root, cache, data_dir, capsys):
    written = small.write_encoded(root, data_dir)
    assert_equal(read_cifar(written.known, root), small)
    said = capsys.readouterr().err
    assert f"decoding the images of {small.known.title} once, to '{cache}" in said
    assert "about five minutes" in said
    (root / "decode_cifar.py").unlink()
    assert_equal(read_cifar(written.known, root), small)
    assert capsys.readouterr().err == ""
    assert not list(cache.glob("*.part"))


def test_environment_names_the_folder(small, root, monkeypatch):
    written = small.write_archive(root)
    monkeypatch.setenv("SVAG_DATA", str(root))
    assert_equal(read_cifar(written.known), small)


def test_download(small, root, cache, monkeypatch):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    written = small.write_archive(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(cifar_sets, "ADDRESS", address)
    try:
        assert_equal(read_cifar(written.known), small)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert_equal(read_cifar(written.known), small)  # the server is gone
    assert [path.name for path in cache.rglob("*.gz")] == [small.known.archive.name]
    other = replace(written.known, archive=replace(written.known.archive, name="other.tar.gz"))
    assert f"{address}other.tar.gz could not be downloaded" in refused(other)


@pytest.fixture(scope="module", params=NAMES)
def real(request) -> tuple[str, Cifar]:
    return request.param, request.getfixturevalue(request.param.replace("-", "_"))


def test_published_checksums_against_real_images(real, root):
    """The whole set, rebuilt as Python 2 wrote it, passes the checks of pixels and labels."""
    name, images = real
    whole = sample(name, *images)
    known = {"cifar-10": CIFAR_10, "cifar-100": CIFAR_100}[name]
    assert (whole.known.pixels, whole.known.labels) == (known.pixels, known.labels)
    written = whole.write_extracted(root).known
    for ours, theirs in zip(read_cifar(written, root), images, strict=True):
        assert np.array_equal(ours, theirs)


# Bad inputs


def test_unknown_name():
    with pytest.raises(UnknownName, match=r"'cifar10'. Did you mean 'cifar-10'\? Known: cifar-10"):
        load_cifar("cifar10")


def test_nothing_there(small, root):
    text = refused(small.known, root)
    assert f"data directory {str(root)!r} lacks {small.known.title}: neither" in text
    assert f"get {small.known.archive.name} from https://www.cs.toronto.edu/~kriz/" in text


@pytest.mark.parametrize("place", ["absent", "file"])
def test_no_folder(small, root, place):
    (root / "file").write_text("")
    assert "name one that holds the files of CIFAR" in refused(small.known, root / place)


@pytest.mark.parametrize(("name", "other"), [NAMES, NAMES[::-1]])
def test_the_other_set_is_there(name, other, root):
    photographs(other).write_archive(root)
    assert f"; what is there is {other.upper()};" in refused(photographs(name).known, root)


def test_half_downloaded_archive(small, root):
    known = small.write_archive(root).known
    path = root / known.archive.name
    path.write_bytes(path.read_bytes()[:5000])
    text = refused(known, root)
    assert f"{str(path)!r} has 5000 of {known.archive.size} bytes (truncated); get it again" in text


def test_half_an_archive_of_the_right_checksum(small, root):
    path = root / small.known.archive.name
    small.write_archive(root)
    path.write_bytes(path.read_bytes()[:-3000])
    known = replace(small.known, archive=_file_of(path))
    assert "is no complete archive" in refused(known, root)


def test_flipped_bit(small, root):
    known = small.write_archive(root).known
    path = root / known.archive.name
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    assert re.search(r"has MD5 [0-9a-f]{32} instead of [0-9a-f]{32}; get", refused(known, root))


def _file_of(path: Path):
    from .cifar_forms import md5

    return cifar_sets.DataFile(path.name, md5(path.read_bytes()), path.stat().st_size)


@pytest.mark.parametrize("content", [b"", b"plain text", b"\x1f\x8b\x08\x00 no gzip"])
def test_no_archive(small, root, content):
    path = root / small.known.archive.name
    path.write_bytes(content)
    assert "is no complete archive" in refused(replace(small.known, archive=_file_of(path)), root)


def test_archive_without_a_batch(small, root):
    contents = small.batches
    last = list(contents)[-1]
    del contents[last]
    assert f"lacks {last}; get it again" in refused(small.write_archive(root, contents).known, root)


def test_archive_with_a_link_for_a_batch(small, root):
    path = root / small.known.archive.name
    with tarfile.open(path, "w:gz") as archive:
        for file in small.known.batches:
            member = tarfile.TarInfo(f"{small.known.folder}/{file.name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    assert str(path) in refused(replace(small.known, archive=_file_of(path)), root)


def test_archive_of_the_other_set_under_this_name(small, root, monkeypatch):
    other = photographs(NAMES[small.known.name == NAMES[0]])
    foreign = other.write_archive(root).known
    monkeypatch.setitem(cifar_sets.CIFAR_SETS, foreign.name, foreign)
    (root / foreign.archive.name).rename(root / small.known.archive.name)
    text = refused(small.known, root)
    assert f"{small.known.archive.name}' is {foreign.archive.name} of {foreign.title}; get" in text


def test_incomplete_folder(small, root):
    known = small.write_extracted(root).known
    last = known.batches[-1].name
    (root / known.folder / last).unlink()
    assert f"{known.folder}' is there without {last};" in refused(known, root)
    known = replace(small.write_archive(root).known, batches=known.batches)
    assert_equal(read_cifar(known, root), small)  # the archive will do


def test_changed_batch(small, root):
    known = small.write_extracted(root).known
    path = root / known.folder / known.batches[0].name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    text = refused(known, root)
    assert f"{str(path)!r} has MD5" in text
    assert f"extract {known.archive.name} again" in text


def test_unreadable_file(small, root):
    """Reading the start of this process's memory fails, even for a superuser."""
    known = small.write_extracted(root).known
    path = root / known.folder / known.batches[0].name
    path.unlink()
    path.symlink_to("/proc/self/mem")
    assert f"{str(path)!r} cannot be read (Input/output error)" in refused(known, root)


class Harmful:
    def __reduce__(self):
        import os

        return os.mkdir, ("harm",)


@pytest.mark.parametrize("form", ["extracted", "archive"])
def test_code_in_a_batch_is_not_run(small, root, form, monkeypatch):
    monkeypatch.chdir(root)
    contents = small.batches
    contents[small.known.batches[0].name] = python2_pickle({"data": Harmful()})
    written = getattr(small, f"write_{form}")(root, contents)
    assert "it names posix.mkdir, which is not read" in refused(written.known, root)
    assert not (root / "harm").exists()


GOOD = {"data": np.zeros((50, 3072), np.uint8), "labels": [1] * 50}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({}, "has no array 'data' of rows of 3,072 bytes"),
        ({**GOOD, "data": [1, 2]}, "has no array 'data'"),
        ({**GOOD, "data": np.zeros((50, 784), np.uint8)}, "has no array 'data'"),
        ({**GOOD, "data": np.zeros((50, 3072), np.float32)}, "something else than unsigned bytes"),
        ({**GOOD, "labels": "many"}, "has no list 'labels'"),
        ({**GOOD, "labels": [1.5] * 50}, "has no list 'labels'"),
        ({**GOOD, "labels": [1] * 49}, "labels that do not belong to its images"),
        ({**GOOD, "labels": [1] * 49 + [256]}, "labels that do not belong to its images"),
        (GOOD, "the images of CIFAR-10 have SHA-256"),
    ],
)
def test_batches_of_other_content(root, batch, words):
    small = photographs("cifar-10")
    contents = dict.fromkeys(small.batches, python2_pickle(batch))
    assert words in refused(small.write_extracted(root, contents).known, root)


def test_other_labels(small, root):
    labels = np.roll(small.labels, 1)
    written = replace(small, labels=labels).write_extracted(root)
    assert f"the labels of {small.known.title} have SHA-256" in refused(written.known, root)


# Bad inputs, re-encoded


@pytest.fixture
def encoded(root, data_dir) -> Sample:
    return photographs("cifar-10").write_encoded(root, data_dir)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("cifar-10/images.rans", "images.rans"),
        ("cifar-10/labels.npz", "labels.npz"),
        ("decode_cifar.py", "decode_cifar.py"),
        ("cifar_model.npz", "cifar_model.npz"),
    ],
)
def test_damaged_file(encoded, root, cache, file, what):
    content = bytearray((root / file).read_bytes())
    content[len(content) // 2] ^= 1
    (root / file).write_bytes(content)
    assert re.search(f"{what}' has SHA-256 .* copy it again", refused(encoded.known, root))
    assert not list(cache.glob("*.npy"))


def test_another_decoder_is_not_run(encoded, root):
    harm = root / "harm"
    (root / "decode_cifar.py").write_text(f"import os; os.mkdir({str(harm)!r})")
    assert "decode_cifar.py' has SHA-256" in refused(encoded.known, root)
    assert not harm.exists()


def test_truncated_stream(encoded, root):
    path = root / "cifar-10" / "images.rans"
    path.write_bytes(path.read_bytes()[:1000])
    assert f"has 1000 of {encoded.known.stream.size} bytes" in refused(encoded.known, root)


def test_damaged_stream_of_the_right_checksum(encoded, root, cache):
    path = root / "cifar-10" / "images.rans"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    text = refused(replace(encoded.known, stream=_file_of(path)), root)
    assert "could not be decoded" in text or "decoded, holds images of SHA-256" in text
    assert not list(cache.glob("*.npy"))
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("file", ["cifar-10/images.rans", "decode_cifar.py", "cifar_model.npz"])
def test_missing_file(encoded, root, file):
    (root / file).unlink()
    text = refused(encoded.known, root)
    assert f"decoding needs {root / file}; copy one or the other" in text


def test_labels_of_the_other_set(encoded, root, data_dir):
    (root / "cifar-10" / "labels.npz").write_bytes(
        (data_dir / "cifar-100" / "labels.npz").read_bytes()
    )
    text = refused(CIFAR_10, root)
    assert "labels.npz' is labels.npz of CIFAR-100; copy it again" in text


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda pixels: pixels[:-1], r"uint8 of shape \(25, 32, 32, 3\) instead of uint8 of"),
        (lambda pixels: pixels.transpose(0, 3, 1, 2), r"shape \(26, 3, 32, 32\) instead"),
        (lambda pixels: pixels.astype(np.int16), r"holds int16 of shape"),
        (lambda pixels: pixels[::-1], "holds images of SHA-256"),
        (lambda pixels: np.array([None]), "cannot be read .*pickle"),
    ],
)
def test_decoded_file_of_other_content(encoded, root, spoil, words):
    np.save(root / "cifar-10.npy", spoil(photographs("cifar-10").pixels))
    text = refused(encoded.known, root)
    assert re.search(words, text)
    assert text.endswith("remove it, so that the images are decoded again")


@pytest.mark.parametrize("content", [b"", b"plain", b"\x93NUMPY", None])
def test_decoded_file_that_is_none(encoded, root, content):
    path = root / "cifar-10.npy"
    np.save(path, photographs("cifar-10").pixels)
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    assert f"{str(path)!r} cannot be read" in refused(encoded.known, root)


def test_several_arrays_for_a_decoded_file(encoded, root):
    with (root / "cifar-10.npy").open("wb") as opened:
        np.savez(opened, photographs("cifar-10").pixels)
    assert "cannot be read (the magic string is not correct" in refused(encoded.known, root)


def test_decoded_file_of_the_other_set(encoded, root, monkeypatch):
    other = photographs("cifar-100")
    monkeypatch.setitem(cifar_sets.CIFAR_SETS, "cifar-100", other.known)
    np.save(root / "cifar-10.npy", other.pixels)
    assert "holds the images of CIFAR-100 instead of CIFAR-10;" in refused(encoded.known, root)


def test_cache_that_cannot_be_written(encoded, root, cache):
    cache.write_text("a file")
    assert "cannot be kept" in refused(encoded.known, root)
    assert "name another folder as $SVAG_CACHE" in refused(encoded.known, root)


def test_disk_full(encoded, root, cache):
    """A limit on the size of files stands for the end of the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        text = refused(encoded.known, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be kept as" in text
    assert "None" not in text
    assert not list(cache.glob("*.npy"))
    assert not list(cache.glob("*.part"))


# Several processes

READ = """
import pickle, sys
from pathlib import Path
from svag.problems.cifar_files import read_cifar
known = pickle.loads(bytes.fromhex(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(read_cifar(known, Path(sys.argv[2])).train_images.sum())
"""


def reader(known, root) -> subprocess.Popen:
    import pickle

    return subprocess.Popen(
        [sys.executable, "-c", READ, pickle.dumps(known).hex(), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_and_one_killed_before(encoded, root, cache):
    killed, *others = [reader(encoded.known, root) for _ in range(3)]
    for process in (killed, *others):
        assert process.stdout.readline() == "ready\n"
    killed.stdin.write("\n")
    killed.stdin.flush()
    assert "decoding" in killed.stderr.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(cache.glob("*.npy"))
    for process in others:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120) for process in others]
    expected = encoded.pixels[: encoded.known.train].sum()
    assert [int(out) for out, _ in outputs] == [expected] * 2
    assert sum("decoding" in said for _, said in outputs) == 1
    assert np.array_equal(np.load(cache / "cifar-10.npy"), encoded.pixels)
    assert not list(cache.glob("*.part"))
