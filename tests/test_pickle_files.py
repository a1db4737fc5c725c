"""Pickles of tensors: whatever is in one, it is read as data or refused in one sentence, soon and in little memory."""

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint_oracle import assert_one_sentence
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.files.pickle_files import pickled_tensors
from edgeblt.export.checkpoints.files.pickle_reader import PickleError, TensorRecord, read_pickle

NAME = "layer.weight"
TENSOR = torch.arange(12.0).reshape(4, 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def refusal(file: Path, key: str | None = None) -> str:
    with pytest.raises(EdgebltError) as caught:
        for tensor in pickled_tensors(file, key).values():
            tensor.read(0, tensor.shape[0])
    assert_one_sentence(str(caught.value))
    assert str(caught.value).startswith(str(file))
    return str(caught.value)


def with_pickle(file: Path, content: bytes) -> Path:
    """A file of TENSOR whose pickle is another."""
    saved = io.BytesIO()
    torch.save({NAME: TENSOR}, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(file, "w") as other:
        for entry in archive.infolist():
            other.writestr(entry.filename, content if entry.filename.endswith("data.pkl") else archive.read(entry))
    return file


def own_pickle() -> bytes:
    saved = io.BytesIO()
    torch.save({NAME: TENSOR}, saved)
    with zipfile.ZipFile(saved) as archive:
        return archive.read("archive/data.pkl")


# Read.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: torch.nn.Parameter(x),
        lambda x: torch.cat([x + 1, x])[len(x) :],
        lambda x: x.reshape(2, 2, 3)[1],
        lambda x: x.reshape(-1),
        lambda x: x[:0],
        lambda x: x[:, None],
        lambda x: x.T[:1].T.contiguous(),
    ],
)
def test_rows_are_what_was_saved(
    dtype: torch.dtype, change: Callable[[torch.Tensor], torch.Tensor], file: Path
) -> None:
    tensor = change(TENSOR.to(dtype))
    torch.save(OrderedDict({"first": torch.ones(5), NAME: tensor, "step": torch.tensor([7])}), file)
    found = pickled_tensors(file, None)
    assert list(found) == ["first", NAME, "step"]
    expected = tensor.detach().float().numpy()
    assert found[NAME].shape == expected.shape and found[NAME].dtype == str(dtype).removeprefix("torch.")
    assert found[NAME].stored_bytes == expected.size * dtype.itemsize
    for start, stop in ((0, len(expected)), (1, 3), (0, 0), (2, 2)):
        rows = found[NAME].read(start, stop)
        np.testing.assert_array_equal(rows, expected[start:stop])
        assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable
    with pytest.raises(EdgebltError, match="the tensor 'step' is stored as int64"):
        _ = found["step"].dtype


def test_what_else_a_training_run_saves(file: Path) -> None:
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    others = {"step": 7, "loss": 0.5, "done": False, "name": "ä", "betas": (0.9, (0.1, None)), "list": [1, -(2**40)]}
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": others}, file)
    found = pickled_tensors(file, "model")
    np.testing.assert_array_equal(found["weight"].read(0, 4), model.weight.detach().numpy())
    np.testing.assert_array_equal(found["bias"].read(0, 4), model.bias.detach().numpy())
    assert "has no dictionary of tensors under 'weights'; give" in refusal(file, "weights")
    assert "'model' is no tensor under its name" in refusal(file)


def test_the_pickle_is_read_as_pickle_reads_it() -> None:
    """What needs nothing to be called."""
    rng = random.Random(0)

    def value(depth: int) -> Any:
        if depth == 0 or rng.random() < 0.4:
            return rng.choice([None, True, False, 0, 255, 256, 65_535, 65_536, -1, 2**31, -(2**63), 1.5, "x", "ä\n"])
        items = [value(depth - 1) for _ in range(rng.randrange(4))]
        return rng.choice([items, tuple(items), dict(zip("abcd", items, strict=False)), dict(enumerate(items))])

    for _ in range(300):
        expected = value(4)
        assert read_pickle(pickle.dumps(expected, protocol=2)) == expected


