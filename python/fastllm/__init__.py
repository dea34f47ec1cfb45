"""Large language models inside your own Python process.

>>> from fastllm import LLM, SamplingParams
>>> with LLM() as llm:
...     print(llm.generate("The os module", SamplingParams(max_tokens=16))[0].outputs[0].text)
"""

from typing import TYPE_CHECKING, Any

from fastllm.errors import (
    CheckpointError,
    DeviceError,
    EngineClosedError,
    FastLLMError,
    InternalError,
    InvalidRequestError,
    OutOfMemoryError,
    QueueFullError,
    UnsupportedModelError,
)
from fastllm.llm import LLM
from fastllm.outputs import CompletionOutput, EmbeddingOutput, Logprob, RequestMetrics, RequestOutput
from fastllm.params import SamplingParams, StructuredOutputsParams
from fastllm.quantize import quantize  # the function takes the name of its package

if TYPE_CHECKING:
    from fastllm.async_llm import AsyncLLM

__all__ = [
    "LLM",
    "AsyncLLM",
    "CheckpointError",
    "CompletionOutput",
    "DeviceError",
    "EmbeddingOutput",
    "EngineClosedError",
    "FastLLMError",
    "InternalError",
    "InvalidRequestError",
    "Logprob",
    "OutOfMemoryError",
    "QueueFullError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "UnsupportedModelError",
    "quantize",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """AsyncLLM when it is first asked for: asyncio takes half of the time of `import fastllm`."""
    if name != "AsyncLLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastllm.async_llm import AsyncLLM

    return AsyncLLM
