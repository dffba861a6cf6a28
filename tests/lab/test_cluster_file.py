"""Cluster files: what they can hold, and what is refused by name."""

import pytest

pytest.importorskip("yaml", reason="PyYAML is not installed; pip install 'svag[ray]'")

from svag import problems
from svag.cli.cluster import cluster_of, device_on
from svag.errors import InvalidOption
from svag.lab.executors.cluster import (
    ClusterError,
    LocalCluster,
    RayCluster,
    SlurmCluster,
    parse,
    read,
)
from svag.lab.executors.code_to_copy import pack


def test_a_file_of_each_kind(tmp_path):
    file = tmp_path / "cluster.yml"
    file.write_text("kind: ray\naddress: head:6379\nnum_gpus: 0.5\nresources: {big: 1}\n")
    ray = read(str(file))
    assert ray == RayCluster(address="head:6379", num_gpus=0.5, resources={"big": 1})
    assert ray.needs == {"CPU": 1, "GPU": 0.5, "big": 1}
    slurm = parse("kind: slurm\nslurm_partition: a\nslurm_gres: gpu:1\nruns_per_job: 40", "s")
    assert slurm == SlurmCluster(
        runs_per_job=40, slurm={"slurm_partition": "a", "slurm_gres": "gpu:1"}
    )
    assert parse("kind: local\nworkers: 3", "l") == LocalCluster(workers=3)
    assert read("auto") == RayCluster()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: ray\nnum_cpu: 2", "'num_cpu' is no key of a ray cluster. Did you mean 'num_cpus'"),
        ("kind: slurm\nruns_pre_job: 2", "Did you mean 'runs_per_job'?"),
        ("kind: slurm\nruns_per_job: 0", "runs_per_job is 0; give a whole number of at least 1"),
        ("kind: slurm\nruns_per_job: true", "runs_per_job is True; give a whole number"),
        ("kind: slurm\nexecutor: pbs", "executor is 'pbs'; give slurm or local"),
        ("kind: slurm\ndriver: {time: 3}", "driver is {'time': 3}; give a mapping of keys that"),
        ("kind: slurm\nslurm: {a: 1}", "'slurm' is no key of a slurm cluster."),
        ("kind: local\nslurm_time: 1", "'slurm_time' is no key of a local cluster."),
        ("kind: ray\nnum_cpus: .nan", "num_cpus is nan; give a number of at least 0"),
        ("kind: ray\nnum_cpus: -1", "num_cpus is -1; give a number of at least 0"),
        (
            "kind: ray\nnum_cpus: 0",
            "a run would use no resource; give num_cpus, num_gpus or resources",
        ),
        ("kind: ray\nresources: [a]", "resources is ['a']; give a mapping of names to numbers"),
        ("kind: ray\naddress: 12", "address is 12; give a text"),
        ("kind: ray\naddress: ray://head:10001", "'ray://head:10001' is no address"),
        ("kind: ray\n1: 2", "1 is no key of a ray cluster."),
        ("kind: rai", "kind is 'rai'; write kind: ray, slurm or local. Did you mean 'ray'?"),
        ("address: head:6379", "kind is None; write kind: ray, slurm or local"),
        ("kind: [ray]", "kind is ['ray']; write kind"),
        ("- kind: ray", "a cluster file has lines `key: value`"),
        ("", "a cluster file has lines `key: value`"),
        ("kind: {ray", "c.yml is not YAML: "),
        (
            "kind: local\nworkers: 2\nworkers: 3",
            "c.yml: the key 'workers' stands twice; write it once",
        ),
        ("kind: ray\nresources: {a: 1, a: 2}", "the key 'a' stands twice"),
        ("kind: &a [*a]", "kind is [[...]]; write kind"),
        ("kind: slurm\ntimeout_min: 1:30:00", "timeout_min is '1:30:00'; give a whole number"),
        ("kind: ray\nnum_cpus: 1:30.5", "num_cpus is '1:30.5'; give a number"),
        ("kind: ray\nnum_gpus: 1.5", "num_gpus is 1.5; give a number of at least 0, above 1 a wh"),
        ("kind: ray\nresources: {CPU: 4}", "cores, GPUs and memory are num_cpus, num_gpus and"),
        ("kind: ray\nresources: {'': 1}", "resources is {'': 1}; give a mapping"),
        ("kind: slurm\nslurm_partition:", "slurm_partition has no value; give one, or leave"),
        (
            "kind: slurm\ndriver: {timeout_min: -1}",
            "c.yml: driver: timeout_min is -1; give a whole",
        ),
        ("kind: slurm\ndriver: {slurm_qos: ''}", "c.yml: driver: slurm_qos has no value"),
        ("kind: !!python/object/apply:os.system [ls]", "c.yml is not YAML: could not determine"),
    ],
)
def test_what_is_wrong_is_named(text, said):
    with pytest.raises(ClusterError) as caught:
        parse(text, "c.yml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["head", "head:port", "http://head:80/x", ":6379", ""])
def test_what_is_no_address(given):
    with pytest.raises(ClusterError, match="is no address of a Ray cluster; give host:port"):
        read(given)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ClusterError, match=r"cannot read the cluster file .*: No such file"):
        read(str(tmp_path / "none.yml"))
    (tmp_path / "b.yml").write_bytes(b"\xff\xfe")
    with pytest.raises(ClusterError, match="it is not UTF-8 text"):
        read(str(tmp_path / "b.yml"))


