"""Saved models, and files that must be refused."""

import bigmodel_ext as bm
import pytest
import torch
from layers import convert_all, network


def saved(path, model=None):
    model = convert_all(network()) if model is None else model
    bm.save_model(model, path)
    return model


def fingerprint(model):
    kinds = [(fqn, id(m), type(m)) for fqn, m in model.named_modules()]
    return kinds, {name: t.clone() for name, t in model.state_dict().items()}


def assert_refused(path, match, fresh=None):
    """load_model raises a ValueError that names the file, and the model is as it was."""
    fresh = network() if fresh is None else fresh
    kinds, state = fingerprint(fresh)
    with pytest.raises(ValueError, match=match) as caught:
        bm.load_model(fresh, path)
    assert repr(str(path)) in str(caught.value)
    after = fingerprint(fresh)
    assert after[0] == kinds
    for name, value in state.items():
        assert torch.equal(after[1][name], value), name
