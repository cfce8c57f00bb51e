"""The layers inside torch's own machinery."""

import copy
import gc
import os
import threading

import bigmodel_ext as bm
import pytest
import torch
import torch.distributed as dist
from bigmodel_ext import functional as F
from bigmodel_ext.formats import csr
from convs import layer_of
from layers import IN, LAYERS, LINEARS, OUT, Mlp, convert_all, network
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint


def run(layer, x, seed=3):
    torch.manual_seed(seed)
    return layer(x)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


class TestCompile:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("kind", LAYERS)
    def test_full_graph(self, kind, grad):
        layer = LAYERS[kind]()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for rows in (4, 9):  # the second makes the batch dynamic
            x = torch.randn(rows, IN, requires_grad=grad)
            y = run(layer, x)
            z = run(compiled, x)
            torch.testing.assert_close(z, y)
            if grad:
                weights = torch.randn_like(y)
                tensors = (x, *layer.parameters())
                eager = torch.autograd.grad(run(layer, x), tensors, weights)
                ours = torch.autograd.grad(run(compiled, x), tensors, weights)
                for a, b in zip(ours, eager, strict=True):
                    torch.testing.assert_close(a, b)

    def test_inductor_runs_a_whole_model(self):
        model = convert_all(nn.Sequential(nn.Sequential(*network()[0]), Mlp(24), nn.Identity(), nn.Identity()))
        x = torch.randn(3, 24)
        model.eval()
        compiled = torch.compile(model, fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))

    def test_the_compiled_mask_is_the_eager_mask(self):
        layer = bm.nn.FusedDropout(0.5)
        compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.ones(1000, requires_grad=True)
        first, second = run(compiled, x), compiled(x)
        assert torch.equal(first, run(layer, x))
        assert not torch.equal(first, second), "the seed was frozen into the graph"


@pytest.mark.parametrize("kind", LAYERS)
def test_export(kind):
    layer, x = LAYERS[kind]().eval(), torch.randn(4, IN)
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
    wider = torch.randn(7, IN)
    torch.testing.assert_close(program.module()(wider), layer(wider))


@pytest.mark.parametrize("kind", LAYERS)
def test_vmap(kind):
    layer, x = LAYERS[kind]().eval(), torch.randn(3, 4, IN)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_keeps_the_dtype_it_is_given(kind, dtype):
    layer = LAYERS[kind]().eval()
    with torch.autocast("cpu", dtype):
        assert layer(torch.randn(4, IN)).dtype == torch.float32
        low = nn.functional.linear(torch.randn(4, IN), torch.eye(IN))
        assert low.dtype == dtype
        y = layer(low)
    assert y.dtype == dtype
    torch.testing.assert_close(y, layer(low.float()).to(dtype))


