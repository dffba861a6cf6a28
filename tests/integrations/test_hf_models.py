"""Options of Trainer that change the loss or the backward pass, on a model of transformers.

The parameters after training are those of a hand-written loop, within-batch variance included.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import svag
from svag.errors import PerExampleError

pytest.importorskip("accelerate", reason="accelerate is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS, LENGTH, BATCH, STEPS = 20, 8, 4, 4
CHECKPOINTED = {"gradient_checkpointing": True}
SMOOTHED = {"label_smoothing_factor": 0.1}


def tokens() -> Tensor:
    return torch.randint(WORDS, (BATCH * STEPS, LENGTH), generator=torch.Generator().manual_seed(0))


def language_model(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2, **rates
    )
    return transformers.GPT2LMHeadModel(config)


def optimizer_of(model: nn.Module) -> svag.MSVAG:
    return svag.MSVAG(model.parameters(), lr=0.1, variance="within-batch")


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def trained(folder: Path, model: Any, **options: Any) -> Tensor:
    from svag.integrations.hf import VarianceMixin

    class InOrder(VarianceMixin, transformers.Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(range(len(tokens())))

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        max_grad_norm=0.5,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    data = [{"input_ids": row, "labels": row} for row in tokens()]
    optimizers = (optimizer_of(model), None)
    InOrder(model, arguments, train_dataset=data, optimizers=optimizers).train()
    return vector(model)


def by_hand(model: Any, smoothing: float) -> Tensor:
    """Train with torch's own label smoothing and without checkpoints.

    Trainer divides a smoothed loss by the number of labels, the first of each row included.
    """
    share = (LENGTH - 1) / LENGTH if smoothing else 1.0
    optimizer = optimizer_of(model)
    model.train()
    for rows in tokens().split(BATCH):
        optimizer.zero_grad()
        with svag.within_batch_variance(model):
            logits = model(input_ids=rows).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].reshape(-1, WORDS),
                rows[:, 1:].reshape(-1),
                label_smoothing=smoothing,
            )
            (share * loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return vector(model)


@pytest.mark.parametrize(
    ("options", "smoothing"),
    [({}, 0.0), (SMOOTHED, 0.1), (CHECKPOINTED, 0.0), ({**SMOOTHED, **CHECKPOINTED}, 0.1)],
    ids=["plain", "label smoothing", "gradient checkpointing", "both"],
)
def test_an_option_of_trainer_takes_the_steps_of_a_loop(
    tmp_path: Path, options: dict[str, Any], smoothing: float
) -> None:
    start = vector(language_model())
    found = trained(tmp_path, language_model(), **options)
    expected = by_hand(language_model(), smoothing)
    assert float((expected - start).abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_checkpoints_change_no_bit_where_dropout_is_drawn_again(tmp_path: Path) -> None:
    plain = trained(tmp_path, language_model(0.2))
    assert torch.equal(trained(tmp_path, language_model(0.2), **CHECKPOINTED), plain)


def test_reentrant_checkpoints_are_refused_and_the_option_is_named(tmp_path: Path) -> None:
    reentrant = {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(PerExampleError, match=r"gradient_checkpointing_kwargs=.*False"):
        trained(tmp_path, language_model(), **reentrant)