def test_it_is_closed_when_it_is_read(file: Path) -> None:
    torch.save({NAME: TENSOR}, file)
    tensor = pickled_tensors(file, None)[NAME]
    content = bytearray(file.read_bytes())
    place = content.index(TENSOR.numpy().tobytes())
    content[place : place + 4] = struct.pack("<f", 5.0)
    file.write_bytes(content + b"x")
    with pytest.raises(EdgebltError, match="has changed since it was opened; open the checkpoint again"):
        tensor.read(0, 4)
    file.unlink()
    with pytest.raises(EdgebltError, match="cannot be read"):
        tensor.read(0, 4)


# Refused.

KEYS = b"\x80\x02}"  # a dictionary, whose keys and values follow
HOSTILE: dict[str, tuple[bytes, str]] = {
    # Hashing a tuple hashes what is in it: here 2**40 times.
    "nested key": (KEYS + b")" + b"q\x00h\x00\x86" * 40 + b"K\x01s.", "has a key that is of the type tuple"),
    "None as key": (KEYS + b"NK\x01s.", "has a key that is of the type NoneType, not a string or an integer"),
    "a key twice": (KEYS + b"X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x01s.", "has the key 'a' twice"),
    "marks": (b"\x80\x02" + b"(" * 100_000 + b".", "is nested more than 64 deep"),
    "many operations": (b"\x80\x02" + b"N" * 2_000_000 + b".", "has more than 1000000 operations"),
    "a large integer": (b"\x80\x02\x8a\xff" + bytes(255) + b".", "has an integer of 255 bytes"),
    "a long text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "is no whole pickle"),
    "a long name": (b"\x80\x02c" + b"a" * 100_000, "is no whole pickle"),
    "no end": (b"\x80\x02N", "is no whole pickle"),
    "nothing": (b"", "is no whole pickle"),
    "an empty stack": (b"\x80\x02.", "is no whole pickle"),
    "a mark that is missing": (b"\x80\x02]e.", "is no whole pickle"),
    "below a mark": (b"\x80\x02]K\x01(a.", "is no whole pickle"),
    "a memo that is missing": (b"\x80\x02h\x09.", "is no whole pickle"),
    "no UTF-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "is no whole pickle"),
    "a system call": (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "refers to 'os.system', which no tensor"),
    "a dtype called": (b"\x80\x02ctorch\nfloat32\n)R.", "calls torch.float32"),
    "something called": (b"\x80\x02K\x01)R.", "calls something that is no function"),
    "an instance": (b"\x80\x02ctorch\nSize\n)\x81.", r"has the operation b'\x81', which torch.save does not write"),
    "attributes": (KEYS + b"}X\x03\x00\x00\x00getK\x01sb.", "sets attributes"),
    "an item of None": (b"\x80\x02NX\x01\x00\x00\x00aK\x01s.", "sets keys of something that is no dictionary"),
    "an odd number": (KEYS + b"(K\x01u.", "sets keys of something that is no dictionary"),
    "a list that is none": (b"\x80\x02}K\x01a.", "appends to something that is no list"),
    "a storage that is none": (b"\x80\x02K\x01Q.", "refers to something that is no storage"),
    "a full dictionary": (b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.", "makes a dictionary that is not empty"),
    "a parameter of nothing": (b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.", "makes a parameter of something"),
    "a tensor of nothing": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "makes a tensor from something other"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles(case: str, file: Path) -> None:
    content, fragment = HOSTILE[case]
    message = refusal(with_pickle(file, content))
    assert fragment in message and message.endswith(" and was not run; download it again")


@pytest.mark.parametrize("key", [TENSOR, torch.nn.Parameter(TENSOR), torch.tensor(1.0)])
def test_a_tensor_as_key(key: torch.Tensor, file: Path) -> None:
    torch.save({"model": {key: TENSOR}}, file)
    assert "has a key that is a tensor, not a string or an integer" in refusal(file, "model")


def tensor_pickle(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0", count: int = 12
) -> bytes:
    """Of one tensor; `pickle` writes the numbers, and the rest is laid around them."""

    def part(value: object) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    storage = b"(" + part("storage") + b"ctorch\nFloatStorage\n" + part(key) + part("cpu") + part(count) + b"tQ"
    arguments = b"(" + storage + part(offset) + part(shape) + part(strides) + b"\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}" + part(NAME) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def test_the_tensor_that_others_are_made_from(file: Path) -> None:
    tensor = pickled_tensors(with_pickle(file, tensor_pickle(3, (3, 3), (3, 1))), None)[NAME]
    np.testing.assert_array_equal(tensor.read(0, 3), TENSOR[1:].numpy())


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (tensor_pickle(4, (3, 3), (3, 1)), "lacks some of its data"),
        (tensor_pickle(0, (5, 3), (3, 1)), "lacks some of its data"),
        (tensor_pickle(0, (4, 3), (3, 1), key="1"), "lacks some of its data"),
        (tensor_pickle(0, (4, 3), (3, 1), key="../data.pkl"), "lacks some of its data"),
        (tensor_pickle(0, (4, 3), (3, 1), count=13), "lacks some of its data"),
        (tensor_pickle(2**62, (2**62, 2**62), (2**62, 1)), "lacks some of its data"),
        (tensor_pickle(0, (4, 3), (1, 4)), "is not contiguous"),
        (tensor_pickle(0, (4, 3), (0, 0)), "is not contiguous"),
        (tensor_pickle(0, (-4, -3), (-3, 1)), "whose sizes and strides are no natural numbers"),
        (tensor_pickle(-1, (3,), (1,)), "whose sizes and strides are no natural numbers"),
        (tensor_pickle(0, (4, 3), (3,)), "whose sizes and strides are no natural numbers"),
        (tensor_pickle(0, (1,) * 65, (1,) * 65), "whose sizes and strides are no natural numbers"),
        (tensor_pickle(0, (4, 3), (3, 1), count=-1), "refers to something that is no storage"),
    ],
)
def test_tensors_that_claim_what_is_not_there(content: bytes, fragment: str, file: Path) -> None:
    assert fragment in refusal(with_pickle(file, content))


def test_no_value_is_hashed_or_shown(file: Path) -> None:
    """Tuples that share what is in them: 2**60 values to whoever visits all."""
    shared = b")" + b"q\x00h\x00\x86" * 60
    content = KEYS + b"X\x01\x00\x00\x00a" + shared + b"s."
    assert "'a' is no tensor under its name" in refusal(with_pickle(file, content))
    assert isinstance(read_pickle(content), dict)


def test_damage_to_any_byte_of_the_pickle() -> None:
    """The reader gives a value or refuses: nothing else can happen."""
    whole, refused = own_pickle(), 0
    for place in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            try:
                read_pickle(bytes(content))
            except PickleError as error:
                assert str(error).isprintable()
                refused += 1
    assert refused > 4 * len(whole)
    assert isinstance(read_pickle(whole), dict) and isinstance(read_pickle(whole)[NAME], TensorRecord)  # type: ignore[index]


# The archive.


def rewritten(file: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> Path:
    """TENSOR's file, each of its entries replaced by others."""
    torch.save({NAME: TENSOR}, file)
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive, zipfile.ZipFile(file, "w") as other:
        for entry in archive.infolist():
            for name, content in change(entry.filename, archive.read(entry)):
                other.writestr(name, content)
    return file


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda name, content: [(name, content)] * (1 + name.endswith(".pkl")), "was not written by torch.save"),
        (lambda name, content: [(name, content)] + [("b/data.pkl", b"")] * name.endswith(".pkl"), "was not written"),
        (lambda name, content: [] if name.endswith(".pkl") else [(name, content)], "was not written by torch.save"),
        (
            lambda name, content: [(name, b"big" if name.endswith("byteorder") else content)],
            "was written on a machine of another byte order; save it again on this one",
        ),
        (lambda name, content: [(name, content[:-1] if name.endswith("/0") else content)], "lacks some of its data"),
        (lambda name, content: [] if name.endswith("/0") else [(name, content)], "lacks some of its data"),
    ],
)
def test_odd_archives(change: Callable[[str, bytes], list[tuple[str, bytes]]], fragment: str, file: Path) -> None:
    assert fragment in refusal(rewritten(file, change))


def test_an_entry_that_is_not_where_the_archive_s_end_says(file: Path) -> None:
    torch.save({NAME: TENSOR}, file)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("model/data/0").header_offset
    content[start : start + 4] = b"XXXX"
    file.write_bytes(content)
    assert "is truncated or was not written by torch.save" in refusal(file)
    content[start : start + 4] = b"PK\x03\x04"
    content[start + 26 : start + 30] = b"\xff\xff\xff\xff"  # its name and extra field would end behind the file
    file.write_bytes(content)
    assert "is truncated or was not written by torch.save" in refusal(file)
