"""The command line: python -m dwconv COMMAND."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Each command is the module dwconv.COMMAND, with add_arguments(parser) and run(options) -> status.
COMMANDS = {
    "bench": "time dwconv beside PyTorch on this GPU",
}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m dwconv", description="Depthwise convolution kernels for PyTorch on CUDA."
    )
    commands = main.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"dwconv.{name}")
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    front = parser()
    options = front.parse_args(arguments)
    if not hasattr(options, "run"):
        front.print_help()
        return 0
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
