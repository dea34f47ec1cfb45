"""The command line: ``fastllm ...`` or ``python -m fastllm ...``. Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.markup import escape

from fastllm.cli import bench, chat, generate, info, serve
from fastllm.errors import FastLLMError, InvalidRequestError

app = typer.Typer(
    help="Run large language models in this process. Without a model, commands use the small one in the package.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.run)
app.command("chat")(chat.run)
app.command("serve")(serve.run)
app.command("bench")(bench.run)
app.command("info")(info.run)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except InvalidRequestError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", markup=True, highlight=False)
        sys.exit(2)
    except FastLLMError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", markup=True, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
