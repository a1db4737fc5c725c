"""The portable graph: all four stages, and between them what the runtime does for other targets."""

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import EDGEBLT, CacheSpec, StageContract, StageName
from edgeblt.bundle.portable.contract import (
    NEXT,
    cache_names,
    cache_slots,
    portable_contract,
    portable_stages,
)
from edgeblt.export.graphs.decoder import CrossAttention, decoder_logits
from edgeblt.export.graphs.encoder import byte_vectors
from edgeblt.export.graphs.global_transformer import global_outputs
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import TransformerStack
from edgeblt.export.graphs.patcher import patcher_outputs
from edgeblt.export.graphs.pooling import Pooling
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.graphs.weights import Weights
from edgeblt.export.operators import portable as glue
from edgeblt.export.operators.entropy_patch import setting_defaults
from edgeblt.runtime.state.cache import rotation_frequencies

LAST = 1 << 62  # an end beyond every axis
Values = dict[str, ir.Value]


def portable_graph(source: WeightSource, metadata: dict[str, str] | None = None) -> BuiltStage:
    """`model.onnx`: ids and state to logits and the state after them (see `edgeblt.bundle.portable.contract`)."""
    graph = GraphBuilder(portable_contract(source.config))
    return graph.finish(_Portable(graph, source).outputs(), metadata)


