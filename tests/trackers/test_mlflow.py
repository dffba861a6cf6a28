"""An MLflow store in one file, read back by MLflow's client."""

from dataclasses import replace

import pytest

from svag.lab.records import RecordWriter
from svag.trackers.sending import Sent, TrackerError, send
from trackers.made import RUN, VALUES, every_status, record, runs_of

pytest.importorskip("mlflow", reason="mlflow is not installed")

from mlflow.tracking import MlflowClient

from svag.trackers.mlflow_store import MLflow, default_place

# MLflow uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One store for all tests: it takes seconds to create. Each test has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def project(request):
    return request.node.name


def runs_in(place, project):
    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name(project)
    return client, client.search_runs([experiment.experiment_id])


def test_curves_figures_parameters_and_status_come_back(tmp_path, place, project):
    record(tmp_path)
    (sent,) = runs_of(tmp_path)
    assert send([sent], MLflow(place, project)) == Sent(new=1)
    client, (run,) = runs_in(place, project)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((one.step, one.value) for one in history) == list(
        zip((0, 10, 20), VALUES, strict=True)
    )
    begun = int(1000 * sent.started)
    assert sorted(one.timestamp - begun for one in history) == [0, 1500, 3000]
    assert run.data.metrics["final/test/accuracy"] == 1 / 7
    params = run.data.params
    assert (params["method"], params["seed"], params["problem"]) == ("m-svag", "7", "ramp")
    assert float(params["lr"]) == 0.1 + 0.2
    assert run.data.tags["svag.run"] == RUN.id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "m-svag lr=0.3 seed=7")
    assert (run.info.start_time, run.info.end_time) == (begun, begun + 12500)


def test_nothing_is_doubled_and_what_changed_is_replaced(tmp_path, place, project):
    every_status(tmp_path)
    for expected in (Sent(new=4), Sent(unchanged=4)):
        assert send(runs_of(tmp_path), MLflow(place, project)) == expected
    _, runs = runs_in(place, project)
    assert {(run.data.tags["svag.status"], run.info.status) for run in runs} == {
        ("done", "FINISHED"),
        ("diverged", "FAILED"),
        ("error", "FAILED"),
        ("interrupted", "KILLED"),
    }
    record(tmp_path, replace(RUN, seed=4), "done", shift=5.0)
    assert send(runs_of(tmp_path), MLflow(place, project)) == Sent(replaced=1, unchanged=3)
    client, runs = runs_in(place, project)
    assert len(runs) == 4
    (again,) = [run for run in runs if run.data.params["seed"] == "4"]
    history = client.get_metric_history(again.info.run_id, "train/loss")
    assert sorted(one.value for one in history) == sorted(5.0 + value for value in VALUES)


def test_a_run_that_was_cut_short_is_sent_again_and_once(tmp_path, place, project, monkeypatch):
    record(tmp_path)
    runs, tracker = runs_of(tmp_path), MLflow(place, project)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            send(runs, tracker)
    assert send(runs_of(tmp_path), MLflow(place, project)) == Sent(replaced=1)
    assert send(runs_of(tmp_path), MLflow(place, project)) == Sent(unchanged=1)
    assert len(runs_in(place, project)[1]) == 1


def test_more_points_than_a_request_holds_all_arrive(tmp_path, place, project):
    run = replace(RUN, steps=700, eval_every=1)
    with RecordWriter(tmp_path, run) as recorder:
        for step in range(701):
            recorder.eval(step, train_loss=float(step), test_loss=0.5, test_accuracy=0.5)
    send(runs_of(tmp_path), MLflow(place, project))
    client, (sent,) = runs_in(place, project)
    history = client.get_metric_history(sent.info.run_id, "train/loss")
    assert sorted(one.value for one in history) == [float(step) for step in range(701)]


def test_the_experiment_is_the_problems_unless_it_is_named(tmp_path, place):
    record(tmp_path)
    send(runs_of(tmp_path), MLflow(place))
    assert len(runs_in(place, "ramp")[1]) == 1


def test_a_deleted_experiment_is_refused_with_the_remedy(tmp_path, place, project):
    record(tmp_path)
    send(runs_of(tmp_path), MLflow(place, project))
    client, _ = runs_in(place, project)
    client.delete_experiment(client.get_experiment_by_name(project).experiment_id)
    with pytest.raises(TrackerError, match=f"{project}.*has been deleted.*--project"):
        send(runs_of(tmp_path), MLflow(place, project))


@pytest.mark.parametrize("where", ["nonsense://x", "sqlite:////proc/none/mlflow.db"])
def test_a_place_without_a_store_is_refused(where):
    with pytest.raises(TrackerError, match="there is no MLflow store at") as caught:
        MLflow(where)
    assert where in str(caught.value)


def test_the_place_is_the_users_own_or_beside_the_records(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_place(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert default_place(tmp_path) == "http://host:5000"