def test_workers_are_of_this_machine():
    assert cluster_of(None, 3) == LocalCluster(workers=3)
    with pytest.raises(InvalidOption, match=r"--workers 3 with --cluster auto: write workers into"):
        cluster_of("auto", 3)


def test_the_device_of_runs_is_what_nodes_are_asked_for():
    """This machine need not have a GPU for runs elsewhere to be given one."""
    assert device_on(RayCluster(), "auto") == "cpu"
    assert device_on(RayCluster(num_gpus=1), "auto") == "cuda"
    assert device_on(SlurmCluster(slurm={"slurm_gres": "gpu:1"}), "auto") == "cuda"
    assert device_on(SlurmCluster(slurm={"slurm_gpus_per_node": 1}), "cpu") == "cpu"
    more = {"slurm_additional_parameters": {"gpus": 1}}
    assert device_on(SlurmCluster(slurm=more), "auto") == "cuda"
    for key, value in (("gpus_per_node", 0), ("gres", "gpu:a100:0"), ("comment", "no gpu")):
        assert device_on(SlurmCluster(slurm={f"slurm_{key}": value}), "auto") == "cpu"
    with pytest.raises(InvalidOption, match="write num_gpus into the cluster file"):
        device_on(RayCluster(), "cuda")
    with pytest.raises(InvalidOption, match="write slurm_gpus_per_node into the cluster file"):
        device_on(SlurmCluster(), "cuda")
    with pytest.raises(InvalidOption, match="device 'tpu' on a cluster"):
        device_on(RayCluster(), "tpu")


MINE = """
from helper import X
from svag.problems import get
def task():
    return get("digits")
"""


def test_what_travels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine/helper.py", "mine/.venv/big.py", "mine/env/lib.py", "else/other.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("X = 1\n")
    (tmp_path / "mine" / "env" / "pyvenv.cfg").touch()
    (tmp_path / "mine" / "task.py").write_text(MINE)
    problem = problems.get("digits")
    copy = pack(problem, ("m-sgd", "else/other.py:X"), "mine/task.py:task", tmp_path / "a")
    copied = {p.relative_to(tmp_path / "a").as_posix() for p in copy.folder.rglob("*.py")}
    assert copied == {"mine/task.py", "mine/helper.py", "else/other.py"}
    assert copy.spec == "mine/task.py:task"
    monkeypatch.chdir(tmp_path / "else")
    copy = pack(problem, (), f"{tmp_path}/mine/task.py:task", tmp_path / "b")
    assert copy.spec.startswith("outside/")
    assert (copy.folder / copy.spec.partition(":")[0]).read_text() == MINE
    assert pack(problem, ("m-sgd",), "digits", tmp_path / "c") == (None, "digits")


def test_a_folder_of_thousands_of_files_stays(tmp_path):
    (tmp_path / "task.py").write_text(MINE)
    for number in range(2001):
        (tmp_path / f"x{number}.py").touch()
    with pytest.raises(ClusterError, match="more than 2000 or 100 MB; move the problem to a fold"):
        pack(problems.get("digits"), (), f"{tmp_path}/task.py:task", tmp_path / "scratch")
