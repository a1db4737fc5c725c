"""Recipes: which weight format and which method each stage gets. Small TOML files; some come with the package."""

import os
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from edgeblt.bundle.config import ModelConfig, TransformerConfig
from edgeblt.bundle.contract import STAGES, StageName
from edgeblt.bundle.dataclass_json import parse_dataclass
from edgeblt.bundle.placement import parse_cache_formats
from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import BLOCK_SIZES, Codebook, Floating, Linear, WeightFormat
from edgeblt.quant.methods.channels import kept_count, kept_percent
from edgeblt.quant.methods.data_free import METHODS
from edgeblt.quant.methods.pruning import MAGNITUDE, PRUNING, SPARSEGPT, Sparsity

HASH_TABLES = "encoder.hash_tables"  # a BLT's
TABLES = ".hash_tables"  # ends the names of n-gram tables of any architecture
GPTQ = "gptq"
EXACT = (".a_log",)  # matrices that no recipe rounds, as an error in them grows from byte to byte
WHOLE_ROW = 0  # the block size that means one block a row
PACKAGED = Path(__file__).parent
_LIMIT = 1 << 16
_FLOATING = {"fp32": 32, "fp16": 16}
_LINEAR = {"int8": 8, "int4": 4}
_CODEBOOK = ("nf4", "fp4")
_FORMATS = (*_FLOATING, *_LINEAR, *_CODEBOOK)
_CODEBOOK_BLOCK = 64


@dataclass(frozen=True)
class WeightRecipe:
    """Storage of the weights of one part of the model; all but `format` and `channels` is for int8 and int4."""

    format: str = "fp32"
    block_size: int | None = None  # inputs that share a scale; 0: all of a row; None: 32 for int4, a row for int8
    input_block_size: int | None = None  # inputs rounded together when it is computed; None: block_size
    symmetric: bool = False  # scales without zero points
    method: str = "least-squares"  # the method that chooses codes and scales
    sparsity: str | None = None  # 2:4 and 4:8 keep so many of so many inputs, 50% makes zeros of half
    pruning: str = (
        SPARSEGPT  # the method that chooses zeros: magnitude, wanda, or sparsegpt, which needs the method gptq
    )
    channels: str | None = None  # the share of a stage's feed-forward channels that is kept, such as 75%

    def __post_init__(self) -> None:
        for name, value, allowed in (("format", self.format, _FORMATS), ("method", self.method, (*METHODS, GPTQ))):
            if value not in allowed:
                raise EdgebltError(f"{name} is {value!r:.40}; use one of {', '.join(allowed)}")
        if self.block_size not in (None, WHOLE_ROW, *BLOCK_SIZES):
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise EdgebltError(f"block_size is {self.block_size}; use one of {sizes}, or 0 for one block a row")
        inputs, block = self.input_block_size, self._wanted_block
        if inputs is not None and (inputs not in BLOCK_SIZES or (block and inputs > block)):
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise EdgebltError(f"input_block_size is {inputs}; use one of {sizes}, none larger than block_size")
        settings = (self.block_size, self.input_block_size, self.symmetric, self.method, self.sparsity)
        if self.format not in _LINEAR and settings != (None, None, False, "least-squares", None):
            raise EdgebltError(f"{self.format} has no other settings; leave out all but format, or use int8 or int4")
        if self.channels is not None:
            kept_percent(self.channels)
        if self.pruning not in PRUNING:
            raise EdgebltError(f"pruning is {self.pruning!r:.40}; use one of {', '.join(PRUNING)}")
        if self.sparsity is not None:
            Sparsity.parse(self.sparsity)
            if not self.symmetric:
                raise EdgebltError("a sparse format keeps no zero points; add symmetric = true")
            if self.pruning == SPARSEGPT and self.method != GPTQ:
                raise EdgebltError('pruning sparsegpt goes with method = "gptq"; use it, or pruning wanda or magnitude')

    @property
    def needs_calibration(self) -> bool:
        """Whether encoding a matrix needs samples of its inputs."""
        prunes_by_inputs = self.sparsity is not None and self.pruning != MAGNITUDE
        return self.format in _LINEAR and (self.method == GPTQ or prunes_by_inputs)

    def matrix_format(self, columns: int) -> WeightFormat:
        """The format of a matrix with so many inputs.

        A block size that does not divide the inputs would store a filled-up block in every row, so the next smaller
        one that does is taken, if there is one.
        """
        if self.format in _FLOATING:
            return Floating(_FLOATING[self.format])
        if self.format in _CODEBOOK:
            return Codebook(self.format, _CODEBOOK_BLOCK)
        wanted = self._wanted_block
        bits, block = _LINEAR[self.format], None if wanted == WHOLE_ROW else _fitting(wanted, columns)
        inputs = self.input_block_size and _fitting(self.input_block_size, columns)
        inputs = inputs if inputs != block else None
        return Linear(bits, block, self.symmetric, input_block_size=inputs, sparsity=self.sparsity or "")

    @property
    def _wanted_block(self) -> int:
        """`block_size`, or its default."""
        return self.block_size if self.block_size is not None else {"int4": 32}.get(self.format, WHOLE_ROW)

    def describe(self) -> str:
        """Format and method in words: `int4, blocks of 32, gptq`."""
        if self.format not in _LINEAR:
            return self.format
        pruning = f", {self.pruning}" if self.sparsity else ""
        return f"{self.matrix_format(0).describe()}, {self.method}{pruning}"


def _fitting(block_size: int, columns: int) -> int:
    """The largest block size up to this one that divides the columns, or else this one."""
    return max((size for size in BLOCK_SIZES if size <= block_size and columns % size == 0), default=block_size)


