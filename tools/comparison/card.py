"""Cards of the models to compare, filled from the training log and the measured figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comparison.learners import BATCH, FUTURE_WEIGHT, ROW, TOKEN_ROW, Sizes

_TITLES = {
    "mambabyte": "MambaByte",
    "overencoded": "over-encoded transformer",
    "plain": "transformer without over-encoding",
    "tokens": "token model",
}
_SHAPES = {
    "mambabyte": """\
{mamba_layers} layers of Mamba-1 of width {mamba_width} (state 16, convolution 4, expansion 2), LayerNorms with bias, a
vocabulary of 256 bytes. There are no special ids: a zero byte ends a document in training. Matrices are bfloat16;
vectors, the convolution and `A_log` are float32.""",
    "overencoded": """\
Causal transformer of {layers} layers of width {width}, heads of 64, SwiGLU, on ids (byte b is b + 4, BOS 1, EOS 2).
Over-encoded input: a table for each of the 2- to {neighbors}-grams of about {table_rows:,} rows and a projection of
each, which have {share:.0f} % of the parameters. {future} further heads guess the bytes after the next; in training
they weigh {future_weight} together. Matrices are bfloat16, vectors float32.""",
    "plain": """\
Causal transformer of {layers} layers of width {width}, heads of 64, SwiGLU, on ids (byte b is b + 4, BOS 1, EOS 2): the
over-encoded one without its tables. {future} further heads guess the bytes after the next; in training they weigh
{future_weight} together. Matrices are bfloat16, vectors float32.""",
    "tokens": """\
Llama of {layers} layers of width {width}, heads of 64, on {token_vocabulary:,} tokens of byte-level BPE, which is made
from all training text. Rows in training are {token_row} tokens. Matrices are bfloat16, vectors float32.""",
}
_CARD = """---
license: apache-2.0
---
# edgeblt {title}

{parameters:.2f} M parameters, trained as the model in `edgeblt/data/demo` is, so that architectures can be compared. It
is far too small, and has seen far too little text, for anything else.

{shape}

## How it was made
Trained on a CPU (AVX-512, AMX) for {minutes:.0f} minutes of one thread's processor time: {steps:,} steps of {reads},
{megabytes:.2f} MB in all, each byte once. Muon for matrices, AdamW for the rest, products in bfloat16. The command:

    python tools/train_demo.py WORK_FOLDER --architecture {name} --megabytes {planned:g}

Corpus, sources, licences and split are the demo model's (`edgeblt/data/demo/README.md`), in rows of 1,024 bytes as
there. Which bytes of it were seen differs: this model reads the rows from the first on, the demo model from the last.

## Training curve
Bits per byte; `held-out` is of 16 rows of 1,024 bytes, before rounding to bfloat16.

| minutes | MB seen | training | held-out |
| ---: | ---: | ---: | ---: |
{curve}

## Measured
In float32 on these weights, on the rows that the demo model's card scores. {counted}

| text | bits per byte |
| --- | ---: |
{scores}
"""


_ROWS = {
    "held_out": "held out, rows of 1,024 bytes",
    "held_out_long": "other held-out text, in rows of 4,096 bytes",
    "held_out_long_recut": "that other text in rows of 1,024 bytes",
}


def card(name: str, figures: dict[str, Any], log: list[dict[str, float]], sizes: Sizes, planned: float) -> str:
    """The card's text.

    figures: as `runs.make_card` measures them; log: of the training; planned: megabytes that were asked for.
    """
    share = 100 * figures["table_parameters"] / figures["parameters"]
    shape = _SHAPES[name].format(**asdict(sizes), share=share, future_weight=FUTURE_WEIGHT, token_row=TOKEN_ROW)
    unit = f"{TOKEN_ROW} tokens" if name == "tokens" else f"{ROW:,} bytes"
    counted = "The end of a document counts as a byte."
    if name == "tokens":
        counted += "\nNats of all tokens over bytes of all texts; what a row's end left of a character is not counted."
    return _CARD.format(
        title=_TITLES[name],
        name=name,
        shape=shape,
        reads=f"{BATCH} rows of {unit}",
        counted=counted,
        planned=planned,
        curve="\n".join(_curve_row(entry) for entry in log),
        scores="\n".join(f"| {_ROWS.get(key, key)} | {bits:.4f} |" for key, bits in figures["bits_per_byte"].items()),
        **{key: figures[key] for key in ("minutes", "steps", "megabytes")},
        parameters=figures["parameters"] / 1e6,
    )


def _curve_row(entry: dict[str, float]) -> str:
    values = f"{entry['megabytes']:.2f} | {entry['train']:.3f} | {entry['held_out']:.3f}"
    return f"| {entry['seconds'] / 60:.0f} | {values} |"
