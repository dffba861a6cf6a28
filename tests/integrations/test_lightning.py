"""The callback in Lightning's own trainer."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svag
from svag.diagnosis.monitoring.monitor import Monitor

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def trained(module: Any, folder: Path, callbacks: list[Any], logger: Any = None) -> Any:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=callbacks,
        logger=logger or False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader)
    return trainer


def module_of(make: Any) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(4, 1)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return (self.net(batch[0]) - 1).square().mean()

        def configure_optimizers(self) -> Any:
            return make(self)

    return Module()


def logger_of(metrics: list[tuple[dict[str, float], int]]) -> Any:
    class Logger(lightning.loggers.logger.Logger):
        name, version = "kept", "0"

        def log_metrics(self, figures: dict[str, float], step: int | None = None) -> None:
            metrics.append((dict(figures), step or 0))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    return Logger()


@pytest.mark.parametrize("make", [svag.MSVAG, torch.optim.AdamW])
def test_figures_go_to_the_logger_with_the_trainers_step(tmp_path: Path, make: Any) -> None:
    from svag.integrations.lightning import MonitorCallback

    metrics: list[tuple[dict[str, float], int]] = []
    records: list[dict[str, Any]] = []
    callback = MonitorCallback(every=3, budget=None, batch_size=4, to=records.append)
    module = module_of(lambda m: make(m.parameters(), lr=1e-2))
    trained(module, tmp_path, [callback], logger_of(metrics))
    ours = [(figures, step) for figures, step in metrics if "svag/gamma_mean" in figures]
    assert [step for _, step in ours] == [3, 6, 9]
    assert [record["step"] for record in records] == [3, 6, 9]
    for (figures, _), record in zip(ours, records, strict=True):
        assert figures["svag/gamma_mean"] == record["gamma_mean"]
        assert figures["svag/variance"] == record["variance"]
    # by hand, with another monitor on the same run
    other = module_of(lambda m: make(m.parameters(), lr=1e-2))
    optimizer = other.configure_optimizers()
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    with Monitor(optimizer, 3, None, batch_size=4, by_layer=False) as monitor:
        for batch in x.split(4):
            optimizer.zero_grad()
            other.training_step([batch], 0).backward()
            optimizer.step()
    assert monitor.last[0]["variance"] == pytest.approx(records[-1]["variance"], rel=1e-6)


def test_several_optimizers_are_told_apart_and_layers_have_the_modules_names(
    tmp_path: Path,
) -> None:
    from svag.integrations.lightning import MonitorCallback

    metrics: list[tuple[dict[str, float], int]] = []
    callback = MonitorCallback(every=2, budget=None, by_layer=True)

    def two(module: Any) -> list[torch.optim.Optimizer]:
        return [
            svag.MSVAG([module.net.weight], lr=1e-2),
            torch.optim.Adam([module.net.bias], lr=1e-2),
        ]

    module = module_of(two)
    module.automatic_optimization = False

    def step(batch: list[Tensor], index: int = 0) -> None:
        for optimizer in module.optimizers():
            optimizer.zero_grad()
        module.manual_backward((module.net(batch[0]) - 1).square().mean())
        for optimizer in module.optimizers():
            optimizer.step()

    module.training_step = step
    trained(module, tmp_path, [callback], logger_of(metrics))
    names = {name for figures, _ in metrics for name in figures}
    assert {"svag/net.weight/gamma_mean", "svag1/net.bias/gamma_mean"} <= names
    assert callback.monitors == []
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in module.optimizers(False))


def test_a_monitor_whose_figures_go_nowhere_is_warned_of(tmp_path: Path) -> None:
    from svag.integrations.lightning import MonitorCallback

    def adam() -> Any:
        return module_of(lambda m: torch.optim.Adam(m.parameters()))

    with pytest.warns(UserWarning, match="no logger, so the monitor's figures go nowhere"):
        trained(adam(), tmp_path, [MonitorCallback(every=3)])
    path = tmp_path / "noise.jsonl"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*go nowhere")
        trained(adam(), tmp_path, [MonitorCallback(every=3, to=path)])
    assert path.read_text(encoding="utf-8").count('"gamma_mean"') >= 1
