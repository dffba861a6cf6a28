"""A driver apart from the terminal: submitted, asked after, attached to; nothing is begun twice."""

import os
import signal

import pytest

from lab.made import wait_until, write_task
from svag.lab import folder_lock
from svag.lab.executors import detached
from svag.lab.records import load

LRS = ("--methods", "m-sgd", "--lr", "m-sgd=0.3", "--seeds", "2", "--workers", "2")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TESTED_BY", str(os.getpid()))
    yield tmp_path
    driver = detached.found(tmp_path / "out")
    if driver is not None and driver.kind == "local":
        (tmp_path / "hold").unlink(missing_ok=True)
        wait_until(lambda: not detached.state(tmp_path / "out", driver).alive, "the driver ends")


def test_submit_ask_refuse_attach(folder, svag):
    command = ("compare", write_task(folder), *LRS, "--out", "out")
    (folder / "hold").touch()
    code, out, err = svag(*command, "--detach")
    assert (code, out) == (0, "")
    assert err.startswith("detached: local ")
    wait_until(lambda: list(folder.glob("training-*")), "the driver's workers train", 300)
    code, out, err = svag("status", "out")
    assert code == 0, err
    assert out.splitlines()[0].startswith("the driver, process ")
    assert "is at work since" in out.splitlines()[0]
    assert "M-SGD: 2 runs missing" in out
    code, _, err = svag(*command, "--steps", 7)
    assert code == 2
    assert "error: a detached driver carries out study " in err
    (folder / "hold").unlink()
    code, out, err = svag(*command)
    assert code == 0, err
    assert "attached: the driver, process " in err
    assert "has ended with exit code 0" in err
    assert err.count("recorded earlier") == 2
    assert out.startswith("On task ")
    for path in (folder / "out" / "records").glob("*.jsonl"):
        assert path.read_text().count('"kind": "run"') == 1  # begun once
    assert [record.status for record in load(folder / "out")] == ["done", "done"]


def test_a_driver_that_is_killed_is_not_taken_for_one_that_is_done(folder, svag):
    command = ("compare", write_task(folder), *LRS, "--out", "out")
    (folder / "hold").touch()
    assert svag(*command, "--detach")[0] == 0
    wait_until(lambda: len(list(folder.glob("training-*"))) == 2, "both workers train", 300)
    driver = detached.found(folder / "out")
    os.killpg(int(driver.id), signal.SIGKILL)
    wait_until(lambda: not detached.state(folder / "out", driver).alive, "it is gone")
    wait_until(lambda: folder_lock.holder(folder / "out") is None, "what it started is gone, too")
    code, out, err = svag("status", "out")
    assert code == 0, err
    assert "ended without an exit code; the same command goes on" in out
    assert "records: 2 interrupted" in out
    (folder / "hold").unlink()
    code, _, err = svag(*command)
    assert code == 0, err
    assert "attached" not in err
    assert [record.status for record in load(folder / "out")] == ["done", "done"]


WRONG = '{"kind": "pbs", "id": "1", "host": "", "study": "", "started": ""}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"kind": "local"}',
        "[" * 100_000,
        WRONG,
        WRONG.replace("pbs", "local").replace('"1"', '"x"'),
    ],
)
def test_a_spoilt_note_of_a_driver_is_none(tmp_path, content):
    (tmp_path / "driver.json").write_text(content)
    assert detached.found(tmp_path) is None
