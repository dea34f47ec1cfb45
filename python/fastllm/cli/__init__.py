"""The command line: ``fastllm ...`` or ``python -m fastllm ...``. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fastllm.cli import bench, bench_serve, chat, evaluate, generate, info, quantize, serve
from fastllm.errors import FastLLMError, InvalidRequestError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    help="Run large language models in this process. Without a model, commands use the small one in the package. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if not is_asked:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(version("fastllm-runtime"))
    except PackageNotFoundError:  # run from a source tree
        print("not installed")
    raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def _common(version: _Version = False) -> None:
    pass


def _report(error: BaseException) -> None:
    # Text, not markup: messages hold brackets.
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text("error: ", style="red").append(str(error)))


def _with_exit_codes(command: Callable[..., None]) -> Callable[..., None]:
    """A failure is one line on standard error and an exit code; a traceback means a bug."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        try:
            command(**arguments)
            sys.stdout.flush()
        except InvalidRequestError as error:
            _report(error)
            raise typer.Exit(2) from None
        except FastLLMError as error:
            _report(error)
            raise typer.Exit(1) from None
        except BrokenPipeError:  # the reader has enough: `fastllm generate ... | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


for _name, _command in (
    ("generate", generate.run),
    ("chat", chat.run),
    ("serve", serve.run),
    ("info", info.run),
    ("quantize", quantize.run),
    ("eval", evaluate.run),
):
    app.command(_name)(_with_exit_codes(_command))

# `fastllm bench` measures the engine, `fastllm bench serve` a server.
_bench = typer.Typer(invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False)
_bench.callback()(_with_exit_codes(bench.run))
_bench.command("serve", context_settings={"allow_extra_args": True})(_with_exit_codes(bench_serve.run))
app.add_typer(_bench, name="bench")


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode gets question marks, not an exception.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app()
