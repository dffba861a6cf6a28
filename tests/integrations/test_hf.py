"""The callback in the Trainer of transformers."""

import warnings
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


def mixed(folder: Path, make: Any, examples: int = 80, **arguments: Any) -> Any:
    """Return a trainer with the mixin, on mini-batches of five."""
    from svag.integrations.hf import VarianceMixin

    own = arguments.pop("variance_from", "examples")
    kind = type("Own", (VarianceMixin, transformers.Trainer), {"variance_from": own})
    plain = trainer_of(folder, make, **arguments)
    data, optimizers = plain.train_dataset[:examples], (plain.optimizer, None)
    return kind(plain.model, plain.args, train_dataset=data, optimizers=optimizers)


def within(params: Any) -> torch.optim.Optimizer:
    return svag.MSVAG(params, lr=0.1, variance="within-batch")


def test_the_mixin_behind_the_trainer_is_refused() -> None:
    from svag.errors import InvalidOption
    from svag.integrations.hf import VarianceMixin

    with pytest.raises(InvalidOption, match=r"Trainer comes before.*Own\(VarianceMixin, Trainer\)"):
        type("Own", (transformers.Trainer, VarianceMixin), {})
    first = type("Own", (VarianceMixin, transformers.Trainer), {})
    assert type("Further", (first,), {"training_step": lambda self, *a: None})


@pytest.mark.filterwarnings("error::UserWarning:svag")
def test_a_step_of_one_micro_batch_is_refused_before_training(tmp_path: Path) -> None:
    from svag.errors import InvalidOption

    two = {"gradient_accumulation_steps": 2, "variance_from": "micro-batches"}
    trainer = mixed(tmp_path, within, 15, **two)
    with pytest.raises(InvalidOption, match="3 mini-batches and a step accumulates 2"):
        trainer.train()
    assert trainer.state.global_step == 0
    mixed(tmp_path, within, 20, **two).train()


def test_a_last_batch_of_one_example_is_warned_of_before_training(tmp_path: Path) -> None:
    trainer = mixed(tmp_path, within, 11)
    with pytest.warns(UserWarning, match="last mini-batch.*1 example.*dataloader_drop_last=True"):
        trainer.get_train_dataloader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed(tmp_path, within, 11, dataloader_drop_last=True).get_train_dataloader()
        mixed(tmp_path, within, 12).get_train_dataloader()
        mixed(tmp_path, within, 46).get_train_dataloader()  # max_steps=8 ends before


def test_a_variance_that_no_optimizer_uses_is_warned_of_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="MSVAG does not use it") as caught:
        mixed(tmp_path, lambda p: svag.MSVAG(p, lr=0.1)).train()
    assert len([one for one in caught if "does not use it" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not use it")
        mixed(tmp_path, within).train()
        mixed(tmp_path, lambda p: torch.optim.Adam(p)).train()


def test_the_class_and_its_options_get_the_trainers_decay_groups(tmp_path: Path) -> None:
    """The recipe of docs/trainers.md for weight decay."""
    from svag.integrations.hf import VarianceMixin

    class Own(VarianceMixin, transformers.Trainer):
        pass

    plain = trainer_of(tmp_path, within, weight_decay=0.01)
    options = {"lr": 0.1, "variance": "within-batch", "decoupled_weight_decay": True}
    trainer = Own(
        plain.model,
        plain.args,
        train_dataset=plain.train_dataset,
        optimizer_cls_and_kwargs=(svag.MSVAG, options),
    )
    trainer.train()
    groups = trainer.optimizer.param_groups
    assert [(g["weight_decay"], g["initial_lr"]) for g in groups] == [(0.01, 0.1), (0.0, 0.1)]
    assert all(g["decoupled_weight_decay"] for g in groups)
    assert isinstance(trainer.optimizer.optimizer, svag.MSVAG)


def test_a_monitor_without_a_trainer_names_the_remedy() -> None:
    from svag.errors import InvalidOption
    from svag.integrations.hf import MonitorCallback

    for make in (MonitorCallback, lambda: MonitorCallback(every=4)):
        with pytest.raises(InvalidOption, match=r"trainer\.add_callback\(MonitorCallback\(trainer"):
            make()


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
