"""The command line: what it makes, what it says, and how it ends, whatever ends it."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from lab.made import wait_until, write_task

from svag import __version__
from svag.__main__ import main
from svag.anatomy import METHODS, PAPER_METHODS
from svag.errors import RecordError
from svag.lab.records import load, read
from svag.problems import PROBLEMS

SHARED = Path(__file__).parents[2] / "shared" / "data"
LRS = ("--lr", "m-sgd=0.3", "--lr", "m-ssd=0.03", "--lr", "m-svag=0.3", "--lr", "adam=0.03")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """As a user's shell would be: another folder, no data, a wide terminal; one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVAG_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TESTED_BY", str(os.getpid()))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(*arguments):
    """Start the command as a shell does: a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "svag", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def group(leader: int) -> list[str]:
    """Processes of a group, those aside that have ended and wait to be noticed."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    return [row[2] for row in rows if int(row[0]) == leader and not row[1].startswith("Z")]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "records").glob("*.jsonl")}


def statuses(directory: Path) -> Counter[str]:
    paths = (directory / "records").glob("*.jsonl")
    return Counter(record.status for path in paths if (record := read(path)))


def unusable(result) -> str:
    """Exit code 2, and one line that says why."""
    code, out, err = result
    assert code == 2, err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    return line


# --- from a problem of one's own to the report


def shown(messages: str) -> list[str]:
    """Lines of the runs that have ended."""
    return [line for line in messages.splitlines() if re.search(r" lr .* seed ", line)]


