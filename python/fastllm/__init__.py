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
from fastllm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from fastllm.params import SamplingParams
from fastllm.quantize import quantize  # hides the package of that name, which stays importable from

__all__ = [
    "LLM",
    "AsyncLLM",
    "CheckpointError",
    "CompletionOutput",
    "DeviceError",
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
    "quantize",
]
__version__ = "0.1.0"
