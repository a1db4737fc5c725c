"""Command that serves bundles: serve."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from edgeblt.commands.options import Provider, Quiet, Threads, Threshold, Verify
from edgeblt.errors import EdgebltError

KEY_VARIABLE = "EDGEBLT_API_KEY"
_PACKAGES = ("starlette", "uvicorn", "prometheus_client", "jinja2")

BundlePaths = Annotated[
    list[Path], typer.Argument(metavar="BUNDLE...", help="Directories that `edgeblt export` wrote; `model` chooses.")
]
Alias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Name of a bundle for clients, instead of its directory's; one for each bundle."),
]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen at; by default this machine only.")]
Port = Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")]
ApiKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help=f"Key that clients must send as bearer token; better in {KEY_VARIABLE}."),
]
NoAuth = Annotated[bool, typer.Option("--no-auth", help="Serve other machines without a key.")]
Cors = Annotated[
    list[str] | None,
    typer.Option(metavar="ORIGIN", help="Origin whose pages may call the server; may be given several times."),
]
Slots = Annotated[int, typer.Option(help="Texts generated at once, for each bundle.")]
Queue = Annotated[int, typer.Option(help="Texts that may wait for a slot; more are refused with 429.")]
PrefixCache = Annotated[
    int,
    typer.Option(
        "--prefix-cache-mb", metavar="MB", help="Memory for states of recent prompts, for each bundle; 0 keeps none."
    ),
]
ChatTemplate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Jinja template of chats, instead of a plain one.")
]
MaxBodyBytes = Annotated[int, typer.Option(help="Largest body of a request.")]
MaxPromptBytes = Annotated[int, typer.Option(help="Longest prompt.")]
MaxGrammarBytes = Annotated[int, typer.Option(help="Largest schema, regular expression or grammar.")]
MaxNewBytes = Annotated[int, typer.Option(help="Longest answer that may be asked for.")]
MaxConnections = Annotated[int, typer.Option(help="Most open connections.")]
RequestTimeout = Annotated[float, typer.Option(metavar="SECONDS", help="Longest time of a request.")]
SlowTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="Longest time to send a request's head, and its body.")
]
Grace = Annotated[float, typer.Option(metavar="SECONDS", help="Time to finish what runs after SIGTERM.")]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Show the beginning of each prompt in the log.")]


def serve(
    bundles: BundlePaths,
    alias: Alias = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key: ApiKey = None,
    no_auth: NoAuth = False,
    cors: Cors = None,
    slots: Slots = 8,
    queue: Queue = 64,
    prefix_cache_mb: PrefixCache = 256,
    chat_template: ChatTemplate = None,
    max_body_bytes: MaxBodyBytes = 2_000_000,
    max_prompt_bytes: MaxPromptBytes = 65_536,
    max_grammar_bytes: MaxGrammarBytes = 16_384,
    max_new_bytes: MaxNewBytes = 16_384,
    max_connections: MaxConnections = 512,
    request_timeout: RequestTimeout = 600.0,
    slow_timeout: SlowTimeout = 20.0,
    grace: Grace = 30.0,
    log_prompts: LogPrompts = False,
    provider: Provider = None,
    threads: Threads = None,
    threshold: Threshold = None,
    verify: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Serve bundles over HTTP, by OpenAI's protocol.

    Existing clients work unchanged, and a browser gets a page. Texts that are generated at the same time share steps.
    docs/serving.md says what is honoured. For example:

    \b
    edgeblt serve my-bundle
    curl localhost:8080/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once upon a time"}'
    """
    _require_packages()
    from edgeblt.bundle.text_files import read_utf8
    from edgeblt.serving.options import ServerOptions, ServingLimits
    from edgeblt.serving.server import serve as serve_bundles

    options = ServerOptions(
        host=host,
        port=port,
        api_key=os.environ.get(KEY_VARIABLE) if api_key is None else api_key,
        no_auth=no_auth,
        cors=tuple(cors or ()),
        grace_s=grace,
        log_prompts=log_prompts,
        chat_template=None if chat_template is None else read_utf8(chat_template),
    )
    limits = ServingLimits(
        slots=slots,
        queue=queue,
        body_bytes=max_body_bytes,
        prompt_bytes=max_prompt_bytes,
        grammar_bytes=max_grammar_bytes,
        new_bytes=max_new_bytes,
        request_s=request_timeout,
        slow_s=slow_timeout,
        connections=max_connections,
    )
    serve_bundles(
        bundles,
        options,
        limits,
        names=tuple(alias or ()),
        provider=provider,
        threads=threads,
        threshold=threshold,
        verify=verify,
        prefix_cache_bytes=_bytes(prefix_cache_mb),
    )


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        from edgeblt.installing import install_hint

        raise EdgebltError(f"serving needs {', '.join(missing)}; install what is missing with: {install_hint('serve')}")


def _bytes(megabytes: int) -> int:
    if not 0 <= megabytes <= 1_000_000:
        raise EdgebltError(f"--prefix-cache-mb is {megabytes}; it must be from 0 to 1,000,000")
    return megabytes << 20