def test_compare_from_beginning_to_end(svag, tmp_path):
    """With workers; then by a new process from what is there; then the report alone."""
    out = tmp_path / "out"
    spec = write_task(tmp_path / "own")
    command = ("compare", spec, *LRS[2:6], "--seeds", 2, "--workers", 2, "--out", out)
    code, verdict, messages = svag(*command)
    assert code == 0, messages
    assert verdict.startswith("On task ")
    head, *rows = verdict.splitlines()[1:]
    assert head.split() == ["method", "step", "size", "n", "test", "accuracy", "training", "loss"]
    assert [row.split()[0] for row in rows] == ["M-SGD", "M-SSD", "M-SVAG", "Adam"]
    assert "2 workers; about 40 runs, a minute or less; " in messages
    assert f"; records in {out}" in messages
    assert f"report: {out / 'report.html'}" in messages
    assert "Traceback" not in messages
    assert multiprocessing.active_children() == []

    records = load(out)
    assert len(records) == len(contents(out)) == len(shown(messages)) >= 4 * 2 + 2 * 8
    assert {record.run["method"] for record in records} == set(PAPER_METHODS)
    assert {record.status for record in records} <= {"done", "diverged"}
    given = {"m-ssd", "m-svag"}
    for key in PAPER_METHODS:
        own = [r.run for r in records if r.run["method"] == key]
        final = [run["seed"] for run in own if run["seed"] > 1000 or key in given]
        assert len(final) == 2 * (1 + max(0, max(final) // 1000 - 1))
    assert "recorded earlier" not in messages

    page = (out / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert (out / "figure5.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "figure5.svg").read_text()

    before = contents(out)
    again = start(*command)
    said, messages = again.communicate()
    assert (again.returncode, said) == (0, verdict)
    assert contents(out) == before
    needed = shown(messages)
    assert len(records) - 8 <= len(needed) <= len(records)  # some were carried out ahead
    assert all(line.endswith("(recorded earlier)") for line in shown(messages))

    for name in ("report.html", "figure5.png", "figure5.svg"):
        (out / name).unlink()
    code, said, _ = svag("report", out)
    assert (code, said) == (0, verdict)
    assert (out / "report.html").read_text() == page
    assert contents(out) == before


def test_more_seeds_reuse_the_search(svag, tmp_path):
    spec = write_task(tmp_path)
    command = ("compare", spec, "--methods", "adam", "--workers", 1, "--out", tmp_path / "out")
    assert svag(*command, "--seeds", 3, "--protocol", "paper")[0] == 0
    before = contents(tmp_path / "out")
    assert svag(*command, "--seeds", 5, "--protocol", "paper")[0] == 0
    after = contents(tmp_path / "out")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_settings_of_the_command_line_reach_the_runs(svag, tmp_path):
    spec = write_task(tmp_path)
    code, out, _ = svag(
        "compare", spec, "--methods", "sgd, m-svag,sgd", "--lr", "m-svag=2e-1", "--lr", "sgd=0.5",
        "--steps", 7, "--seeds", 2, "--select", "validation", "--workers", 1,
    )  # fmt: skip
    assert code == 0
    assert "Four methods are needed to tell" in out
    records = load(tmp_path / "runs" / "task")
    runs = sorted((r.run["method"], r.run["lr"], r.run["seed"]) for r in records)
    assert runs == [("m-svag", 0.2, 1), ("m-svag", 0.2, 2), ("sgd", 0.5, 1), ("sgd", 0.5, 2)]
    for record in records:
        assert (record.run["steps"], record.run["select"]) == (7, "validation")
        assert record.run["source"] == spec
        assert "validation_accuracy" in record.end


def test_digits_is_there_without_any_file(svag, tmp_path):
    pytest.importorskip("sklearn")
    code, _, err = svag(
        "compare", "digits", "--methods", "m-sgd", *LRS[:2], "--steps", 20, "--seeds", 1,
        "--workers", 1,
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "runs" / "digits" / "report.html").is_file()


# --- divergence is a result


def test_a_step_size_that_diverges_at_once_is_a_result(svag, tmp_path):
    spec = write_task(tmp_path)
    code, out, err = svag(
        "compare", spec, *LRS[2:], "--lr", "m-sgd=1e39",
        "--seeds", 2, "--workers", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert statuses(tmp_path / "out") == {"done": 6, "diverged": 2}
    assert len(re.findall(r"M-SGD +lr 1e\+39 +seed \d +diverged", err)) == 2
    assert "Four methods are needed to tell" in out
    assert "diverged" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "figure5.png").is_file()


def test_a_settled_step_size_that_always_diverges_is_a_result(svag, tmp_path):
    spec = write_task(tmp_path)
    code, _, err = svag(
        "compare", spec, "--methods", "m-sgd", "--lr", "m-sgd=1e39", "--seeds", 2, "--workers", 1
    )
    assert code == 0, err
    assert statuses(tmp_path / "runs" / "task") == {"diverged": 2}
    assert "diverged" in (tmp_path / "runs" / "task" / "report.html").read_text()


def test_a_search_without_a_stable_step_size_is_a_result(svag, tmp_path):
    """Nothing goes wrong where every run diverges; there is only no curve to draw."""
    spec = write_task(tmp_path)
    task = tmp_path / "task.py"
    task.write_text(task.read_text().replace("self.linear(inputs)", "self.linear(inputs) / 0"))
    code, _, err = svag("compare", spec, "--methods", "m-sgd", "--seeds", 2, "--workers", 1)
    assert code == 0, err
    assert set(statuses(tmp_path / "runs" / "task")) == {"diverged"}
    assert "diverged" in err
    assert "Traceback" not in err


# --- unusable input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digit"], ["'digit'", "Did you mean 'digits'?", *PROBLEMS]),
        (["file.py:task"], ["there is no file"]),
        (["digits", "--methods", "adma"], ["'adma'", "Did you mean 'adam'?", *METHODS]),
        (["digits", "--methods", "m-svag(bta=1)"], ["'bta'", "Did you mean 'beta'?"]),
        (["digits", "--methods", "torch.optim.Mune"], ["Mune", "Muon"]),
        (["digits", "--batch-size", "5000"], ["a batch of 5000", "1297 examples"]),
        (["digits", "--device", "cuda:7"], ["'cuda:7'", "cpu"]),
        (["digits", "--grid", "adam=1,x"], ["--grid adam=1,x", "METHOD=VALUE"]),
        (["digits", "--lr", "m-sgd=fast"], ["--lr m-sgd=fast", "METHOD=VALUE"]),
        (["digits", "--lr", "m-sgd"], ["METHOD=VALUE"]),
        (["digits", "--lr", "adam=1", "--lr", "Adam=2"], ["'adam' is given twice", "--grid adam="]),
        (["digits", "--grid", "adam=1", "--grid", "adam=2"], ["one --grid adam=A,B,C"]),
        (["digits", "--eval-examples", "9" * 5000], ["give a number from 1 to 10^15 - 1, or all"]),
        (["digits", "--weight-decay", "inf"], ["weight_decay=inf; it is a finite number"]),
        (["digits", "--steps", "9" * 20], ["steps=99999", "at most 2^53"]),
        (["digits", "--data-dir", sys.executable], ["is not a directory"]),
        (["digits", "--lr", "0.1"], ["METHOD=VALUE"]),
        (["digits", "--lr", "m-svga=0.1"], ["'m-svga'", "Did you mean 'm-svag'?"]),
        (["digits", "--lr", "m-sgd=0"], ["step size 0.0", "above 0"]),
        (["digits", "--lr", "m-sgd=-1"], ["step size -1.0"]),
        (["digits", "--lr", "m-sgd=nan"], ["step size nan"]),
        (["digits", "--lr", "m-sgd=inf"], ["step size inf"]),
        (["digits", "--lr", "sgd=1"], ["'sgd'", "not compared"]),
        (["fmnist-2c2d", "--data-dir", "nowhere"], ["'nowhere'", "does not exist"]),
        (["fmnist-2c2d", "--data-dir", "."], ["lacks train-images", "get them from https://"]),
    ],
)
def test_arguments_that_cannot_be(svag, arguments, words):
    line = unusable(svag("compare", *arguments))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits", "--steps", "0"], "--steps"),
        (["digits", "--seeds", "some"], "--seeds"),
        (["digits", "--budget", "large"], "full"),
        (["digits", "--protocol", "quick"], "paper"),
        (["digits", "--colour", "red"], "--colour"),
        ([], "Missing argument"),
    ],
)
def test_options_that_cannot_be(svag, arguments, words):
    code, out, err = svag("compare", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [("-m", "svag"), ()], ids=["python -m svag", "svag"])
