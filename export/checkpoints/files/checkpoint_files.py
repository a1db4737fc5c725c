"""The files of a checkpoint's directory: finding them, reading JSON, and listing the tensors in weight files."""

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from edgeblt.bundle.held_files import unreadable
from edgeblt.errors import EdgebltError, shown
from edgeblt.export.checkpoints.files.pickle_files import pickled_tensors
from edgeblt.export.checkpoints.files.safetensors_files import stored_tensors
from edgeblt.export.checkpoints.files.stored_weights import StoredPart

CONFIG = "config.json"
JSON_LIMIT = 16 << 20
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_OTHER_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Parts of names: of torch.compile, of data parallel and sharded training, of checkpointed activations.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def refuse_no_directory(directory: Path) -> None:
    """Raises EdgebltError unless `directory` is one."""
    if not os.path.isdir(directory):  # os.path: never raises, however odd the name
        seen = "is not a directory" if os.path.exists(directory) else "does not exist"
        raise EdgebltError(f"the checkpoint {directory} {seen}; give a directory that holds {CONFIG}")


def read_weights(directory: Path) -> tuple[Path, Mapping[str, StoredPart]]:
    """The file that lists the tensors, and every tensor by its `plain_name`, without data. Raises EdgebltError.

    Weight files are looked for in transformers' order.
    """
    for form in _FORMS:
        if exists(directory, form.single):
            file = checkpoint_file(directory, form.single)
            return file, by_plain_name(file, form.tensors(file))
        if exists(directory, form.index):
            index = directory / form.index
            return index, by_plain_name(index, _read_shards(directory, form))
    pickles = sorted(file.name for file in directory.glob("*") if file.suffix in _OTHER_PICKLES)
    if pickles:
        raise EdgebltError(
            f"{directory} holds neither {SINGLE} nor {PICKLE}, only {shown(pickles[0])}; if that is the model's state "
            f"dictionary, rename it to {PICKLE}"
        )
    raise EdgebltError(f"{directory} holds neither {SINGLE} nor {INDEX}, nor {PICKLE}; give the complete checkpoint")


def plain_name(name: str) -> str:
    """A tensor's name without the parts that torch.compile and parallel training insert, such as `_orig_mod.`."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def by_plain_name(listing: Path, tensors: Iterable[StoredPart]) -> Mapping[str, StoredPart]:
    """Raises EdgebltError where two tensors would have one name."""
    found: dict[str, StoredPart] = {}
    for tensor in tensors:
        name = plain_name(tensor.name)
        if name in found:
            raise EdgebltError(
                f"{listing}: the tensors {shown(found[name].name)} and {shown(tensor.name)} are the same weight of a "
                "model; leave one out"
            )
        found[name] = tensor
    return found


def _read_shards(directory: Path, form: "_Form") -> list[StoredPart]:
    index = directory / form.index
    document = read_json(checkpoint_file(directory, form.index))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise EdgebltError(f"{index} has no weight_map from tensor names to file names; download it again")
    shards = sorted(set(map(str, weight_map.values())))
    for shard in shards:
        if not _is_plain(shard) or not shard.endswith(form.suffix):
            raise EdgebltError(f"{index} names the shard {shown(shard)}; a shard must be a plain *{form.suffix} name")
        if not exists(directory, shard):
            raise EdgebltError(f"{index} names the shard {shown(shard)}, which is missing; download it")
    stored: dict[str, StoredPart] = {}
    for shard in shards:
        for tensor in form.tensors(checkpoint_file(directory, shard)):
            if tensor.name in stored:
                raise EdgebltError(
                    f"{index}: the tensor {shown(tensor.name)} is in both {stored[tensor.name].file.name} and {shard}; "
                    "download the checkpoint again"
                )
            stored[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in stored or stored[name].file.name != shard:
            raise EdgebltError(f"{index} says that {shard} has the tensor {shown(name)}, but it has not; download both")
    return list(stored.values())


@dataclass(frozen=True)
class _Form:
    """One way to store tensors: in one file, or in several behind an index."""

    single: str
    index: str
    suffix: str
    tensors: Callable[[Path], Iterable[StoredPart]]


_FORMS = (
    _Form(SINGLE, INDEX, ".safetensors", stored_tensors),
    _Form(PICKLE, PICKLE_INDEX, ".bin", lambda file: pickled_tensors(file, None).values()),
)


def _is_plain(name: str) -> bool:
    """Whether a name can only mean a file of the directory itself, on any system."""
    return name.isprintable() and name == PurePosixPath(name).name == PureWindowsPath(name).name and name != ".."


def exists(directory: Path, name: str) -> bool:
    """Whether there is such a file or link, even one that leads nowhere."""
    return os.path.lexists(directory / name)


def checkpoint_file(directory: Path, name: str) -> Path:
    """`directory / name`, refused where it is no regular file; links may lead anywhere, as those of download caches."""
    file = directory / name
    try:
        mode = file.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise EdgebltError(f"{file} is a link that leads nowhere; download the checkpoint again") from None
        raise unreadable(file, error, "give a whole checkpoint") from None
    if not stat.S_ISREG(mode):  # a pipe or a device could block, or never end
        raise EdgebltError(f"{file} is not a regular file; download the checkpoint again")
    return file


def read_json(file: Path) -> object:
    try:
        if file.stat().st_size > JSON_LIMIT:
            raise EdgebltError(f"{file} is larger than {JSON_LIMIT >> 20} MB; give the checkpoint's own file")
        document: object = json.loads(file.read_bytes())
    except OSError as error:
        raise unreadable(file, error, "give a whole checkpoint") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, EdgebltError):
            raise
        raise EdgebltError(f"{file} is not valid JSON; download it again") from None
    return document


def readable_object(file: Path, limit: int = JSON_LIMIT) -> dict[str, Any] | None:
    """The JSON object in a file of at most `limit` bytes; None for any other, which is read again, and reported, by the
    form that it is left to."""
    try:
        if not os.path.isfile(file) or file.stat().st_size > limit:
            return None
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def stored_tensor(listing: Path, stored: Mapping[str, StoredPart], name: str) -> StoredPart:
    """The tensor of that name. Raises EdgebltError where `listing` has none."""
    if name not in stored:
        raise EdgebltError(
            f"{listing} has no tensor {name!a}, which config.json asks for; give the complete checkpoint"
        )
    return stored[name]


def of_shape(tensor: StoredPart, shape: tuple[int, ...]) -> StoredPart:
    """The tensor, refused where it has another shape, integers or 8-bit floats."""
    if tensor.shape != shape:
        raise EdgebltError(
            f"{tensor.file}: the tensor {tensor.name!a} has shape {list(tensor.shape)}, but config.json asks for "
            f"{list(shape)}; give the config.json and weights of one checkpoint"
        )
    _ = tensor.dtype
    return tensor
