"""Examines a graph before ONNX Runtime, which trusts its input, opens it.

A bundle may come from a stranger. ONNX Runtime ends the process for some attributes, never returns from others, reads
past the end of tensors that are shorter than an attribute says, and takes a file for another form by a few bytes in it.
So a graph must look as the exporter writes it: its form and versions, its functions, its operators and their attributes
(`operators`), its tensors, which lie in the graph or whole in a weights file that the manifest lists, and the
shape of every value (`shape_rules`), which the stage's contract and the weights that are there decide.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeblt.bundle.contract import PORTABLE, StageContract
from edgeblt.bundle.examination import operators
from edgeblt.bundle.examination.function_digest import digest
from edgeblt.bundle.examination.graph_step import ShapeRule, Shapes, Step
from edgeblt.bundle.examination.onnx_graph import (
    Graph,
    Node,
    OnnxModel,
    Tensor,
    Value,
    embedded_bytes,
    parse_model,
)
from edgeblt.bundle.examination.prepared_rules import PREPARED_RULES
from edgeblt.bundle.examination.protobuf import MalformedError
from edgeblt.bundle.examination.shape_rules import RULES
from edgeblt.bundle.examination.sizes import Elements, Shape, Size, fixed, written
from edgeblt.errors import EdgebltError

LARGEST_GRAPH = 16 << 20  # bytes without weights in it; that of a thousand layers takes a third
LARGEST_FUNCTION = 1 << 17
MOST_NODES = 1 << 17
MOST_STATE = 64  # numbers of a portable graph's state for each byte of its weights
FREE_ELEMENTS = 1 << 15  # elements allowed for a value or a position, however few weights there are
_ORT_FORM = b"ORTM"  # the bytes 4 to 8 of the runtime's own form
_PLACE = re.compile(r"(0|[1-9][0-9]{0,14})")
_PACKED = re.compile(r"prepacked_[0-9]{1,6}")
_PACKED_BUFFER = re.compile(rf"{_PLACE.pattern};{_PLACE.pattern};[0-9]{{1,20}}")
_LONGEST_LIST = 64  # elements of a tensor that hold sizes or axes
_TYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "int8": 3}


def check_graph(
    content: bytes,
    path: Path,
    weights: Mapping[str, int],
    remedy: str,
    packed: bool = False,
    contract: StageContract | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Raises an EdgebltError naming `path` for a graph that could do anything but compute a stage.

    `weights` are the names and sizes of the files it may read. `packed` graphs are those ONNX Runtime saved, optimized
    and with packed weights. With `contract` the graph's inputs, outputs and all shapes between are checked as well.
    `metadata` is what the graph must say of itself; only a portable graph may, and may hold its weights.
    """
    if not content:
        return  # ONNX Runtime reports that it is no graph
    try:
        _Examination(weights, packed, contract, metadata or {}).check(content, path)
    except MalformedError as error:
        raise EdgebltError(f"{path} is no graph that edgeblt writes: {error}; {remedy}") from None