class _Portable:
    """The graph while it is built; `following` collects the state after the ids."""

    def __init__(self, graph: GraphBuilder, source: WeightSource) -> None:
        self.graph, self.source, self.config = graph, source, source.config
        self.stages = portable_stages(source.config)
        self.following: Values = {}
        self.ids = graph.op("Squeeze", graph.inputs["ids"], graph.constant([0]))

    def outputs(self) -> Values:
        graph, states = self.graph, self.graph.inputs
        patching = self._patching()
        width = self.config.hashes.context
        windows, recent = self._glue(glue.WINDOWS, states["recent_ids"], self.ids, outputs=2, context=width)
        stack = self._stack("encoder", "windows", windows, states["position"])
        vectors = byte_vectors(stack, self.config)
        self._keep("encoder", stack.presents)
        places = self._glue(glue.PLACES, patching["patch_starts"], states["open_vectors"], outputs=5)
        patch_index, latent_index, patches, open_index, count = places
        inputs = {
            "patch_index": patch_index, "patches": patches, "open_index": open_index,
            "open_vectors": states["open_vectors"],
        }  # fmt: skip
        rows = self._rows(vectors, inputs, count)
        decoder = self._stack("decoder", "byte_vectors", vectors, states["position"],
                              {"rows": rows, "latent_index": latent_index})  # fmt: skip
        logits = decoder_logits(decoder, self.config, CrossAttention(decoder, self.config))
        self._keep("decoder", decoder.presents)
        (still_open,) = self._glue(
            glue.OPEN, states["open_vectors"], vectors, open_index, patch_index, count, outputs=1
        )
        length = graph.op("Shape", self.ids)
        self.following |= {
            "position": graph.op("Add", states["position"], length),
            "patch_count": graph.op("Add", states["patch_count"], count),
            "threshold_change": graph.op("Identity", states["threshold_change"]),
            "patching": graph.op("Gather", patching["states"], graph.constant(-1), axis=0),
            "recent_ids": recent,
            "open_vectors": still_open,
            "latent_row": graph.op("Gather", rows, graph.constant([-1]), axis=0),
        }
        found = {"logits": logits, "entropies": patching["entropies"], "patch_starts": patching["patch_starts"]}
        batch = {name: graph.op("Unsqueeze", value, graph.constant([0])) for name, value in found.items()}
        return batch | {NEXT + name: value for name, value in self.following.items()}

    def _patching(self) -> Values:
        """Outputs of the patcher; without one, those of the rule."""
        graph, states = self.graph, self.graph.inputs
        settings = {name: graph.constant(value) for name, value in setting_defaults(self.config.patching).items()}
        settings["threshold"] = graph.op("Add", settings["threshold"], states["threshold_change"])
        inputs = {"ids": self.ids, "position": states["position"], "state": states["patching"]}
        if self.config.patcher is not None:
            inputs |= self._attention(graph, "patcher", self.ids, states["position"])
        part = graph.part(self.stages["patcher"], inputs)
        found = patcher_outputs(part, self.source, settings)
        self._keep("patcher", found)
        return found

    def _rows(self, vectors: ir.Value, inputs: Values, count: ir.Value) -> ir.Value:
        """The row of the newest latent before the chunk, then those of the patches completed in it [1 + P, row].

        The global stage runs only where there are any.
        """
        graph, states = self.graph, self.graph.inputs
        names = self._caches("global")

        def completed() -> list[ir.Value]:
            part = graph.part(self.stages["encoder"], inputs)
            patch_vectors = Pooling(part, Weights(part, self.source), self.config, vectors).pooled()
            attention = self._attention(graph, "global", patch_vectors, states["patch_count"])
            found = global_outputs(graph.part(self.stages["global"], attention | {"patch_vectors": patch_vectors}),
                                   self.source)  # fmt: skip
            decoder = graph.part(self.stages["decoder"], {"latents": found["latents"]})
            cross = CrossAttention(TransformerStack(decoder, self.source, self.config.decoder), self.config)
            rows = graph.op("Concat", states["latent_row"], cross.projected_latents(), axis=0)
            return [rows, *(found[name] for name in self._presents("global"))]

        def nothing() -> list[ir.Value]:
            return [states["latent_row"], *(states[name] for name in names)]

        any_completed = graph.op("Greater", count, graph.constant([0]))
        rows, *caches = graph.branch(any_completed, completed, nothing)
        self.following |= dict(zip(names, caches, strict=True))
        return rows

    def _stack(
        self, stage: StageName, name: str, value: ir.Value, position: ir.Value, more: Values | None = None
    ) -> TransformerStack:
        """The layers of a stage that reads `value`, whose first row has this position."""
        inputs = self._attention(self.graph, stage, value, position) | {name: value} | (more or {})
        config = {"encoder": self.config.encoder, "decoder": self.config.decoder}[stage]
        return TransformerStack(self.graph.part(self.stages[stage], inputs), self.source, config)

    def _attention(self, graph: GraphBuilder, stage: StageName, rows: ir.Value, position: ir.Value) -> Values:
        """Inputs of a stage's attention."""
        cache = _cache(self.stages[stage])
        pasts = {f"past_{kind}_{layer}": self.graph.inputs[name]
                 for layer in range(cache.layer_count)
                 for kind, name in zip(("key", "value"), cache_names(stage, layer), strict=True)}  # fmt: skip
        frequencies = np.zeros(cache.head_dim // 2, np.float32)  # padding of a head is not rotated
        rotated = rotation_frequencies(cache)
        frequencies[: len(rotated)] = rotated
        names = ("total_length", "cosines", "sines", "mask")
        found = self._glue(
            glue.SLOTS, rows, position, pasts["past_key_0"], graph.constant(frequencies), outputs=len(names)
        )
        return pasts | dict(zip(names, found, strict=True))

    def _keep(self, stage: StageName, presents: Values) -> None:
        """The state after the chunk of a stage with these new caches."""
        cache = self.stages[stage].cache
        for name, present in zip(self._caches(stage), self._presents(stage), strict=True):
            value = presents[present]
            slots = cache_slots(stage, cache.window) if cache else None
            if isinstance(slots, int):
                ends = (self.graph.constant([end]) for end in (-slots, LAST, 2))
                value = self.graph.op("Slice", value, *ends)
            self.following[name] = value

    def _caches(self, stage: StageName) -> list[str]:
        cache = self.stages[stage].cache
        return [name for layer in range(cache.layer_count if cache else 0) for name in cache_names(stage, layer)]

    def _presents(self, stage: StageName) -> list[str]:
        cache = self.stages[stage].cache
        return list(cache.names("present")) if cache else []

    def _glue(self, operator: str, *inputs: ir.Value, outputs: int, **attributes: int) -> list[ir.Value]:
        self.graph.uses(operator, glue.FUNCTIONS[operator])
        return self.graph.ops(operator, *inputs, outputs=outputs, domain=EDGEBLT, **attributes)


def _cache(contract: StageContract) -> CacheSpec:
    assert contract.cache is not None
    return contract.cache
