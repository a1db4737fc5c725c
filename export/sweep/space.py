"""The recipes that a sweep searches: a choice for each part of the model, and where the search starts."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgeblt.bundle.architectures import architecture
from edgeblt.bundle.contract import StageName
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.quant.recipes.recipe import GPTQ, TABLES, Recipe, WeightRecipe, load_recipe

Choices = Mapping[str, str]  # the name of a choice by the name of a part

# From the largest to the smallest. Matrices are calibrated; heads and tables are rounded by least squares.
MATRICES: Mapping[str, WeightRecipe] = MappingProxyType(
    {
        "fp16": WeightRecipe("fp16"),
        "int8, 128": WeightRecipe("int8", 128, input_block_size=32, symmetric=True, method=GPTQ),
        "int4, 32": WeightRecipe("int4", 32, method=GPTQ),
        "int4, 64": WeightRecipe("int4", 64, method=GPTQ),
        "int4, 128": WeightRecipe("int4", 128, symmetric=True, method=GPTQ),
        "int4, 256": WeightRecipe("int4", 256, symmetric=True, method=GPTQ),
        "int4, 256, 2:4": WeightRecipe("int4", 256, symmetric=True, method=GPTQ, sparsity="2:4"),
    }
)
HEADS: Mapping[str, WeightRecipe] = MappingProxyType(
    {
        "int8, 32": WeightRecipe("int8", 32, symmetric=True),
        "int8, 128": WeightRecipe("int8", 128, symmetric=True),
        "int4, 32": WeightRecipe("int4", 32),
    }
)
TABLE_CHOICES: Mapping[str, WeightRecipe] = MappingProxyType(
    {
        "int8, 128": WeightRecipe("int8", 128, symmetric=True),
        "int4, 32": WeightRecipe("int4", 32),
        "int4, 128": WeightRecipe("int4", 128, symmetric=True),
    }
)
HEAD_PART, TABLE_PART = "heads", "tables"
FINE, COARSE = "int8, 128", "int4, 256"  # choices for matrices: the best worth its size, the smallest dense
PACKAGED_STARTS = ("int4", "int4-small")


@dataclass(frozen=True)
class Space:
    """The choices for each part of a model: its stages, its heads, and its n-gram tables if it has any."""

    stages: tuple[StageName, ...]
    has_tables: bool
    kv_cache: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Space":
        """The space of a checkpoint's recipes. Raises EdgebltError for one that is quantized already."""
        if checkpoint.has_own_formats:
            raise checkpoint.quantized_already("give the original")
        config: Any = checkpoint.config
        stages = tuple(
            stage
            for stage in architecture(config.architecture).stages
            if stage != "patcher" or config.patcher is not None
        )
        has_tables = any(name.endswith(TABLES) for name in checkpoint.names())
        return cls(stages, has_tables, load_recipe("int4").kv_cache if len(stages) > 1 else "fp32")

    @property
    def parts(self) -> dict[str, Mapping[str, WeightRecipe]]:
        """The choices by part, in order."""
        parts: dict[str, Mapping[str, WeightRecipe]] = dict.fromkeys(self.stages, MATRICES)
        parts[HEAD_PART] = HEADS
        return parts | ({TABLE_PART: TABLE_CHOICES} if self.has_tables else {})

    def recipe(self, choices: Choices, name: str) -> Recipe:
        """The recipe of a choice for each part."""
        chosen = {part: named[choices[part]] for part, named in self.parts.items()}
        stages = {stage: chosen[stage] for stage in self.stages}
        own = {field: stages[field] for field in ("patcher", "encoder", "decoder") if field in stages}
        # The only stage of another architecture takes the part of the global stage (`Recipe.stage`).
        main = stages["global"] if "global" in stages else stages[self.stages[0]]
        tables = {TABLE_PART: chosen[TABLE_PART]} if self.has_tables else {}
        return Recipe(name, global_=main, heads=chosen[HEAD_PART], kv_cache=self.kv_cache, **own, **tables)  # type: ignore[arg-type]

    def choices(self, recipe: Recipe) -> dict[str, str] | None:
        """The choices that a recipe makes; None where one of its parts is not among them."""
        own = {stage: recipe.stage(stage) for stage in self.stages} | {HEAD_PART: recipe.heads}
        own |= {TABLE_PART: recipe.tables} if self.has_tables else {}
        found = {
            part: next((name for name, choice in named.items() if choice == own[part]), None)
            for part, named in self.parts.items()
        }
        if any(choice is None for choice in found.values()):
            return None
        return {part: choice for part, choice in found.items() if choice is not None}

    def smallest(self) -> dict[str, str]:
        """The smallest choice for each part without sparsity."""
        return {part: COARSE if part in self.stages else list(named)[-1] for part, named in self.parts.items()}

    def finest(self, part: str) -> str:
        return FINE if part in self.stages else next(iter(self.parts[part]))

    def starts(self) -> list[dict[str, str]]:
        """Where a search starts: the package's recipes; all parts coarse, all fine, and each part alone fine."""
        packaged = [self.choices(load_recipe(name)) for name in PACKAGED_STARTS]
        smallest, finest = self.smallest(), {part: self.finest(part) for part in self.parts}
        single = [smallest | {part: finest[part]} for part in self.parts]
        return [choices for choices in packaged if choices] + [smallest, finest, *single]

    def ladder(self, gains: Mapping[str, float]) -> list[dict[str, str]]:
        """The smallest recipe with ever more parts at their finest, those first that gain most.

        gains: bits per byte that a part's finest choice gains over the smallest recipe, for each byte it costs.
        """
        order = sorted(gains, key=lambda part: -gains[part])
        finest = {part: self.finest(part) for part in order}
        return [self.smallest() | {part: finest[part] for part in order[: count + 1]} for count in range(1, len(order))]

    def unseen(self, seen: Sequence[Choices]) -> dict[str, str] | None:
        """The first of all combinations that is not among these; None where there is no other."""
        names = list(self.parts)
        known = {tuple(choices[name] for name in names) for choices in seen}
        for combination in itertools.product(*self.parts.values()):
            if combination not in known:
                return dict(zip(names, combination, strict=True))
        return None


def budget_bytes(text: str, reference: int) -> int:
    """Bytes of a size such as `4MB`, `900kB`, `4000000`, or of a share of `reference` bytes such as `80%`.

    Raises EdgebltError for anything else.
    """
    units = {"%": reference / 100, "kb": 1e3, "mb": 1e6, "gb": 1e9, "b": 1.0, "": 1.0}
    lowered = text.strip().lower()
    unit = next(unit for unit in units if lowered.endswith(unit))
    try:
        count = float(lowered.removesuffix(unit))
    except ValueError:
        count = float("nan")
    if not 0 < count < 1e15:
        raise EdgebltError(f"the size is {text!a:.60}; give one such as 4MB, or a share of int4's size such as 80%")
    return int(count * units[unit])
