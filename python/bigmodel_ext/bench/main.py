"""``bigmodel bench``: which suites there are, and running the chosen ones one after the other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bigmodel_ext.bench import harness, host, peers, results
from bigmodel_ext.bench.harness import Case
from bigmodel_ext.bench.selection import BUDGET_S, MAX_ROUNDS, MIN_ROUNDS, Selection
from bigmodel_ext.compress.measure import threads as on_threads

SUITES = {
    "int8": "int8 linear layers against float and int8 ones",
    "weight_only": "linear layers with int8 weights and float activations against dense ones",
    "binary_coded": "linear layers of 1 to 4 bits a weight against int8 and dense ones",
    "sparse": "sparse linear layers, float32 and int8, against dense ones; a training step",
    "blocks": "linear layers with square blocks of weights, and 2:4, against dense and unstructured ones",
    "conv": "int8 and sparse convolutions against torch's",
    "dropout": "fused dropout against eager torch, inductor and a copy",
    "norm": "dropout, residual and LayerNorm or RMSNorm in one pass, against eager torch and inductor",
    "overhead": "what a call costs on a 1x16 input",
    "model": "MiniLM- and BERT-base-shaped encoders end to end (needs transformers)",
}


def cases(suite: str, selection: Selection) -> Iterator[Case]:
    found: Callable[[Selection], Iterator[Case]] = importlib.import_module(f"bigmodel_ext.bench.{suite}").cases
    return found(selection)


def run(suites: Sequence[str], selection: Selection, out: Path, threads: int = 1) -> list[Path]:
    """Run the suites on this many threads, print their rows and return the files written."""
    busy = host.load()
    if busy > 0.5 * (os.cpu_count() or 1):
        print(f"warning: other processes are running (load {busy:.1f}): the figures will be worse than the machine")
    rounds = selection.rounds or MAX_ROUNDS[selection.size]
    budget_s = None if selection.rounds else BUDGET_S[selection.size]
    written = []
    torch.manual_seed(0)
    with on_threads(threads):
        facts = host.facts()
        print(f"{facts['cpu']} · {facts['isa']} · {threads} thread(s) · torch {facts['torch']} · {facts['commit']}")
        for suite in suites:
            if harness.run(cases(suite, selection), suite, rounds, out, budget_s, MIN_ROUNDS[selection.size]):
                written.append(results.folder(out) / f"{suite}.csv")
    return written


def show_list() -> None:
    """Suites, and peers with what keeps one away."""
    for name, text in SUITES.items():
        print(f"suite {name:12s} {text}")
    for name, missing in peers.missing_packages().items():
        print(f"peer  {name:22s} {'needs ' + ', '.join(missing) if missing else 'here'}")
    print("more peers: pip install 'bigmodel_ext[bench]'")
