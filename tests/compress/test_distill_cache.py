"""A teacher's answers on disk."""

import json
import math

import pytest
import torch
from bigmodel_ext.compress.distill import (
    CachedLogits,
    DistillationLoss,
    Labels,
    LogitCache,
    Logits,
    cache_logits,
    distillation_loss,
    indexed,
    top_k_loss,
)
from bigmodel_ext.compress.distill.answers import top_k
from bigmodel_ext.train.loop import CrossEntropy, Examples, NonFiniteLossError, TrainConfig, fit
from torch import nn


def teacher(classes=10, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, classes), nn.Dropout(0.5))


def data(n=50):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture
def cache(tmp_path):
    return cache_logits(teacher(), data(), tmp_path / "cache", k=4, temperature=2.0, batch_size=7, shard_size=16)


def test_it_holds_the_largest_probabilities_and_the_rest(cache):
    p = (teacher().eval()(data()) / 2.0).softmax(1)
    numbers = torch.tensor([49, 0, 17, 15, 16, 17])
    values, classes, rest = cache[numbers]
    assert torch.allclose(values.exp(), p[numbers].topk(4, dim=1).values, atol=1e-6)
    assert torch.equal(classes, p[numbers].topk(4, dim=1).indices)
    assert torch.allclose(rest.exp(), 1 - p[numbers].topk(4, dim=1).values.sum(1), atol=1e-6)
    assert (len(cache), cache.shape, cache.temperature) == (50, (10,), 2.0)
    files = sorted(file.name for file in cache.folder.iterdir())
    assert files == [*(f"answers-{i:05d}.safetensors" for i in range(4)), "index.json"]


def test_with_all_classes_it_is_distillation():
    s, t = torch.randn(9, 10, dtype=torch.float64), torch.randn(9, 10, dtype=torch.float64)
    full = top_k_loss(s, *top_k(t / 3, 10), 3.0)
    assert full.item() == pytest.approx(distillation_loss(s, t, 3.0).item(), rel=1e-9)


def test_with_fewer_it_takes_the_rest_as_one_class_and_its_gradient_moves_there():
    s, t = torch.randn(9, 10, dtype=torch.float64, requires_grad=True), torch.randn(9, 10, dtype=torch.float64)
    values, classes, rest = top_k(t / 3, 4)
    loss = top_k_loss(s, values, classes, rest, 3.0)
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    top_p, top_q = p.gather(1, classes), q.gather(1, classes)
    r, u = 1 - top_p.sum(1), 1 - top_q.sum(1)
    expected = 9 * ((top_p * (top_p / top_q).log()).sum(1) + r * (r / u).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert 0 < loss.item() < distillation_loss(s, t, 3.0).item()
    (grad,) = torch.autograd.grad(loss, s)
    (wanted,) = torch.autograd.grad(expected, s)
    assert torch.allclose(grad, wanted, atol=1e-12)


def test_a_certain_teacher_gives_finite_losses_and_gradients():
    t = torch.zeros(3, 10)
    t[:, 2] = 1e4
    values, classes, rest = top_k(t, 2)
    s = torch.randn(3, 10, requires_grad=True)
    (grad,) = torch.autograd.grad(top_k_loss(s, values, classes, torch.full_like(rest, -math.inf), 1.0), s)
    assert grad.isfinite().all()


def test_training_from_the_cache_is_training_from_the_teacher(tmp_path):
    """All classes kept: the same student, up to the order of sums."""
    x, source = data(48), teacher().eval()
    y = source(x).argmax(1)
    cache = cache_logits(source, x, tmp_path / "cache", k=10, temperature=2.0)
    config = TrainConfig(epochs=5, batch_size=16, learning_rate=1e-2)
    students = []
    online = DistillationLoss(source, {("", ""): Logits(2.0, weight=0.8)}, {"labels": Labels(0.2)})
    offline = DistillationLoss(None, terms={"cached": CachedLogits(cache, 0.8), "labels": Labels(0.2)}, indexed=True)
    for loss, targets in ((online, y), (offline, indexed(y))):
        students.append(teacher(seed=5)[0])
        fit(students[-1], Examples(x, targets), loss, config, seed=0)
    plain = teacher(seed=5)[0]
    fit(plain, Examples(x, y), CrossEntropy(0.0), config, seed=0)
    assert torch.allclose(students[0].weight, students[1].weight, atol=1e-4)
    assert not torch.allclose(students[0].weight, plain.weight, atol=1e-2)
    assert set(offline.parts) == {"cached", "labels"}


def test_sequences_mappings_and_data_sets(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 7)

        def forward(self, ids):
            return {"logits": self.embed(ids)}

    model, ids = Words(), torch.randint(20, (9, 5))
    cache = cache_logits(model, {"ids": ids}, tmp_path / "a", k=3, output="[logits]", temperature=1.0, shard_size=4)
    values, classes, rest = cache[torch.tensor([8, 1])]
    assert (values.shape, classes.shape, rest.shape) == ((2, 5, 3), (2, 5, 3), (2, 5))
    loss = DistillationLoss(None, terms={"c": CachedLogits(cache)}, output="[logits]", indexed=True)
    assert loss(model, {"ids": ids}, indexed(ids)).item() == pytest.approx(0, abs=1e-5)
    dataset = torch.utils.data.TensorDataset(data(), torch.arange(50))
    one = cache_logits(teacher(), dataset, tmp_path / "b", k=3, dtype=torch.float16)
    two = cache_logits(teacher(), data(), tmp_path / "c", k=3)
    numbers = torch.arange(50)
    assert torch.equal(one[numbers][1], two[numbers][1])
    assert torch.allclose(one[numbers][0], two[numbers][0], atol=1e-2)
    LogitCache(tmp_path / "c", dataset)  # the same examples


class Stopped(BaseException):
    """As Ctrl-C, which would end the test run."""


class Dies(nn.Module):
    """A teacher that stops at its n-th batch."""

    def __init__(self, inner, batches):
        super().__init__()
        self.inner, self.left = inner, batches

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return self.inner(x)


def test_it_resumes_where_it_was_stopped(tmp_path):
    settings = {"k": 3, "shard_size": 10, "batch_size": 5}
    whole = cache_logits(Dies(teacher(), 10), data(), tmp_path / "whole", **settings)
    stopped = Dies(teacher(), 5)
    with pytest.raises(Stopped):
        cache_logits(stopped, data(), tmp_path / "part", **settings)
    with pytest.raises(ValueError, match="holds 20 of 50 examples: run cache_logits again to finish it"):
        LogitCache(tmp_path / "part")
    stopped.left = 6  # two of five shards are there: three more, of two batches
    again = cache_logits(stopped, data(), tmp_path / "part", **settings)
    assert stopped.left == 0
    assert [f.read_bytes() for f in sorted(again.folder.iterdir())] == [
        f.read_bytes() for f in sorted(whole.folder.iterdir())
    ]
    cache_logits(stopped, data(), tmp_path / "part", **settings)  # nothing to do: no batch is asked


def test_a_damaged_shard_is_found_and_written_again(cache):
    file = cache.folder / "answers-00002.safetensors"
    good = file.read_bytes()
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:40], None):
        file.unlink() if bad is None else file.write_bytes(bad)
        with pytest.raises(
            ValueError, match=r"answers-00002.safetensors is damaged or missing .*run cache_logits again"
        ):
            LogitCache(cache.folder)[torch.tensor([40])]
    cache_logits(teacher(), data(), cache.folder, k=4, temperature=2.0, shard_size=16)
    assert file.read_bytes() == good


