"""
The native core of fastllm. The public interface is the package `fastllm`.
"""

from collections.abc import Mapping, Sequence
import enum
from typing import Annotated, overload

import numpy
from numpy.typing import NDArray


def end_of_interpreter() -> None:
    """
    The atexit hook: from now on, other threads that come back from native code wait for the end of the process.
    """

def cpu_isa_levels() -> list[str]:
    """
    Names of the instruction set levels of this machine, lowest first; each is a device "cpu:<name>".
    """

class OpsWeight:
    @overload
    def __init__(self, backend: OpsBackend, array: Annotated[NDArray, dict(writable=False)], dtype: str | None = None) -> None: ...

    @overload
    def __init__(self, backend: OpsBackend, codes: Annotated[NDArray, dict(writable=False)], scales: Annotated[NDArray, dict(writable=False)], zeros: Annotated[NDArray, dict(writable=False)] | None, *, group: int, format: str, act: str, scale_dtype: str) -> None: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def format(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

class OpsKvCache:
    def __init__(self, backend: OpsBackend, num_pages: int, num_kv_heads: int, head_dim: int, dtype: str) -> None: ...

    @property
    def num_pages(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def page_bytes(self, page: int) -> bytes: ...

class OpsSampleRow:
    def __init__(self, *, temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float, frequency_penalty: float, presence_penalty: float, seed: int, sequence: int, position: int, counts: Sequence[tuple[int, int, bool]], bias: Sequence[tuple[int, float]], allowed: Sequence[int], mask: Sequence[int], wants_logprob: bool, num_top: int, forced_token: int) -> None: ...

class OpsBackend:
    def __init__(self, device: str, num_threads: int = 0) -> None: ...

    @property
    def name(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    def empty(self, arg0: Sequence[int], arg1: str, /) -> object: ...

    def copy(self, arg0: OpsCallArrays, arg1: Annotated[NDArray, dict(writable=False)], arg2: NDArray, /) -> None: ...

class OpsCallArrays:
    def __init__(self, stream: int) -> None: ...

def ops_embed(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: OpsWeight, arg4: NDArray, arg5: float, /) -> None: ...

def ops_rms_norm(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: Annotated[NDArray, dict(writable=False)], arg4: NDArray, arg5: NDArray | None, arg6: float, arg7: float, arg8: Annotated[NDArray, dict(writable=False)] | None, /) -> None: ...

def ops_linear(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: OpsWeight, arg4: NDArray, arg5: Annotated[NDArray, dict(writable=False)] | None, /) -> None: ...

def ops_rope_table(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: Annotated[NDArray, dict(writable=False)], arg4: NDArray, arg5: NDArray, arg6: float, /) -> None: ...

def ops_rope_and_store(arg0: OpsBackend, arg1: OpsCallArrays, arg2: NDArray, arg3: NDArray, arg4: Annotated[NDArray, dict(writable=False)], arg5: Annotated[NDArray, dict(writable=False)] | None, arg6: Annotated[NDArray, dict(writable=False)] | None, arg7: Annotated[NDArray, dict(writable=False)], arg8: OpsKvCache, /) -> None: ...

def ops_paged_attention(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: OpsKvCache, arg4: Annotated[NDArray, dict(writable=False)], arg5: Annotated[NDArray, dict(writable=False)], arg6: Annotated[NDArray, dict(writable=False)], arg7: NDArray, arg8: float, arg9: int, arg10: float, arg11: Annotated[NDArray, dict(writable=False)] | None, /) -> None: ...

def ops_gated_activation(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: ActivationSpec, arg4: NDArray, /) -> None: ...

def ops_moe_route(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: int, arg4: RouteScore, arg5: bool, arg6: float, arg7: NDArray, arg8: NDArray, /) -> None: ...

def ops_moe_ffn(arg0: OpsBackend, arg1: OpsCallArrays, arg2: Annotated[NDArray, dict(writable=False)], arg3: Annotated[NDArray, dict(writable=False)], arg4: Annotated[NDArray, dict(writable=False)], arg5: OpsWeight, arg6: OpsWeight, arg7: ActivationSpec, arg8: NDArray, arg9: Annotated[NDArray, dict(writable=False)] | None, arg10: Annotated[NDArray, dict(writable=False)] | None, /) -> None: ...

def ops_add(arg0: OpsBackend, arg1: OpsCallArrays, arg2: NDArray, arg3: Annotated[NDArray, dict(writable=False)], arg4: Annotated[NDArray, dict(writable=False)] | None, /) -> None: ...

def ops_softcap(arg0: OpsBackend, arg1: OpsCallArrays, arg2: NDArray, arg3: float, /) -> None: ...

def ops_copy_pages(arg0: OpsBackend, arg1: OpsCallArrays, arg2: OpsKvCache, arg3: Annotated[NDArray, dict(writable=False)], arg4: Annotated[NDArray, dict(writable=False)], /) -> None: ...

def ops_sample(arg0: OpsBackend, arg1: OpsCallArrays, arg2: NDArray, arg3: Sequence[OpsSampleRow], /) -> list: ...

class ByteTable:
    """Bytes of each token id and whether it is special; immutable."""

    def __init__(self, tokens: Sequence[bytes], is_special: Sequence[int]) -> None: ...

    def __len__(self) -> int: ...

    def bytes(self, token: int) -> bytes:
        """Bytes of a token; empty for an id outside the table."""

    def is_special(self, token: int) -> bool: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool, strip_first_space: bool = False) -> str:
        """Text of a whole sequence; equals its streamed pieces, joined."""

class Detokenizer:
    """Ids of one sequence to valid UTF-8, piece by piece."""

    def __init__(self, byte_table: ByteTable | None, *, skip_special: bool = True, strip_first_space: bool = False) -> None: ...

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...

class StopMatcher:
    """
    Stop strings over text in pieces; feed() gives (safe text, index or -1).
    """

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool) -> None: ...

    def feed(self, text: bytes) -> tuple: ...

    def finish(self) -> bytes: ...

class TextPiece:
    @property
    def text(self) -> str: ...

    @property
    def stopped(self) -> bool: ...

    @property
    def stop_index(self) -> int: ...

class OutputText:
    """Text of a growing sequence: whole characters, up to a stop string."""

    def __init__(self, byte_table: ByteTable | None, stop: Sequence[str], *, include_stop: bool, skip_special: bool, strip_first_space: bool = False) -> None: ...

    def push(self, token: int) -> TextPiece: ...

    def finish(self) -> TextPiece: ...

class Activation(enum.Enum):
    SILU = 0

    GELU_TANH = 1

    CLAMPED_SWIGLU = 2

class RouteScore(enum.Enum):
    SOFTMAX = 0

    SOFTMAX_OF_TOP_K = 1

    SIGMOID = 2

class QkNorm(enum.Enum):
    NONE = 0

    PER_HEAD = 1

    FULL = 2

class NormSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class RopeSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class ActivationSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class AttentionSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class DenseFfnSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class MoeSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class LayerSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class ModelSpec:
    def __init__(self, **kwargs) -> None: ...

    def __getattr__(self, arg: str, /) -> object: ...

    def __repr__(self) -> str: ...

class TokenLogprobs:
    @property
    def token(self) -> int: ...

    @property
    def logprob(self) -> float: ...

    @property
    def rank(self) -> int: ...

    @property
    def top(self) -> list[tuple[int, float]]: ...

class RequestMetrics:
    @property
    def arrival_s(self) -> float: ...

    @property
    def first_scheduled_s(self) -> float: ...

    @property
    def first_token_s(self) -> float: ...

    @property
    def last_token_s(self) -> float: ...

    @property
    def num_prompt_tokens(self) -> int: ...

    @property
    def num_cached_tokens(self) -> int: ...

    @property
    def num_generated_tokens(self) -> int: ...

    @property
    def num_preemptions(self) -> int: ...

    @property
    def device_s(self) -> float: ...

    @property
    def kv_page_s(self) -> float: ...

class RequestDelta:
    @property
    def request_id(self) -> int: ...

    @property
    def index(self) -> int: ...

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def text(self) -> str: ...

    @property
    def logprobs(self) -> list[TokenLogprobs]: ...

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]: ...

    @property
    def metrics(self) -> RequestMetrics: ...

    @property
    def embedding(self) -> bytes:
        """
        float32 in the machine's byte order; empty but for the last delta of an embedding
        """

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def stop_reason(self) -> object: ...

    @property
    def error(self) -> object: ...