@dataclass(frozen=True)
class _Examination:
    weights: Mapping[str, int]
    packed: bool
    contract: StageContract | None
    metadata: Mapping[str, str]

    def check(self, content: bytes, path: Path) -> None:
        if path.suffix.lower() == ".ort" or content[4:8] == _ORT_FORM:
            raise MalformedError("it has the form or the name of a .ort file")
        embedded = embedded_bytes(content) if self.is_portable and len(content) > LARGEST_GRAPH else 0
        if len(content) - embedded > LARGEST_GRAPH:
            raise MalformedError(f"it has more than {LARGEST_GRAPH} bytes")
        model = parse_model(content)
        if model.metadata != self.metadata:
            raise MalformedError("its metadata are not those of its bundle")
        self._check_versions(model)
        self._check_functions(model)
        graphs = list(model.graph.all_graphs())
        if sum(len(graph.nodes) for graph in graphs) > MOST_NODES:
            raise MalformedError(f"it has more than {MOST_NODES} nodes")
        _check_names(graphs, self.packed)
        for graph in graphs:
            for tensor in graph.initializers:
                self._check_tensor(tensor)
            for node in graph.nodes:
                self._check_node(node)
        if self.contract:
            _check_interface(model.graph, self.contract)
            if not self.packed:
                _check_memory(model.graph, self.contract)
            _Inference(model.graph, self.contract, PREPARED_RULES if self.packed else RULES).run()

    @property
    def is_portable(self) -> bool:
        return self.contract is not None and self.contract.target == PORTABLE

    def _check_versions(self, model: OnnxModel) -> None:
        known = operators.PREPARED_OPSETS if self.packed else operators.OPSETS
        if model.ir_version not in operators.IR_VERSIONS:
            raise MalformedError(f"it has the IR version {model.ir_version}")
        domains = [domain for domain, _ in model.opsets]
        if len(set(domains)) < len(domains):
            raise MalformedError("it imports a domain twice")
        for domain, version in model.opsets:
            if version not in known.get(domain, ()):
                raise MalformedError(f"it imports version {version} of the domain {domain!a:.60}")

    def _check_functions(self, model: OnnxModel) -> None:
        found = set()
        for content in model.functions:
            if len(content) > LARGEST_FUNCTION:
                raise MalformedError(f"a function of it has more than {LARGEST_FUNCTION} bytes")
            identity, made = digest(bytes(content))
            if made not in operators.FUNCTIONS.get(identity, ()):
                raise MalformedError(f"its function {identity[1]!a:.60} is not the one of that name")
            if identity in found:
                raise MalformedError(f"its function {identity[1]!a:.60} is listed twice")
            found.add(identity)

    def _check_tensor(self, tensor: Tensor) -> None:
        if tensor.external is None:
            if tensor.data_bytes != tensor.size:
                raise MalformedError(f"the tensor {tensor.name!a:.80} has {tensor.data_bytes} bytes of {tensor.size}")
            return
        entries = dict(tensor.external)
        location = entries.pop("location", "")
        if location not in self.weights:
            raise MalformedError(f"it refers to the data file {location!a:.60}, which is not among its weights")
        size = self.weights[location]
        length = _place(tensor, entries, "length")
        if length != tensor.size or _place(tensor, entries, "offset") + length > size:
            raise MalformedError(f"the tensor {tensor.name!a:.80} does not lie within {location}")
        for key, value in entries.items():
            self._check_packed(tensor, key, value, size)

    def _check_packed(self, tensor: Tensor, key: str, value: str, size: int) -> None:
        if not _PACKED.fullmatch(key):
            raise MalformedError(f"the tensor {tensor.name!a:.80} has external data with the key {key!a:.60}")
        if not self.packed:
            raise MalformedError("it refers to packed weights, which belong to the machine that made them")
        for buffer in value.split("|")[1:]:
            found = _PACKED_BUFFER.fullmatch(buffer)
            if not found or int(found[1]) + int(found[2]) > size:
                raise MalformedError(f"the tensor {tensor.name!a:.80} has packed weights outside their file")

    def _check_node(self, node: Node) -> None:
        table = operators.PREPARED if self.packed else operators.OPERATORS
        operator = table.get(node.operator)
        if operator is None:
            raise MalformedError(f"it has the operator {node.op_type!a:.60} of the domain {node.domain!a:.60}")
        for what, count, (fewest, most) in (
            ("inputs", len(node.inputs), operator.inputs), ("outputs", len(node.outputs), operator.outputs)
        ):  # fmt: skip
            if not fewest <= count <= most:
                raise MalformedError(f"its node {node.op_type} has {count} {what}")
        names = [attribute.name for attribute in node.attributes]
        needed = {name for name, allowed in operator.attributes.items() if not allowed.may_be_absent}
        if len(set(names)) < len(names) or needed - set(names):
            raise MalformedError(f"its node {node.op_type} lacks an attribute, or has one twice")
        for attribute in node.attributes:
            allowed = operator.attributes.get(attribute.name)
            if allowed is None or attribute.reference or not allowed.holds(attribute):
                raise MalformedError(
                    f"its node {node.op_type} has the attribute {attribute.name!a:.60} = {attribute.value!a:.60}"
                )


