"""Large language models inside your own Python process.

>>> from fastllm import LLM, SamplingParams
>>> with LLM() as llm:
...     print(llm.generate("The os module", SamplingParams(max_tokens=16))[0].outputs[0].text)
"""

from fastllm.async_llm import AsyncLLM
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
from fastllm.params import SamplingParams

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
    "UnsupportedModelError",
]
__version__ = "0.1.0"