class FakeControls:
    """Steers the executor of make_fake_engine()."""

    @property
    def fail_in(self) -> int: ...

    @fail_in.setter
    def fail_in(self, arg: int, /) -> None: ...

    @property
    def delay_us(self) -> int: ...

    @delay_us.setter
    def delay_us(self, arg: int, /) -> None: ...

    @property
    def nan_token(self) -> int: ...

    @nan_token.setter
    def nan_token(self, arg: int, /) -> None: ...

    @property
    def num_bad_reads(self) -> int: ...

    @num_bad_reads.setter
    def num_bad_reads(self, arg: int, /) -> None: ...

    @property
    def num_steps(self) -> int: ...

    @num_steps.setter
    def num_steps(self, arg: int, /) -> None: ...

def make_fake_engine(config: EngineConfig, *, page_size: int, vocab_size: int) -> tuple[Engine, FakeControls]:
    """
    For tests: an engine whose next token is a hash of all tokens before, and the controls of its executor.
    """

def sampling_param_table() -> list:
    """
    Each sampling parameter: name, type, default (as a Python literal), range, limits of lists, help.
    """

class EngineConfig:
    def __init__(self, *, num_pages: int, max_model_len: int, max_num_seqs: int, max_num_batched_tokens: int, max_logit_rows: int, max_queue: int, enable_prefix_caching: bool, static_batching: bool = False, seed: int, eos_ids: Sequence[int], byte_table: ByteTable | None) -> None: ...

