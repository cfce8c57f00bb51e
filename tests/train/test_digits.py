import pytest
import torch
from bigmodel_ext.train import tasks
from bigmodel_ext.train.tasks import digits
from bigmodel_ext.train.vit import ViT, ViTConfig


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_complete_and_stratified(seed):
    from sklearn.datasets import load_digits

    targets = torch.from_numpy(load_digits().target)
    parts = digits.split(targets, seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(targets)))
    for part, share in zip(parts, (0.6, 0.15, 0.25), strict=True):
        counts = targets[part].bincount(minlength=10)
        assert bool(((counts - share * targets.bincount()).abs() <= 1).all()), counts


def test_seeds_split_differently_and_repeatably():
    targets = torch.arange(10).repeat(50)
    first, again, other = (digits.split(targets, seed)[2] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_data_is_what_it_says():
    data = digits.load(0)
    for part in (data.train, data.validation, data.test):
        assert part.inputs.shape[1:] == (1, 8, 8)
        assert part.inputs.dtype == torch.float32
        assert float(part.inputs.min()) == 0.0
        assert float(part.inputs.max()) == 1.0
    assert len(data.train) + len(data.validation) + len(data.test) == 1797


def test_unknown_task_lists_known_ones():
    with pytest.raises(ValueError, match="task must be one of digits, text, got 'numbers'"):
        tasks.get("numbers")


def test_the_recipe_builds():
    task = tasks.get("digits")
    for recipe in (task.recipe, task.quick):
        for settings in (recipe.teacher, *recipe.students):
            assert task.build(settings)(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_patches_are_cut_as_rows_of_the_image():
    """A token sees its own patch only: moving a pixel within another patch leaves its embedding alone."""
    model = ViT(ViTConfig(width=8, depth=0, heads=1, mlp=8))
    seen = []
    model.embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.arange(64.0).view(1, 1, 8, 8)
    model(image)
    assert torch.equal(seen[0][0, 1], image[0, 0, 0:4, 4:8].flatten())
    assert torch.equal(seen[0][0, 2], image[0, 0, 4:8, 0:4].flatten())


def test_width_must_fit_heads():
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 10 and 4"):
        ViT(ViTConfig(width=10, depth=1, heads=4, mlp=8))
