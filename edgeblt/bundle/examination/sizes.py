"""Exact arithmetic with sizes of tensors that depend on the chunk: whole numbers, and sums such as N + T or 3 P + 3."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Size:
    """`constant` plus, for each (name, count) of `terms`, count times the dimension of that name."""

    constant: int = 0
    terms: tuple[tuple[str, int], ...] = field(default=())  # sorted, no count 0

    @classmethod
    def named(cls, name: str) -> "Size":
        """The size for a contract's dimension, such as T, P + 1 or C_global + P."""
        total = cls()
        for part in name.split(" + "):
            total += cls(int(part)) if part.isdecimal() else cls(0, ((part, 1),))
        return total

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def __add__(self, other: "Size") -> "Size":
        counts = dict(self.terms)
        for name, count in other.terms:
            counts[name] = counts.get(name, 0) + count
        return Size(self.constant + other.constant, _sorted(counts))

    def times(self, factor: int) -> "Size":
        return Size(self.constant * factor, _sorted({name: count * factor for name, count in self.terms}))

    def without(self, name: str) -> "Size":
        """This size where the dimension `name` is 0."""
        return Size(self.constant, tuple(term for term in self.terms if term[0] != name))

    def parts(self) -> tuple[int, "Size | None"]:
        """The largest number that divides this size, and the quotient; None where the quotient is 1."""
        if self.is_constant:
            return self.constant, None
        divisor = math.gcd(self.constant, *(count for _, count in self.terms))
        rest = Size(self.constant // divisor, tuple((name, count // divisor) for name, count in self.terms))
        return divisor, rest

    def __str__(self) -> str:
        terms = [name if count == 1 else f"{count} {name}" for name, count in self.terms]
        return " + ".join([*terms, *([str(self.constant)] if self.constant or not terms else [])])


Shape = tuple[Size, ...]
ONE = Size(1)


def fixed(dims: Iterable[int]) -> Shape:
    return tuple(map(Size, dims))


def written(shape: Sequence[Size]) -> str:
    return f"[{', '.join(map(str, shape))}]"


@dataclass(frozen=True)
class Elements:
    """Number of elements of a shape: an integer times sums whose terms have no common divisor."""

    count: int
    sums: tuple[Size, ...]

    @classmethod
    def of(cls, shape: Iterable[Size]) -> "Elements":
        count, sums = 1, []
        for size in shape:
            divisor, rest = size.parts()
            count *= divisor
            sums += [rest] if rest else []
        return cls(count, tuple(sorted(sums, key=str)))

    def divided(self, other: "Elements") -> Size | None:
        """The quotient of this and `other` as one size; None where it is not one size."""
        left = list(self.sums)
        for size in other.sums:
            if size not in left:
                return None
            left.remove(size)
        if not other.count or self.count % other.count or len(left) > 1:
            return None
        return (left[0] if left else ONE).times(self.count // other.count)


def broadcast(shapes: Sequence[Shape]) -> Shape | None:
    """The shape numpy broadcasts to, for every value of the named dimensions; None where the shapes do not fit."""
    rank = max(map(len, shapes))
    padded = [(ONE,) * (rank - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        others = {size for size in sizes if size != ONE}
        if len(others) > 1:
            return None
        result.append(others.pop() if others else ONE)
    return tuple(result)


def _sorted(counts: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, count) for name, count in counts.items() if count))
