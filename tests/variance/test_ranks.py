"""Variance across ranks: 2 and 4 gloo processes against the same computation in one process."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measured import assert_within
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from svag.errors import InvalidOption, TooFewSamples
from svag.variance.clipping import clip_grad_norm_
from svag.variance.grad_var import current, is_current
from svag.variance.micro_batches import micro_batch_variance
from svag.variance.ranks import _spread, rank_variance


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def normalized() -> nn.Module:
    """With two-dimensional kernels, in channels-last layout, and BatchNorm in training mode."""
    model = nn.Sequential(
        nn.Unflatten(1, (3, 1, 1)),
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
    )
    return model.to(memory_format=torch.channels_last)


def strided() -> nn.Module:
    """With a parameter that is every other column of something."""
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.randn(3, 6, dtype=torch.float64)[:, ::2])
    return model


class Partial(nn.Module):
    """One layer is used by rank 0 alone and one by none."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.first, self.none = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.shared(x)
        return out + self.first(x) if self.marked else out

    marked = False


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module] = dense
    dtype: torch.dtype = torch.float64
    passes: int = 1  # of which all but the last are not reduced
    sharded: bool = False
    options: tuple[tuple[str, Any], ...] = ()


CASES = {
    "DDP": Case(),
    "DDP, float32": Case(dtype=torch.float32),
    "DDP, bfloat16": Case(dtype=torch.bfloat16),
    "DDP, views": Case(options=(("gradient_as_bucket_view", True),)),
    "DDP, small buckets": Case(options=(("bucket_cap_mb", 1e-5),)),
    "DDP, accumulation": Case(passes=3),
    "DDP, BatchNorm": Case(normalized, options=(("broadcast_buffers", False),)),
    "DDP, a dense layout is not given": Case(strided),
    "DDP, unused": Case(Partial, options=(("find_unused_parameters", True),)),
    "FSDP2": Case(sharded=True),
    "FSDP2, float32": Case(dtype=torch.float32, sharded=True),
    "FSDP2, bfloat16": Case(dtype=torch.bfloat16, sharded=True),
    "FSDP2, accumulation": Case(passes=3, sharded=True),
}
STEPS = 2  # DDP arranges its buckets anew after the first


def batch(rank: int, step: int, k: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + k)
    return torch.randn(6, 3, generator=generator, dtype=torch.float64).to(dtype)


def loss(model: nn.Module, rank: int, step: int, k: int, dtype: torch.dtype) -> Tensor:
    return (model(batch(rank, step, k, dtype)) - 1.0).pow(2).mean()


def build(case: Case, rank: int) -> nn.Module:
    torch.manual_seed(0)
    model = case.model().to(case.dtype)
    model.marked = rank == 0
    return model


def expected(case: Case, ranks: int, step: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of every gradient, from all ranks' batches in this process."""
    gradients: dict[str, list[np.ndarray]] = {}
    for rank in range(ranks):
        model = build(case, rank)
        for k in range(case.passes):
            loss(model, rank, step, k, case.dtype).backward()
        for name, param in model.named_parameters():
            grad = torch.zeros_like(param) if param.grad is None else param.grad
            gradients.setdefault(name, []).append(grad.double().numpy())
    stacked = {name: np.stack(g) for name, g in gradients.items()}
    return {n: (g.mean(0), g.var(0, ddof=1) / ranks) for n, g in stacked.items()}


def shard(model: nn.Module) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parallel(case: Case, rank: int) -> nn.Module:
    model = build(case, rank)
    return shard(model) if case.sharded else DistributedDataParallel(model, **dict(case.options))


@contextlib.contextmanager
def unreduced(model: nn.Module) -> Iterator[None]:
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def measure(case: Case, rank: int) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """What one rank finds in grad and grad_var at each step."""
    model = parallel(case, rank)
    rank_variance(model)
    found = []
    for step in range(STEPS):
        for k in range(case.passes - 1):
            with unreduced(model):
                loss(model, rank, step, k, case.dtype).backward()
            assert not any(is_current(p) for p in model.parameters())
        loss(model, rank, step, case.passes - 1, case.dtype).backward()
        reached = {n: p for n, p in model.named_parameters() if p.grad is not None}
        found.append({n: copies(p) for n, p in reached.items()})
        model.zero_grad()
        assert not any(is_current(p) for p in model.parameters())
    return found


def copies(param: Tensor) -> tuple[Tensor, Tensor]:
    return whole(param.grad).clone(), whole(current(param)).clone()


def clipping(
    name: str, rank: int, clip: Callable[..., Tensor] = clip_grad_norm_
) -> tuple[float, float]:
    """How far clipping is off its formula, and variances off c^2 of the gradients, relatively."""
    case = CASES[name]
    model = parallel(case, rank)
    rank_variance(model)
    loss(model, rank, 0, 0, case.dtype).backward()
    before = [copies(p) for p in model.parameters()]
    norm = float(whole(clip(model.parameters(), 1e-3)))
    after = [copies(p) for p in model.parameters()]
    length = float(torch.cat([grad.flatten() for grad, _ in before]).norm())
    factor = float(torch.cat([grad.flatten() for grad, _ in after]).norm()) / length
    off = max(
        float((a / b / factor**2 - 1).abs().max())
        for (_, a), (_, b) in zip(after, before, strict=True)
    )
    return max(abs(norm / length - 1), abs(factor * (norm + 1e-6) / 1e-3 - 1)), off


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "of the DTensor": lambda grad: grad.mul_(0.5),
    "of the list": lambda grad: torch._foreach_mul_([grad], 0.5),
    "of the shard": lambda grad: getattr(grad, "_local_tensor", grad).mul_(0.5),
    "of the data": lambda grad: grad.data.mul_(0.5),
    "by one": lambda grad: torch._foreach_mul_([grad], 1.0),
    "clipped by value to what it is": lambda grad: grad.clamp_(-1e9, 1e9),
}


