import copy

import bigmodel_ext as bm
import pytest
import torch
from layers import INT8, Mlp, blocks, network, sparse
from torch import nn
from torch.nn.utils import prune

SPARSE, BLOCKS = sparse(0.5), blocks(0.5)
CONVERSIONS = {
    "quantize": (lambda m, f=None: bm.quantize_(m, INT8, f), bm.nn.Int8Linear),
    "sparsify": (lambda m, f=None: bm.sparsify_(m, SPARSE, f), bm.nn.SparseLinear),
    "square blocks": (
        lambda m, f=None: bm.sparsify_(m, bm.BlockSparseWeightConfig(16, 0.5, rows=()), f),
        bm.nn.BlockSparseLinear,
    ),
    "2:4": (
        lambda m, f=None: bm.sparsify_(m, bm.SemiSparseWeightConfig(prune=True, rows=()), f),
        bm.nn.SemiSparseLinear,
    ),
    "int8 blocks": (lambda m, f=None: bm.sparsify_(m, BLOCKS, f), bm.nn.Int8SparseLinear),
}


@pytest.fixture(params=CONVERSIONS)
def conversion(request):
    return CONVERSIONS[request.param]


def types(model):
    return {fqn: type(m) for fqn, m in model.named_modules()}


def identities(model):
    """Everything that a failed conversion must leave alone."""
    modules = {fqn: (id(m), type(m)) for fqn, m in model.named_modules(remove_duplicate=False)}
    state = {name: (id(t), t.detach().clone()) for name, t in model.named_parameters(remove_duplicate=False)}
    flags = [getattr(m, "activation_relu_or_gelu", None) for m in model.modules()]
    return modules, {n: i for n, (i, _) in state.items()}, flags, {n: t for n, (_, t) in state.items()}


def assert_unchanged(model, before):
    after = identities(model)
    assert after[:3] == before[:3]
    for name, value in before[3].items():
        assert torch.equal(after[3][name], value), name


class TestWhatIsConverted:
    def test_all_and_in_place(self, conversion):
        convert_, cls = conversion
        model = network()
        root = model[0]
        assert convert_(model) is model
        assert model[0] is root
        converted = {fqn for fqn, kind in types(model).items() if kind is cls}
        assert converted == {"0.0", "0.3", "1.fc1", "1.fc2", "2.linear1", "2.linear2", "4"}
        assert not model[4].training
        assert model(torch.randn(2, 7, 24)).isfinite().all()

    def test_filter_gets_module_and_name(self, conversion):
        convert_, cls = conversion
        model, seen = network(), {}

        def choose(module, fqn):
            seen[fqn] = module
            return fqn == "4"

        originals = dict(model.named_modules())
        convert_(model, choose)
        assert [fqn for fqn, kind in types(model).items() if kind is cls] == ["4"]
        assert all(originals[fqn] is module for fqn, module in seen.items())
        assert "1.fc1" in seen

    def test_a_shared_module_is_converted_once(self, conversion):
        convert_, cls = conversion
        shared = nn.Linear(8, 8)
        model = nn.Sequential(shared, nn.ReLU(), nn.ModuleDict({"again": shared})["again"], nn.Sequential(shared))
        calls = []
        convert_(model, lambda m, fqn: calls.append(fqn) is None)
        assert type(model[0]) is cls
        assert model[0] is model[2] is model[3][0]
        assert calls == ["0"]

    def test_tied_weights_stay_tied(self, conversion):
        convert_, cls = conversion

        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.body, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
                self.head.weight = self.embed.weight

        model = Tied()
        convert_(model)
        assert type(model.body) is cls
        assert model.head.weight is model.embed.weight
        rows = {row.fqn: row for row in bm.explain(model, batch=1).layers}
        assert rows["head"].reason == "it shares a parameter with other modules (embed.weight, head.weight)"

    def test_what_stays_dense_and_why(self, conversion):
        convert_, _ = conversion

        class MyLinear(nn.Linear):
            pass

        hooked, pruned = nn.Linear(8, 8), nn.Linear(8, 8)
        hooked.register_forward_hook(lambda *a: None)
        prune.random_unstructured(pruned, "weight", 0.5)
        left = {
            "mine": (MyLinear(8, 8), "MyLinear is a subclass of nn.Linear"),
            "hooked": (hooked, "it has hooks, which a replacement would lose"),
            "pruned": (pruned, "it has hooks, which a replacement would lose"),
            "wide": (nn.Linear(8, 8).double(), "its weight is float64"),
            "normed": (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "ParametrizedLinear is a subclass"),
        }
        model = nn.ModuleDict({name: module for name, (module, _) in left.items()})
        model["attention"] = nn.MultiheadAttention(8, 2)
        model["fine"] = nn.Linear(8, 8)
        before = {name: id(module) for name, module in model.items() if name != "fine"}
        convert_(model)
        assert {name: id(module) for name, module in model.items() if name != "fine"} == before
        rows = {row.fqn: row for row in bm.explain(model, batch=1).layers}
        for name, (_, reason) in left.items():
            assert rows[name].reason.startswith(reason), name
            assert not rows[name].converted
        assert rows["attention.out_proj"].reason == "nn.MultiheadAttention reads its weight without calling it"
        assert rows["fine"].converted

    def test_converting_again_changes_nothing(self, conversion, recwarn):
        convert_, _ = conversion
        model = convert_(network())
        before = identities(model)
        convert_(model)
        assert_unchanged(model, before)
        assert not [w for w in recwarn if "no layer was converted" in str(w.message)]

    def test_nothing_to_convert_warns(self, conversion):
        convert_, _ = conversion
        with pytest.warns(UserWarning, match="no layer was converted: the model has no nn.Linear"):
            convert_(nn.Sequential(nn.ReLU()))
        with pytest.warns(UserWarning, match="filter_fn chose none"):
            convert_(network(), lambda m, fqn: False)
        with pytest.warns(UserWarning, match="0: its weight is float64"):
            convert_(nn.Sequential(nn.Linear(2, 2).double()))


