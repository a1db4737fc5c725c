"""The pickle in a file that `torch.save` wrote, read as data: nothing is imported, called or unpickled.

Only dictionaries of tensors are understood, and built as plain Python values and the records below; their number,
depth and size are limited. Keys are strings and integers. Every other operation, and every function that no tensor
needs, is refused.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_OPERATIONS = 1_000_000  # some 40 a tensor
_DEEPEST = 64  # marks that are open at a time
_LONGEST_INTEGER, _LONGEST_NAME = 8, 200  # bytes
_MOST_DIMENSIONS = 64  # torch's own limit

# torch's class of a storage: the name of its dtype.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_UNTYPED = "torch.storage.UntypedStorage"
_STORAGE_CLASSES = {f"torch.{name}" for name in _STORAGES} | {_UNTYPED}
_DTYPES = {f"torch.{name}" for name in _STORAGES.values()} | {
    f"torch.{name}"
    for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}
# Functions that make other kinds of tensors, and their parts: such a tensor is recognised, and refused when read.
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_qtensor",
    "torch.serialization._get_layout",
    "torch.device",
    "torch.Size",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
}


class PickleError(ValueError):
    """The reason to refuse a pickle, which follows the file's name: "calls os.system, which no tensor needs"."""


@dataclass(frozen=True)
class Storage:
    """A record of the archive, `data/KEY`."""

    key: str
    dtype: str | None  # None: bytes
    count: int  # elements


