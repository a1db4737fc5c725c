"""Random changes to a bundle that keep its structure: what a hostile or broken exporter might write.

Each takes a bundle's directory and a source of random choices. Sizes, hashes and checksums are made right afterwards
(`seal`), so that only the examination of the content can notice.
"""

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from edgeblt.bundle.manifest import checksum, file_record

EDGES = (
    0, 1, -1, 2, 3, 7, 8, 15, 16, 17, 31, 63, 64, 255, 256, 257, 1 << 12, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31),
    (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 60, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63), -(1 << 62),
)  # fmt: skip
FLOAT_EDGES = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
OPERATORS = (
    "Loop", "Scan", "If", "SequenceMap", "Reshape", "Expand", "Tile", "Range", "Gather", "GatherND", "ScatterND",
    "Concat", "MatMul", "Pad", "Resize", "NonZero", "RandomNormal", "StringNormalizer", "ImageDecoder", "Optional",
    "MatMulNBits", "GroupQueryAttention", "EntropyPatch", "DenseMatMul", "SparseMatMul", "DenseLayer", "Identity",
)  # fmt: skip
DOMAINS = ("", "ai.onnx", "com.microsoft", "edgeblt", "com.microsoft.nchwc", "ai.onnx.ml", "ai.onnx.training", "x")
Change = Callable[[Path, random.Random], None]


def seal(directory: Path) -> None:
    """Give the bundle's files their sizes and hashes, and the manifest its checksum."""
    path = directory / "bundle.json"
    document = json.loads(path.read_text())
    for name in document["files"]:
        record = file_record(directory / name)
        document["files"][name] = {"size": record.size, "sha256": record.sha256}
    write_sealed(path, document)


def write_sealed(path: Path, document: dict[str, Any]) -> None:
    document.pop("checksum", None)
    document["checksum"] = checksum(document)
    path.write_text(json.dumps(document))


def seal_prepared(directory: Path) -> None:
    """The same for prepared weights, which belong to a bundle that is as it was."""
    path = directory / "prepared.json"
    document = json.loads(path.read_text())
    for stage, files in document["stages"].items():
        for kind, suffix in (("graph", "onnx"), ("weights", "weights")):
            record = file_record(directory / f"{stage}.{suffix}")
            files[kind] = {"size": record.size, "sha256": record.sha256}
    write_sealed(path, document)


def mutate(directory: Path, rng: random.Random) -> list[str]:
    """One to three changes; their names."""
    names = rng.choices(list(CHANGES), [weight for weight, _ in CHANGES.values()], k=rng.choice((1, 1, 1, 2, 3)))
    if (directory / "prepared.json").exists():
        names = [name for name in names if name not in ("manifest", "second-value", "body")] or ["attribute"]
    for name in names:
        CHANGES[name][1](directory, rng)
    if (directory / "prepared.json").exists():
        seal_prepared(directory)
    elif "manifest" not in names:
        seal(directory)
    return names


# Graphs.


def _graph(change: Callable[[Any, random.Random], object]) -> Change:
    def apply(directory: Path, rng: random.Random) -> None:
        path = rng.choice(sorted(directory.glob("*.onnx")))
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception:  # an earlier change made it no graph; protobuf and onnx raise what they like
            return
        change(model, rng)
        path.write_bytes(model.SerializeToString())

    return apply


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if _is_repeated(field) else (value,):
                yield from _messages(inner)


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _anything(model: Any, rng: random.Random) -> None:
    """A field of a message somewhere in the model, whatever it is."""
    found = [message for message in _messages(model) if message.DESCRIPTOR.fields]
    message = rng.choice(found)
    field = rng.choice(list(message.DESCRIPTOR.fields))
    if _is_repeated(field):
        _change_list(getattr(message, field.name), field, rng, found)
    elif field.type == field.TYPE_MESSAGE:
        others = [other for other in found if other.DESCRIPTOR is field.message_type]
        if rng.random() < 0.3:
            message.ClearField(field.name)
        elif others:
            getattr(message, field.name).CopyFrom(_copy(rng.choice(others)))
    else:
        setattr(message, field.name, _scalar(field, rng, found))


def _copy(message: Any) -> Any:
    other = type(message)()
    other.CopyFrom(message)
    return other