def held_here(param: Tensor) -> bool:
    """Whether this rank has any part of a parameter."""
    return getattr(param, "_local_tensor", param).numel() > 0


def changed(name: str, rank: int) -> dict[str, list[bool]]:
    """Whether variances are current after each change, a parameter each."""
    case, found = CASES[name], {}
    model = parallel(case, rank)
    rank_variance(model)
    for what, change in CHANGES.items():
        model.zero_grad()
        loss(model, rank, 0, 0, case.dtype).backward()
        for param in model.parameters():
            change(param.grad)
        found[what] = [is_current(p) for p in model.parameters() if held_here(p)]
    return found


def clipped_in_two(params: Iterator[Tensor], max_norm: float) -> Tensor:
    """Clip as trainers do that reduce the norm themselves."""
    params = list(params)
    norm = nn.utils.get_total_norm([p.grad for p in params])
    nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm


def fsdp_reduced_twice(rank: int) -> bool:
    """Whether FSDP gradients that were reduced twice have no variance."""
    model = parallel(CASES["FSDP2"], rank)
    rank_variance(model)
    for k in range(2):
        loss(model, rank, 0, k, torch.float64).backward()
    return not any(is_current(p) for p in model.parameters() if held_here(p))


def divided(rank: int, ranks: int) -> float:
    """The error where FSDP divides by 3 and not by the number of ranks."""
    case = CASES["FSDP2"]
    model = parallel(case, rank)
    model.set_gradient_divide_factor(3.0)
    model[0].set_gradient_divide_factor(3.0)
    rank_variance(model)
    loss(model, rank, 0, 0, case.dtype).backward()
    oracle = expected(case, ranks, 0)
    worst = 0.0
    for name, param in model.named_parameters():
        grad, variance = (t.numpy() for t in copies(param))
        worst = max(worst, np.abs(grad - oracle[name][0] * ranks / 3).max())
        worst = max(worst, np.abs(variance - oracle[name][1] * (ranks / 3) ** 2).max())
    return float(worst)


def refused(rank: int, ranks: int) -> list[str]:
    """The messages for what cannot be followed under FSDP2."""
    said = []
    model = parallel(CASES["FSDP2, float32"], rank)
    model.set_gradient_divide_factor(3.0)
    rank_variance(model)
    try:
        loss(model, rank, 0, 0, torch.float32).backward()
    except InvalidOption as error:
        said.append(str(error))
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("a", "b"))
    try:
        rank_variance(fully_shard(dense(), mesh=mesh))
    except InvalidOption as error:
        said.append(str(error))
    return said


def accumulating(name: str, rank: int, ranks: int) -> float:
    """The error of micro-batch variance where every backward pass is reduced."""
    case = CASES[name]
    model = parallel(case, rank)
    worst = 0.0
    for step in range(STEPS):
        model.zero_grad()
        with micro_batch_variance(model.parameters()) as micro_batches:
            for k in range(3):
                loss(model, rank, step, k, case.dtype).backward()
                micro_batches.micro_step()
        contributions = []
        for k in range(3):
            parts = [build(case, r) for r in range(ranks)]
            for r, part in enumerate(parts):
                loss(part, r, step, k, case.dtype).backward()
            grads = zip(
                *[[p.grad.numpy() for p in part.parameters()] for part in parts], strict=True
            )
            contributions.append([np.mean(g, 0) for g in grads])
        for param, c in zip(model.parameters(), zip(*contributions, strict=True), strict=True):
            stacked = np.stack(c)
            grad, variance = (t.numpy() for t in copies(param))
            worst = max(worst, np.abs(grad - stacked.sum(0)).max())
            worst = max(worst, np.abs(variance - 3 * stacked.var(0, ddof=1)).max())
    return float(worst)


SIZES = (4, 2)


