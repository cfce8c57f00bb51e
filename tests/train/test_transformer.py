import pytest
import torch
from bigmodel_ext.train import tasks
from bigmodel_ext.train.transformer import CausalAttention, Transformer, TransformerConfig, _turned, rotations
from torch import nn

CONFIG = TransformerConfig(width=32, depth=2, heads=4, kv_heads=2, mlp=48, vocabulary=20, context=16)


def _model(config=CONFIG):
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.3)  # so that everything matters
    return model


def test_a_position_sees_itself_and_those_before():
    model, tokens = _model(), torch.randint(20, (1, 16))
    before = model(tokens)
    tokens[0, 9] = (tokens[0, 9] + 1) % 20
    changed = (model(tokens) - before).abs().amax(-1)[0] > 1e-4
    assert not bool(changed[:9].any())
    assert bool(changed[9:].all())
    assert before.shape == (1, 16, 20)


def test_attention_is_the_formula():
    torch.manual_seed(0)
    layer, x = CausalAttention(CONFIG), torch.randn(2, 5, 32)
    cos, sin = rotations(5, 8)
    q, k, v = (getattr(layer, name)(x).unflatten(-1, (-1, 8)) for name in "qkv")
    mixed = torch.zeros(2, 5, 4, 8)
    turn = [torch.eye(8) * cos[t] + sin[t][:, None] * _turned(torch.eye(8)).T for t in range(5)]
    for head in range(4):
        for i in range(5):
            scores = torch.stack(
                [((turn[i] @ q[:, i, head].T).T * (turn[j] @ k[:, j, head // 2].T).T).sum(-1) for j in range(i + 1)], 1
            )
            mixed[:, i, head] = (torch.softmax(scores / 8**0.5, 1)[..., None] * v[:, : i + 1, head // 2]).sum(1)
    assert torch.allclose(layer(x, cos, sin), layer.proj(mixed.flatten(2)), atol=1e-5)


def test_rotations_keep_lengths_and_tell_distance_only():
    cos, sin = rotations(16, 8)
    x, y = torch.randn(2, 8).unbind()
    at = [(v * cos + _turned(v) * sin) for v in (x, y)]
    assert torch.allclose(at[0].norm(dim=1), x.norm().expand(16), atol=1e-5)
    products = at[0] @ at[1].T
    assert torch.allclose(products.diagonal(3), products[0, 3].expand(13), atol=1e-4)
    assert not torch.allclose(products[0, 3], products[0, 4], atol=1e-3)


def test_heads_can_be_taken_out_of_the_projections():
    """One of two groups gone: the layer reads its heads off what is left."""
    torch.manual_seed(0)
    layer, x = CausalAttention(CONFIG), torch.randn(2, 5, 32)
    with torch.no_grad():
        layer.proj.weight[:, 16:] = 0  # the second group's heads say nothing
    expected = layer(x, *rotations(5, 8))
    for name, rows in (("q", 16), ("k", 8), ("v", 8)):
        old = getattr(layer, name)
        setattr(layer, name, nn.Linear(32, rows, bias=False))
        getattr(layer, name).weight.data = old.weight.data[:rows]
    layer.proj.weight.data = layer.proj.weight.data[:, :16].contiguous()
    assert torch.allclose(layer(x, *rotations(5, 8)), expected, atol=1e-6)


def test_shorter_sequences_and_too_long_ones():
    model, tokens = _model(), torch.randint(20, (2, 16))
    assert torch.allclose(model(tokens[:, :7]), model(tokens)[:, :7], atol=1e-4)
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        model(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": 5}, "width must be an even multiple of heads, got 32 and 5"),
     ({"heads": 32, "kv_heads": 1}, "width must be an even multiple of heads, got 32 and 32"),
     ({"kv_heads": 3}, "heads must be a multiple of kv_heads, got 4 and 3"),
     ({"kv_heads": 0}, "heads must be a multiple of kv_heads, got 4 and 0")],
)  # fmt: skip
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**vars(CONFIG), **change})


def test_the_recipe_builds_and_its_matrices_are_linear():
    task = tasks.get("text")
    for recipe in (task.recipe, task.quick):
        for settings in (recipe.teacher, *recipe.students):
            model = task.build(settings)
            assert model(torch.zeros(2, 128, dtype=torch.long)).shape == (2, 128, 128)
            linear = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding))}
            assert all(id(p) in linear for p in model.parameters() if p.dim() >= 2)
