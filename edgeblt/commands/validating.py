"""The command that compares a bundle with its checkpoint: validate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeblt.commands.options import (
    BundlePath,
    JsonFile,
    Patcher,
    Providers,
    Quiet,
    Strict,
    Threads,
    Threshold,
    listed_providers,
)
from edgeblt.commands.results import check_results, deliver
from edgeblt.errors import EdgebltError
from edgeblt.installing import require_workbench
from edgeblt.report import terminal

if TYPE_CHECKING:  # the runtime, slow to import
    from edgeblt.measure.reference import Text
    from edgeblt.measure.validation import Limits, Report


def validate(
    bundle: BundlePath,
    reference: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="The checkpoint to compare with, run by transformers.")
    ] = None,
    patcher: Patcher = None,
    reference_logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Or what --save-reference-logits wrote, texts included.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A text to compare on, any bytes; may be repeated. By default six of ours."),
    ] = None,
    noise: Annotated[
        bool, typer.Option("--noise/--no-noise", help="Also compare on noised variants of each text.")
    ] = False,
    provider: Providers = None,
    threads: Threads = None,
    threshold: Threshold = None,
    json_file: JsonFile = None,
    save_reference_logits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the reference for devices without transformers.")
    ] = None,
    max_bpb_increase: Annotated[
        float | None, typer.Option(help="Exit with code 1 if bits per byte rise by more than this.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the mean KL divergence is more than this, in nats.")
    ] = None,
    min_boundary_agreement: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the share of equal patch decisions is below this.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the share of equal likeliest bytes is below this.")
    ] = None,
    min_greedy_agreement: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the share of equal bytes generated is below this.")
    ] = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Compare a bundle with its checkpoint.

    Both read texts and continue their beginnings; compared are bits per byte, patch boundaries, logits and what is
    generated. Texts are cut into rows of 2,048 bytes, as transformers keeps no state. Limits hold for
    every text. Only --reference needs the extra `workbench`. For example:

    \b
    edgeblt validate my-bundle --reference path/to/checkpoint --min-top1 0.99
    edgeblt validate my-bundle --reference-logits saved-logits --max-kl 0.01
    """
    from edgeblt.measure.reference_file import ReferenceFile
    from edgeblt.measure.validation import Limits
    from edgeblt.measure.validation import validate as validate_models
    from edgeblt.model import Model, open_model

    limits = Limits(max_bpb_increase, max_kl, min_boundary_agreement, min_top1, min_greedy_agreement)
    _check_reference(reference, reference_logits, bool(text) or noise, save_reference_logits, patcher, strict)
    check_results(json_file, new_file=save_reference_logits)
    providers = listed_providers(provider)

    def open_models() -> list[Model]:
        return [open_model(bundle, name, threads, threshold=threshold) for name in providers]

    if reference_logits:
        recorded = ReferenceFile(reference_logits)
        recording, reports = recorded.recording, validate_models(open_models(), recorded)
    else:
        assert reference
        require_workbench()
        texts = _texts(text, noise)
        models = open_models()  # first: quicker to fail than torch to load
        from edgeblt.export.reference import validate_against

        recording = None
        reports = validate_against(reference, models, texts, save_reference_logits, patcher, strict=strict)
    deliver(reports, lambda: terminal.show_validation(reports, recording), json_file)
    _keep_to(limits, reports)


def _texts(paths: list[Path] | None, noise: bool) -> "list[Text]":
    """The files' contents, or else the held-out texts; with `noise`, also noised variants of each."""
    from edgeblt.measure.reference import with_noise
    from edgeblt.measure.texts import held_out_texts, texts_of_files

    texts = texts_of_files(paths) if paths else held_out_texts()
    return with_noise(texts) if noise else texts


def _check_reference(
    reference: Path | None,
    reference_logits: Path | None,
    own_texts: bool,
    save_reference_logits: Path | None,
    patcher: Path | None,
    strict: bool,
) -> None:
    """Raises EdgebltError unless there is one reference, and only options that go with it."""
    if reference is None and reference_logits is None:
        raise EdgebltError("there is nothing to compare with; give --reference CHECKPOINT or --reference-logits FILE")
    if reference and reference_logits:
        raise EdgebltError(f"{reference} and {reference_logits} are two references; give one of them")
    if reference_logits and own_texts:
        raise EdgebltError(f"{reference_logits} has texts of its own; leave out --text and --noise")
    if reference_logits and save_reference_logits:
        raise EdgebltError(f"{reference_logits} is saved already; give --save-reference-logits with --reference only")
    if reference_logits and patcher:
        raise EdgebltError(f"{reference_logits} needs no entropy model; give --patcher with --reference only")
    if reference_logits and strict:
        raise EdgebltError(f"{reference_logits} has no configuration; give --strict with --reference only")


def _keep_to(limits: "Limits", reports: "tuple[Report, ...]") -> None:
    """Exits with code 1 if a report exceeds a limit, after a line on stderr for each limit exceeded."""
    failures = []
    for report in reports:
        where = f"on {report.provider}, " if len(reports) > 1 else ""
        failures += [where + failure for failure in limits.violations(report)]
    for failure in failures:
        typer.echo(f"edgeblt: {failure}", err=True)
    if failures:
        raise typer.Exit(1)