def test_another_data_set_teacher_or_setting_is_refused(cache):
    folder, x = cache.folder, data()
    settings = {"k": 4, "temperature": 2.0, "shard_size": 16}
    with pytest.raises(ValueError, match="the cache is of 50 examples, the data set has 49"):
        LogitCache(folder, x[:49])
    changed = x.clone()
    changed[20, 3] += 1
    with pytest.raises(ValueError, match=r"examples 16 to 31 are not those the teacher answered \(checksum"):
        LogitCache(folder, changed)
    with pytest.raises(ValueError, match="examples 16 to 31 are not those"):
        cache_logits(teacher(), changed, folder, **settings)
    with pytest.raises(ValueError, match="holds answers with teacher"):
        cache_logits(teacher(seed=3), x, folder, **settings)
    for name, value in (("k", 5), ("temperature", 3.0), ("shard_size", 8)):
        with pytest.raises(ValueError, match=f"holds answers with {name} .*, asked for {value}"):
            cache_logits(teacher(), x, folder, **{**settings, name: value})
    with pytest.raises(ValueError, match="holds answers with examples 50, asked for 49"):
        cache_logits(teacher(), x[:49], folder, **settings)


def test_a_damaged_index_is_one_clear_error(cache):
    file = cache.folder / "index.json"
    index = json.loads(file.read_text())
    for change, message in (
        ({"version": 2}, "is not of cached answers, version 1"),
        ({"k": "many"}, "is damaged: k is 'many'"),
        ({"shards": [{"file": "../x"}]}, "is damaged: it has a shard"),
        ({"shards": [{**index["shards"][0], "file": "../answers"}]}, "is damaged: it has a shard"),
    ):
        file.write_text(json.dumps({**index, **change}))
        with pytest.raises(ValueError, match=message):
            LogitCache(cache.folder)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"index.json is damaged"):
        LogitCache(cache.folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"holds no cached answers: it has no index.json"):
        LogitCache(cache.folder)


def test_refused(cache, tmp_path):
    loss = DistillationLoss(None, terms={"cached": CachedLogits(cache)})
    x, student = data(3), nn.Linear(6, 10)
    with pytest.raises(ValueError, match="cached answers need the examples' numbers"):
        loss(student, x)
    with pytest.raises(ValueError, match="example numbers must be in 0 to 49, got 3 to 50"):
        loss(student, x, index=torch.tensor([3, 50, 4]))
    with pytest.raises(ValueError, match=r"logits must be \['B', 10\] as the cached teacher's, got \[3, 9\]"):
        loss(nn.Linear(6, 9), x, index=torch.arange(3))
    with pytest.raises(ValueError, match=r"must be those of indexed\(targets\), \[B, 2\] or wider, got \[3\]"):
        DistillationLoss(None, terms={"cached": CachedLogits(cache)}, indexed=True)(student, x, torch.arange(3))
    with pytest.raises(TypeError, match=r"targets must be int64 to carry an index, got torch.float32"):
        indexed(torch.zeros(3))
    with pytest.raises(ValueError, match="k must be at most the number of classes, 10, got 11"):
        cache_logits(teacher(), x, tmp_path / "x", k=11)
    for name, value in (("k", 0), ("batch_size", 0), ("shard_size", -1), ("temperature", 0), ("dtype", torch.int8)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            cache_logits(teacher(), x, tmp_path / "x", **{"k": 1, name: value})
    with pytest.raises(ValueError, match=r"at least 1, got \[0\]"):
        cache_logits(teacher(), x[:0], tmp_path / "x", k=1)
    broken = teacher()
    with torch.no_grad():
        broken[0].weight.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="answers to examples 0 to 2 hold NaN or infinity"):
        cache_logits(broken, x, tmp_path / "x", k=1)
