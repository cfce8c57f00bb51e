"""A checkpoint's file: written whole or not at all, refused when it is damaged."""

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time

import bigmodel_ext as bm
import pytest
import torch
from checkpoints import assert_refused, fingerprint, saved
from layers import INT8, convert_all, network, sparse
from torch import nn

WRITER = """
    import os, sys
    import bigmodel_ext as bm, torch
    from layers import network, convert_all
    torch.manual_seed(1)
    torch.set_num_threads(1)
    models = [convert_all(network()) for _ in range(2)]
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            while True:
                for model in models:
                    bm.save_model(model, sys.argv[1])
        print(child, flush=True)
        os.waitpid(child, 0)
"""


def refusal(fresh, path):
    try:
        bm.load_model(fresh, path)
    except ValueError as error:
        return str(error)
    return None


class TestSaving:
    def test_a_failing_write_leaves_the_previous_file(self, tmp_path, monkeypatch):
        path = tmp_path / "m"
        model = saved(path)
        before = path.read_bytes()
        for name in ("fsync", "replace", "link"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    bm.save_model(convert_all(network()), path)
            assert path.read_bytes() == before
            assert os.listdir(tmp_path) == ["m"]
        bm.load_model(network(), path)
        assert model is not None

    def test_without_unnamed_files(self, tmp_path, monkeypatch):
        monkeypatch.delattr(os, "O_TMPFILE")
        saved(tmp_path / "m")
        assert os.listdir(tmp_path) == ["m"]
        monkeypatch.setattr(os, "replace", lambda *a, **k: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            saved(tmp_path / "n")
        assert os.listdir(tmp_path) == ["m"]

    def test_where_it_writes(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real" / "m")
        saved(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "m").stat().st_mode & 0o777 == 0o666 & ~_umask()
        with pytest.raises(FileNotFoundError):
            saved(tmp_path / "nowhere" / "m")
        with pytest.raises(IsADirectoryError):
            saved(tmp_path / "real")

    def test_what_cannot_be_saved(self, tmp_path):
        class Extra(nn.Linear):
            def get_extra_state(self):
                return {"a": 1}

        with pytest.raises(TypeError, match="state '_extra_state' is a dict"):
            saved(tmp_path / "m", Extra(2, 2))
        with pytest.raises(ValueError, match="state 'weight' is on the meta device"):
            saved(tmp_path / "m", nn.Linear(2, 2, device="meta"))
        with pytest.raises(TypeError, match=r"state 'weight' is torch\.complex64"):
            saved(tmp_path / "m", nn.Linear(2, 2, dtype=torch.complex64))
        assert os.listdir(tmp_path) == []


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "m"
    model = TestDamage.fresh()
    bm.fuse_dropout_(model)
    bm.sparsify_(model, sparse(0.5), lambda m, fqn: fqn == "0")
    bm.quantize_(model, INT8)
    bm.save_model(model, path)
    return path.read_bytes()


class TestDamage:
    @staticmethod
    def fresh():
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 4)).eval()

    def assert_all_refused(self, path, variants):
        fresh = self.fresh()
        kinds, state = fingerprint(fresh)
        for what, data in variants:
            path.write_bytes(data)
            message = refusal(fresh, path)
            assert message is not None, f"loaded with {what}"
            assert repr(str(path)) in message, what
        after = fingerprint(fresh)
        assert after[0] == kinds
        assert all(torch.equal(after[1][name], value) for name, value in state.items())

    def test_the_undamaged_file_loads(self, small, tmp_path):
        (tmp_path / "m").write_bytes(small)
        bm.load_model(self.fresh(), tmp_path / "m")

    @pytest.mark.parametrize(
        "flip", [0x01, 0x20, *(pytest.param(mask, marks=pytest.mark.long) for mask in (0x02, 0x10, 0x80, 0xFF))]
    )
    def test_every_byte_flipped(self, small, tmp_path, flip):
        def variants():
            for i in range(len(small)):
                yield f"byte {i} ^ {flip:#x}", small[:i] + bytes([small[i] ^ flip]) + small[i + 1 :]

        self.assert_all_refused(tmp_path / "m", variants())

    def test_truncated_anywhere_or_longer(self, small, tmp_path):
        cuts = [*range(0, 64), *range(64, len(small), 7), len(small) - 1]
        self.assert_all_refused(tmp_path / "m", ((f"{cut} bytes", small[:cut]) for cut in cuts))
        self.assert_all_refused(tmp_path / "m", [("8 more bytes", small + bytes(8))])

    def test_absurd_headers(self, small, tmp_path):
        sizes = (0, 1, 2**31, 2**32 + 1, 2**63 - 1, 2**64 - 1)
        self.assert_all_refused(tmp_path / "m", ((f"size {n}", n.to_bytes(8, "little") + small[8:]) for n in sizes))

    def test_foreign_files(self, tmp_path):
        path = tmp_path / "m"
        torch.save(nn.Linear(2, 2).state_dict(), path)
        assert_refused(path, "can't be loaded")
        path.write_bytes(b"")
        assert_refused(path, "can't be loaded")
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
        assert_refused(path, r"was not written by save_model \(format None\)")
        save_file({"weight": torch.zeros(2)}, path, {"format": "pt"})
        assert_refused(path, r"was not written by save_model \(format 'pt'\)")
        with pytest.raises(FileNotFoundError):
            bm.load_model(network(), tmp_path / "none")
        with pytest.raises(IsADirectoryError):
            bm.load_model(network(), tmp_path)

    def test_it_never_unpickles(self, tmp_path, monkeypatch):
        path = tmp_path / "m"
        torch.save(network(), path)
        import pickle

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, lambda *a, **k: pytest.fail("unpickled"))
        assert_refused(path, "can't be loaded")


def kill_and_load(tmp_path, times):
    """Kill a process that keeps saving; after each kill the file loads and is one of the two models saved."""
    path, rng = tmp_path / "m", random.Random(0)
    torch.manual_seed(1)
    models = [convert_all(network()) for _ in range(2)]
    x = torch.randn(2, 7, 24)
    with torch.no_grad():
        outputs = [model(x) for model in models]
    saved(path, models[0])
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)}, text=True,
    ) as process:  # fmt: skip
        for _ in range(times):
            print("go", file=process.stdin, flush=True)
            child = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.03))  # where in its work the child is killed
            os.kill(child, signal.SIGKILL)
            loaded = bm.load_model(network(), path)
            with torch.no_grad():
                y = loaded(x)
            assert any(torch.equal(y, expected) for expected in outputs)
            for name in set(os.listdir(tmp_path)) - {"m"}:
                assert re.fullmatch(r"\.m\.[0-9a-f]{16}\.tmp", name)  # killed between naming and moving it: whole
                bm.load_model(network(), tmp_path / name)
                os.unlink(tmp_path / name)
        process.stdin.close()


def test_killed_while_saving(tmp_path):
    kill_and_load(tmp_path, 20)


@pytest.mark.long
def test_killed_while_saving_200_times(tmp_path):
    kill_and_load(tmp_path, 200)


def test_a_name_that_safetensors_keeps_is_refused(tmp_path):
    model = nn.Module()
    model.register_buffer("__metadata__", torch.zeros(2))
    with pytest.raises(ValueError, match="__metadata__"):
        bm.save_model(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []
