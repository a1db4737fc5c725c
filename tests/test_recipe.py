"""Recipes: those of the package, what each setting means, and one sentence for everything else."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoint_oracle import assert_one_sentence
from edgeblt.bundle.contract import STAGES
from edgeblt.bundle.dataclass_json import dataclass_document, parse_dataclass
from edgeblt.errors import EdgebltError
from edgeblt.quant.formats.weight_format import BLOCK_SIZES, Codebook, Floating, Linear
from edgeblt.quant.recipes.recipe import HASH_TABLES, Recipe, WeightRecipe, load_recipe, packaged_recipes

MATRICES = [*(f"{stage}.layers.0.query" for stage in STAGES), "patcher.head", "decoder.cross.2.output"]


def recipe_file(directory: Path, text: str | bytes) -> Path:
    path = directory / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", packaged_recipes())
def test_packaged_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    parts = (recipe.patcher, recipe.encoder, recipe.global_, recipe.decoder, recipe.tables)
    for part in (*parts, recipe.heads or recipe.decoder, recipe.embeddings or recipe.encoder):
        assert part.describe().startswith(part.format) and part.describe().isprintable()
    assert parse_dataclass(Recipe, dataclass_document(recipe), "a compressed checkpoint") == recipe
    for tensor in (*MATRICES, HASH_TABLES, "patcher.embedding", "encoder.embedding"):
        for shape in ((260, 1), (260, 40), (1024, 1024)):
            assert recipe.format(tensor, shape).describe()


def test_the_simplest_recipes_are_there() -> None:
    assert {"fp32", "int8"} <= set(packaged_recipes())
    assert load_recipe("fp32") == Recipe("fp32")
    assert load_recipe("int8").format("global.layers.0.up", (512, 256)) == Linear(8, 128, symmetric=True)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    text = """
        [patcher]
        format = "fp16"
        [encoder]
        format = "int8"
        block_size = 0
        input_block_size = 64
        symmetric = true
        method = "nearest"
        [global]
        format = "int4"
        method = "gptq"
        [tables]
        format = "int4"
        block_size = 128
        [heads]
        format = "int8"
        [embeddings]
        format = "fp16"
        """
    recipe = load_recipe(recipe_file(tmp_path, text))
    assert recipe == Recipe(
        "mine",
        patcher=WeightRecipe("fp16"),
        encoder=WeightRecipe("int8", 0, 64, True, "nearest"),
        global_=WeightRecipe("int4", method="gptq"),
        tables=WeightRecipe("int4", 128),
        heads=WeightRecipe("int8"),
        embeddings=WeightRecipe("fp16"),
    )
    assert load_recipe(str(tmp_path / "mine.toml")) == recipe
    assert recipe.needs_calibration
    assert load_recipe(recipe_file(tmp_path, 'name = "another"\n')) == Recipe("another")


def test_a_file_beside_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone always means the package's recipe; a path always the file."""
    (tmp_path / "fp32").write_text('[encoder]\nformat = "fp16"')
    monkeypatch.chdir(tmp_path)
    assert load_recipe("fp32") == Recipe("fp32")
    assert load_recipe("./fp32").encoder == WeightRecipe("fp16")
    assert load_recipe(tmp_path / "fp32").encoder == WeightRecipe("fp16")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (WeightRecipe(), "fp32"),
        (WeightRecipe("fp16"), "fp16"),
        (WeightRecipe("nf4"), "nf4"),
        (WeightRecipe("int8"), "int8, one block a row, least-squares"),
        (WeightRecipe("int4"), "int4, blocks of 32, least-squares"),
        (WeightRecipe("int4", 128, symmetric=True, method="gptq"), "int4, blocks of 128, symmetric, gptq"),
        (WeightRecipe("int8", 0, 32, method="nearest"), "int8, one block a row, inputs in 32, nearest"),
    ],
)
def test_descriptions(part: WeightRecipe, text: str) -> None:
    assert part.describe() == text


# name, shape -> format


def test_vectors_stay_fp32() -> None:
    for format in ("fp16", "int8", "int4", "nf4", "fp4"):
        part = WeightRecipe(format)
        recipe = Recipe("r", part, part, part, part)
        for name in ("patcher.norm", "encoder.layers.0.attention_norm", "decoder.cross.0.key_norm"):
            assert recipe.format(name, (64,)) == Floating(32)


