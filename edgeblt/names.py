"""Types of the names that functions take, so that a type checker refuses a misspelt name.

A name that is known only when the program runs, or one put together such as `patcher=cpu,global=cuda`, is passed as
`Name(text)`, which changes nothing at run time; it is checked there as every name is.
"""

from typing import Literal, NewType

Name = NewType("Name", str)
"""A `str` that stands for a name of any kind, for type checkers."""

DraftName = Literal["none", "patcher", "decoder", "heads", "ngram", "auto"]
ProviderName = Literal["cpu", "cuda"]
RecipeName = Literal["fp32", "fp16", "int8", "int4", "int4-small", "sparse-int8", "sparse-int4", "nf4"]