class TestAllOrNothing:
    def test_a_filter_that_raises(self, conversion):
        convert_, _ = conversion
        model = network()
        before = identities(model)

        def choose(module, fqn):
            if fqn == "4":
                raise KeyError("at the last layer")
            return True

        with pytest.raises(KeyError, match="at the last layer"):
            convert_(model, choose)
        assert_unchanged(model, before)

    def test_a_conversion_that_raises(self, conversion, monkeypatch):
        convert_, cls = conversion
        model = network()
        before, count = identities(model), []

        def failing(self, *args, **kwargs):
            count.append(1)
            if len(count) == 5:
                raise MemoryError("no more")
            return original(self, *args, **kwargs)

        original = cls.__init__
        monkeypatch.setattr(cls, "__init__", failing)
        with pytest.raises(MemoryError):
            convert_(model)
        assert_unchanged(model, before)

    def test_failing_while_exchanging(self, conversion, monkeypatch):
        convert_, _ = conversion
        model = network()
        before = identities(model)

        def fail(self, model):
            raise RuntimeError("half way")

        monkeypatch.setattr(bm.convert.Changes, "_stop_fast_paths", fail)
        for change in (convert_, bm.fuse_dropout_):
            with pytest.raises(RuntimeError, match="half way"):
                change(model)
            assert_unchanged(model, before)

    def test_wrong_arguments(self):
        model = network()
        before = identities(model)
        with pytest.raises(TypeError, match="Int8DynamicActivationInt8WeightConfig, got UnstructuredSparse"):
            bm.quantize_(model, SPARSE)
        with pytest.raises(
            TypeError, match=r"UnstructuredSparseWeightConfig or Int8BlockSparseWeightConfig or .*, got Int8Dyn"
        ):
            bm.sparsify_(model, INT8)
        with pytest.raises(TypeError, match="got <class"):
            bm.quantize_(model, bm.Int8DynamicActivationInt8WeightConfig)
        for call in (lambda m: bm.quantize_(m, INT8), bm.fuse_dropout_, bm.explain):
            with pytest.raises(TypeError, match=r"model must be an nn\.Module, got list"):
                call([model])
        with pytest.raises(ValueError, match=r"itself an nn\.Linear.*Int8Linear\.from_float"):
            bm.quantize_(nn.Linear(2, 2), INT8)
        with pytest.raises(ValueError, match=r"itself an nn\.Dropout.*FusedDropout"):
            bm.fuse_dropout_(nn.Dropout())
        assert_unchanged(model, before)


class TestTransformerEncoder:
    """In eval mode torch's encoder layers would read dense weights and never call the converted layers."""

    @pytest.mark.parametrize("norm_first", [False, True])
    def test_eval_runs_the_converted_layers(self, conversion, norm_first, monkeypatch):
        convert_, cls = conversion
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        x, padding = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
        padding[1, 3:] = True
        dense = copy.deepcopy(model).eval()
        convert_(model)
        for mask in (None, padding):
            with torch.no_grad():
                trained, evaluated = (
                    model.train()(x, src_key_padding_mask=mask),
                    model.eval()(x, src_key_padding_mask=mask),
                )
            kept = slice(None) if mask is None else ~mask
            torch.testing.assert_close(evaluated[kept], trained[kept])
            assert not torch.equal(evaluated[kept], dense(x, src_key_padding_mask=mask)[kept])
        calls, forward = [], cls.forward
        monkeypatch.setattr(cls, "forward", lambda self, x: calls.append(1) or forward(self, x))
        with torch.no_grad():
            model.eval()(x)
        assert len(calls) == 4

    def test_an_untouched_encoder_keeps_its_fast_path(self):
        model = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 16)])
        bm.quantize_(model, INT8, lambda m, fqn: fqn == "1")
        assert model[0].activation_relu_or_gelu == 1


def test_a_residual_block_keeps_its_kind():
    model = nn.Sequential(Mlp(8))
    bm.fuse_dropout_(model)
    assert isinstance(model[0], Mlp)
    assert model[0].width == 8