def test_a_process_says_the_same(command):
    program = Path(sys.executable) if command else Path(sys.executable).with_name("svag")
    if not program.exists():
        pytest.skip("svag is not installed as a script")
    done = subprocess.run([program, *command, "report", "missing"], capture_output=True, text=True)
    assert "no study in missing" in unusable((done.returncode, done.stdout, done.stderr))


def test_any_terminal_will_do(svag, tmp_path):
    """Of any encoding, in a notebook of another environment, and with a full disk behind it."""
    spec = write_task(tmp_path)
    assert (
        svag("compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 2, "--workers", 1)[0] == 0
    )
    command = [sys.executable, "-m", "svag", "report", "runs/task"]
    odd = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://of.another.place"}
    done = subprocess.run(command, capture_output=True, text=True, env=odd)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert re.search(r"M-SGD +0.3 +2 +\d.* \?.", done.stdout)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert "No space left" in unusable((done.returncode, "", done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "command",
    [("status",), ("report",), ("export",), ("compare", "wilson", "--data-dir")],
    ids=lambda command: command[0],
)
def test_what_the_system_refuses_is_one_line(svag, command):
    assert "File name too long" in unusable(svag(*command, "n" * 300))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("self.linear(inputs)", "self.linear(inputs[:, :2])", "could not be dissected: RuntimeErr"),
        ("self.linear(inputs)", "raise SystemExit(3)", "could not be dissected: SystemExit: 3 ("),
    ],
)
def test_a_problem_that_cannot_be_dissected(svag, tmp_path, old, new, words):
    spec = write_task(tmp_path)
    task = tmp_path / "task.py"
    task.write_text(task.read_text().replace(f"return {old}", new, 1))
    assert words in unusable(svag("dissect", spec, "--budget", "5s", "-q"))


@pytest.fixture
def broken_data(tmp_path):
    """A data directory of the real files, one of them replaced."""
    folder = Path(os.environ.get("SVAG_DATA") or SHARED) / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip(f"no Fashion-MNIST in {folder}")

    def replaced(name, change):
        made = tmp_path / "data"
        made.mkdir()
        for path in folder.glob("*.gz"):
            (made / path.name).symlink_to(path)
        content = (made / name).read_bytes()
        (made / name).unlink()
        (made / name).write_bytes(change(content))
        return made

    return replaced


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:2000], "has 2000 of 5148 bytes (truncated)"),
        (lambda content: b"", "has 0 of 5148 bytes (truncated)"),
        (lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:], "has SHA-256"),
    ],
    ids=["truncated", "empty", "one bit"],
)
def test_damaged_data(svag, monkeypatch, broken_data, change, words):
    name = "t10k-labels-idx1-ubyte.gz"
    folder = broken_data(name, change)
    line = unusable(svag("compare", "fmnist-2c2d", "--data-dir", folder))
    for word in (str(folder / name), words, f"get it again from https://raw.github.*{name}"):
        assert re.search(word if "*" in word else re.escape(word), line)
    monkeypatch.setenv("SVAG_DATA", str(folder))
    assert unusable(svag("compare", "fmnist-2c2d")) == line


