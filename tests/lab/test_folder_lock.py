"""One launcher a folder, also where locks are not seen by other machines."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from lab.made import wait_until
from svag.errors import RecordError
from svag.lab import folder_lock
from svag.lab.folder_lock import claim, holder


def held_elsewhere(folder, age=0.0):
    """Leave a claim as another machine would, whose last heartbeat is so many seconds old."""
    path = folder / "records" / ".claim"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "theirs"}))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_claim_says_whose_it_is_and_ends(tmp_path):
    assert holder(tmp_path) is None
    with claim(tmp_path):
        assert holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RecordError, match="another process is recording in"):
            claim(tmp_path).__enter__()
    assert holder(tmp_path) is None
    assert [path.name for path in (tmp_path / "records").iterdir()] == [".lock"]


def test_a_heartbeat_of_another_machine_is_respected(tmp_path):
    held_elsewhere(tmp_path, age=30)
    assert holder(tmp_path) == "process 7 on elsewhere"
    with pytest.raises(RecordError) as caught:
        claim(tmp_path).__enter__()
    assert "process 7 on elsewhere, seen 30 s ago, is recording in" in str(caught.value)
    assert "if it is dead, try again in 60 s" in str(caught.value)


def test_a_claim_without_heartbeat_is_void(tmp_path):
    held_elsewhere(tmp_path, age=100)
    assert holder(tmp_path) is None
    with claim(tmp_path):
        assert "elsewhere" not in (tmp_path / "records" / ".claim").read_text()


def test_a_killed_holder_of_this_machine_is_succeeded_at_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from svag.lab.folder_lock import claim\n"
        "with claim(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match="another process is recording"):
            claim(tmp_path).__enter__()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / "records" / ".claim").exists()
    with claim(tmp_path):
        pass


def test_only_one_succeeds(tmp_path):
    held_elsewhere(tmp_path, age=100)
    (tmp_path / "records" / ".claim.after.theirs").touch()  # another is at it
    with pytest.raises(RecordError, match="another process is just taking over"):
        claim(tmp_path).__enter__()


def test_a_folder_without_locks_has_the_heartbeat(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claim(tmp_path):
        pass
    held_elsewhere(tmp_path)
    with pytest.raises(RecordError, match="process 7 on elsewhere"):
        claim(tmp_path).__enter__()


def test_the_heart_beats_and_a_lost_claim_interrupts(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT", 0.05)

    def lose_it():
        with claim(tmp_path):
            path = tmp_path / "records" / ".claim"
            os.utime(path, (1, 1))
            wait_until(lambda: path.stat().st_mtime > 1, "a heartbeat")
            held_elsewhere(tmp_path)
            time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        lose_it()
    assert holder(tmp_path) == "process 7 on elsewhere"  # theirs is left alone


def test_an_error_inside_is_passed_on_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), claim(tmp_path):
        (tmp_path / "records" / "none").read_text()
    with claim(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[]", "no json", "\x00", '{"host": 3}'])
def test_a_spoilt_claim_is_none(tmp_path, content):
    path = held_elsewhere(tmp_path, age=100)
    path.write_text(content)
    os.utime(path, (1, 1))
    with claim(tmp_path):
        assert holder(tmp_path) is not None
