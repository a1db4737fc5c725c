"""Installed as `optimum.commands.register.register_edgeblt`, where optimum-cli looks for commands of other packages.

    optimum-cli export edgeblt --model CHECKPOINT [--recipe NAME|FILE] [--target NAME] OUTPUT
    optimum-cli edgeblt quantize --model CHECKPOINT --output OUTPUT [--recipe NAME|FILE] [--calibration TEXTFILE]

Each is the `edgeblt` command of that name with its arguments spelled as optimum's own commands spell them, so defaults,
messages and exit codes are the same. This folder holds no other file: an editable install shows the folder to
optimum-cli, which imports every Python file it finds there.
"""

import sys
from argparse import ArgumentParser

# optimum-cli imports this module at every start, whatever its command, and catches nothing: edgeblt, which takes a
# second to import and refuses without ONNX Runtime, is imported when a command of ours runs.
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EdgebltExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum ships no type information
    COMMAND = CommandInfo(name="edgeblt", help="Export a Byte Latent Transformer to a bundle of ONNX graphs.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        _add_model(parser)
        parser.add_argument("output", metavar="OUTPUT", help="The directory to write; it must not exist yet.")
        parser.add_argument("--recipe", metavar="NAME|FILE", help="How the weights are stored.")
        parser.add_argument("--target", metavar="NAME", help="What the graphs are built to run on.")

    def run(self) -> None:
        args = self.args
        _run_edgeblt("export", (args.model, args.output), {"recipe": args.recipe, "target": args.target})


class EdgebltQuantizeCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        _add_model(parser)
        parser.add_argument(
            "-o", "--output", metavar="OUTPUT", required=True, help="The directory to write; it must not exist yet."
        )
        parser.add_argument("--recipe", metavar="NAME|FILE", help="Which weights get which format and method.")
        parser.add_argument(
            "--calibration", metavar="TEXTFILE", help="A text to measure with, where the recipe's method does."
        )

    def run(self) -> None:
        args = self.args
        _run_edgeblt("quantize", (args.model, args.output), {"recipe": args.recipe, "calibration": args.calibration})


class EdgebltCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """Prints its help: what it does is in its subcommands."""

    COMMAND = CommandInfo(name="edgeblt", help="Byte Latent Transformers on devices.")
    SUBCOMMANDS = (
        CommandInfo(
            name="quantize",
            help="Quantize the weights of a Byte Latent Transformer.",
            subcommand_class=EdgebltQuantizeCommand,
        ),
    )


REGISTER_COMMANDS = [(EdgebltExportCommand, ExportCommand), EdgebltCommand]


def _add_model(parser: ArgumentParser) -> None:
    described = "A checkpoint directory, or a model on the hub: OWNER/NAME."
    parser.add_argument("-m", "--model", metavar="CHECKPOINT", required=True, help=described)


def _run_edgeblt(command: str, paths: tuple[str, ...], options: dict[str, str | None]) -> None:
    """`edgeblt COMMAND`, in this process; ends with SystemExit and its exit code."""
    from edgeblt.cli import main

    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    sys.argv = ["edgeblt", command, *given, "--", *paths]
    main()