@dataclass(frozen=True)
class TensorRecord:
    storage: Storage
    dtype: str  # torch's name of the dtype
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return 0 in self.shape
            expected *= size
        return True


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that is not plain: sparse, quantized or without data."""


@dataclass(frozen=True)
class _Global:
    name: str


def read_pickle(content: bytes) -> object:
    """The value: None, bool, int, float, str, tuple, list, dict, TensorRecord or OtherTensor. Raises PickleError."""
    try:
        return _Reader(content).value()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError):  # too short, or too little on the stack
        raise PickleError("is no whole pickle") from None


class _Reader:
    """A machine with a stack, a memo and no way to call anything."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def value(self) -> object:
        for _ in range(_MOST_OPERATIONS):
            code = self._bytes(1)
            if code == b".":
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise PickleError(f"has the operation {code!r}, which torch.save does not write")
            operation(self)
        raise PickleError(f"has more than {_MOST_OPERATIONS} operations")

    def _bytes(self, count: int) -> bytes:
        found = self._content[self._place : self._place + count]
        if len(found) < count:
            raise PickleError("is no whole pickle")
        self._place += count
        return found

    def _number(self, format: str) -> Any:
        return struct.unpack(format, self._bytes(struct.calcsize(format)))[0]

    def _line(self) -> str:
        end = self._content.find(b"\n", self._place, self._place + _LONGEST_NAME)
        if end < 0:
            raise PickleError("is no whole pickle")
        return self._bytes(end + 1 - self._place)[:-1].decode()

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise PickleError("is no whole pickle")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._push(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # The method for each operation.

    def protocol(self) -> None:
        self._bytes(1)

    def mark(self) -> None:
        if len(self._marks) == _DEEPEST:
            raise PickleError(f"is nested more than {_DEEPEST} deep")
        self._marks.append(len(self._stack))

    def integer(self) -> None:
        count = self._bytes(1)[0]
        if count > _LONGEST_INTEGER:
            raise PickleError(f"has an integer of {count} bytes")
        self._push(int.from_bytes(self._bytes(count), "little", signed=True))

    def text(self) -> None:
        self._push(self._bytes(self._number("<I")).decode())

    def named(self) -> None:
        name = f"{self._line()}.{self._line()}"
        if name not in _BUILDERS and name not in _STORAGE_CLASSES | _DTYPES | _OTHER_TENSORS:
            raise PickleError(f"refers to {name!a:.100}, which no tensor needs")
        self._push(_Global(name))

    def put(self, format: str) -> None:
        self._memo[self._number(format)] = self._top()

    def get(self, format: str) -> None:
        self._push(self._memo[self._number(format)])

    def tuple_of(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def tuple_to_mark(self) -> None:
        self._push(tuple(self._pop_to_mark()))

    def append(self) -> None:
        self._extend([self._pop()])

    def appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise PickleError("appends to something that is no list")
        target.extend(items)

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(items) % 2:
            raise PickleError("sets keys of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise PickleError(f"has a key that is {_kind(key)}, not a string or an integer")
            if key in target:
                raise PickleError(f"has the key {key!a:.100} twice")
            target[key] = value

    def storage(self) -> None:
        """A persistent identity: ("storage", class, key, device, number of elements)."""
        match self._pop():
            case ("storage", _Global(name), str(key), str(), int(count)) if name in _STORAGE_CLASSES and count >= 0:
                self._push(Storage(key, _STORAGES.get(name.removeprefix("torch.")), count))
            case _:
                raise PickleError("refers to something that is no storage")

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise PickleError("calls something that is no function")
        build = _BUILDERS.get(function.name)
        if build is None and function.name not in _OTHER_TENSORS:
            raise PickleError(f"calls {function.name}")
        self._push(build(*arguments) if build else OtherTensor())

    def build(self) -> None:
        """Accepts one attribute, the versions of modules, which state dictionaries have."""
        state, target = self._pop(), self._top()
        if type(target) is not dict or type(state) is not dict or state.keys() - {"_metadata"}:
            raise PickleError("sets attributes")


def _ordered(*arguments: Any) -> dict[Any, Any]:
    if arguments not in ((), ([],)):
        raise PickleError("makes a dictionary that is not empty")
    return {}


def _tensor(*arguments: Any) -> TensorRecord | OtherTensor:
    """torch._utils._rebuild_tensor_v2: storage, offset, shape, strides, requires_grad, hooks, and perhaps metadata."""
    match arguments:
        case (Storage(_, str(dtype), _) as storage, int(offset), tuple(shape), tuple(strides), bool(), dict()):
            return _record(storage, dtype, offset, shape, strides)
        case (Storage(_, str(dtype), _) as storage, int(offset), tuple(shape), tuple(strides), bool(), dict(), more):
            record = _record(storage, dtype, offset, shape, strides)
            return OtherTensor() if more else record  # a view that is to be negated or conjugated
    raise PickleError("makes a tensor from something other than a storage, an offset, sizes and strides")


def _tensor_of_dtype(*arguments: Any) -> TensorRecord | OtherTensor:
    """torch._utils._rebuild_tensor_v3: v2's arguments, then the dtype."""
    match arguments:
        case (
            Storage(_, None, _) as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            bool(),
            dict(),
            _Global(name),
        ) if name in _DTYPES:
            return _record(storage, name.removeprefix("torch."), offset, shape, strides)
        case (Storage(), *_):
            return OtherTensor()
    raise PickleError("makes a tensor from something other than a storage, an offset, sizes and strides")


def _record(
    storage: Storage, dtype: str, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> TensorRecord:
    numbers = (offset, *shape, *strides)
    if not len(shape) == len(strides) <= _MOST_DIMENSIONS or not all(type(n) is int and n >= 0 for n in numbers):
        raise PickleError("makes a tensor whose sizes and strides are no natural numbers")
    return TensorRecord(storage, dtype, offset, shape, strides)


def _parameter(*arguments: Any) -> TensorRecord | OtherTensor:
    """torch._utils._rebuild_parameter and, with a dictionary of attributes, _rebuild_parameter_with_state."""
    match arguments:
        case (TensorRecord() | OtherTensor() as tensor, bool(), dict()):
            return tensor
        case (TensorRecord() | OtherTensor() as tensor, bool(), dict(), dict()):
            return tensor
    raise PickleError("makes a parameter of something that is no tensor")


def _kind(value: object) -> str:
    return "a tensor" if isinstance(value, TensorRecord | OtherTensor) else f"of the type {type(value).__name__}"


_BUILDERS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_OPERATIONS: dict[bytes, Callable[[_Reader], None]] = {
    b"\x80": _Reader.protocol,
    b"(": _Reader.mark,
    b"N": lambda reader: reader._push(None),
    b"\x88": lambda reader: reader._push(True),
    b"\x89": lambda reader: reader._push(False),
    b"J": lambda reader: reader._push(reader._number("<i")),
    b"K": lambda reader: reader._push(reader._number("<B")),
    b"M": lambda reader: reader._push(reader._number("<H")),
    b"G": lambda reader: reader._push(reader._number(">d")),
    b"\x8a": _Reader.integer,
    b"X": _Reader.text,
    b")": lambda reader: reader._push(()),
    b"]": lambda reader: reader._push([]),
    b"}": lambda reader: reader._push({}),
    b"\x85": lambda reader: reader.tuple_of(1),
    b"\x86": lambda reader: reader.tuple_of(2),
    b"\x87": lambda reader: reader.tuple_of(3),
    b"t": _Reader.tuple_to_mark,
    b"a": _Reader.append,
    b"e": _Reader.appends,
    b"s": _Reader.set_item,
    b"u": _Reader.set_items,
    b"c": _Reader.named,
    b"q": lambda reader: reader.put("<B"),
    b"r": lambda reader: reader.put("<I"),
    b"h": lambda reader: reader.get("<B"),
    b"j": lambda reader: reader.get("<I"),
    b"Q": _Reader.storage,
    b"R": _Reader.reduce,
    b"b": _Reader.build,
}
