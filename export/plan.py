"""Size of a checkpoint's weights in a recipe's formats: the graphs are built, but no weight is read."""

from collections.abc import Sequence
from pathlib import Path

from edgeblt.bundle.contract import StageName
from edgeblt.bundle.weight_plan import StoredTensor, WeightPlan, weight_plan
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.recipe_source import RecipeSource
from edgeblt.export.export_bundle import build_graphs
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.quant.recipes.recipe import load_recipe, packaged_recipes


def plan_checkpoint(
    checkpoint: Checkpoint, recipes: Sequence[str | Path], bytes_per_patch: float
) -> tuple[WeightPlan, ...]:
    """Plans for the packaged recipes and for `recipes`, largest first; one plan for a checkpoint quantized already.

    Raises EdgebltError for an unknown or unfit recipe, and for any that is given with a quantized checkpoint.
    """
    config = checkpoint.config
    if checkpoint.has_own_formats:
        if recipes:
            raise checkpoint.quantized_already("leave out the recipe, or give the original")
        return (weight_plan(checkpoint.recipe_name, config, stored_tensors(checkpoint), bytes_per_patch),)
    names = dict.fromkeys([*packaged_recipes(), *map(str, recipes)])
    plans = []
    for recipe in map(load_recipe, names):
        tensors = stored_tensors(RecipeSource(checkpoint, recipe))
        plans.append(weight_plan(recipe.name, config, tensors, bytes_per_patch))
    return tuple(sorted(plans, key=lambda plan: -plan.bytes))


def stored_tensors(source: WeightSource) -> dict[StageName, list[StoredTensor]]:
    """The weights that the graphs of `source` hold or refer to, as they are written."""
    return {
        stage: [StoredTensor(name, slot.shape[0], slot.size) for name, slot in built.slots.items()]
        for stage, built in build_graphs(source).items()
    }
