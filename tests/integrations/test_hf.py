"""The callback in the Trainer of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svag

pytest.importorskip("accelerate", reason="accelerate is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.dense(x)
        return {"loss": (out - labels).square().mean(), "logits": out}


def trainer_of(folder: Path, make: Any, **arguments: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(4, generator=generator), "labels": torch.ones(1)} for _ in range(80)]
    model = Model()
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=5,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=4,
        use_cpu=True,
        **arguments,
    )
    optimizers = (make(model.parameters()), None) if make else (None, None)
    return transformers.Trainer(model, args, train_dataset=data, optimizers=optimizers)


def test_a_training_that_failed_leaves_one_monitor(tmp_path: Path) -> None:
    from svag.integrations.hf import MonitorCallback

    trainer = trainer_of(tmp_path, lambda p: torch.optim.Adam(p))
    trainer.add_callback(MonitorCallback(trainer, every=1, budget=None))
    optimizer = trainer.optimizer

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    trainer.compute_loss = fails
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    del trainer.compute_loss
    trainer.train()
    assert not optimizer._optimizer_step_post_hooks


def test_options_of_the_variance_are_checked(tmp_path: Path) -> None:
    from svag.errors import UnknownOption
    from svag.integrations.hf import VarianceMixin

    class Own(VarianceMixin, transformers.Trainer):
        variance_options = {"exmaples": "x"}  # noqa: RUF012

    plain = trainer_of(tmp_path, lambda p: svag.MSVAG(p, lr=0.1, variance="within-batch"))
    trainer = Own(plain.model, plain.args, train_dataset=plain.train_dataset)
    with pytest.raises(UnknownOption, match="'exmaples'"):
        trainer.train()


def test_a_last_batch_of_one_example_names_the_remedy(tmp_path: Path) -> None:
    from svag.errors import TooFewSamples
    from svag.integrations.hf import VarianceMixin

    class Own(VarianceMixin, transformers.Trainer):
        pass

    plain = trainer_of(tmp_path, lambda p: svag.MSVAG(p, lr=0.1, variance="within-batch"))
    optimizers = (plain.optimizer, None)
    data = plain.train_dataset[:11]
    with pytest.raises(TooFewSamples, match=r"1 example.*drop_last=True"):
        Own(plain.model, plain.args, train_dataset=data, optimizers=optimizers).train()


@pytest.mark.parametrize(
    "make", [lambda p: svag.MSVAG(p, lr=1e-2), lambda p: torch.optim.Adam(p), None]
)
def test_figures_are_logged_with_the_trainers_step(tmp_path: Path, make: Any) -> None:
    """None is the trainer's own optimizer, AdamW."""
    from svag.integrations.hf import MonitorCallback

    records: list[dict[str, Any]] = []
    trainer = trainer_of(tmp_path, make, gradient_accumulation_steps=2)
    trainer.add_callback(
        MonitorCallback(trainer, every=3, budget=None, by_layer=True, to=records.append)
    )
    trainer.train()
    logged = [line for line in trainer.state.log_history if "svag/gamma_mean" in line]
    assert [line["step"] for line in logged] == [3, 6]
    for line in logged:
        [record] = [r for r in records if r["step"] == line["step"] and r["layer"] == "all"]
        assert line["svag/variance"] == record["variance"]
        assert line["svag/dense.weight/gamma_mean"] >= 0
    ratio = records[0]["variance"] / records[0]["grad_sq"]
    assert records[0]["noise_scale"] == (pytest.approx(10 * ratio) if ratio > 0 else None)
    assert any("loss" in line for line in trainer.state.log_history)


def test_the_number_of_examples_can_be_given_and_the_hook_is_gone_afterwards(
    tmp_path: Path,
) -> None:
    from svag.integrations.hf import MonitorCallback

    trainer = trainer_of(tmp_path, lambda p: svag.MSVAG(p, lr=1e-2))
    callback = MonitorCallback(trainer, every=2, batch_size=7)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.monitor is not None
    assert callback.monitor.batch_size == 7
    assert not trainer.optimizer.optimizer._optimizer_step_post_hooks
