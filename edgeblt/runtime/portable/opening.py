"""Opening a portable graph."""

from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.manifest import HeldBundle, refuse_replacement
from edgeblt.bundle.portable.contract import portable_contract
from edgeblt.runtime.opened_graphs import OpenedGraphs
from edgeblt.runtime.opening import open_stage
from edgeblt.runtime.providers import ThreadCounts


def open_portable(held: HeldBundle, threads: int | None) -> OpenedGraphs:
    """Open the one graph, as that of every stage; `threads` as `load` takes it."""
    manifest, stage = held.bundle.manifest, held.stages[STAGES[0]]
    size = sum(file.size for file in stage.weights) or len(stage.content)
    counts = ThreadCounts.of(threads, size, are_mapped=False)._replace(share=None)
    graph = open_stage(stage, False, portable_contract(manifest.config), counts, "cpu")
    refuse_replacement([stage])
    graphs = OpenedGraphs(
        dict.fromkeys(STAGES, graph), manifest.contracts, stage.weights, held.bundle.id, "cpu", is_large=False
    )
    graphs.is_batchable = False
    return graphs
