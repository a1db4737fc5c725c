"""Which kernels ONNX Runtime's CUDA provider has, and which nodes of a model it has none for.

The table, `data/cuda_kernels.json`, is ONNX Runtime's own, written by `tools/cuda_kernels.py`; operators' signatures
are those of the installed onnxruntime, with or without CUDA.
"""

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnxruntime
from onnxruntime.capi import _pybind_state as runtime

import cuda_stand_in

TABLE = Path(__file__).parent / "data" / "cuda_kernels.json"
NO_LAST = 2**31 - 1  # last version of a kernel for the newest version of its operator

Types = Mapping[str, frozenset[str]]  # types by type parameter, or by name of an input or output
Table = dict[str, list[tuple[str, list[dict[str, str]]]]]

_LIST = """
import json
from onnxruntime.capi._pybind_state import get_all_opkernel_def
kernels = [kernel for kernel in get_all_opkernel_def() if kernel.provider == "CUDAExecutionProvider"]
rows = [[k.domain, k.op_name, *k.version_range, {n: list(t) for n, t in k.type_constraints.items()}] for k in kernels]
print(json.dumps(rows))
"""


@dataclass(frozen=True)
class Kernel:
    """`operator`: domain, colon, name; `first` to `last`: versions of the operator."""

    operator: str
    first: int
    last: int
    types: Types


def installed_kernels(stand_in: cuda_stand_in.StandIn) -> list[Kernel]:
    """All of the installed onnxruntime's CUDA provider."""
    # The list is of all providers: TensorRT's must load too.
    output = cuda_stand_in.python(_LIST, environment=stand_in.environment(tensorrt=True))
    assert output.returncode == 0, output.stderr
    return [
        Kernel(
            f"{domain}:{name}", first, last, {key: frozenset(map(_short, types)) for key, types in constraints.items()}
        )
        for domain, name, first, last, constraints in json.loads(output.stdout)
    ]


def compact(kernels: Iterable[Kernel]) -> Table:
    """By operator: versions ("6-8 9-12 13-") that have the same kernels, and the types of these, merged.

    Kernels that differ in one type are one with several: together they take what they took before.
    """
    found: defaultdict[str, defaultdict[str, list[Types]]] = defaultdict(lambda: defaultdict(list))
    for kernel in sorted(kernels, key=lambda kernel: (kernel.operator, kernel.first, kernel.last)):
        versions = f"{kernel.first}-{'' if kernel.last == NO_LAST else kernel.last}"
        found[kernel.operator][versions].append(kernel.types)
    table: Table = {}
    for operator, by_versions in found.items():
        same: defaultdict[str, list[str]] = defaultdict(list)
        for versions, types in by_versions.items():
            same[json.dumps(_merged(types))].append(versions)
        table[operator] = [(" ".join(versions), json.loads(types)) for types, versions in same.items()]
    return table


def _merged(kernels: list[Types]) -> list[dict[str, str]]:
    rows = {tuple(sorted(types.items())) for types in kernels}
    names = sorted({name for row in rows for name, _ in row})
    for name in names:
        groups: defaultdict[tuple[tuple[str, frozenset[str]], ...], set[str]] = defaultdict(set)
        for row in rows:
            if name in dict(row):
                groups[tuple(pair for pair in row if pair[0] != name)] |= dict(row)[name]
        rows = {row for row in rows if name not in dict(row)} | {
            tuple(sorted((*rest, (name, frozenset(types))))) for rest, types in groups.items()
        }
    return sorted(({name: " ".join(sorted(types)) for name, types in row} for row in rows), key=str)


def write(table: Table, path: Path = TABLE) -> None:
    """One operator a line, under the version it belongs to."""
    lines = [f"{json.dumps(operator)}: {json.dumps(rows)}" for operator, rows in sorted(table.items())]
    version = onnxruntime.__version__
    path.write_text(f'{{"onnxruntime-gpu": "{version}",\n"kernels": {{\n' + ",\n".join(lines) + "\n}}\n", "utf-8")


@functools.cache
def recorded() -> tuple[str, Table]:
    """The version of onnxruntime-gpu the table was made with, and the table."""
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    table = {operator: [(versions, types) for versions, types in rows] for operator, rows in content["kernels"].items()}
    return content["onnxruntime-gpu"], table


def unlisted(path: Path) -> list[str]:
    """The nodes of a model, its functions inlined, that no CUDA kernel takes: operator, version, types, name.

    Types are followed from the inputs and initializers through every node and branch. Raises LookupError where an
    operator or the type of an output is unknown. Constants need no kernel. An operator that ONNX defines as a function
    of others is listed too, though ONNX Runtime may break it up; what a kernel asks of attributes is not looked at.
    """
    model = onnx.inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    opsets = {one.domain: one.version for one in model.opset_import}
    return list(_unlisted(model.graph, opsets, {}))


