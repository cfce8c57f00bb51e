"""Running the benchmark command, and reading the rows it wrote."""

from bigmodel_ext import cli
from bigmodel_ext.bench import host, results


def bench(out, *argv):
    return cli.main(["bench", "--out", str(out), *argv])


def rows_of(out, suite):
    return results.read(out / host.slug() / f"{suite}.csv")