class Channel:
    """Where the results of requests go; see Engine.open_channel()."""

    def poll(self, timeout_s: float) -> list[RequestDelta]:
        """
        Takes all new results, at most one per sequence; waits up to timeout_s for one.
        """

    @property
    def is_closed(self) -> bool: ...

class Engine:
    """A running engine; made by Model.start()."""

    def open_channel(self) -> Channel: ...

    def submit(self, prompt_token_ids: Sequence[int], params: dict, channel: Channel, priority: int = 0, cache_salt: str = '', pooling: str = '', mask_key: int = 0, first_mask: bytes | None = None) -> int:
        """
        With pooling last or mean nothing is generated: the result is the prompt's embedding.
        """

    def poll_mask_tasks(self, timeout_s: float) -> list[tuple[int, int, int, int]]:
        """
        Waits for (mask_key, request_id, index, token): the mask after this token is wanted. Token -1: the request with this key has ended.
        """

    def reply_masks(self, replies: Sequence[tuple[int, int, bytes | None, str]]) -> None:
        """
        (request_id, index, mask, error): the mask, as bytes with the bit i % 8 of byte i // 8 set if token i is allowed. None: the sequence ends, because the grammar is complete or with this error.
        """

    def abort(self, request_id: int) -> None: ...

    def stats(self) -> dict: ...

    def expert_use(self) -> bytes:
        """
        [layers, experts, 2] int64 in the machine's byte order: rows that chose the expert, and times that its weights were read. Empty for a model without experts.
        """

    def close(self) -> None: ...

    @property
    def is_closed(self) -> bool: ...

def dequantize(codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], table: Annotated[NDArray[numpy.float32], dict(shape=(256), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], *, zeros: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None, offsets: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None = None, group_size: int = 0, group_of: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None = None, factor: float = 1.0) -> None:
    """
    out[r, k] = ((table[codes[r, k]] - zeros[r, g]) * scales[r, g] - offsets[r, g]) * factor, g = group_of[k] or k // group_size; each operation rounds once to float32.
    """

def unpack_codes(words: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), device='cpu', writable=False)], out: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], *, bits: int, positions: Sequence[int], packs_rows: bool, transpose: bool) -> None:
    """
    Codes of 4 or 8 bits out of 32-bit words; code j of a word lies at bit positions[j] * bits. A word holds codes of consecutive rows or columns; `out` is the matrix of codes or its transpose.
    """