@pytest.mark.parametrize("codebook", ["nf4", "fp4"])
def test_embeddings_have_no_codebook(codebook: str) -> None:
    part = WeightRecipe(codebook)
    recipe = Recipe("r", part, part, part, part, WeightRecipe("int4"))
    for stage in ("patcher", "encoder"):
        assert recipe.format(f"{stage}.embedding", (260, 64)) == Floating(16)
    for name in MATRICES:
        assert recipe.format(name, (64, 30)) == Codebook(codebook, 64)
    assert recipe.format(HASH_TABLES, (6000, 64)) == Linear(4, 32, symmetric=False)


def test_each_part_has_its_own() -> None:
    formats = ("int8", "int4", "fp16", "fp32", "int8")
    parts = [WeightRecipe(format, 64 if format.startswith("int") else None) for format in formats]
    recipe = Recipe("r", parts[0], parts[1], parts[2], parts[3], parts[4])
    expected = [Linear(8, 64, False), Linear(4, 64, False), Floating(16), Floating(32)]
    for stage, format in zip(("patcher", "encoder", "global", "decoder"), expected, strict=True):
        assert recipe.format(f"{stage}.layers.3.down", (10, 64)) == format
    assert recipe.format("encoder.patch_projection", (10, 64)) == Linear(4, 64, False)
    assert recipe.format("encoder.embedding", (260, 64)) == Linear(4, 64, False)
    assert recipe.format("decoder.head", (260, 64)) == Floating(32)
    assert recipe.format(HASH_TABLES, (100, 64)) == Linear(8, 64, False)


def test_heads_and_embeddings_come_before_their_stages() -> None:
    part, own = WeightRecipe("int4"), WeightRecipe("int8", 64)
    names = (
        "patcher.head",
        "decoder.head",
        "patcher.embedding",
        "encoder.embedding",
        "encoder.layers.0.up",
        HASH_TABLES,
    )
    for heads, embeddings in ((own, None), (None, own), (own, own)):
        recipe = Recipe("r", part, part, part, part, part, heads, embeddings)
        expected = [8 if heads else 4] * 2 + [8 if embeddings else 4] * 2 + [4, 4]
        formats = [recipe.format(name, (260, 64)) for name in names]
        assert [format.bits for format in formats if isinstance(format, Linear)] == expected


@pytest.mark.parametrize("columns", [1, 8, 16, 24, 40, 48, 96, 100, 128, 160, 192, 256, 384, 1000, 1024])
@pytest.mark.parametrize("wanted", BLOCK_SIZES)
def test_blocks_fit_the_columns(wanted: int, columns: int) -> None:
    """No larger than asked for, and no row is filled up if any size avoids it."""
    format = WeightRecipe("int4", wanted).matrix_format(columns)
    assert isinstance(format, Linear) and format.block_size is not None
    fitting = [size for size in BLOCK_SIZES if size <= wanted and columns % size == 0]
    assert format.block_size == (fitting[-1] if fitting else wanted)


@pytest.mark.parametrize(
    ("part", "columns", "format"),
    [
        (WeightRecipe("int4"), 1024, Linear(4, 32, False)),
        (WeightRecipe("int8"), 1024, Linear(8, None, False)),
        (WeightRecipe("int8", 0, symmetric=True), 77, Linear(8, None, True)),
        (WeightRecipe("int4", 0), 1024, Linear(4, None, False)),
        (WeightRecipe("int8", 0, 64), 1024, Linear(8, None, False, input_block_size=64)),
        (WeightRecipe("int8", 0, 64), 48, Linear(8, None, False, input_block_size=16)),
        (WeightRecipe("int8", 256, 64), 1024, Linear(8, 256, False, input_block_size=64)),
        (WeightRecipe("int8", 256, 64), 96, Linear(8, 32, False)),  # both become 32: nothing to tell apart
        (WeightRecipe("int4", 64, 64), 1024, Linear(4, 64, False)),
        (WeightRecipe("int4", 128, 64), 100, Linear(4, 128, False, input_block_size=64)),
    ],
)
def test_formats_of_matrices(part: WeightRecipe, columns: int, format: Linear) -> None:
    assert part.matrix_format(columns) == format