def work(rank: int, folder: str) -> None:
    """One of four processes, the first two of which then are the only ones."""
    torch.set_num_threads(1)
    for ranks in SIZES:
        if rank >= ranks:
            return
        store = dist.FileStore(f"{folder}/store-{ranks}", ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        torch.save(everything(rank, ranks), f"{folder}/{ranks}-{rank}.pt")
        dist.destroy_process_group()


def everything(rank: int, ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: measure(case, rank) for name, case in CASES.items()}
    found["reduced twice"] = fsdp_reduced_twice(rank)
    found["divided"] = divided(rank, ranks)
    names = ("DDP", "DDP, views", "FSDP2")
    found["micro-batches"] = [accumulating(name, rank, ranks) for name in names]
    found["clipping"] = [
        clipping(name, rank, clip)
        for name in names
        for clip in (clip_grad_norm_, nn.utils.clip_grad_norm_, clipped_in_two)
    ]
    found["changed"] = {name: changed(name, rank) for name in names}
    found["refused"] = refused(rank, ranks)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=max(SIZES))
    return folder


@pytest.fixture(scope="module", params=SIZES)
def results(request: pytest.FixtureRequest, folder: Path) -> list[dict]:
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


# Of 1e-4 s + 1e-6 mean g_k^2, the bound in float32.
BOUNDS = {torch.float64: 1e-6, torch.float32: 1.0, torch.bfloat16: 200.0}


@pytest.mark.parametrize("name", CASES)
def test_against_one_process(name: str, results: list[dict]) -> None:
    case, ranks = CASES[name], len(results)
    for step, rank in itertools.product(range(STEPS), range(ranks)):
        found = {n.removeprefix("module."): v for n, v in results[rank][name][step].items()}
        oracle = expected(case, ranks, step)
        assert set(found) >= {n for n, (mean, _) in oracle.items() if mean.any()}
        for key, (grad, variance) in found.items():
            mean, s = oracle[key]
            allowed = 1e-4 * s + 1e-6 * (mean**2 + (ranks - 1) * s) + 1e-20
            off = (np.abs(variance.double().numpy() - s) / allowed).max()
            assert_within(f"ranks, {case.dtype}, over 1e-4 s + 1e-6 g^2", off, BOUNDS[case.dtype])
            assert (variance >= 0).all()
            slack = torch.finfo(case.dtype).eps * 8
            np.testing.assert_allclose(grad.double(), mean, rtol=slack, atol=slack)


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
def test_float32_where_the_mean_dwarfs_the_spread(ratio: float, ranks: int) -> None:
    generator = torch.Generator().manual_seed(ranks)
    g = ratio * (1 + torch.rand(500, generator=generator))
    g = g + torch.randn(ranks, 500, generator=generator)
    c = g / ranks
    squares, total = torch.zeros(500), torch.zeros(500)
    for part in c:  # one after the other, as round a ring
        squares += part.square()
        total += part
    exact = g.double().numpy()
    error = np.abs(_spread(squares, total, ranks).numpy() - exact.var(0, ddof=1) / ranks)
    mean_sq = (exact**2).mean(0)
    assert_within("ranks, float32, over mean g_k^2", (error / mean_sq).max(), 5e-7)


def test_gradients_reduced_twice_by_fsdp_have_no_variance(results: list[dict]) -> None:
    assert all(found["reduced twice"] for found in results)


def test_clipping_reaches_variances_across_ranks(results: list[dict]) -> None:
    """Of sharded gradients, torch 2.9 adds its 1e-6 to each rank's part of the norm."""
    for found in results:
        for formula, variances in found["clipping"]:
            assert formula < 1e-5
            assert variances < 1e-9


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["DDP", "DDP, views", "FSDP2"])
def test_a_change_of_a_gradient_ends_its_variance_sharded_or_not(
    name: str, change: str, results: list[dict]
) -> None:
    """torch changes a DTensor and leaves its version as it was."""
    nothing = change in ("by one", "clipped by value to what it is")
    for found in results:
        current_ones = found["changed"][name][change]
        assert current_ones == [nothing] * len(current_ones)
    assert len(results[0]["changed"][name][change]) == 4


def test_fsdps_own_divisor_is_followed(results: list[dict]) -> None:
    assert max(found["divided"] for found in results) < 1e-12


def test_what_cannot_be_followed_is_refused(results: list[dict]) -> None:
    for found in results:
        factor, mesh = found["refused"]
        assert "cannot follow a reduction by" in factor
        assert "leave FSDP's gradient divide factor" in factor
        assert f"a mesh of shape (2, {len(results) // 2})" in mesh


def test_micro_batches_work_where_every_pass_is_reduced(results: list[dict]) -> None:
    assert max(max(found["micro-batches"]) for found in results) < 1e-12


def test_one_rank_has_no_variance(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for model in (DistributedDataParallel(dense()), shard(dense())):
            with pytest.raises(TooFewSamples, match="at least 2 ranks and there is 1; use svag"):
                rank_variance(model)
    finally:
        dist.destroy_process_group()


def test_a_model_that_is_not_data_parallel_is_refused() -> None:
    with pytest.raises(InvalidOption, match="Sequential is not data-parallel; wrap it in"):
        rank_variance(dense())
