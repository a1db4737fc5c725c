"""Which execution provider each node of an open model was given to, as ONNX Runtime says."""

from collections import Counter

from edgeblt.bundle.contract import STAGES
from edgeblt.inspection import PlacedNodes
from edgeblt.model import Model


def placed_nodes(model: Model) -> tuple[PlacedNodes, ...]:
    """Nodes by stage, the provider with most nodes first; copies that ONNX Runtime adds between providers left out."""
    found = []
    for stage in STAGES:
        operators: dict[str, Counter[str]] = {}
        for part in model.graph(stage).get_provider_graph_assignment_info():
            operators.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
        for provider, counts in sorted(operators.items(), key=lambda item: -item[1].total()):
            found.append(PlacedNodes(stage, provider, counts.total(), dict(sorted(counts.items()))))
    return tuple(found)
