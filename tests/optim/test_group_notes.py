"""What a parameter group may carry: notes of training scripts, and no misspelt option."""

import pytest
import torch
from torch import nn

import svag

NOTES = {
    # what public training scripts put into groups
    "no_weight_decay": True,
    "weight_decay_end": 0.4,
    "seeds": (0, 1),
    "lr_scale": 0.5,
    "lr_mult": 2.0,
    "lr_max": 0.3,
    "min_lr": 1e-6,
    "max_lr": 1.0,
    "base_lr": 0.1,
    "initial_lr": 0.1,
    "weight_decay_mult": 0.0,
    "apply_weight_decay": False,
    "is_fused": False,
    "wd_multiplier": 1.0,
    "name": "head",
    "group_name": "decay",
    "names": ["a"],
    "layer_id": 3,
    "layer_decay": 0.65,
    "param_group_no": 1,
    "warmup_steps": 10,
    "betas_schedule": None,
    "use_muon": False,
    "rank": 8,
    "update_proj_gap": 200,
    "swag": 1,
}

MISSPELT = {
    "weigth_decay": "weight_decay",
    "wieght_decay": "weight_decay",
    "weight_deccay": "weight_decay",
    "weightdecay": "weight_decay",
    "weight-decay": "weight_decay",
    "maximise": "maximize",
    "capturabel": "capturable",
    "state_dtyp": "state_dtype",
    "stochastic_roundings"[:-2]: "stochastic_rounding",
    "decoupled_weigth_decay": "decoupled_weight_decay",
}


@pytest.mark.parametrize("key", NOTES)
def test_notes_are_kept_as_in_torch(key: str) -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = svag.MSVAG([{"params": [param], key: NOTES[key]}])
    assert optimizer.param_groups[0][key] == NOTES[key]
    other = torch.optim.Adam([{"params": [param], key: NOTES[key]}])
    assert other.param_groups[0][key] == NOTES[key]
    param.grad = torch.ones(2)
    optimizer.step()
    again = svag.MSVAG([param])
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0][key] == NOTES[key]


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_option_is_still_refused(key: str) -> None:
    with pytest.raises(TypeError, match=f"{key}.*Did you mean '{MISSPELT[key]}'"):
        svag.MSVAG([{"params": [nn.Parameter(torch.ones(2))], key: 0.1}])


@pytest.mark.parametrize(("kind", "key"), [(svag.MSVAG, "betas"), (svag.Adam, "beta")])
def test_an_option_of_another_row_is_no_note(kind: type, key: str) -> None:
    with pytest.raises(TypeError, match=f"{key!r}, which {kind.__name__} does not take"):
        kind([{"params": [nn.Parameter(torch.ones(2))], key: 0.9}])
