"""Which execution provider each node of an open model was given to, as ONNX Runtime says."""

from collections import Counter

from edgeblt.inspection import ProviderNodes
from edgeblt.model import Model


def node_providers(model: Model) -> tuple[ProviderNodes, ...]:
    """Nodes by stage, the provider with most nodes first; copies that ONNX Runtime adds between providers left out."""
    found = []
    for stage in model.bundle.manifest.stage_names:
        operators: dict[str, Counter[str]] = {}
        for part in model.graph(stage).get_provider_graph_assignment_info():
            operators.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
        for provider, counts in sorted(operators.items(), key=lambda item: -item[1].total()):
            found.append(ProviderNodes(stage, provider, counts.total(), dict(sorted(counts.items()))))
    return tuple(found)
