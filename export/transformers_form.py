"""transformers' form of a checkpoint: a directory of `config.json` and safetensors files; names and where they are.

Source of the names: transformers `models/blt/modeling_blt.py`.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgeblt.errors import EdgebltError
from edgeblt.export.hub import blob_folders
from edgeblt.export.safetensors_files import StoredTensor, stored_tensors
from edgeblt.export.stored_weights import FloatingWeight, StoredWeight, bitsandbytes_weight, is_bitsandbytes
from edgeblt.export.transformers_config import TransformersConfig, parse_config, shown

JSON_LIMIT = 16 << 20
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

STAGES = {
    "patcher": "model.patcher",
    "encoder": "model.local_encoder",
    "global": "model.global_transformer",
    "decoder": "model.local_decoder",
}
PARTS = {
    "embedding": "embed_tokens",
    "patch_projection": "patch_embedding_projection",
    "projection": "token_embedding_projection",
    "norm": "norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
CROSS_PARTS = {
    "query_norm": "q_norm",
    "key_norm": "k_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
}
HEAD, EMBEDDING = "lm_head.weight", "model.local_encoder.embed_tokens.weight"


@dataclass(frozen=True)
class TransformersForm:
    """An opened directory: its configuration and every tensor stored in it, by transformers' names."""

    listing: Path  # the file that says which tensors there are
    config: TransformersConfig
    stored: dict[str, StoredTensor]
    bitsandbytes: bool  # some of the matrices are in bitsandbytes' formats

    def weight(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """The weight of a canonical name. Raises EdgebltError where there is none, or none of this shape."""
        tensor = self._find(name)
        if self.bitsandbytes and is_bitsandbytes(tensor, self.stored.get):
            return bitsandbytes_weight(tensor, shape, self.stored.get)
        if tensor.shape != shape:
            raise EdgebltError(
                f"{tensor.file}: the tensor {tensor.name!a} has shape {list(tensor.shape)}, but config.json asks for "
                f"{list(shape)}; give the config.json and weights of one checkpoint"
            )
        _ = tensor.dtype  # refuses integers and 8-bit floats
        return FloatingWeight(tensor)

    def _find(self, name: str) -> StoredTensor:
        wanted = stored_name(name, self.config.encoder_cross_layer)
        if wanted not in self.stored and self.config.tied and wanted in (HEAD, EMBEDDING):
            # transformers writes only one of two tied weights and fills the other from it, whichever that is.
            other = EMBEDDING if wanted == HEAD else HEAD
            wanted = other if other in self.stored else wanted
        if wanted not in self.stored:
            raise EdgebltError(
                f"{self.listing} has no tensor {wanted!a}, which config.json asks for; give the complete checkpoint"
            )
        return self.stored[wanted]


def stored_name(name: str, encoder_cross_layer: int) -> str:
    """transformers' name of a canonical tensor name."""
    if name == "encoder.hash_tables":
        return "model.encoder_hash_tok_embedding.weight"
    if name == "decoder.head":
        return HEAD
    stage, *middle, part = name.split(".")
    match middle:
        case ["layers", layer]:
            return f"{STAGES[stage]}.layers.{layer}.{PARTS[part]}.weight"
        case ["cross"]:
            return f"{STAGES[stage]}.cross_attn_layers.{encoder_cross_layer}.{CROSS_PARTS[part]}.weight"
        case ["cross", layer]:
            return f"{STAGES[stage]}.cross_attn_layers.{layer}.{CROSS_PARTS[part]}.weight"
    return f"{STAGES[stage]}.{PARTS[part]}.weight"


def open_transformers_form(directory: Path) -> TransformersForm:
    """Read `config.json` and the headers of the weight files; no tensor data. Raises EdgebltError."""
    if not os.path.isdir(directory):  # os.path: never raises, however odd the name
        seen = "is not a directory" if os.path.exists(directory) else "does not exist"
        raise EdgebltError(f"the checkpoint {directory} {seen}; give a directory that holds config.json")
    if not _exists(directory, "config.json"):
        raise EdgebltError(f"{directory} holds no config.json; give the directory of a transformers checkpoint")
    document = _read_json(_inside(directory, "config.json"))
    bitsandbytes = _take_quantization(document, directory / "config.json")
    config = parse_config(document, str(directory / "config.json"))
    # The order transformers looks in.
    if _exists(directory, SINGLE):
        file = _inside(directory, SINGLE)
        return TransformersForm(file, config, {tensor.name: tensor for tensor in stored_tensors(file)}, bitsandbytes)
    if _exists(directory, INDEX):
        return TransformersForm(directory / INDEX, config, _read_shards(directory), bitsandbytes)
    pickles = sorted(file.name for file in directory.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise EdgebltError(
            f"{directory} holds weights only as a pickle ({shown(pickles[0])}), which can run code and is never "
            "loaded; convert it to model.safetensors"
        )
    raise EdgebltError(f"{directory} holds neither {SINGLE} nor {INDEX}; give the complete checkpoint")


def _take_quantization(document: object, where: Path) -> bool:
    """Take `quantization_config` out of the configuration: whether it is bitsandbytes'. Raises EdgebltError for others.

    What it says beside the method concerns how transformers would compute; the weights themselves say what they are.
    """
    if not isinstance(document, dict) or document.get("quantization_config") is None:
        return False
    record = document.pop("quantization_config")
    method = record.get("quant_method") if isinstance(record, dict) else record
    if method != "bitsandbytes":
        raise EdgebltError(
            f"{where}: the checkpoint is quantized by {shown(method)} (quantization_config); give one by bitsandbytes, "
            "by `edgeblt quantize`, or in bfloat16, float16 or float32"
        )
    return True


def _read_shards(directory: Path) -> dict[str, StoredTensor]:
    index = directory / INDEX
    document = _read_json(_inside(directory, INDEX))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise EdgebltError(f"{index} has no weight_map from tensor names to file names; download it again")
    shards = sorted(set(map(str, weight_map.values())))
    for shard in shards:
        if not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise EdgebltError(f"{index} names the shard {shown(shard)}; a shard must be a plain *.safetensors name")
        if not _exists(directory, shard):
            raise EdgebltError(f"{index} names the shard {shown(shard)}, which is missing; download it")
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in stored_tensors(_inside(directory, shard)):
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


def _exists(directory: Path, name: str) -> bool:
    """Whether there is such a file or link, even one that leads nowhere."""
    return os.path.lexists(directory / name)


def _inside(directory: Path, name: str) -> Path:
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


def _read_json(file: Path) -> object:
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
