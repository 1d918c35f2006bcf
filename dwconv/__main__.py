"""The command line: python -m dwconv COMMAND."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import dwconv

# Each command is the module dwconv.COMMAND, with add_arguments(parser) and run(options) -> status.
COMMANDS = {
    "bench": "time dwconv beside PyTorch on this GPU",
    "doctor": "say whether dwconv works here, and if not, why",
}
NEEDS_NOTHING = ("doctor",)  # runs where dwconv itself cannot be imported


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """With the arguments of this command; the others are named, and not imported."""
    main = argparse.ArgumentParser(
        prog="python -m dwconv", description="Depthwise convolution kernels for PyTorch on CUDA."
    )
    commands = main.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name != command:
            commands.add_parser(name, help=summary)
            continue
        module = import_module(f"dwconv.{name}")
        chosen = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(chosen)
        chosen.set_defaults(run=module.run)
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    command = words[0] if words else None
    if dwconv._unmet is not None and command in COMMANDS and command not in NEEDS_NOTHING:
        print(f"{dwconv._unmet}.", file=sys.stderr)
        return 1
    front = parser(command)
    options = front.parse_args(words)
    if not hasattr(options, "run"):
        front.print_help()
        return 0
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