def _unlisted(graph: onnx.GraphProto, opsets: Mapping[str, int], types: dict[str, str]) -> Iterator[str]:
    """Adds the types of all values of `graph` to `types`."""
    types.update({value.name: _type(value.type.tensor_type.elem_type) for value in graph.input})
    types.update({tensor.name: _type(tensor.data_type) for tensor in graph.initializer})
    for node in graph.node:
        bodies = {}
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inner = dict(types)
                yield from _unlisted(attribute.g, opsets, inner)
                bodies[attribute.name] = [inner[value.name] for value in attribute.g.output]
        signature = _signature(node, opsets)
        bound = _bound(signature.inputs, node.input, types)
        types.update(_output_types(node, signature, bound, bodies))
        bound |= _bound(signature.outputs, node.output, types)
        operator = f"{node.domain}:{node.op_type}"
        if operator != ":Constant" and not _listed(operator, signature.since_version, bound):
            parameters = sorted({formal.typeStr for formal in (*signature.inputs, *signature.outputs)} & bound.keys())
            shown = ", ".join(f"{name}={' or '.join(sorted(bound[name]))}" for name in parameters)
            yield f"{operator} {signature.since_version} ({shown}) {node.name}"


def _listed(operator: str, version: int, bound: Mapping[str, set[str]]) -> bool:
    for versions, rows in recorded()[1].get(operator, []):
        for first, last in (part.split("-") for part in versions.split()):
            # ONNX Runtime's rule: a kernel for the newest version does not serve later ones.
            if version == int(first) or (last and int(first) < version <= int(last)):
                for row in rows:
                    if all(bound.get(name, set()) <= set(kinds.split()) for name, kinds in row.items()):
                        return True
    return False


@functools.cache
def _signatures() -> dict[tuple[str, str], dict[int, Any]]:
    found: defaultdict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for signature in runtime.get_all_operator_schema():
        found[signature.domain, signature.name][signature.since_version] = signature
    return found


def _signature(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Any:
    """That of the newest version up to the model's."""
    versions = _signatures()[node.domain, node.op_type]
    usable = [version for version in versions if version <= opsets.get(node.domain, 1)]
    if not usable:
        raise LookupError(f"onnxruntime knows no {node.domain}:{node.op_type} of opset {opsets.get(node.domain, 1)}")
    return versions[max(usable)]


def _bound(formals: list[Any], names: Iterable[str], types: Mapping[str, str]) -> dict[str, set[str]]:
    """By type parameter and by formal name, the types that values of the node have; the last formal may repeat."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for index, name in enumerate(names):
        if name:
            formal = formals[min(index, len(formals) - 1)]
            found[formal.typeStr].add(types[name])
            found[formal.name].add(types[name])
    return dict(found)


def _output_types(
    node: onnx.NodeProto, signature: Any, bound: Mapping[str, set[str]], bodies: Mapping[str, list[str]]
) -> dict[str, str]:
    if bodies:  # If: the same of either branch; Loop: the condition is not passed on
        inner = next(iter(bodies.values()))
        return dict(zip(node.output, inner[1:] if node.op_type == "Loop" else inner, strict=True))
    allowed = {one.type_param_str: set(one.allowed_type_strs) for one in signature.type_constraints}
    found = {}
    for index, name in enumerate(node.output):
        parameter = signature.outputs[min(index, len(signature.outputs) - 1)].typeStr
        candidates = bound.get(parameter) or _chosen(node) or set(map(_short, allowed.get(parameter, {parameter})))
        if name and len(candidates) != 1:
            raise LookupError(f"the type of output {name} of {node.domain}:{node.op_type} is not known")
        found[name] = next(iter(candidates))
    return found


def _chosen(node: onnx.NodeProto) -> set[str] | None:
    """The type that an attribute gives an output that is of no input's."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    for name in ("to", "dtype", "output_dtype", "stash_type"):
        if attributes.get(name):
            return {_type(attributes[name])}
    if node.op_type in ("Constant", "ConstantOfShape") and "value" in attributes:
        return {_type(attributes["value"].data_type)}
    if node.op_type == "Constant":
        return {"int64" if next(iter(attributes)).startswith("value_int") else "float"}
    return {"float"} if node.op_type in ("ConstantOfShape", "LayerNormalization") else None


def _type(number: int) -> str:
    return str(onnx.TensorProto.DataType.Name(number)).lower()


def _short(kind: str) -> str:
    """float16 for tensor(float16); sequences and the like stay as they are."""
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind
