"""Command that makes a bundle ready to run: prepare."""

from edgeblt.commands.options import BundlePath, JsonFile, Quiet
from edgeblt.commands.results import check_results, deliver
from edgeblt.report import terminal


def prepare(bundle: BundlePath, json_file: JsonFile = None, quiet: Quiet = False) -> None:
    """Pack a bundle's weights for this machine.

    ONNX Runtime packs weights anew whenever a bundle is opened, in the memory of each process. This command writes
    them packed to BUNDLE.prepared: processes then share them, they need not all stay in memory, and opening is faster.
    Takes about twice the weights' size on disk, four times for fp16; nothing is written if ONNX Runtime packs none of
    them. Results are the same, bit by bit. Run it again after an update of onnxruntime. For example:

    \b
    edgeblt prepare my-bundle
    edgeblt bench my-bundle
    """
    from edgeblt.prepare import prepare as prepare_bundle

    check_results(json_file)
    result = prepare_bundle(bundle)
    deliver(result, lambda: terminal.show_preparation(result), json_file)
