"""What ``python -m dwconv doctor`` does."""

import argparse

from dwconv.doctor.findings import findings
from dwconv.doctor.probes import collect
from dwconv.doctor.report import as_json, text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same as a JSON document")


def run(options: argparse.Namespace) -> int:
    """The exit status: 1 if there is a problem."""
    facts = collect()
    print(as_json(facts) if options.json else text(facts))
    return 1 if findings(facts) else 0
