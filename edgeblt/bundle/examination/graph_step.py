"""Input of a shape rule (`shape_rules`): one node, and all that is known of the values around it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edgeblt.bundle.contract import StageContract
from edgeblt.bundle.examination.onnx_graph import Node, Tensor
from edgeblt.bundle.examination.protobuf import MalformedError
from edgeblt.bundle.examination.sizes import Shape, Size, written

Types = tuple[int, ...]


@dataclass
class Shapes:
    """Known facts about the values of a graph; `integers` are the elements of values that hold sizes or axes."""

    contract: StageContract
    tensors: dict[str, Tensor]
    shapes: dict[str, Shape] = field(default_factory=dict)
    integers: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    last_slots: set[str] = field(default_factory=set)  # total_length - 1
    spare_lengths: set[str] = field(default_factory=set)  # total_length + 1
    lengths: dict[str, Size] = field(default_factory=dict)  # in a portable graph: slots of a cache with the chunk's
    lasts: dict[str, str] = field(default_factory=dict)  # one less than a length: that length
    floats: set[str] = field(default_factory=set)  # results of operators that have no integers

    def forget(self, names: Iterable[str]) -> None:
        """Forget the contents of values that had these names around a branch, which gives them to values of its own."""
        for name in names:
            self.tensors.pop(name, None)
            self.integers.pop(name, None)
            self.floats.discard(name)

    def copy(self) -> "Shapes":
        known = dict(self.tensors), dict(self.shapes), dict(self.integers)
        slots, lengths = (set(self.last_slots), set(self.spare_lengths)), (dict(self.lengths), dict(self.lasts))
        return Shapes(self.contract, *known, *slots, *lengths, set(self.floats))


class Step:
    """One node, and access to its inputs by index."""

    def __init__(self, node: Node, known: Shapes) -> None:
        self.node, self.known = node, known

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] != ""

    def shape(self, index: int) -> Shape:
        name = self.node.inputs[index] if self.has(index) else ""
        if name not in self.known.shapes:
            raise self.wrong(f"has no input {index}")
        return self.known.shapes[name]

    def integers(self, index: int) -> tuple[Size, ...]:
        """The elements of an input that holds sizes or axes."""
        name = self.node.inputs[index] if self.has(index) else ""
        if name not in self.known.integers:
            raise self.wrong(f"reads its input {index} from what is computed")
        return self.known.integers[name]

    def constants(self, index: int) -> list[int]:
        found = self.integers(index)
        if not all(size.is_constant for size in found):
            raise self.wrong(f"has the numbers {written(found)}")
        return [size.constant for size in found]

    def number(self, name: str) -> int:
        """The value of a required integer attribute."""
        value = self.node.value(name)
        assert isinstance(value, int)
        return value

    def axis(self, value: int, rank: int) -> int:
        if not -rank <= value < rank:
            raise self.wrong(f"has the axis {value}")
        return value % rank

    def expect(self, index: int, shape: Shape, types: Types = ()) -> None:
        """Checks an input's shape; with `types` the input must be a tensor of the graph that has one of these types."""
        if self.shape(index) != shape:
            raise self.wrong(f"has an input {index} of {written(self.shape(index))}, not {written(shape)}")
        if types and getattr(self.known.tensors.get(self.node.inputs[index]), "type", None) not in types:
            raise self.wrong(f"has an input {index} that is no weight of its kind")

    def expect_named(self, index: int, name: str) -> None:
        if not self.has(index) or self.node.inputs[index] != name:
            raise self.wrong(f"reads something else than {name}")

    def rows(self, index: int, columns: int) -> Shape:
        """All dimensions of an input but the last; the last must be `columns`."""
        shape = self.shape(index)
        if not shape or shape[-1] != Size(columns):
            raise self.wrong(f"has an input {index} of {written(shape)}, not [.., {columns}]")
        return shape[:-1]

    def wrong(self, what: str) -> MalformedError:
        return MalformedError(f"its node {self.node.op_type} {what}")


ShapeRule = Callable[[Step], list[Shape]]