@dataclass(frozen=True)
class Recipe:
    """A recipe by stage; what a file leaves out stays fp32.

    `tables` are the hash embeddings. `heads` (of patcher and decoder, next to the logits) and `embeddings` (of single
    bytes) are small and sensitive: where they are given, they override the stage's own. With `table_hits`, only the
    most used rows of the tables are kept, up to this share of a text's lookups; the others become zeros. `kv_cache` is
    the format of keys and values, fp32, fp16 or int8, for all stages or as in `patcher=fp32,global=int8`.
    """

    name: str
    patcher: WeightRecipe = field(default_factory=WeightRecipe)
    encoder: WeightRecipe = field(default_factory=WeightRecipe)
    global_: WeightRecipe = field(default_factory=WeightRecipe)
    decoder: WeightRecipe = field(default_factory=WeightRecipe)
    tables: WeightRecipe = field(default_factory=WeightRecipe)
    heads: WeightRecipe | None = None
    embeddings: WeightRecipe | None = None
    table_hits: float | None = None
    kv_cache: str = "fp32"

    def __post_init__(self) -> None:
        parse_cache_formats(self.kv_cache)
        if self.table_hits is not None and not 0 < self.table_hits <= 1:
            raise EdgebltError(f"table_hits is {self.table_hits}; it is a share of lookups, above 0 and at most 1")
        for name, part in (("tables", self.tables), ("embeddings", self.embeddings)):
            if part and part.format in _CODEBOOK:
                raise EdgebltError(f"{name}: {part.format} has no lookup; use int8, int4, fp16 or fp32")
            if part and part.needs_calibration:
                raise EdgebltError(f"{name}: gptq is for matrices; use method least-squares or nearest")
            if part and part.sparsity:
                raise EdgebltError(f"{name}: sparsity is for matrices; leave it out")
        for name, part in (("tables", self.tables), ("heads", self.heads), ("embeddings", self.embeddings)):
            if part and part.channels:
                raise EdgebltError(f"{name}: only a stage has channels; give them for {', '.join(STAGES)}")

    def stage(self, name: StageName) -> WeightRecipe:
        """The part for a stage; `global`, that of most weights, for the only stage of another architecture."""
        own = {"patcher": self.patcher, "encoder": self.encoder, "decoder": self.decoder}
        return own.get(name, self.global_)

    def part(self, name: str) -> WeightRecipe:
        """The part of the recipe for the tensor of this canonical name."""
        if name.endswith(TABLES):
            return self.tables
        if name.endswith(".head") and self.heads:
            return self.heads
        if name.endswith(".embedding") and self.embeddings:
            return self.embeddings
        return self.stage(cast(StageName, name.partition(".")[0]))

    def format(self, name: str, shape: tuple[int, ...]) -> WeightFormat:
        """The format of a tensor: vectors stay fp32; embeddings are fp16 where matrices get a format without lookup.

        Embeddings and hash tables are never pruned, and heads only where `heads` says so.
        """
        if len(shape) != 2 or name.endswith(EXACT):
            return Floating(32)
        format = self.part(name).matrix_format(shape[1])
        dense = name.endswith(".embedding") or (name.endswith(".head") and not self.heads)
        if isinstance(format, Linear) and format.sparsity and dense:
            return replace(format, sparsity="")
        return Floating(16) if isinstance(format, Codebook) and name.endswith(".embedding") else format

    def pruned(self, config: Any) -> Any:
        """The configuration of a model when its channels are removed."""

        def stack(part: WeightRecipe, config: TransformerConfig) -> TransformerConfig:
            kept = kept_count(part.channels, config.intermediate_size) if part.channels else config.intermediate_size
            return replace(config, intermediate_size=kept)

        if not isinstance(config, ModelConfig):  # no other has such channels
            return config
        return replace(
            config,
            patcher=config.patcher and stack(self.patcher, config.patcher),
            encoder=stack(self.encoder, config.encoder),
            global_=stack(self.global_, config.global_),
            decoder=stack(self.decoder, config.decoder),
        )

    @property
    def needs_calibration(self) -> bool:
        parts = (self.patcher, self.encoder, self.global_, self.decoder, self.heads)
        return any(part.needs_calibration or part.channels for part in parts if part)

    @property
    def prunes_channels(self) -> bool:
        return any(part.channels for part in (self.patcher, self.encoder, self.global_, self.decoder))

    @property
    def needs_text(self) -> bool:
        return self.needs_calibration or self.table_hits is not None


def packaged_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.toml"))


def load_recipe(recipe: str | Path) -> Recipe:
    """A packaged recipe by name, or one from a TOML file.

    Raises EdgebltError naming the file and the field at fault.
    """
    path = PACKAGED / f"{recipe}.toml" if str(recipe) in packaged_recipes() else Path(recipe)
    if not os.path.isfile(path):  # never raises, however odd the name
        names = ", ".join(packaged_recipes())
        raise EdgebltError(f"there is no recipe {str(recipe)!r:.400}; use one of {names}, or the path of a TOML file")
    if os.path.getsize(path) > _LIMIT:
        raise EdgebltError(f"{path} is larger than {_LIMIT} bytes; a recipe is a small TOML file")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EdgebltError(f"{path} cannot be read ({error.strerror}); give a TOML file") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError; and Python's, of many digits
        reason = " ".join(str(error).partition(";")[0].split())[:100]
        raise EdgebltError(f"{path} is not TOML ({reason}); see docs/quantization.md") from None
    return parse_dataclass(Recipe, {"name": path.stem, **document}, str(path))
