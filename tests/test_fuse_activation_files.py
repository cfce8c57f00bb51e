"""Checkpoints of models whose layers compute the activation behind them."""

import bigmodel_ext as bm
import pytest
import torch
from fusing import CONVERSIONS, Gated, absorbed, quantized
from layers import Mlp
from torch import nn


def model_of_all():
    run = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.1))
    return nn.Sequential(run, Mlp(16), Gated(), nn.Linear(16, 16), nn.Sigmoid()).eval()


@pytest.mark.parametrize("kind", CONVERSIONS)
@pytest.mark.parametrize("dropout", ["never", "first", "last"])
def test_checkpoint_round_trip(tmp_path, kind, dropout):
    model = model_of_all()
    steps = [CONVERSIONS[kind], bm.fuse_activation_]
    steps = {"never": steps, "first": [bm.fuse_dropout_, *steps], "last": [*steps, bm.fuse_dropout_]}[dropout]
    for step in steps:
        step(model)
    bm.save_model(model, tmp_path / "m")
    fresh = bm.load_model(model_of_all(), tmp_path / "m")
    assert repr(fresh) == repr(model)
    assert absorbed(fresh)
    x = torch.randn(7, 16)
    assert torch.equal(fresh(x), model(x))
    bm.save_model(fresh, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()


def test_a_file_with_an_unknown_activation_is_refused(tmp_path):
    from test_checkpoint import assert_refused, rewrite

    build = lambda: nn.Sequential(nn.Linear(16, 8), nn.GELU())  # noqa: E731
    for value, match in (("mish", "activation must be one of"), (3, "activation is 3")):
        bm.save_model(bm.fuse_activation_(quantized(build())), tmp_path / "m")

        def change(header, manifest, value=value):
            manifest["plan"][0]["activation"] = value

        rewrite(tmp_path / "m", change)
        assert_refused(tmp_path / "m", match, build())


def test_files_without_activations_are_as_they_were(tmp_path):
    from bigmodel_ext._plan import describe

    (entry,) = describe(quantized(nn.Sequential(nn.Linear(16, 8))))
    assert set(entry) == {"fqn", "kind", "in_features", "out_features", "bias"}
