"""Trainers of other packages take the same steps as a hand-written loop, with svag's optimizers.

Each test is a cell of the table in docs/trainers.md: ``client x feature``. They need the real
packages; ``make test-integrations`` installs them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import svag
from integrations.clients import (
    BATCH,
    EXAMPLES,
    Network,
    Task,
    batch,
    by_hand,
    examples,
    following,
    loss_of,
    vector,
)

pytestmark = pytest.mark.filterwarnings("ignore")


# ------------------------------------------------------------------------------- the clients


def hf_trainer(task: Task, folder: Path, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from svag.integrations.hf import VarianceMixin

    bases = (VarianceMixin, transformers.Trainer) if task.within else (transformers.Trainer,)
    kind = type("InOrder", bases, {"_get_train_sampler": lambda self, *a: _in_order()})
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=task.steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=task.accumulate,
        max_grad_norm=task.clip or 0.0,
        bf16=task.bf16,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "no", **more},
    )
    model = Network()
    x, y = examples()
    data = [{"x": x[n], "labels": y[n]} for n in range(EXAMPLES)]
    optimizers = (task.optimizer(model.parameters()), None)
    return kind(model, arguments, train_dataset=data, optimizers=optimizers)


def _in_order() -> Any:
    return torch.utils.data.SequentialSampler(range(EXAMPLES))


def hf(task: Task, folder: Path) -> Tensor:
    trainer = hf_trainer(task, folder)
    trainer.train()
    return vector(trainer.model)


def hf_resumed(task: Task, folder: Path) -> Tensor:
    first = hf_trainer(task, folder, save_strategy="steps", save_steps=task.steps // 2)
    first.train()
    second = hf_trainer(task, folder)
    second.train(resume_from_checkpoint=str(folder / f"checkpoint-{task.steps // 2}"))
    return vector(second.model)


def accelerate(task: Task, folder: Path) -> Tensor:
    return _accelerated(task, None)


def accelerate_resumed(task: Task, folder: Path) -> Tensor:
    return _accelerated(task, folder)


def _accelerated(task: Task, folder: Path | None) -> Tensor:
    package = pytest.importorskip("accelerate", reason="accelerate is not installed")

    def prepared() -> Any:
        package.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = package.Accelerator(
            cpu=True,
            mixed_precision="bf16" if task.bf16 else "no",
            gradient_accumulation_steps=task.accumulate,
        )
        model = Network()
        return accelerator, *accelerator.prepare(model, task.optimizer(model.parameters()))

    accelerator, model, optimizer = prepared()
    for number in range(task.steps * task.accumulate):
        if folder is not None and number == task.steps * task.accumulate // 2:
            accelerator.save_state(str(folder))
            accelerator, model, optimizer = prepared()
            accelerator.load_state(str(folder))
        x, y = batch(number)
        with accelerator.accumulate(model):
            with following(task, model):
                accelerator.backward(loss_of(model(x), y))
            if accelerator.sync_gradients and task.clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), task.clip)
            optimizer.step()
            optimizer.zero_grad()
    return vector(model)


def _loader() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*examples()), BATCH)


def lightning_trainer(task: Task, folder: Path, **more: Any) -> tuple[Any, Any]:
    package = pytest.importorskip("lightning", reason="lightning is not installed")
    from svag.integrations.lightning import VarianceCallback

    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def training_step(self, given: list[Tensor], index: int) -> Tensor:
            return loss_of(self.network(given[0]), given[1])

        def configure_optimizers(self) -> Any:
            return task.optimizer(self.parameters())

    trainer = package.Trainer(
        default_root_dir=str(folder),
        **({"max_steps": task.steps} if "max_epochs" not in more else {}),
        accelerator="cpu",
        precision="bf16-mixed" if task.bf16 else "32-true",
        gradient_clip_val=task.clip,
        accumulate_grad_batches=task.accumulate,
        callbacks=[VarianceCallback()] if task.within else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    return trainer, Module()


def lightning(task: Task, folder: Path) -> Tensor:
    trainer, module = lightning_trainer(task, folder)
    trainer.fit(module, _loader())
    return vector(module)


def lightning_resumed(task: Task, folder: Path) -> Tensor:
    epochs = task.steps * BATCH // EXAMPLES
    trainer, module = lightning_trainer(task, folder, max_epochs=epochs // 2)
    trainer.fit(module, _loader())
    trainer.save_checkpoint(folder / "half.ckpt")
    trainer, module = lightning_trainer(task, folder, max_epochs=epochs)
    trainer.fit(module, _loader(), ckpt_path=str(folder / "half.ckpt"))
    return vector(module)


def fabric(task: Task, folder: Path) -> Tensor:
    return _fabric(task, None)


def fabric_resumed(task: Task, folder: Path) -> Tensor:
    return _fabric(task, folder)


def _fabric(task: Task, folder: Path | None) -> Tensor:
    package = pytest.importorskip("lightning.fabric", reason="lightning is not installed")
    one = package.Fabric(accelerator="cpu", precision="bf16-mixed" if task.bf16 else "32-true")

    def prepared() -> Any:
        network = Network()
        return one.setup(network, task.optimizer(network.parameters()))

    model, optimizer = prepared()
    for number in range(task.steps * task.accumulate):
        if folder is not None and number == task.steps * task.accumulate // 2:
            one.save(folder / "half.ckpt", {"model": model, "optimizer": optimizer})
            model, optimizer = prepared()
            one.load(folder / "half.ckpt", {"model": model, "optimizer": optimizer})
        x, y = batch(number)
        with following(task, model):
            one.backward(loss_of(model(x), y) / task.accumulate)
        if (number + 1) % task.accumulate == 0:
            if task.clip is not None:
                one.clip_gradients(model, optimizer, max_norm=task.clip)
            optimizer.step()
            optimizer.zero_grad()
    return vector(model)


def timm(task: Task, folder: Path) -> Tensor:
    return _timm(task, resumed=False)


def timm_resumed(task: Task, folder: Path) -> Tensor:
    return _timm(task, resumed=True)


def _timm(task: Task, *, resumed: bool) -> Tensor:
    """timm's own pieces of a training loop: factory, scaler with clipping."""
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.optim import create_optimizer_v2
    from timm.utils import dispatch_clip_grad

    import svag.integrations.timm

    svag.integrations.timm.register()
    variance = {"variance": "within-batch"} if task.within else {}

    def prepared() -> Any:
        model = Network()
        name = f"svag-{svag.METHODS[_key(task)].key}"
        return model, create_optimizer_v2(
            model.parameters(), name, lr=0.05, momentum=0.9, **variance
        )

    model, optimizer = prepared()
    for number in range(task.steps * task.accumulate):
        if resumed and number == task.steps * task.accumulate // 2:
            saved = model.state_dict(), optimizer.state_dict()
            model, optimizer = prepared()
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        x, y = batch(number)
        with following(task, model):
            with torch.autocast("cpu", torch.bfloat16, enabled=task.bf16):
                out = model(x)
            (loss_of(out, y) / task.accumulate).backward()
        if (number + 1) % task.accumulate == 0:
            if task.clip is not None:
                dispatch_clip_grad(model.parameters(), task.clip, mode="norm")
            optimizer.step()
            optimizer.zero_grad()
    return vector(model)