def _change_list(values: Any, field: Any, rng: random.Random, found: list[Any]) -> None:
    kind = rng.randrange(4)
    if kind == 0 and values:
        del values[rng.randrange(len(values))]
    elif kind == 1 and values:
        copied = values[rng.randrange(len(values))]
        values.append(_copy(copied) if field.type == field.TYPE_MESSAGE else copied)
    elif field.type == field.TYPE_MESSAGE:
        others = [other for other in found if other.DESCRIPTOR is field.message_type]
        if others:
            values.append(_copy(rng.choice(others)))
    elif values and kind == 2:
        values[rng.randrange(len(values))] = _scalar(field, rng, found)
    else:
        values.append(_scalar(field, rng, found))


def _scalar(field: Any, rng: random.Random, found: list[Any]) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        texts = [text for message in found for other, text in message.ListFields() if other.name == field.name]
        texts = [text for text in texts if isinstance(text, str | bytes)] or [""]
        text = rng.choice((rng.choice(texts), rng.choice(texts), "", "x" * rng.choice((1, 300))))
        if field.type == field.TYPE_BYTES:
            return text.encode() if isinstance(text, str) else text
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(FLOAT_EDGES)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    edge = rng.choice(EDGES)
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    edge %= 1 << bits
    return edge - (1 << bits) if signed and edge >= 1 << (bits - 1) else edge


def _graphs(model: Any) -> list[Any]:
    return [message for message in _messages(model) if message.DESCRIPTOR.name == "GraphProto"]


def _nodes(model: Any) -> list[Any]:
    return [message for message in _messages(model) if message.DESCRIPTOR.name == "NodeProto"]


