"""The files of a checkpoint's directory: found, kept inside it, read as JSON or by their safetensors headers."""

import json
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgeblt.errors import EdgebltError
from edgeblt.export.config_section import shown
from edgeblt.export.hub import blob_folders
from edgeblt.export.safetensors_files import StoredTensor, stored_tensors

CONFIG = "config.json"
JSON_LIMIT = 16 << 20
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_no_directory(directory: Path) -> None:
    """Raises EdgebltError unless `directory` is one."""
    if not os.path.isdir(directory):  # os.path: never raises, however odd the name
        seen = "is not a directory" if os.path.exists(directory) else "does not exist"
        raise EdgebltError(f"the checkpoint {directory} {seen}; give a directory that holds {CONFIG}")


def read_safetensors(directory: Path) -> tuple[Path, dict[str, StoredTensor]]:
    """The file that says which tensors there are, and every tensor by its stored name; no data. Raises EdgebltError."""
    # The order transformers looks in.
    if exists(directory, SINGLE):
        file = inside(directory, SINGLE)
        return file, {tensor.name: tensor for tensor in stored_tensors(file)}
    if exists(directory, INDEX):
        return directory / INDEX, _read_shards(directory)
    pickles = sorted(file.name for file in directory.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise EdgebltError(
            f"{directory} holds weights only as a pickle ({shown(pickles[0])}), which can run code and is never "
            "loaded; convert it to model.safetensors"
        )
    raise EdgebltError(f"{directory} holds neither {SINGLE} nor {INDEX}; give the complete checkpoint")


def _read_shards(directory: Path) -> dict[str, StoredTensor]:
    index = directory / INDEX
    document = read_json(inside(directory, INDEX))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise EdgebltError(f"{index} has no weight_map from tensor names to file names; download it again")
    shards = sorted(set(map(str, weight_map.values())))
    for shard in shards:
        if not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise EdgebltError(f"{index} names the shard {shown(shard)}; a shard must be a plain *.safetensors name")
        if not exists(directory, shard):
            raise EdgebltError(f"{index} names the shard {shown(shard)}, which is missing; download it")
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in stored_tensors(inside(directory, shard)):
            if tensor.name in stored:
                raise EdgebltError(
                    f"{index}: the tensor {shown(tensor.name)} is in both {stored[tensor.name].file.name} and {shard}; "
                    "download the checkpoint again"
                )
            stored[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in stored or stored[name].file.name != shard:
            raise EdgebltError(f"{index} says that {shard} has the tensor {shown(name)}, but it has not; download both")
    return stored


def _is_plain(name: str) -> bool:
    """Whether a name can only mean a file of the directory itself, on any system."""
    return name.isprintable() and name == PurePosixPath(name).name == PureWindowsPath(name).name and name != ".."


def exists(directory: Path, name: str) -> bool:
    """Whether there is such a file or link, even one that leads nowhere."""
    return os.path.lexists(directory / name)


def inside(directory: Path, name: str) -> Path:
    """`directory / name`, refused where it is no regular file or a link that leads out of the checkpoint."""
    file = directory / name
    try:
        root, target = directory.resolve(strict=True), file.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        raise EdgebltError(f"{file} is a link that leads nowhere; download the checkpoint again") from None
    if not any(target.is_relative_to(folder) for folder in (root, *blob_folders(root))):
        raise EdgebltError(f"{file} is a link that leads out of the checkpoint; copy the file into the directory")
    if not target.is_file():  # a pipe or a device could block, or never end
        raise EdgebltError(f"{file} is not a regular file; download the checkpoint again")
    return file


def read_json(file: Path) -> object:
    try:
        if file.stat().st_size > JSON_LIMIT:
            raise EdgebltError(f"{file} is larger than {JSON_LIMIT >> 20} MB; give the checkpoint's own file")
        document: object = json.loads(file.read_bytes())
    except OSError as error:
        raise EdgebltError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, EdgebltError):
            raise
        raise EdgebltError(f"{file} is not valid JSON; download it again") from None
    return document
