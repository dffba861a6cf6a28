"""``svag track``: where runs go by default, what is said, and what is refused."""

import pytest
from report.studies import study

from trackers.made import every_status


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    study(place, seeds=2)
    return place


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")


def test_event_files_lie_beside_the_records_and_once_each(folder, svag):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    runs = len(list((folder / "records").glob("*.jsonl")))
    code, out, _ = svag("track", folder, "--to", "tensorboard")
    assert (code, out) == (
        0, f"{folder} to tensorboard --logdir {folder / 'tensorboard'}: {runs} runs sent\n",
    )  # fmt: skip
    code, out, err = svag("track", folder, "--to", "tensorboard")
    assert out.endswith(f": 0 runs sent, {runs} there already\n")
    assert err == ""
    assert len(list((folder / "tensorboard").rglob("*tfevents*"))) == runs


def test_final_runs_alone_and_several_folders_in_one_place(folder, svag, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    every_status(tmp_path / "other")
    code, out, _ = svag(
        "track", folder, tmp_path / "other", "--to", "tensorboard", "--where", "tb", "--final"
    )
    assert code == 0
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == ["8 runs sent", "0 runs sent"]
    assert len(list((tmp_path / "tb").rglob("*tfevents*"))) == 8


def test_wandb_that_is_not_logged_in_is_one_sentence(folder, svag, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    code, out, err = svag("track", folder, "--to", "wandb", "--where", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("error: wandb did not take run ")
    assert "API key" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent", "--to", "tensorboard"], "there is no folder absent"),
        (["."], "--to"),
        ([".", "--to", "tensorboard"], "no records in"),
        (["FOLDER", "--to", "neptune"], "neptune"),
        (["FOLDER", "--to", "tensorboard", "--offline"], "--offline is for --to wandb"),
        (["FOLDER", "--to", "mlflow", "--offline"], "--offline is for --to wandb"),
        (["FOLDER", "--to", "tensorboard", "--project", "p"], "of wandb or mlflow"),
        (["FOLDER", "--to", "mlflow", "--project", " "], "give a name"),
        (["FOLDER", "--to", "tensorboard", "--where", "/proc/x"], "cannot write"),
        (["FOLDER", "--to", "wandb", "--offline", "--where", "/proc/x"], "choose another folder"),
        (["FOLDER", "--to", "mlflow", "--where", "nonsense://x"], "there is no MLflow store"),
    ],
)
def test_bad_arguments_end_in_one_line(folder, svag, tmp_path, arguments, says):
    for name in ("tensorboard", "wandb", "mlflow"):
        if name in arguments:
            pytest.importorskip(name, reason=f"{name} is not installed")
    code, _, err = svag("track", *[str(folder) if a == "FOLDER" else a for a in arguments])
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
