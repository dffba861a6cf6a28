"""TRL's trainers are Trainers of transformers, so the same mixin serves them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import svag
from svag.integrations.hf import VarianceMixin

trl = pytest.importorskip("trl", reason="trl is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = 32


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{n}": n for n in range(WORDS - 2)} | {"<pad>": WORDS - 2, "<eos>": WORDS - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>"
    )


class VarianceOverMicroBatches(VarianceMixin):
    variance_from = "micro-batches"


def trained(folder: Path, mixin: type, **more: Any) -> tuple[Any, svag.MSVAG]:
    import datasets

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=WORDS - 1,
        eos_token_id=WORDS - 1, pad_token_id=WORDS - 2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(WORDS - 2, (16, 8), generator=generator).tolist()
    data = datasets.Dataset.from_dict({"text": [" ".join(f"w{n}" for n in row) for row in rows]})
    optimizer = svag.MSVAG(model.parameters(), lr=0.05, variance="within-batch")
    arguments = trl.SFTConfig(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, report_to="none",
        save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1,
        lr_scheduler_type="constant", **more,
    )  # fmt: skip
    trainer = type("Trainer", (mixin, trl.SFTTrainer), {})(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer(),
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()
    return trainer, optimizer


def test_the_variance_over_micro_batches(tmp_path: Path) -> None:
    trainer, optimizer = trained(tmp_path, VarianceOverMicroBatches, gradient_accumulation_steps=4)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    state = optimizer.state[trainer.model.transformer.h[0].mlp.c_fc.weight]
    assert (state["exp_avg_var"] > 0).any()


def test_a_loss_in_a_function_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    """TRL computes the last layer and the loss in chunks, which svag cannot follow."""
    with pytest.raises(svag.errors.PerExampleError, match=r"custom autograd\.Function"):
        trained(tmp_path, VarianceMixin)