def quantize_rows(values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], bits: int, group: int, *, symmetric: bool = True, clip_search: bool = True, scale_dtype: str = 'float16') -> tuple:
    """
    Rounds rows to nearest, as LLM(quantization=...) does: values [R, K] float32 -> (codes uint8 [R, K], scales float32 [R, groups], exact in scale_dtype, zeros uint8 [R, groups] or None). bits 4 or 8; group: columns that share a scale, 0 for whole rows. W = (code - zero) * scale, with zero = 8 or 128 if symmetric. clip_search takes the scale with the least squared error out of nine, else the one that reaches the largest value.
    """

class MatrixFormat:
    """How one matrix of codes is held; see csrc/ops/weights.h."""

    def __init__(self, *, format: str, group: int, scale_dtype: str, has_zeros: bool, act: str) -> None: ...

def matrix_shapes(spec: ModelSpec) -> list:
    """
    The matrices of a model: (slot, N, K, experts, whether it is always float32).
    """

def checksum(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> int:
    """64 bits that change when the bytes do; without the GIL."""

class Model:
    """A model on a device: plan its memory, fill its weights, start engines."""

    def __init__(self, spec: ModelSpec, *, device: str, num_threads: int, dtype: str, formats: Mapping[str, MatrixFormat]) -> None:
        """`dtype` is the type of the matrices that `formats` does not name."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def backend_name(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    @property
    def shares_host_memory(self) -> bool:
        """Whether the device's memory is the host's."""

    @property
    def device_free_bytes(self) -> int:
        """Free memory of the device; 0 where it is the host's."""

    @property
    def num_graphs(self) -> int:
        """Recorded steps that the device keeps now; 0 where it has none."""

    def weight_bytes(self) -> int: ...

    def step_bytes(self, *, max_tokens: int, max_seqs: int, max_logit_rows: int, max_pages_per_seq: int) -> int: ...

    def kv_page_bytes(self, kv_dtype: str) -> int: ...

    def allocate_weights(self) -> None: ...

    def fill_matrix(self, *, name: str, address: int, dtype: str, num_rows: int, num_cols: int, row_stride: int, col_stride: int, row_begin: int, expert: int) -> None: ...

    def fill_codes(self, *, name: str, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], zeros: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, row_begin: int, expert: int) -> None:
        """
        Rows of an integer matrix: codes [R, K], scales [R, groups], zeros [R, groups] or None.
        """

    def fill_vector(self, *, name: str, address: int, dtype: str, count: int, stride: int, offset: int) -> None: ...

    def fill_random(self, seed: int) -> None: ...

    def unfilled(self) -> list[str]: ...

    def measure_read_bandwidth(self, num_threads: int) -> float:
        """Bytes per second at which the weights are read; 0: not known."""

    def matrix_bytes(self) -> dict:
        """Bytes of each matrix as it is held."""

    def weight_memory(self) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """
        All weights as they lie in memory: bytes that a packed cache keeps. Only with shares_host_memory.
        """

    def mark_filled(self) -> None:
        """After weight_memory() was written whole."""

    def layout_fingerprint(self) -> int:
        """Models with the same number hold the same weights as the same bytes."""

    def start(self, config: EngineConfig, kv_dtype: str) -> Engine: ...

class Scorer:
    """Whole rows of logits of one sequence at a time, for evaluation."""

    def __init__(self, model: Model, *, max_tokens: int, chunk: int, kv_dtype: str) -> None: ...

    def append(self, token_ids: Sequence[int], logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """
        Appends tokens to the sequence; logits [rows, V] gets what follows each of the last `rows` of them.
        """

    def clear(self) -> None:
        """Begins the next sequence."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

def resolve_device(device: str) -> str:
    """
    The device that "auto" stands for on this machine; any other string as it is.
    """

def measure_limits(num_threads: int, isa: str | None = None) -> dict:
    """
    Read bandwidth (bytes/s) and peak arithmetic (operations/s) of this processor at a level, by default the best, measured now.
    """

def default_num_threads() -> int:
    """
    Threads that this process should use: affinity, cgroup quota, physical cores.
    """