def _place(tensor: Tensor, entries: dict[str, str], key: str) -> int:
    text = entries.pop(key, "")
    if not _PLACE.fullmatch(text):
        raise MalformedError(f"the tensor {tensor.name!a:.80} has the {key} {text!a:.60}")
    return int(text)


def _check_names(graphs: Iterable[Graph], packed: bool) -> None:
    """Checks that each value is made once over all graphs; in packed ones, separate branches may reuse a name."""
    seen: set[str] = set()
    outer: set[str] = set()  # inputs of the whole
    for graph in graphs:
        outer = outer or {value.name for value in graph.inputs}
        if packed and seen:
            seen = set(outer)
        for name in _made(graph, {value.name for value in graph.inputs}):
            if name in seen:
                raise MalformedError(f"the value {name!a:.60} is made twice")
            seen.add(name)
        tensors = [tensor.name for tensor in graph.initializers]
        if len(set(tensors)) < len(tensors) or "" in tensors:
            raise MalformedError("a tensor is listed twice, or has no name")


def _made(graph: Graph, inputs: set[str]) -> Iterator[str]:
    for value in graph.inputs:
        yield value.name
    for tensor in graph.initializers:
        if tensor.name not in inputs:  # a default
            yield tensor.name
    for node in graph.nodes:
        yield from filter(None, node.outputs)


def _check_interface(graph: Graph, contract: StageContract) -> None:
    """Checks that inputs and outputs are exactly the contract's, and that only settings have defaults."""
    for specs, values in ((contract.all_inputs, graph.inputs), (contract.all_outputs, graph.outputs)):
        wanted = [Value(spec.name, _TYPES[spec.dtype], spec.shape) for spec in specs]
        for value in values:
            if value not in wanted:
                raise MalformedError(f"{value.name!a:.60} is no tensor that its configuration gives this stage")
        if {value.name for value in values} != {value.name for value in wanted} or len(values) != len(wanted):
            raise MalformedError(f"it has other inputs and outputs than the stage {contract.name}")
    names, settings = {value.name for value in graph.inputs}, {spec.name for spec in contract.settings}
    if any(tensor.name in names - settings for tensor in graph.initializers):
        raise MalformedError("an input has a value already")


def _check_memory(graph: Graph, contract: StageContract) -> None:
    """Checks that the state the runtime keeps per position is in proportion to the size of the stage's weights."""
    places = sorted(
        (tensor.external["location"], int(tensor.external["offset"]), tensor.size)
        for each in graph.all_graphs()
        for tensor in each.initializers
        if tensor.external is not None
    )
    for (location, offset, size), (following, start, _) in itertools.pairwise(places):
        if location == following and offset + size > start:
            raise MalformedError(f"two of its tensors share bytes of {location}")
    if contract.target == PORTABLE:
        return _check_state(graph, contract)
    cache = contract.cache
    elements = 2 * cache.layer_count * cache.kv_head_count * cache.slot_width if cache else 0
    for spec in (*contract.inputs, *contract.outputs):
        elements += math.prod(size for size in spec.shape if isinstance(size, int))
    if elements > max(FREE_ELEMENTS, sum(size for _, _, size in places)):
        raise MalformedError(f"its configuration asks for {elements} numbers a position, its weights are too few")


def _check_state(graph: Graph, contract: StageContract) -> None:
    """Checks that the state of a portable graph is in proportion to its weights."""
    elements = sum(math.prod(size for size in spec.shape if isinstance(size, int)) for spec in contract.inputs)
    weights = sum(tensor.size for each in graph.all_graphs() for tensor in each.initializers)
    if elements > MOST_STATE * max(weights, FREE_ELEMENTS):
        raise MalformedError(f"its configuration asks for a state of {elements} numbers, its weights are too few")