def test_a_folder_that_cannot_be_written(svag, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/sub"):
        line = unusable(svag("compare", "digits", "--out", out))
        assert f"cannot write to {out}" in line
        assert "--out" in line


def test_a_report_without_records(svag, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        line = unusable(svag("report", folder))
        assert f"no study in {folder / 'studies'}" in line
        assert "svag compare" in line


def test_a_report_of_a_study_that_is_not_there(svag, tmp_path):
    spec = write_task(tmp_path)
    command = ("compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--workers", 1)
    for steps in (5, 9):
        assert svag(*command, "--steps", steps)[0] == 0
    folder = tmp_path / "runs" / "task"
    first, second = sorted(path.stem for path in (folder / "studies").glob("*.json"))
    for name in (first, second[:5]):
        assert svag("report", folder, "--study", name)[0] == 0
    assert f"{first} (task, " in unusable(svag("report", folder, "--study", "other"))


def test_a_spoilt_record(svag, tmp_path):
    spec = write_task(tmp_path)
    command = ("compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--workers", 1)
    assert svag(*command)[0] == 0
    (path,) = (tmp_path / "runs" / "task" / "records").glob("*.jsonl")
    path.write_text(path.read_text().replace('{"kind": "eval", "step": 3', "nonsense", 1))
    for again in (command, ("report", "runs/task")):
        code, out, err = svag(*again)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        line = err.splitlines()[-1]
        assert line.startswith("error: ")
        assert f"{path.name}, line 6: follows line 5, which is torn" in line


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    return Problem(", "    [][1]\n    return Problem(", "IndexError: list index out of"),
        ("def load(data_dir):", "def load(data_dir):\n    1 / 0", "ZeroDivisionError: division"),
        ("import torch\n", "import no_such_module\n", "ModuleNotFoundError: No module named"),
        ("import torch\n", "import torch torch\n", "SyntaxError: invalid syntax"),
    ],
)
def test_a_problem_of_one_s_own_that_fails(svag, tmp_path, old, new, words):
    spec = write_task(tmp_path)
    task = tmp_path / "task.py"
    source = task.read_text().replace(old, new, 1)
    task.write_text(source)
    line = unusable(svag("compare", spec))
    assert words in line
    changed = next(part for part in new.split("\n") if part not in old)
    number = source.splitlines().index(changed) + 1
    assert line.endswith(f"({task}:{number})")


# --- a run that fails


def test_a_model_that_raises(svag, tmp_path):
    spec = write_task(tmp_path)
    (tmp_path / "raise").write_text("weights of the wrong shape")
    command = ("compare", spec, "--methods", "m-sgd,adam", *LRS[:2], "--seeds", 2, "--workers", 1)
    code, out, err = svag(*command)
    assert (code, out) == (1, "")
    assert "error in 3 of 3 runs: RuntimeError: weights of the wrong shape" in err
    assert "Traceback" not in err
    assert statuses(tmp_path / "runs" / "task") == {"error": 3}
    (tmp_path / "raise").unlink()
    assert svag(*command)[0] == 0
    assert set(statuses(tmp_path / "runs" / "task")) <= {"done", "diverged"}


def test_one_method_that_fails_leaves_the_report_of_the_others(svag, tmp_path):
    spec = write_task(tmp_path)
    (tmp_path / "raise").write_text("broken")
    command = ("compare", spec, "--seeds", 1, "--workers", 1, "--out", "out")
    assert svag(*command, "--methods", "adam", *LRS[-2:])[0] == 1
    (tmp_path / "raise").unlink()
    assert svag(*command, "--methods", "m-sgd", *LRS[:2])[0] == 0
    (tmp_path / "raise").write_text("broken")
    code, out, err = svag(*command, "--methods", "m-sgd,adam", *LRS[:2], *LRS[-2:])
    assert code == 1
    assert "Four methods are needed to tell" in out
    assert "error in 1 of 2 runs: RuntimeError: broken" in err
    assert (tmp_path / "out" / "report.html").is_file()


def counted(tmp_path, condition: str) -> str:
    """Write the task so that a model cannot be made where a condition on their number fails.

    Two models are made before the first run, to measure where a search begins and to time steps.
    """
    spec = write_task(tmp_path)
    task = tmp_path / "task.py"
    line = (
        f"MADE.append(self)\n        assert len(MADE) {condition}, 'no more'\n        self.linear ="
    )
    task.write_text(task.read_text().replace("self.linear =", line, 1) + "\nMADE = []\n")
    return spec


def test_a_search_that_ends_in_an_error(svag, tmp_path):
    spec = counted(tmp_path, "< 3")
    code, out, err = svag("compare", spec, "--methods", "m-sgd", "--workers", 1)
    assert statuses(tmp_path / "runs" / "task") == {"error": 1}
    assert (code, out) == (1, "")
    assert "error in 1 of 1 runs: AssertionError: no more" in err
    assert "Traceback" not in err


def test_an_error_at_a_larger_step_size_does_not_cost_the_method(svag, tmp_path):
    """It ends the walk up; the study goes on, is reported, and ends with 1."""
    spec = counted(tmp_path, "!= 4")
    code, out, err = svag(
        "compare", spec, "--methods", "m-sgd", "--seeds", 2, "--workers", 1, "--json"
    )
    assert code == 1
    assert json.loads(out)["methods"]["m-sgd"]["runs"] == 2
    assert "runs: AssertionError: no more" in err


@pytest.mark.parametrize(
    "message", ["no file [/tmp/x]", "a [red] herring", "[bold]", ":warning: 100 %"]
)
def test_a_message_is_shown_as_it_is(svag, tmp_path, message):
    spec = write_task(tmp_path)
    (tmp_path / "raise").write_text(message)
    code, _, err = svag(
        "compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--workers", 1
    )
    assert code == 1
    assert f"error in 1 of 1 runs: RuntimeError: {message}" in err


def test_a_folder_is_shown_as_it_is(svag, tmp_path):
    spec = write_task(tmp_path / "[b] own")
    out = tmp_path / "[red] out"
    code, _, err = svag(
        "compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--workers", 1, "--out", out
    )
    assert code == 0
    assert f"records in {out}" in err
    assert f"report: {out / 'report.html'}" in err


def test_a_long_message_stays_in_one_piece(svag, tmp_path, monkeypatch):
    """Where messages go to a file there is no width to break lines at."""
    monkeypatch.delenv("COLUMNS")
    spec = write_task(tmp_path)
    (tmp_path / "raise").write_text(message := "a long message, " * 20 + "and its end")
    _, _, err = svag("compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--workers", 1)
    assert message in err


# --- Ctrl-C and worse


def comparison(folder: Path):
    """One run: enough to keep one of two workers busy, and a worker takes seconds to start."""
    spec = write_task(folder)
    (folder / "hold").touch()
    return "compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--out", folder / "out"


def in_training(folder: Path, process=None):
    def reached():
        assert process is None or process.poll() is None, process.communicate()
        return list(folder.glob("training-*"))

    return reached


def gone(process) -> bool:
    return group(process.pid) == []


def completes(svag, command, tmp_path):
    (tmp_path / "hold").unlink()
    code, _, err = svag(*command, "--workers", 1)
    assert code == 0, err
    assert statuses(tmp_path / "out") == {"done": 1}


def test_ctrl_c(svag, tmp_path):
    """In a terminal, which tells the whole group."""
    command = comparison(tmp_path)
    process = start(*command, "--workers", 2)
    wait_until(in_training(tmp_path, process), "a worker trains")
    assert "another process is recording" in unusable(svag(*command))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted; the same command goes on from here" in err
    assert "Traceback" not in err
    wait_until(lambda: gone(process), "no process is left")
    assert [record.end["status"] for record in load(tmp_path / "out")] == ["interrupted"]
    completes(svag, command, tmp_path)


def test_an_interrupt_of_the_parent_only(svag, tmp_path):
    """As ``kill -INT`` sends it; here to this process."""

    def send():
        wait_until(in_training(tmp_path), "a worker trains")
        os.kill(os.getpid(), signal.SIGINT)

    command = comparison(tmp_path)
    sender = threading.Thread(target=send)
    sender.start()
    code, out, err = svag(*command, "--workers", 2)
    sender.join()
    assert (code, out) == (130, "")
    assert "interrupted; the same command goes on from here" in err
    assert multiprocessing.active_children() == []
    assert [record.end["status"] for record in load(tmp_path / "out")] == ["interrupted"]
    completes(svag, command, tmp_path)


def test_ctrl_c_without_workers(svag, tmp_path):
    command = comparison(tmp_path)
    (tmp_path / "hold").rename(tmp_path / "interrupt")
    code, out, err = svag(*command, "--workers", 1)
    assert (code, out) == (130, "")
    assert "interrupted; the same command goes on from here" in err
    assert "Traceback" not in err
    assert [record.end["status"] for record in load(tmp_path / "out")] == ["interrupted"]
    (tmp_path / "interrupt").rename(tmp_path / "hold")
    completes(svag, command, tmp_path)


def test_ctrl_c_while_a_worker_starts(svag, tmp_path, monkeypatch):
    """Held up by a module that Python imports before all others."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(
        "import os, pathlib, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "if 'spawn_main' in ' '.join(sys.orig_argv):\n"
        "    (here / f'training-{os.getpid()}').touch()\n"
        "    while (here / 'hold').exists():\n"
        "        time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "early"), prepend=os.pathsep)
    command = comparison(tmp_path)
    process = start(*command, "--workers", 2)
    wait_until(in_training(tmp_path, process), "a worker starts")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    wait_until(lambda: gone(process), "no process is left")
    completes(svag, command, tmp_path)


def test_a_killed_parent_takes_its_workers_along(svag, tmp_path):
    command = comparison(tmp_path)
    process = start(*command, "--workers", 2)
    wait_until(in_training(tmp_path, process), "a worker trains")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: gone(process), "no worker is left")
    assert [record.end["status"] for record in load(tmp_path / "out")] == ["interrupted"]
    completes(svag, command, tmp_path)


@pytest.mark.parametrize("earlier", [False, True], ids=["no record", "an earlier attempt"])
def test_a_worker_that_dies_before_it_begins_is_an_error(svag, tmp_path, earlier):
    command = comparison(tmp_path)
    (tmp_path / "hold").rename(tmp_path / "interrupt")
    if earlier:
        assert svag(*command, "--workers", 1)[0] == 130
    (tmp_path / "interrupt").rename(tmp_path / "dead-on-arrival")
    code, out, err = svag(*command, "--workers", 2)
    assert (code, out) == (1, ""), err
    assert "error in 1 of 1 runs: the worker process died (exit code 3)" in err
    assert "recorded earlier" not in err
    assert "Traceback" not in err
    assert statuses(tmp_path / "out") == {"error": 1}
    (tmp_path / "dead-on-arrival").rename(tmp_path / "hold")
    completes(svag, command, tmp_path)


# --- lists and help


def test_methods_are_listed(svag):
    code, out, _ = svag("methods")
    assert code == 0
    table, _, others = out.partition("\n\n")
    assert others.startswith("With options: m-svag(beta=0.95)")
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [row[0] for row in rows] == list(METHODS)
    for row, method in zip(rows, METHODS.values(), strict=True):
        assert row[1] == method.name
        assert row[2:4] == [
            "yes" if has else "-" for has in (method.anatomy.sign, method.anatomy.adapted)
        ]
        assert row[-2:] == [f"{method.lr:g}", f"svag.{method.optimizer}"]
    for method in METHODS.values():
        assert f" {method.anatomy} " in out


def test_problems_are_listed(svag):
    code, out, _ = svag("problems")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(PROBLEMS)
    assert re.search(r"fmnist-2c2d .*Fashion-MNIST.* 64 +6000 \(500\)", out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["compare", "report", "problems", "methods", "bench"]),
        (
            ["compare", "--help"],
            [
                "problem", "--methods", "--lr", "--budget", "--steps", "--seeds", "--select",
                "--workers", "--out", "--data-dir", "path/to/file.py:function", "130 Ctrl-C",
                "--protocol", "--dry-run", "--json", "--grid", "--beta", "--smallest-effect",
            ],
        ),
        (["report", "-h"], ["directories", "--study", "--out", "--target"]),
        (["status", "-h"], ["directory", "--study"]),
        (["bench", "--help"], ["runner", "verdict"]),
    ],
)  # fmt: skip
def test_help(svag, arguments, words):
    code, out, err = svag(*arguments)
    assert (code, err) == (0, "")
    for word in words:
        assert word in out


def test_the_version(svag):
    assert svag("--version") == (0, f"{__version__}\n", "")


def test_results_for_scripts(svag, tmp_path):
    spec = write_task(tmp_path)
    command = ("compare", spec, *LRS, "--seeds", 2, "--workers", 1, "--json", "--quiet")
    code, out, err = svag(*command)
    assert code == 0, err
    found = json.loads(out)
    assert found["metric"] == "accuracy"
    assert set(found["methods"]) == set(PAPER_METHODS)
    assert set(found["effects"]) >= {"sign", "adaptation", "interaction"}
    assert not shown(err)


def test_what_it_would_take(svag, tmp_path):
    spec = write_task(tmp_path)
    code, _, err = svag("compare", spec, "--dry-run", "--seeds", 4)
    assert code == 0
    assert "about 84 runs, a minute or less" in err
    assert not (tmp_path / "runs").exists()


def test_a_trial_of_a_problem_that_cannot_take_a_step(svag, tmp_path):
    spec = write_task(tmp_path)
    task = tmp_path / "task.py"
    task.write_text(task.read_text().replace("nn.Linear(3, 3)", "nn.Linear(4, 3)"))
    line = unusable(svag("compare", spec, "--dry-run"))
    assert re.search("the first steps of 'task' failed: RuntimeError: .*mat1 and mat2 shapes", line)


def test_how_far_a_study_is(svag, tmp_path):
    spec = write_task(tmp_path)
    command = ("compare", spec, "--methods", "m-sgd,adam", *LRS[:2], "--seeds", 2, "--workers", 1)
    assert svag(*command, "--lr", "adam=0.03")[0] == 0
    code, out, _ = svag("status", "runs/task")
    assert code == 0
    assert "M-SGD: done; step size 0.3; 2 final runs" in out
    assert "records: 4 done" in out


def test_an_edit_sets_runs_aside_and_says_so(svag, tmp_path):
    spec = write_task(tmp_path)
    command = ("compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 2, "--workers", 1)
    assert svag(*command)[0] == 0
    task = tmp_path / "task.py"
    task.write_text(task.read_text() + "\n# a comment\n")
    assert "recorded earlier" in svag(*command)[2]
    task.write_text(task.read_text().replace("/ 2", "/ 3"))
    _, _, err = svag(*command)
    assert "recorded earlier" not in err
    assert (
        f"not in this study: 2 runs of another version of the problem: its code changed ({spec})"
        in err
    )


def test_a_list_of_figures_that_are_made_elsewhere(svag):
    assert "`svag compare PROBLEM` makes Figure 5" in unusable(svag("figure", "5"))
    assert "the table of Figure 1" in unusable(svag("figure", "1"))


def test_where_an_error_came_from(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["svag", "--debug", "report", str(tmp_path)])
    with pytest.raises(RecordError, match="no study in"):
        main()


def test_a_traceback_of_a_run(svag, tmp_path):
    spec = write_task(tmp_path)
    (tmp_path / "raise").write_text("broken")
    command = ("compare", spec, "--methods", "m-sgd", *LRS[:2], "--seeds", 1, "--workers", 1)
    assert "in obey" in svag("--debug", *command)[2]
    assert "in obey" not in svag(*command)[2]


def test_a_small_simulation_of_verdicts(svag):
    code, out, _ = svag(
        "bench", "verdict", "--studies", 3, "--seeds", 3, "--cost", 0.5, "--scenario", "no effect"
    )
    assert code == 0
    head, rule, row = out.splitlines()
    assert head.startswith("| scenario | half a decade costs | n | any claim |")
    assert row.startswith("| no effect | 0.5 | 3 | ")
    assert head.count("|") == rule.count("|") == row.count("|")
    assert "'no effect'" not in unusable(svag("bench", "verdict", "--scenario", "x"))


def test_without_a_command_there_is_help(svag):
    code, out, err = svag()
    assert code == 2
    assert "compare" in out + err