@pytest.mark.parametrize("columns", range(1, 300, 7))
def test_input_blocks_are_parts_of_blocks(columns: int) -> None:
    """The operator repeats scales: a block of the format is some of its own."""
    for block in BLOCK_SIZES:
        for inputs in BLOCK_SIZES:
            if inputs <= block:
                format = WeightRecipe("int8", block, inputs).matrix_format(columns)
                assert isinstance(format, Linear) and format.block_size
                assert format.block_size % (format.input_block_size or format.block_size) == 0


def test_what_needs_calibration() -> None:
    exact, gptq = WeightRecipe("int4"), WeightRecipe("int8", method="gptq")
    assert not Recipe("r", exact, exact, exact, exact, exact).needs_calibration
    assert not Recipe("r", exact, heads=exact, embeddings=exact).needs_calibration
    for stage in ("patcher", "encoder", "global_", "decoder", "heads"):
        recipe = replace(Recipe("r"), **{stage: gptq})  # type: ignore[arg-type]  # stages are not the only fields
        assert recipe.needs_calibration and recipe.needs_text
    assert Recipe("r", table_hits=0.9).needs_text and not Recipe("r", table_hits=0.9).needs_calibration


# What is refused.

GARBAGE: list[tuple[str, str]] = [
    ("nonsense = 1", "nonsense"),
    ("[decoders]\nformat = 'int8'", "decoders"),
    ("[global_]\nformat = 'int8'", "global_"),
    ("encoder = 'int8'", "encoder must be"),
    ("encoder = []", "encoder must be"),
    ("encoder = 1979-05-27", "encoder must be"),
    ("name = 3", "name is 3"),
    ("name = ['a']", "name is ['a']"),
    ("[[encoder]]\nformat = 'int8'", "encoder must be"),
    ("[encoder]\nformat = 'int3'", "format is 'int3'"),
    ("[encoder]\nformat = 8", "format is 8"),
    ("[encoder]\nformat = ''", "format is ''"),
    ("[encoder]\nformat = 'INT8'", "format is 'INT8'"),
    ("[encoder]\nformat = ['int8']", "format is ['int8']"),
    ("[encoder]\nformat.int8 = true", "format is {'int8': True}"),
    (f"[encoder]\nformat = '{'x' * 5000}'", "encoder: format is 'xxx"),
    ("[encoder]\nformat = \"a\\nb\\u001b\"", "format is 'a\\nb\\x1b'"),
    ("[encoder]\nformat = 'int8'\nblock_size = 24", "block_size is 24"),
    ("[encoder]\nformat = 'int8'\nblock_size = -1", "block_size is -1"),
    ("[encoder]\nformat = 'int8'\nblock_size = 1" + "0" * 60, "block_size is 1000"),
    ("[encoder]\nformat = 'int8'\nblock_size = 1" + "0" * 5000, "is not TOML (Exceeds the limit"),
    ("[encoder]\nformat = 'int8'\nblock_size = 0x1" + "0" * 5000, "block_size is a number of thousands of digits"),
    ("[encoder]\nformat = 'int8'\nblock_size = [0x1" + "0" * 5000 + "]", "block_size is a number of thousands"),
    ("table_hits = 0x1" + "0" * 5000, "table_hits is a number of thousands of digits"),
    ("table_hits = 1" + "0" * 5000, "is not TOML (Exceeds the limit"),
    ("table_hits = 1e400", "table_hits is inf"),
    ("[encoder]\nformat = 'int8'\nblock_size = 32.0", "block_size is 32.0"),
    ("[encoder]\nformat = 'int8'\nblock_size = true", "block_size is True"),
    ("[encoder]\nformat = 'int8'\nblock_size = '32'", "block_size is '32'"),
    ("[encoder]\nformat = 'int8'\nblock_size = nan", "block_size is nan"),
    ("[encoder]\nformat = 'int8'\nblock_size = [32]", "block_size is [32]"),
    ("[encoder]\nformat = 'int8'\ninput_block_size = 0", "input_block_size is 0"),
    ("[encoder]\nformat = 'int8'\ninput_block_size = 7", "input_block_size is 7"),
    ("[encoder]\nformat = 'int8'\nblock_size = 32\ninput_block_size = 64", "input_block_size is 64"),
    ("[encoder]\nformat = 'int4'\ninput_block_size = 64", "input_block_size is 64"),
    ("[encoder]\nformat = 'int4'\nsymmetric = 1", "symmetric is 1"),
    ("[encoder]\nformat = 'int4'\nsymmetric = 'yes'", "symmetric is 'yes'"),
    ("[encoder]\nformat = 'int4'\nmethod = 'best'", "method is 'best'"),
    ("[encoder]\nformat = 'int4'\nmethod = {gptq = true}", "method is {'gptq': True}"),
    ("[encoder]\nformat = 'int4'\nblocksize = 32", "blocksize"),
    ("[encoder]\nformat = 'int4'\n[encoder.down]\nformat = 'int8'", "down"),
    ("[encoder]\nformat = 'nf4'\nblock_size = 64", "nf4 has no other settings"),
    ("[encoder]\nformat = 'fp16'\nsymmetric = true", "fp16 has no other settings"),
    ("[encoder]\nmethod = 'gptq'", "fp32 has no other settings"),
    ("[tables]\nformat = 'nf4'", "tables: nf4 has no lookup"),
    ("[tables]\nformat = 'fp4'", "tables: fp4 has no lookup"),
    ("[tables]\nformat = 'int4'\nmethod = 'gptq'", "tables: gptq"),
    ("[embeddings]\nformat = 'nf4'", "embeddings: nf4 has no lookup"),
    ("[embeddings]\nformat = 'int8'\nmethod = 'gptq'", "embeddings: gptq"),
    ("[heads]\nformat = 'int9'", "heads: format is 'int9'"),
    ("[encoder]\nformat = 'int8'\n[encoder]\nformat = 'int4'", "is not TOML"),
    ("[encoder\nformat = 'int8'", "is not TOML"),
    ("format = int8", "is not TOML"),
    ('{"encoder": {"format": "int8"}}', "is not TOML"),
    ("x = " + "[" * 5000, "is not TOML"),
    ("x = " + "{a=" * 5000, "is not TOML"),
    ("x = '" + "\0" + "'", "is not TOML"),
    ("x" + ".x" * 3000 + " = 1", "unknown field"),
    ("# " + "x" * (1 << 16), "is larger than 65536 bytes"),
    ("'" + "k" * 5000 + "' = 1", "unknown field 'kkk"),
    ("\"a\\nb\" = 1", "unknown field 'a\\nb'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), GARBAGE, ids=[f"{said[:30]!a}-{n}" for n, (_, said) in enumerate(GARBAGE)])
def test_files_that_are_no_recipes(text: str, said: str, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, text)
    with pytest.raises(EdgebltError) as refused:
        load_recipe(path)
    assert_one_sentence(str(refused.value).replace(str(tmp_path), ""))
    assert str(path) in str(refused.value) and said in str(refused.value), refused.value


@pytest.mark.parametrize("content", [b"\xff\xfe[\x00", b"\x80", b"name = '\xed\xa0\x80'"])
def test_files_that_are_no_text(content: bytes, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, content)
    with pytest.raises(EdgebltError, match="is not TOML") as refused:
        load_recipe(path)
    assert_one_sentence(str(refused.value).replace(str(tmp_path), ""))


def to_missing(path: Path) -> None:
    assert not path.exists()


def to_pipe(path: Path) -> None:
    os.mkfifo(path)


def to_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [to_missing, Path.mkdir, to_pipe, to_loop], ids=lambda make: make.__name__)
def test_paths_that_are_no_files(make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    make(path)
    with pytest.raises(
        EdgebltError, match=r"there is no recipe '.*mine\.toml'; use one of fp16, fp32, .*, or the path"
    ) as refused:
        load_recipe(path)
    assert_one_sentence(str(refused.value).replace(str(tmp_path), ""))


@pytest.mark.parametrize("name", ["int5", "", ".", "..", "/", "../recipes/int8", "a\nb", "a\0b", "x" * 5000, "\ud800"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(EdgebltError, match="there is no recipe") as refused:
        load_recipe(name)
    assert_one_sentence(str(refused.value))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    path = recipe_file(tmp_path, "")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(EdgebltError, match=r"mine\.toml cannot be read \(Permission denied\); give a TOML file"):
        load_recipe(path)
