"""How runs share the cores."""

import os

import pytest

from svag.lab.executors import thread_count
from svag.lab.executors.thread_count import Division, chosen, kept, limited, plain


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(thread_count, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_one_thread_a_run_unless_more_are_worth_it():
    assert chosen(lambda count: 1.0) == (8, 1, 1.0)
    assert chosen(lambda count: 8.0 / count) == (8, 1, 8.0)  # perfect scaling gains nothing
    assert chosen(lambda count: {1: 9.0, 2: 2.0, 4: 1.0, 8: 0.6}[count]) == (4, 2, 2.0)


def test_with_a_number_of_workers_threads_are_what_is_fastest():
    assert chosen(lambda count: 8.0 / count, workers=2) == (2, 4, 2.0)
    assert chosen(lambda count: 8.0 * count, workers=2) == (2, 1, 8.0)
    assert chosen(lambda count: 1.0, workers=100) == (100, 1, 1.0)


def test_a_limit_of_the_user_holds(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert chosen(lambda count: 8.0 / count, workers=1) == (1, 2, 4.0)
    assert plain(1) == (1, 2, 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "junk")
    assert plain(1) == (1, 8, 0.0)


def test_a_choice_is_kept_on_its_machine(tmp_path, monkeypatch):
    file = tmp_path / "layout.json"
    first, second = Division(4, 2, 1.5), Division(8, 1, 1.0)
    assert kept(file, lambda: first) == first
    assert kept(file, lambda: second) == first
    assert kept(file, lambda: second, workers=8) == second
    monkeypatch.setattr(thread_count, "cores", lambda: 16)
    assert kept(file, lambda: first, workers=8) == first
    file.write_text("{")
    assert kept(file, lambda: second) == second
    whole = file.read_text()
    for spoilt in ("[8, 0, 1.0]", '["8", 1, 1.0]', "[8, 1]", "[8, 1, null]"):
        file.write_text(whole.replace("[8, 1, 1.0]", spoilt))
        assert kept(file, lambda: first) == first


def test_new_processes_have_the_limit_and_this_one_does_not(monkeypatch):
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    with limited(3):
        assert {os.environ[name] for name in thread_count.VARIABLES} == {"3"}
    assert os.environ["MKL_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in os.environ