def _attribute(model: Any, rng: random.Random) -> None:
    """An attribute at an edge, or near what it was."""
    attributes = [attribute for node in _nodes(model) for attribute in node.attribute]
    numbers = [attribute for attribute in attributes if attribute.type in (AttributeProto.INT, AttributeProto.FLOAT)]
    if not numbers:
        return
    chosen = rng.choice(numbers)
    if chosen.type == AttributeProto.FLOAT:
        chosen.f = rng.choice(FLOAT_EDGES)
    else:
        near = chosen.i + rng.choice((-16, -1, 1, 16)), chosen.i * 2, chosen.i // 2, -chosen.i
        value = rng.choice((rng.choice(EDGES), rng.choice(near)))
        chosen.i = (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _rewire(model: Any, rng: random.Random) -> None:
    """An input of a node becomes another value, often one of the same kind of place."""
    graph = rng.choice(_graphs(model))
    nodes = [node for node in graph.node if node.input]
    if not nodes:
        return
    node = rng.choice(nodes)
    names = [name for other in graph.node for name in (*other.input, *other.output)]
    names += [value.name for value in model.graph.input] + [tensor.name for tensor in model.graph.initializer]
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _alike(model: Any, rng: random.Random) -> None:
    """What is likely to fit: the input of another node of the kind, another operator of the shape, swapped tensors."""
    nodes = _nodes(model)
    kind = rng.randrange(3)
    node = rng.choice([node for node in nodes if node.input])
    if kind == 0:
        index = rng.randrange(len(node.input))
        others = [other.input[index] for other in nodes if other.op_type == node.op_type and len(other.input) > index]
        node.input[index] = rng.choice(others)
    elif kind == 1:
        groups = ("Add", "Mul", "Sub", "Div"), ("Identity", "Exp", "Relu", "QuickGelu"), ("Greater", "Equal")
        members = [node for node in nodes if any(node.op_type in group for group in groups)]
        if members:
            chosen = rng.choice(members)
            chosen.op_type = rng.choice(next(group for group in groups if chosen.op_type in group))
    else:
        first, second = rng.choices(model.graph.initializer, k=2)
        if first.dims == second.dims and first.data_type == second.data_type:
            first.name, second.name = second.name, first.name


def _operator(model: Any, rng: random.Random) -> None:
    node = rng.choice(_nodes(model))
    if rng.random() < 0.7:
        node.op_type = rng.choice(OPERATORS)
    if rng.random() < 0.5:
        node.domain = rng.choice(DOMAINS)


def _insert(model: Any, rng: random.Random) -> None:
    """A node between a value and its reader: an operator of the kind the exporter writes."""
    graph = model.graph
    index = rng.randrange(len(graph.node))
    node = graph.node[index]
    places = [place for place, name in enumerate(node.input) if name]
    if not places:
        return
    place = rng.choice(places)
    numbers = [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT64] or [""]
    value, number = node.input[place], rng.choice(numbers)
    kind, *inputs = rng.choice((
        ("Identity",), ("Relu",), ("Add", value), ("Concat", value), ("Pad", number), ("Reshape", number),
        ("Unsqueeze", number), ("Expand", number), ("Slice", number, number, number),
    ))  # fmt: skip
    made = helper.make_node(kind, [value, *inputs], [f"inserted_{index}_{place}"])
    if kind == "Concat":
        made.attribute.append(helper.make_attribute("axis", rng.choice((0, 1, -1))))
    node.input[place] = made.output[0]
    graph.node.insert(index, made)


def _tensor(model: Any, rng: random.Random) -> None:
    """Dimensions, type or place of a tensor."""
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(4)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(EDGES)
    elif kind == 1:
        tensor.data_type = rng.randrange(24)
    elif kind == 2 and tensor.external_data:
        entry = rng.choice(tensor.external_data)
        near = str(int(entry.value) + rng.choice((-64, -1, 1, 64))) if entry.value.isdigit() else "encoder.weights"
        entry.value = rng.choice((str(rng.choice(EDGES)), near, "0x10", " 1", "1e3", "../x", "", "bundle.json"))
    elif kind == 3 and len(tensor.raw_data) >= 8 and tensor.data_type == TensorProto.INT64:
        content = bytearray(tensor.raw_data)
        place = 8 * rng.randrange(len(content) // 8)
        (old,) = struct.unpack_from("<q", content, place)
        edge = rng.choice((*EDGES, old + 1, old - 1, 2 * old))
        struct.pack_into("<q", content, place, (edge + (1 << 63)) % (1 << 64) - (1 << 63))
        tensor.raw_data = bytes(content)
    else:
        entry = tensor.external_data.add()
        entry.key, entry.value = rng.choice(("location", "offset", "length", "checksum", "prepacked_0")), "0"


def _loop(model: Any, rng: random.Random) -> None:
    """A loop that does not end, or nearly."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )  # fmt: skip
    node = helper.make_node("Loop", ["", ""], [], body=body)
    if rng.random() < 0.5:
        node = helper.make_node("Loop", ["often", "always"], [], body=body)
        for name, kind, number in (("often", TensorProto.INT64, (1 << 63) - 1), ("always", TensorProto.BOOL, 1)):
            model.graph.initializer.append(helper.make_tensor(name, kind, [], [number]))
    model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), node)


def _functions(model: Any, rng: random.Random) -> None:
    """Functions that call themselves, each other twice over many levels, or stand in for others' operators."""
    kind = rng.randrange(3)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("edgeblt", 1)]
    if kind == 2:
        domain, name = rng.choice((("", "Add"), ("ai.onnx", "MatMul"), ("com.microsoft", "MatMulNBits")))
        nodes = [helper.make_node("Identity", ["a"], ["b"])]
        model.functions.append(helper.make_function(domain, name, ["a", "c"], ["b"], nodes, opsets))
        return
    depth = 1 if kind == 0 else 40
    for level in range(depth):
        callee = f"Nest{level + 1}" if level + 1 < depth else ("Nest0" if kind == 0 else "Identity")
        domain = "" if callee == "Identity" else "edgeblt"
        nodes = [helper.make_node(callee, ["a"], ["x"], domain=domain),
                 helper.make_node(callee, ["x"], ["b"], domain=domain)]  # fmt: skip
        model.functions.append(helper.make_function("edgeblt", f"Nest{level}", ["a"], ["b"], nodes, opsets))
    name = model.graph.input[0].name
    model.graph.node.insert(0, helper.make_node("Nest0", [name], ["nested"], domain="edgeblt"))


def _body(model: Any, rng: random.Random) -> None:
    """Some field in a function's body."""
    if model.functions:
        holder = onnx.ModelProto()
        chosen = rng.choice(model.functions)
        holder.functions.append(chosen)
        _anything(holder, rng)
        if holder.functions:
            chosen.CopyFrom(holder.functions[0])


# Bytes.


def _wire(directory: Path, rng: random.Random) -> None:
    """A graph's bytes: ended early, changed, a part said again, or ONNX Runtime's other form."""
    path = rng.choice(sorted(directory.glob("*.onnx")))
    content = bytearray(path.read_bytes())
    kind = rng.randrange(5)
    if kind == 0:
        del content[rng.randrange(len(content)) :]
    elif kind == 1:
        for _ in range(rng.choice((1, 1, 4, 30))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 2:  # protobuf takes the last of them, or all
        content += rng.choice((b"\x08\x0b", b"\x3a\x00", b"\x42\x04\x0a\x00\x10\x17", b"\xf2\x01\x00", content[:400]))
    elif kind == 3:
        content[4:8] = b"ORTM"
    else:
        start = rng.randrange(len(content))
        content[start:start] = content[start : start + rng.randrange(1, 200)]
    path.write_bytes(bytes(content))


def _second_value(directory: Path, rng: random.Random) -> None:
    """An entry of external data with two values."""
    path = rng.choice(sorted(directory.glob("*.onnx")))
    stage = path.stem.encode()
    old = b"\x0a\x08location\x12" + bytes([len(stage) + 8]) + stage + b".weights"
    name = rng.choice((b"bundle.json", b"README.md", b"../other"))
    content = path.read_bytes()
    place = content.find(b"\x6a" + bytes([len(old)]) + old)
    if place >= 0:  # the messages around it become longer: lengths of one byte more would be another file
        longer = old[: -len(stage) - 10] + b"\x12" + bytes([len(name)]) + name + old[-len(stage) - 10 :]
        content = content[:place] + b"\x6a" + bytes([len(longer)]) + longer + content[place + len(old) + 2 :]
        path.write_bytes(content)


def _weights(directory: Path, rng: random.Random) -> None:
    """A stretch of a weights file: any bytes, infinities, the largest integers."""
    path = rng.choice(sorted(directory.glob("*.weights")))
    size = path.stat().st_size
    if size < 8:
        return
    if rng.random() < 0.2:
        os.truncate(path, rng.randrange(size))
        return
    length = min(rng.choice((4, 64, 4096, size)), size)
    pattern = rng.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"\x00\x7c", b"\xff", b"\x80", rng.randbytes(64)))
    with path.open("r+b") as file:
        file.seek(rng.randrange(size - length + 1) // 4 * 4)
        file.write((pattern * length)[:length])


def _manifest(directory: Path, rng: random.Random) -> None:
    """A number or a name of the manifest, its checksum made right."""
    seal(directory)
    path = directory / "bundle.json"
    document = json.loads(path.read_text())
    places = list(_places(document["config"])) + list(_places(document["stages"])) + list(_places(document["files"]))
    holder, key = rng.choice(places)
    value = holder[key]
    if isinstance(value, bool | None):
        holder[key] = rng.choice((True, False, None, 0))
    elif isinstance(value, int):
        holder[key] = rng.choice((rng.choice(EDGES), value + 1, value - 1, 2 * value, value // 2))
    elif isinstance(value, float):
        holder[key] = rng.choice(FLOAT_EDGES)
    else:
        holder[key] = rng.choice(("", "encoder.weights", "global.onnx", "README.md", "byte", "static", "relu", "silu"))
    write_sealed(path, document)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from _places(inner)
        else:
            yield value, key


# Relative frequency of each mutation.
GRAPH_CHANGES: dict[str, tuple[int, Callable[[Any, random.Random], None]]] = {
    "anything": (6, _anything),
    "attribute": (8, _attribute),
    "rewire": (8, _rewire),
    "alike": (10, _alike),
    "operator": (3, _operator),
    "insert": (5, _insert),
    "tensor": (6, _tensor),
    "loop": (1, _loop),
    "functions": (1, _functions),
    "body": (3, _body),
}
CHANGES: dict[str, tuple[int, Change]] = {
    **{name: (weight, _graph(change)) for name, (weight, change) in GRAPH_CHANGES.items()},
    "wire": (3, _wire),
    "second-value": (1, _second_value),
    "weights": (8, _weights),
    "manifest": (6, _manifest),
}


def change_graph(model: Any, rng: random.Random) -> None:
    """One to three of `GRAPH_CHANGES` on a model in memory."""
    weights = [weight for weight, _ in GRAPH_CHANGES.values()]
    for _, change in rng.choices(list(GRAPH_CHANGES.values()), weights, k=rng.choice((1, 1, 2, 3))):
        change(model, rng)
