"""Write docs/api.md: what a program calls, from signatures and docstrings.

    python tools/api_page.py          write it
    python tools/api_page.py --check  exit with code 1 if it is not what would be written

Only sources are read: nothing is imported, so the page is the same wherever it is made.
"""

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
WIDTH = 120
SECTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {  # heading: (what a program writes, file, name)
    "Running a bundle": (
        ("edgeblt.load", "edgeblt/model.py", "load"),
        ("edgeblt.Model", "edgeblt/model.py", "Model"),
        ("edgeblt.GenerationSettings", "edgeblt/decoding/settings.py", "GenerationSettings"),
        ("edgeblt.Constraint", "edgeblt/decoding/constraints.py", "Constraint"),
        ("edgeblt.decoding.text_stream.TextStream", "edgeblt/decoding/text_stream.py", "TextStream"),
        ("edgeblt.decoding.output.TextEnd", "edgeblt/decoding/output.py", "TextEnd"),
        ("edgeblt.decoding.details.ByteDetails", "edgeblt/decoding/details.py", "ByteDetails"),
        ("edgeblt.Session", "edgeblt/runtime/session.py", "Session"),
        ("edgeblt.Session, saved and restored", "edgeblt/runtime/saved/save_calls.py", "SaveCalls"),
        ("edgeblt.Model, for saved sessions", "edgeblt/runtime/saved/restore_calls.py", "RestoreCalls"),
        ("edgeblt.Model.prefix_cache.statistics", "edgeblt/runtime/saved/prefix_cache.py", "PrefixCacheStatistics"),
        ("edgeblt.Scores", "edgeblt/scores.py", "Scores"),
        ("edgeblt.EdgebltError", "edgeblt/errors.py", "EdgebltError"),
    ),
    "Many texts at once": (
        ("edgeblt.Model, for many texts", "edgeblt/batching/calls.py", "BatchCalls"),
        ("edgeblt.batching.engine.Engine", "edgeblt/batching/engine.py", "Engine"),
        ("edgeblt.batching.engine.EngineCounts", "edgeblt/batching/engine.py", "EngineCounts"),
        ("edgeblt.batching.answers.AnyAnswer", "edgeblt/batching/answers.py", "AnyAnswer"),
        ("edgeblt.batching.answers.Answer", "edgeblt/batching/answers.py", "Answer"),
        ("edgeblt.batching.answers.AsyncAnswer", "edgeblt/batching/answers.py", "AsyncAnswer"),
        ("edgeblt.batching.text.BatchEnd", "edgeblt/batching/text.py", "BatchEnd"),
    ),
    "Making and judging bundles": (
        ("edgeblt.quant.compress.quantize_checkpoint", "quant/compress.py", "quantize_checkpoint"),
        ("edgeblt.export.export_bundle.export_bundle", "export/export_bundle.py", "export_bundle"),
        ("edgeblt.measure.validation.validate", "edgeblt/measure/validation.py", "validate"),
        ("edgeblt.evaluation.suite.run_suite", "edgeblt/evaluation/suite.py", "run_suite"),
        ("edgeblt.evaluation.suite_report.SuiteReport", "edgeblt/evaluation/suite_report.py", "SuiteReport"),
        ("edgeblt.evaluation.suite_report.ComparedFigure", "edgeblt/evaluation/suite_report.py", "ComparedFigure"),
        ("edgeblt.measure.benchmark.bench", "edgeblt/measure/benchmark.py", "bench"),
    ),
}
HEAD = """# Python

    import edgeblt

    model = edgeblt.load("my-bundle")
    print(model.generate("Once upon a time", max_new_bytes=100).decode(errors="replace"))
    print(model.score("Once upon a time").bits_per_byte)

What an argument cannot be is an `EdgebltError`, one sentence that names it and the remedy; there is no other exception.

**Names** of providers, drafts and recipes are `Literal` types, so a type checker refuses a misspelt one. One that is
known only when the program runs, or that is put together, is passed as `edgeblt.Name`: a `str` like any other, which is
checked when it is used.

    model = edgeblt.load("my-bundle", provider=edgeblt.Name("patcher=cpu,global=cuda"))
    model.generate("Once upon a time", draft=edgeblt.Name(options.draft))
    export_bundle("checkpoint", "my-bundle", Path("my-recipe.toml"))

Made by `tools/api_page.py` from the sources' docstrings.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef
PARAMETER = re.compile(r"(\w+(?:, \w+)*): (.*)", re.DOTALL)


def page() -> str:
    parts = [HEAD]
    for heading, entries in SECTIONS.items():
        parts.append(f"## {heading}\n")
        for public, file, name in entries:
            parts += _entry(public, find_definition(file, name))
    return "\n".join(parts)


def find_definition(file: str, name: str) -> ast.ClassDef | Function:
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | Function) and node.name == name:
            return node
    raise SystemExit(f"{file} has no {name}")


def _entry(public: str, node: ast.ClassDef | Function) -> Iterator[str]:
    yield f"### {public}\n"
    if isinstance(node, Function):
        yield _signature(public.rpartition(".")[2], node, is_method=False)
        yield _described(node)
        return
    yield _described(node)
    for member in node.body:
        if isinstance(member, Function) and not member.name.startswith("_"):
            yield _signature(member.name, member, is_method=True)
            yield _described(member)


def _signature(name: str, node: Function, is_method: bool) -> str:
    """The signature as an indented block; a property's name and type."""
    result = ast.unparse(node.returns) if node.returns else ""
    if any(isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in node.decorator_list):
        return f"    .{name}: {result}\n"
    arguments = _arguments(node.args, skip=int(is_method))
    start = f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}{'.' if is_method else ''}{name}("
    line = f"{start}{', '.join(arguments)}) -> {result}"
    if len(line) > WIDTH - 4:
        line = start + "\n" + "".join(f"    {argument},\n" for argument in arguments) + f") -> {result}"
    return textwrap.indent(line, "    ") + "\n"


def _arguments(arguments: ast.arguments, skip: int) -> list[str]:
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    shown = []
    for argument, default in list(zip(arguments.args, defaults, strict=True))[skip:]:
        shown.append(_argument(argument, default))
    if arguments.kwonlyargs:
        shown.append("*")
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        shown += [_argument(argument, default) for argument, default in pairs]
    return shown + ([f"**{_argument(arguments.kwarg, None)}"] if arguments.kwarg else [])


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    text = f"{argument.arg}: {ast.unparse(argument.annotation)}" if argument.annotation else argument.arg
    return text + (f" = {_default(default)}" if default else "")


def _default(node: ast.expr) -> str:
    """A default value; constants by their values, as a reader cannot look them up."""
    known = {"AUTO": "'auto'", "MOST_SEQUENCES": "16", "DEFAULT_LIMIT": "1500000000"}
    text = ast.unparse(node)
    return known.get(text, text)


def _described(node: ast.ClassDef | Function) -> str:
    text = ast.get_docstring(node)
    if not text:
        raise SystemExit(f"{node.name} has no docstring")
    return "\n".join(_blocks(text))


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs as they are; a paragraph of lines `name: what it is` as a list."""
    for block in text.split("\n\n"):
        items = re.split(r"\n(?=\w+(?:, \w+)*: )", block)
        if all(PARAMETER.match(item) for item in items):
            yield "\n".join(_item(item) for item in items) + "\n"
        elif block.startswith("    "):
            yield block + "\n"
        else:
            yield textwrap.fill(" ".join(block.split()), WIDTH, break_on_hyphens=False, break_long_words=False) + "\n"


def _item(item: str) -> str:
    match = PARAMETER.match(" ".join(item.split()))
    assert match
    names = ", ".join(f"`{name}`" for name in match[1].split(", "))
    text = f"- {names}: {match[2]}"
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with code 1 if the page is old")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.relative_to(ROOT)} is not what the docstrings say; run python tools/api_page.py")


if __name__ == "__main__":
    main()
