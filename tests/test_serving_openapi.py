"""The OpenAPI document is true: no request gets a 5xx, or an answer that the document does not describe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serving_process import ServerProcess

CHECKS: list[Any] = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection, unsupported_method,
]  # fmt: skip
POSTED = ("/v1/completions", "/v1/chat/completions", "/v1/score")


@pytest.fixture(scope="module")
def server(tiny_bundle: tuple[Path, Path]) -> Iterator[ServerProcess]:
    limits = ("--max-new-bytes", 12, "--max-prompt-bytes", 2000, "--queue", 500)
    with ServerProcess(tiny_bundle[1], *limits) as process:
        yield process


def check_operation(server: ServerProcess, path: str, count: int, seed: int) -> None:
    """Send so many requests to an operation: two thirds meet its schema, the others do not."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[path]["POST" if path in POSTED else "GET"]
    modes = [GenerationMode.POSITIVE, GenerationMode.POSITIVE]
    if path in POSTED:
        modes.append(GenerationMode.NEGATIVE)
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(case=cases)
    def check(case: schemathesis.Case) -> None:
        case.validate_response(case.call(base_url=server.url, timeout=60), checks=CHECKS)

    check()


@pytest.mark.parametrize("path", [*POSTED, "/v1/models", "/v1/models/{model}", "/health", "/openapi.json"])
def test_answers_are_documented(server: ServerProcess, path: str) -> None:
    check_operation(server, path, 25 if path in POSTED else 3, 1)
    assert server.complete("x", max_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTED)
def test_many_answers_are_documented(server: ServerProcess, path: str) -> None:
    check_operation(server, path, 700, 2)
    assert server.complete("x", max_tokens=1)