def _key(task: Task) -> str:
    return next(key for key, one in svag.METHODS.items() if one.optimizer == task.method)


# --------------------------------------------------------------------------------- the table

CLIENTS = {
    "Trainer of transformers": (hf, hf_resumed),
    "accelerate": (accelerate, accelerate_resumed),
    "Lightning Trainer": (lightning, lightning_resumed),
    "Lightning Fabric": (fabric, fabric_resumed),
    "timm": (timm, timm_resumed),
}
FEATURES = {
    "plain": Task(),
    "clipping": Task(clip=0.5),
    "bf16": Task(bf16=True),
    "accumulation": Task(accumulate=2),
    "resume": Task(steps=16),  # the first half is one epoch
    "within-batch": Task(within=True),
    "within-batch, clipping": Task(within=True, clip=0.5),
    "within-batch, bf16": Task(within=True, bf16=True),
    "within-batch, accumulation": Task(within=True, accumulate=2),
    "within-batch, resume": Task(within=True, steps=16),
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_takes_the_steps_of_a_loop(client: str, feature: str, tmp_path: Path) -> None:
    task = FEATURES[feature]
    straight, resumed = CLIENTS[client]
    found = (resumed if "resume" in feature else straight)(task, tmp_path)
    expected = by_hand(task, rounded=task.bf16 and client == "Lightning Fabric")
    assert torch.equal(found, expected)
    assert not torch.equal(by_hand(replace(task, steps=1)), expected)


@pytest.mark.parametrize("method", ["MSGD", "MSSD", "Adam"])
@pytest.mark.parametrize("client", CLIENTS)
def test_other_methods(client: str, method: str, tmp_path: Path) -> None:
    task = Task(method=method)
    assert torch.equal(CLIENTS[client][0](task, tmp_path), by_hand(task))


# ------------------------------------------------------------------------- over micro-batches


def by_hand_over_micro_batches(task: Task) -> Tensor:
    model = Network()
    optimizer = task.optimizer(model.parameters())
    for step in range(task.steps):
        optimizer.zero_grad()
        with svag.micro_batch_variance(model.parameters()) as variance:
            for number in range(step * task.accumulate, (step + 1) * task.accumulate):
                x, y = batch(number)
                (loss_of(model(x), y) / task.accumulate).backward()
                variance.micro_step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()
    return vector(model)


MICRO = Task(within=True, accumulate=4, clip=0.5, steps=4)


def test_micro_batches_of_the_trainer_of_transformers(tmp_path: Path) -> None:
    trainer = hf_trainer(MICRO, tmp_path)
    trainer.variance_from = "micro-batches"
    trainer.train()
    assert torch.equal(vector(trainer.model), by_hand_over_micro_batches(MICRO))


def test_micro_batches_of_lightning(tmp_path: Path) -> None:
    trainer, module = lightning_trainer(replace(MICRO, within=False), tmp_path)
    from svag.integrations.lightning import VarianceCallback

    trainer.callbacks.append(VarianceCallback("micro-batches"))
    module.configure_optimizers = lambda: MICRO.optimizer(module.parameters())
    trainer.fit(module, _loader())
    assert torch.equal(vector(module), by_hand_over_micro_batches(MICRO))


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    trainer = hf_trainer(Task(within=True), tmp_path)
    trainer.variance_from = "micro-batches"
    with pytest.raises(svag.errors.InvalidOption, match="gradient_accumulation_steps=1: a var"):
        trainer.train()
    trainer.variance_from = "rows"
    with pytest.raises(svag.errors.InvalidOption, match="choose 'examples' or 'micro-batches'"):
        trainer.train()


def test_lightning_refuses_what_cannot_work(tmp_path: Path) -> None:
    trainer, module = lightning_trainer(Task(within=True), tmp_path)
    module.automatic_optimization = False
    with pytest.raises(svag.errors.InvalidOption, match="optimizes by hand: leave the callback"):
        trainer.fit(module, _loader())
    from svag.integrations.lightning import VarianceCallback

    with pytest.raises(svag.errors.InvalidOption, match="micro-batches take no options"):
        VarianceCallback("micro-batches", examples=0)


def test_a_skipped_batch_leaves_no_context_open(tmp_path: Path) -> None:
    trainer, module = lightning_trainer(Task(within=True), tmp_path)
    step = module.training_step
    module.training_step = lambda given, batch_idx: step(given, 0) if batch_idx != 1 else None
    trainer.fit(module, _loader())
    with svag.within_batch_variance(Network()) as again:
        assert again is not None


def test_lightning_refuses_a_step_of_one_micro_batch_before_training(tmp_path: Path) -> None:
    task = Task(within=True, accumulate=3)  # of eight mini-batches
    trainer, module = lightning_trainer(task, tmp_path, limit_train_batches=7)
    from svag.integrations.lightning import VarianceCallback

    trainer.callbacks = [VarianceCallback("micro-batches")]
    with pytest.raises(svag.errors.InvalidOption, match="7 mini-batches and a step accumulates 3"):
        trainer.fit(module, _loader())
    assert trainer.global_step == 0


def test_lightning_clips_by_value_in_the_hook_of_the_page(tmp_path: Path) -> None:
    """The recipe of docs/trainers.md: entries keep their variance."""
    trainer, module = lightning_trainer(Task(within=True), tmp_path)
    module.configure_gradient_clipping = lambda *a, **k: svag.clip_grad_value_(
        module.parameters(), 0.1
    )
    trainer.fit(module, _loader())
    model = Network()
    optimizer = Task(within=True).optimizer(model.parameters())
    for number in range(6):
        x, y = batch(number)
        optimizer.zero_grad()
        with svag.within_batch_variance(model):
            loss_of(model(x), y).backward()
        assert any(bool((p.grad.abs() > 0.1).any()) for p in model.parameters())
        svag.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
    assert torch.equal(vector(module), vector(model))


# ----------------------------------------------------------------------------------- timm


def test_timm_knows_every_method_and_no_name_collides() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from svag.integrations.timm import register

    names = register()
    assert register() == names
    assert len(names) == 2 * len(svag.METHODS)
    assert set(names) <= set(timm.optim.list_optimizers())
    for name in names:
        optimizer = timm.optim.create_optimizer_v2(Network(), name, lr=0.1, weight_decay=0.01)
        group = optimizer.param_groups[-1]
        assert group["decoupled_weight_decay"] == name.endswith("w")
        assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.01}


@pytest.mark.parametrize(
    ("given", "beta"), [({"momentum": 0.8}, 0.8), ({"betas": (0.7,)}, 0.7), ({}, 0.9)]
)
def test_momentum_and_betas_of_timm_reach_beta(given: dict[str, Any], beta: float) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from svag.integrations.timm import register

    register()
    made = timm.optim.create_optimizer_v2(Network(), "svag-m-svag", lr=0.1, **given)
    assert made.param_groups[0]["beta"] == beta
    with pytest.raises(svag.errors.InvalidOption, match="M-SVAG has one beta for all"):
        timm.optim.create_optimizer_v2(Network(), "svag-m-svag", lr=0.1, betas=(0.9, 0.999))