class _Inference:
    """Infers the shapes of all values, node by node."""

    def __init__(self, graph: Graph, contract: StageContract, rules: Mapping[tuple[str, str], ShapeRule]) -> None:
        self._graph, self._rules = graph, rules
        self._known = Shapes(contract, {})
        tensors = (tensor for each in graph.all_graphs() for tensor in each.initializers)
        largest = max((Elements.of(fixed(tensor.dims)).count for tensor in tensors), default=0)
        self._inputs = {value.name for value in graph.inputs}
        self._most = max(largest, FREE_ELEMENTS)
        cache = contract.cache
        states = contract.outputs if contract.target == PORTABLE else cache.specs("present") if cache else ()
        self._caches = {spec.name: _contract_shape(spec.shape) for spec in states}
        self._factors = 1 if contract.target == "cpu" else 2  # elsewhere attention is over all pairs of the chunk

    def run(self) -> None:
        for spec in self._known.contract.all_inputs:
            self._known.shapes[spec.name] = _contract_shape(spec.shape)
        self._follow(self._graph)
        for spec in self._known.contract.all_outputs:
            found, wanted = self._known.shapes.get(spec.name), _contract_shape(spec.shape)
            if found != wanted:
                shown = written(found) if found else "nothing"
                raise MalformedError(f"{spec.name} is computed as {shown}, not {written(wanted)}")

    def _follow(self, graph: Graph) -> None:
        self._enter(graph.initializers)
        for node in graph.nodes:
            step = Step(node, self._known)
            self._known.forget(node.outputs)
            shapes = self._branches(node) if node.op_type == "If" else self._rules[node.operator](step)
            if len(shapes) != len(node.outputs):
                raise step.wrong(f"has {len(node.outputs)} outputs")
            for name, shape in zip(node.outputs, shapes, strict=True):
                elements = Elements.of(() if self._caches.get(name) == shape else shape)  # caches are there already
                if elements.count > self._most or len(elements.sums) > self._factors:
                    raise step.wrong(f"makes {written(shape)}, more than its weights need")
                if any(size.is_constant and size.constant < 0 for size in shape):
                    raise step.wrong(f"makes {written(shape)}")
                self._known.shapes[name] = shape

    def _enter(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.name in self._inputs:  # a setting's default, which is no constant
                if self._known.shapes[tensor.name] != fixed(tensor.dims):
                    raise MalformedError(f"the default of {tensor.name!a:.60} has another shape")
                continue
            self._known.tensors[tensor.name], self._known.shapes[tensor.name] = tensor, fixed(tensor.dims)
            self._known.integers.pop(tensor.name, None)
            integers = _integers(tensor)
            if integers is not None:
                self._known.integers[tensor.name] = integers

    def _branches(self, node: Node) -> list[Shape]:
        """Output shapes of the branch that computes; the other branch must give the same shapes, or no rows."""
        found = []
        if Elements.of(Step(node, self._known).shape(0)) != Elements(1, ()):
            raise MalformedError("a branch is chosen by more than one value")
        for name in ("then_branch", "else_branch"):
            graph = node.value(name)
            if graph.inputs:
                raise MalformedError("a branch has inputs of its own")
            outer, self._known = self._known, self._known.copy()  # a branch's tensors may be called as others
            self._follow(graph)
            found.append([self._known.shapes.get(value.name, ()) for value in graph.outputs])
            self._known = outer
        if len(found[0]) != len(found[1]):
            raise MalformedError("its branches give different numbers of values")
        for full, empty in zip(*found, strict=True):
            if not full or empty not in (full, (Size(0), *full[1:]), tuple(size.without("P") for size in full)):
                raise MalformedError(f"its branches give {written(full)} and {written(empty)}")
        return found[0]


def _contract_shape(dims: tuple[int | str, ...]) -> Shape:
    return tuple(Size(size) if isinstance(size, int) else Size.named(size) for size in dims)


def _integers(tensor: Tensor) -> tuple[Size, ...] | None:
    """The elements of a small tensor of integers, where they lie in the graph."""
    if len(tensor.dims) > 1 or tensor.size > 8 * _LONGEST_LIST:
        return None
    found = tensor.integers
    return None if found is None else fixed(found)
