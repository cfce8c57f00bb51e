"""The command line, in processes of its own: exit codes, one-line errors, Ctrl-C."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bigmodel_ext import cli
from bigmodel_ext.compress.measure import threads
from bigmodel_ext.train import tasks


@pytest.fixture(autouse=True)
def _one_thread():
    """Also undoes what --threads sets."""
    with threads(1):
        yield


def _fails(capsys, *argv):
    """Exit code and the one line on standard error."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return code, captured.err


def test_the_tasks_are_listed(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compress", "--task"])
    assert capsys.readouterr().err == "bigmodel compress: error: --task must be one of digits, text\n"
    with pytest.raises(SystemExit, match="0"):
        cli.main(["compress", "--help"])
    assert f"({', '.join(tasks.TASKS)})" in capsys.readouterr().out


def test_unknown_task_lists_known_ones(capsys, tmp_path):
    code, line = _fails(capsys, "compress", "--task", "numbers", "--out", str(tmp_path / "x"))
    assert (code, line) == (2, "bigmodel compress: error: --task must be one of digits, text, got 'numbers'\n")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-drop", "1.5", "--max-drop must be in [0, 1], got 1.5"),
        ("--max-drop", "nan", "--max-drop must be in [0, 1], got nan"),
        ("--max-drop", "little", "argument --max-drop: invalid float value: 'little'"),
        ("--seed", "-1", "--seed must be in [0, 2^32), got -1"),
        ("--threads", "0", "--threads must be at least 1, got 0"),
        ("--sed", "1", "unrecognized arguments: --sed 1"),
    ],
)
def test_bad_options(capsys, tmp_path, option, value, message):
    code, line = _fails(capsys, "compress", "--task", "digits", "--out", str(tmp_path / "x"), option, value)
    assert code == 2
    assert message in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none"])
def test_unusable_folder_is_told_before_training(capsys, tmp_path, monkeypatch, out):
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    code, line = _fails(capsys, "compress", "--task", "digits", "--out", out)
    assert code == 2
    assert f"--out must be a folder that can be written, got '{out}'" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_packages_are_named(capsys, tmp_path, monkeypatch):
    found = cli.importlib.util.find_spec
    monkeypatch.setattr(
        cli.importlib.util, "find_spec", lambda name: None if name in ("kornia", "rich") else found(name)
    )
    code, line = _fails(capsys, "compress", "--task", "digits", "--out", str(tmp_path / "x"))
    assert (code, line) == (
        2,
        "bigmodel compress: error: compress needs kornia, rich: pip install 'bigmodel_ext[train]'\n",
    )
    assert not (tmp_path / "x").exists()


def test_no_command(capsys):
    assert _fails(capsys)[0] == 2


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"bigmodel_ext {cli.bigmodel_ext.__version__}\n"


def test_info(capsys, monkeypatch, tmp_path):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for name in ("bigmodel_ext", "torch", "instruction set", "threads", "backends"):
        assert f"\n{name}" in "\n" + text
    assert "\nmeasured gains   not kept (BIGMODEL_CACHE=off)\n" in text
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path))
    assert cli.main(["info"]) == 0
    assert f"\nmeasured gains   0 in {tmp_path}/gains-" in capsys.readouterr().out


def test_nan_loss_is_one_line_and_exit_code_1(capsys, tmp_path, monkeypatch):
    task = tasks.get("digits")
    train = replace(task.quick.train_student, learning_rate=float("inf"))
    broken = replace(task, quick=replace(task.quick, train_student=train))
    monkeypatch.setitem(tasks.TASKS, "digits", lambda: broken)
    assert (
        cli.main(
            ["compress", "--task", "digits", "--out", str(tmp_path), "--quick", "--threads", "1", "--max-drop", "1"]
        )
        == 1
    )
    student = "student width 32, depth 1, heads 1, mlp 128"
    assert capsys.readouterr().err == f"bigmodel compress: error: the loss became nan in stage '{student}', epoch 1\n"
    assert list(tmp_path.iterdir()) == []


def _start(out: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "bigmodel_ext",
        "compress",
        "--task",
        "digits",
        "--out",
        str(out),
        "--threads",
        "1",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})


def test_ctrl_c_in_training_changes_nothing(tmp_path):
    (tmp_path / "report.json").write_text("earlier")
    process = _start(tmp_path)
    assert process.stdout is not None
    assert "task digits" in process.stdout.readline()  # past the checks, before the first epoch ends
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "bigmodel: stopped; no result is half-written\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.json", "earlier")]


@pytest.mark.parametrize("moment", ["save_model", "write", "replace"])
def test_ctrl_c_while_writing_leaves_nothing_half_done(tmp_path, monkeypatch, moment, capsys):
    """The signal comes when the first files are there. During the renames it waits for them to end."""
    from bigmodel_ext.compress import job, output

    owner = {"save_model": job.checkpoint, "write": job.report, "replace": output.os}[moment]
    original, pressed = getattr(owner, moment), []

    def interrupted(*args, **kwargs):
        result = original(*args, **kwargs)
        if not pressed and (moment != "replace" or Path(args[1]).parent == tmp_path):
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return result

    (tmp_path / "report.json").write_text("earlier")
    monkeypatch.setattr(owner, moment, interrupted)
    argv = ["compress", "--task", "digits", "--out", str(tmp_path), "--quick", "--threads", "1"]
    assert cli.main(argv) == 130
    assert pressed
    names = {file.name for file in tmp_path.iterdir()}
    if moment == "replace":
        assert names == {"layers.png", "model.safetensors", "pareto.png", "report.json", "report.md", "stages.png"}
        assert (tmp_path / "report.json").read_text() != "earlier"
    else:
        assert names == {"report.json"}
        assert (tmp_path / "report.json").read_text() == "earlier"
