"""Runs on the emulator of CUDA kernels: under which schedules, and whether each wait is needed."""

from pathlib import Path

from bigmodel_ext import _native

SANITIZED = "asan-site" in Path(_native.__file__).parts  # the build of `make asan`
SCHEDULES = (("ascending", 0), ("descending", 0), *(("random", seed) for seed in range(4)))


def sites_of(native, run):
    """The synchronising sites [(where, what)] that the launches of `run()` reach, in source order."""
    native.take_reports()
    run()
    return sorted({site for report in native.take_reports() for site in report["sites"]})


def unmissed(native, run, schedules=SCHEDULES):
    """The sites that can be skipped without `run()`, which checks its result, raising under any of the schedules."""
    without_need = []
    found = sites_of(native, run)
    try:
        for site, what in found:
            for schedule, seed in schedules:
                native.configure(schedule=schedule, seed=seed, skip=site)
                try:
                    run()
                except (AssertionError, RuntimeError):
                    break
            else:
                without_need.append((site, what))
    finally:
        native.configure()
    return without_need