def test_autocast_through_a_converted_model():
    model, x = convert_all(network()).train(), torch.randn(2, 7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_activation_checkpointing_sees_the_same_mask(kind, reentrant):
    layer, x = LAYERS[kind](), torch.randn(4, IN, requires_grad=True)
    y = run(layer, x)
    (expected,) = torch.autograd.grad(y.sum(), x)
    torch.manual_seed(3)
    z = checkpoint(layer, x, use_reentrant=reentrant)
    z.sum().backward()
    assert torch.equal(z, y)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_functional_call(kind):
    layer, x = LAYERS[kind]().eval(), torch.randn(4, IN)
    other = {name: p + 1 for name, p in layer.named_parameters()}
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        for p in changed.parameters():
            p += 1
    torch.testing.assert_close(torch.func.functional_call(layer, other, (x,)), changed(x))


@pytest.mark.parametrize("kind", LINEARS)
def test_meta(kind):
    layer = LINEARS[kind]().to("meta")
    y = layer(torch.randn(5, IN, device="meta"))
    assert y.is_meta
    assert y.shape == (5, layer.out_features)


@pytest.mark.parametrize("kind", LAYERS)
def test_eight_threads_at_once(kind):
    layer = LAYERS[kind]().eval()
    inputs = [torch.randn(16, IN) for _ in range(8)]
    expected, found = [layer(x) for x in inputs], [None] * 8
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        with torch.inference_mode():
            found[i] = [layer(inputs[i]) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(8):
        assert all(torch.equal(y, expected[i]) for y in found[i])


def test_forked_child_with_one_thread():
    model, x = convert_all(network()), torch.randn(2, 7, 24)
    with torch.no_grad():
        expected = model(x)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            with torch.no_grad():
                close = torch.allclose(model(x), expected, atol=1e-5)
            os.write(write, b"same" if close else b"different")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    assert said == b"same"


class EveryLayer(nn.Module):
    """Takes [..., IN]; the convolutions see some of it as images."""

    def __init__(self):
        super().__init__()
        pairs = [(make(), nn.Linear(OUT, IN)) for make in LINEARS.values()]
        self.linears = nn.Sequential(*(layer for pair in pairs for layer in pair), bm.nn.FusedDropout(0.1))
        self.convs = nn.Sequential(layer_of("int8"), nn.Conv2d(70, 5, 1), layer_of("sparse"))

    def forward(self, x):
        return self.linears(x).mean() + self.convs(x[:, :30].reshape(-1, 5, 2, 3)).mean()


def _distributed(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    torch.manual_seed(0)  # a pattern's size is part of the architecture: equal on all ranks
    model = EveryLayer()
    if rank > 0:  # DDP must bring everyone to rank 0's weights, the integers and the patterns included
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.zero_()
    torch.manual_seed(rank)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(torch.randn(6, IN)).square().backward()
        optimizer.step()
    for tensor in (*model.parameters(), *model.buffers()):
        everyone = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(everyone, tensor.detach().contiguous())
        assert tensor.numel() == 0 or tensor.any(), "every layer has something to agree on"
        assert all(torch.equal(other, tensor) for other in everyone)
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/state{world}")
    # DDP's reference cycles would keep gloo's threads alive into the interpreter's exit, which now and then aborts.
    del parallel, optimizer
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_data_parallel(tmp_path, world):
    if world == 1:
        before = torch.get_num_threads()
        _distributed(0, 1, str(tmp_path))
        torch.set_num_threads(before)
    else:
        torch.multiprocessing.spawn(_distributed, (world, str(tmp_path)), nprocs=world)
    state = torch.load(tmp_path / f"state{world}", weights_only=True)
    assert state["linears.0.weight_q"].dtype == torch.int8
    assert all(t.isfinite().all() for t in state.values() if t.is_floating_point())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_left_on_meta_is_refused(kind):
    """It has no weights: returning whatever memory holds would be worse than an error."""
    layer = LAYERS[kind]().to("meta")
    with pytest.raises(ValueError, match="all tensors must be on one device, got cpu, meta"):
        layer(torch.randn(2, IN))


def test_second_derivatives():
    weight = torch.randn(6, 9, dtype=torch.float64) * (torch.rand(6, 9) < 0.5)
    values, crow, col = csr.pack(weight)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    values.requires_grad_()

    def call(x, values):
        return F.sparse_linear(x, values, crow, col, out_features=6, panel=csr.PANEL)

    assert torch.autograd.gradgradcheck(call, (x, values))
    y = F.fused_dropout(x, 0.5, activation="gelu", seed=1)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fused_dropout can't be differentiated twice"):
        slope.sum().backward()


def test_dropout_under_fake_tensors_leaves_no_fake_seed():
    with FakeTensorMode():
        assert F.fused_dropout(torch.empty(4, 4), 0.5).shape == (4, 4)
    assert F.fused_dropout(torch.ones(64), 0.5).count_nonzero() > 0


def test_empty_batches():
    """No element has no layout: any strides will do, as in the expanded gradient that sum() sends back."""
    assert F.fused_dropout(torch.empty(0, 6)[:, ::2], 0.5).shape == (0, 3)
    values, crow, col = csr.pack(torch.randn(8, 3))
    x = torch.zeros(0, 3, requires_grad=True)
    F.sparse_linear(x, values, crow, col, out_features=8, panel=csr.PANEL).sum().backward()
    assert x.grad.shape == (0, 3)
