"""One loaded model and its engine: what ``LLM`` and ``AsyncLLM`` share. Loading, planning, submitting, closing."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastllm import _core, memory, models
from fastllm.checkpoint import loader
from fastllm.checkpoint.config import Config
from fastllm.checkpoint.files import TOKENIZER_FILES, check_text_files, read_json_object
from fastllm.checkpoint.formats import ActivationModes, Rounding
from fastllm.checkpoint.gguf.text import text_folder
from fastllm.checkpoint.resolve import resolve
from fastllm.errors import CheckpointError, EngineClosedError, InvalidRequestError
from fastllm.params import SamplingParams, StructuredOutputsParams
from fastllm.request_state import EmbeddingState, Pooling, RequestState
from fastllm.structured.compiler import Grammar, GrammarCompiler
from fastllm.structured.masks import MaskWorker
from fastllm.text.tokenizer import Tokenizer
from fastllm.weights import HeldWeights
from fastllm.work import WorkPerToken, work_per_token

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastllm.text.chat_template import ChatTemplate

Prompt = str | Sequence[int] | Mapping[str, Any]
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = (*DTYPES, "int8", "fp8")
LOAD_FORMATS = ("auto", "dummy")
SCHEDULERS = ("continuous", "static")


@dataclasses.dataclass(frozen=True, slots=True)
class EngineOptions:
    """The keyword arguments of ``LLM`` and ``AsyncLLM``; see ``LLM`` for their meaning."""

    tokenizer: str | Path | None = None
    skip_tokenizer_init: bool = False
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    activation_mode: str | Mapping[str, str] = "auto"
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    memory_budget: int | str | None = None
    enable_prefix_caching: bool = True
    load_format: str = "auto"
    packed_cache: str | Path | None = None
    kv_cache_tokens: int | None = None
    num_threads: int | None = None
    seed: int = 0
    max_queue: int = 512
    scheduler: str = "continuous"
    revision: str | None = None
    show_progress: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A prompt as token ids with its parameters, ready for the engine."""

    prompt: str | None
    token_ids: list[int]
    params: SamplingParams
    native_params: dict[str, Any]
    grammar: Grammar | None


@dataclasses.dataclass(frozen=True, slots=True)
class Structured:
    """What structured outputs need; made for the first request that wants them."""

    compiler: GrammarCompiler
    worker: MaskWorker


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedEmbedding:
    """A prompt as token ids, whose embedding is wanted."""

    prompt: str | None
    token_ids: list[int]
    pooling: Pooling


class Runtime:
    """A loaded model with a running engine. Thread-safe; `close()` is idempotent."""

    def __init__(self, model: str | Path | None, options: EngineOptions) -> None:
        _check_options(model, options)
        self.options = options
        folder = resolve(model, options.revision)
        self.folder = folder
        is_dummy = options.load_format == "dummy"
        if is_dummy:
            config = Config.load(folder)
            spec = models.family_of(config).spec(config, options.max_model_len)
            plan = None
            checkpoint_dtype = config.dtype or "bfloat16"
        else:
            plan = loader.load(folder, max_model_len=options.max_model_len)
            config, spec, checkpoint_dtype = plan.config, plan.spec, plan.dtype
        self.dtype = checkpoint_dtype if options.dtype == "auto" else options.dtype
        # Tensor cores take 16-bit activations beside integer weights; processors have dot products of bytes.
        is_cuda = _core.resolve_device(options.device).startswith("cuda")
        self.weights = HeldWeights(
            spec, plan, dtype=self.dtype, quantization=options.quantization, activation_mode=options.activation_mode,
            auto_mode="bf16" if is_cuda else "a8r",
            # They meet activations in bf16: not what float32 asks for.
            keeps_fp8=is_cuda and self.dtype != "float32",
        )  # fmt: skip
        self.kv_dtype = self.dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype
        self.max_model_len = options.max_model_len or spec.max_position
        self._vocab_size: int = spec.vocab_size
        self.hidden_size: int = spec.hidden_size
        self._num_layers: int = len(spec.layers)
        self.tokenizer: Tokenizer | None = None
        self.chat_template: ChatTemplate | None = None
        with text_folder(folder) as texts:
            if not options.skip_tokenizer_init:
                from fastllm.text.chat_template import load_chat_template  # here: it brings Jinja

                self.tokenizer = load_tokenizer(texts, options.tokenizer)
                self.chat_template = load_chat_template(texts)
            self.eos_token_ids = _eos_ids(texts, config, self.tokenizer)

        native = _core.Model(
            spec, device=options.device, num_threads=options.num_threads or 0, dtype=self.dtype,
            formats=self.weights.formats.native(),
        )  # fmt: skip
        self._plan_sizes(native)
        self.weights.load(
            native, cache=options.packed_cache, seed=options.seed, show_progress=options.show_progress
        )  # fmt: skip
        self._native: _core.Model | None = native
        engine_config = _core.EngineConfig(
            num_pages=self.memory.kv_tokens // native.page_size,
            max_model_len=self.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_logit_rows=self.max_logit_rows,
            max_queue=options.max_queue,
            enable_prefix_caching=options.enable_prefix_caching,
            static_batching=options.scheduler == "static",
            seed=options.seed,
            eos_ids=self.eos_token_ids,
            byte_table=self.tokenizer.byte_table if self.tokenizer is not None else None,
        )
        self.engine = native.start(engine_config, self.kv_dtype)
        self._backend_name = native.backend_name
        self._num_threads = native.num_threads
        self._close_lock = threading.Lock()
        self._structured: Structured | None = None
        # Ends the native thread at interpreter exit, before modules are torn down, without keeping self alive.
        self._finalizer = weakref.finalize(self, _close_engine, self.engine, os.getpid())
        _register_exit_hook()

    def _plan_sizes(self, native: Any) -> None:
        options = self.options
        chunk = options.max_num_batched_tokens
        if chunk is None:
            chunk = min(512, max(self.max_model_len, options.max_num_seqs))
        self.max_num_batched_tokens = max(chunk, options.max_num_seqs)
        self.max_logit_rows = options.max_num_seqs
        self.memory = memory.plan_memory(
            weight_bytes=native.weight_bytes(),
            activation_bytes=native.step_bytes(
                max_tokens=self.max_num_batched_tokens,
                max_seqs=options.max_num_seqs,
                max_logit_rows=self.max_logit_rows,
                max_pages_per_seq=-(-self.max_model_len // native.page_size),
            ),
            page_bytes=native.kv_page_bytes(self.kv_dtype),
            page_size=native.page_size,
            max_model_len=self.max_model_len,
            max_num_seqs=options.max_num_seqs,
            memory_budget=options.memory_budget,
            kv_cache_tokens=options.kv_cache_tokens,
            device_free_bytes=None if native.shares_host_memory else native.device_free_bytes,
        )

    def info(self) -> dict[str, Any]:
        """Each decision that ``None`` or ``"auto"`` left to the library, the memory plan, the engine's counters."""
        device, _, isa = self._backend_name.partition(":")
        return {
            "model": str(self.folder),
            "kv_page_bytes": self._live().kv_page_bytes(self.kv_dtype),
            "architecture": self._spec().architecture,
            "device": device,
            "backend": self._backend_name,
            "isa": isa or None,
            "num_threads": self._num_threads,
            "num_graphs": self._live().num_graphs,
            "dtype": self.dtype,
            "quantization": self.weights.quantization,
            "activation_mode": self.weights.formats.modes_used,
            "packed_cache": self.weights.packed_cache,
            "weights": self.weights.bytes_by_format,
            "kv_cache_dtype": self.kv_dtype,
            "hidden_size": self.hidden_size,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.options.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "enable_prefix_caching": self.options.enable_prefix_caching,
            "scheduler": self.options.scheduler,
            "eos_token_ids": self.eos_token_ids,
            "memory": {**dataclasses.asdict(self.memory), "total_bytes": self.memory.total_bytes},
            "engine": self.engine.stats(),
        }

    def expert_use(self) -> npt.NDArray[np.int64]:
        """See ``LLM.expert_use``."""
        use = np.frombuffer(self.engine.expert_use(), np.int64)
        return use.reshape((self._num_layers, -1, 2) if use.size else (0, 0, 2))

    def measure_read_bandwidth(self) -> float | None:
        """See ``LLM.measure_read_bandwidth``."""
        return self._live().measure_read_bandwidth(self._num_threads) or None

    def scorer(self) -> _core.Scorer:
        """The model as it gives whole rows of logits, in the memory that was planned for the engine, which ends here.

        Up to ``max_logit_rows`` rows are computed at once, of sequences of up to ``memory.kv_tokens`` tokens.
        """
        model = self._live()
        self.engine.close()
        longest = min(self.memory.kv_tokens, self._spec().max_position)
        return _core.Scorer(model, max_tokens=longest, chunk=self.max_logit_rows, kv_dtype=self.kv_dtype)

    def work_per_token(self) -> WorkPerToken:
        """See ``LLM.work_per_token``."""
        native = self._live()
        return work_per_token(
            self._spec(), self.weights.shapes, self.weights.formats, native.matrix_bytes(), dtype=self.dtype,
            kv_dtype=self.kv_dtype, kv_bytes=native.kv_page_bytes(self.kv_dtype) / native.page_size,
        )  # fmt: skip

    def _spec(self) -> Any:
        return self._live().spec

    def _live(self) -> Any:
        if self._native is None:
            raise EngineClosedError("this engine was closed")
        return self._native

    def close(self) -> None:
        """Ends the engine thread, fails what is pending, frees weights and cache."""
        with self._close_lock:
            self._finalizer()
            self._native = None
            if self._structured is not None:
                self._structured.compiler.close()

    # Requests.

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"a text must be a str, not {type(text).__name__}")
        return self._tokenizer().encode(text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids of the model."""
        ids = _token_ids(token_ids, "token_ids")
        for token in ids:
            if not 0 <= token < self._vocab_size:
                raise InvalidRequestError(
                    f"token_ids contains {token}, the model's token ids are 0 to {self._vocab_size - 1}"
                )
        return self._tokenizer().decode(ids, skip_special_tokens=skip_special_tokens)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            if self.options.skip_tokenizer_init:
                raise InvalidRequestError(
                    "this engine has no tokenizer (skip_tokenizer_init); give prompts as token ids"
                )
            raise InvalidRequestError(
                f"{self.folder}: has no {' or '.join(TOKENIZER_FILES)}; give prompts as token ids, or tokenizer=FOLDER"
            )
        return self.tokenizer

    def submit(
        self, prompt: Prompt, params: SamplingParams, channel: Any, *, priority: int = 0, cache_salt: str = ""
    ) -> RequestState:
        """Queues one request on a channel. Raises InvalidRequestError, QueueFullError, EngineClosedError."""
        return self.submit_prepared(self.prepare(prompt, params), channel, priority=priority, cache_salt=cache_salt)

    def prepare(self, prompt: Prompt, params: SamplingParams, grammar: Grammar | None = None) -> PreparedRequest:
        """The slow part of a submission: tokenizing, and the grammar unless it is given. May run on any thread."""
        text, ids = self._prompt_ids(prompt)
        native_params = self._native_params(params)
        if grammar is None and params.structured_outputs is not None:
            grammar = self.compile(params.structured_outputs).result()
        return PreparedRequest(text, ids, params, native_params, grammar)

    def compile(self, params: StructuredOutputsParams) -> Future[Grammar]:
        """Compiles a grammar on a thread of its own. Raises InvalidRequestError, QueueFullError, EngineClosedError."""
        return self._structured_outputs().compiler.submit(params)

    def _structured_outputs(self) -> Structured:
        with self._close_lock:
            self._live()
            if self._structured is None:
                compiler = GrammarCompiler(self._tokenizer(), self._vocab_size, self.eos_token_ids)
                self._structured = Structured(compiler, MaskWorker(self.engine, self._vocab_size))
            return self._structured

    @property
    def num_grammars(self) -> int:
        """Of requests that have not ended."""
        return 0 if self._structured is None else self._structured.worker.num_grammars

    def prepare_embedding(self, prompt: Prompt, pooling: Pooling) -> PreparedEmbedding:
        """``prepare`` for an embedding. Raises InvalidRequestError for a wrong `pooling`."""
        pooling.check(self.hidden_size)
        text, ids = self._prompt_ids(prompt)
        return PreparedEmbedding(text, ids, pooling)

    def submit_prepared(
        self, request: PreparedRequest, channel: Any, *, priority: int = 0, cache_salt: str = ""
    ) -> RequestState:
        """The quick part: checks in the engine, and a place in its queue."""
        _check_placement(priority, cache_salt)
        arguments = (request.token_ids, request.native_params, channel, priority, cache_salt)
        if request.grammar is None:
            request_id = self.engine.submit(*arguments)
        else:
            worker = self._structured_outputs().worker
            key = worker.register(request.grammar)
            try:
                request_id = self.engine.submit(*arguments, mask_key=key, first_mask=request.grammar.first_mask)
            except BaseException:
                worker.forget(key)
                raise
        return RequestState(request_id, request.prompt, request.token_ids, request.params)

    def submit_embedding(
        self, request: PreparedEmbedding, channel: Any, *, priority: int = 0, cache_salt: str = ""
    ) -> EmbeddingState:
        """``submit_prepared`` for an embedding."""
        _check_placement(priority, cache_salt)
        params = {"detokenize": False}
        request_id = self.engine.submit(request.token_ids, params, channel, priority, cache_salt, request.pooling.kind)
        return EmbeddingState(request_id, request.prompt, request.token_ids, request.pooling)

    def _prompt_ids(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self.encode(prompt)
        if isinstance(prompt, Mapping):
            unknown = set(prompt) - {"prompt", "prompt_token_ids"}
            if unknown or not prompt:
                raise InvalidRequestError(
                    f"a prompt as a dict has 'prompt' or 'prompt_token_ids', not {sorted(map(str, unknown))}"
                )
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), _token_ids(prompt["prompt_token_ids"])
            if not isinstance(prompt["prompt"], str):
                raise InvalidRequestError(f"the prompt is {type(prompt['prompt']).__name__}, expected a string")
            return self._prompt_ids(prompt["prompt"])
        return None, _token_ids(prompt)

    def _native_params(self, params: SamplingParams) -> dict[str, Any]:
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(
                f"sampling_params is {type(params).__name__}, expected SamplingParams; "
                "SamplingParams.from_dict() makes one of names and values"
            )
        values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
        del values["structured_outputs"]  # the engine sees masks only
        for name in ("stop", "stop_token_ids", "bad_words", "banned_token_ids", "logit_bias"):
            if values[name] is None:
                del values[name]
        if isinstance(values.get("stop"), str):
            values["stop"] = [values["stop"]]
        if "bad_words" in values:
            words = values["bad_words"]
            if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
                raise InvalidRequestError("bad_words must be a list of strings")
            if "" in words:
                raise InvalidRequestError("bad_words contains an empty string")
            values["bad_words"] = [ids for word in words for ids in self._bad_word_ids(word)]
        if self.tokenizer is None:
            values["detokenize"] = False
        return values

    def _bad_word_ids(self, word: str) -> list[list[int]]:
        """A word starts a text or follows a space; most tokenizers write the two differently."""
        tokenizer = self._tokenizer()
        forms = [tokenizer.encode(text, add_special_tokens=False) for text in (word, " " + word)]
        return [ids for i, ids in enumerate(forms) if ids and ids not in forms[:i]]

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation by the model's chat template; `variables` are data for the template."""
        if self.chat_template is None:
            raise InvalidRequestError(f"{self.folder}: the model has no chat template; use generate()")
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise InvalidRequestError(f"a conversation must be a list of messages, not {type(messages).__name__}")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise InvalidRequestError(f"messages[{i}] is {type(message).__name__}, expected a dict with 'role'")
        text = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, variables=variables)
        # The template writes its special tokens itself.
        return self._tokenizer().encode(text, add_special_tokens=False)


def _close_engine(engine: Any, process: int) -> None:
    # A forked child has a copy of this engine without its threads: nothing to end there.
    if os.getpid() == process:
        engine.close()


@functools.cache
def _register_exit_hook() -> None:
    """Registered after the first finalizer, so it runs before them: daemon threads that still generate when Python ends
    stop where they are, instead of printing that their engine was closed."""
    atexit.register(_core.end_of_interpreter)


# Of options that are numbers: the range. None is allowed where it is the default.
_INT_OPTIONS = {
    "max_model_len": (1, 2**31 - 1),
    "max_num_seqs": (1, 2**31 - 1),
    "max_num_batched_tokens": (1, 2**31 - 1),
    "kv_cache_tokens": (1, 2**62),
    "num_threads": (1, 2**31 - 1),
    "seed": (0, 2**64 - 1),
    "max_queue": (1, 2**31 - 1),
}
_CHOICES = {
    "dtype": ("auto", *DTYPES),
    "kv_cache_dtype": ("auto", *KV_DTYPES),
    "load_format": LOAD_FORMATS,
    "scheduler": SCHEDULERS,
}
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "tokenizer": ((str, Path), "a directory"),
    "packed_cache": ((str, Path), "a directory"),
    "device": (str, "a string"),
    "revision": (str, "a string"),
    "enable_prefix_caching": (bool, "True or False"),
    "show_progress": (bool, "True or False"),
    "skip_tokenizer_init": (bool, "True or False"),
}


def _check_options(model: object, options: EngineOptions) -> None:
    """Raises InvalidRequestError naming the option, before any file is opened."""
    if model is not None and not isinstance(model, (str, Path)):
        raise InvalidRequestError(f"model must be a directory or hub id, not {type(model).__name__}")
    defaults = EngineOptions()
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if value is None and getattr(defaults, name) is None:
            continue
        if name in _INT_OPTIONS:
            low, high = _INT_OPTIONS[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise InvalidRequestError(f"{name} = {value!r} must be an integer from {low} to {high}")
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise InvalidRequestError(f"{name} = {value!r} is not known; use one of {', '.join(_CHOICES[name])}")
        elif name in _TYPES and not isinstance(value, _TYPES[name][0]):
            raise InvalidRequestError(f"{name} = {value!r} must be {_TYPES[name][1]}")
    if options.quantization is not None:
        Rounding.parse(options.quantization)
    ActivationModes.parse(options.activation_mode)


def _token_ids(ids: Any, name: str = "prompt_token_ids") -> list[int]:
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise InvalidRequestError(f"{name} must be a list of integers, not {type(ids).__name__}")
    out = []
    for i, token in enumerate(ids):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise InvalidRequestError(f"{name}[{i}] is {type(token).__name__}, expected an integer")
        value = int(token.__index__())
        if not -(2**63) <= value < 2**63:
            raise InvalidRequestError(f"{name}[{i}] has more than 64 bits")
        out.append(value)
    return out


def _check_placement(priority: int, cache_salt: str) -> None:
    if not isinstance(priority, int) or isinstance(priority, bool) or not -(2**63) <= priority < 2**63:
        raise InvalidRequestError(f"priority = {priority!r} must be an integer of 64 bits")
    if not isinstance(cache_salt, str) or not _is_unicode(cache_salt):
        raise InvalidRequestError(f"cache_salt = {cache_salt!r} must be a str without lone surrogates")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def load_tokenizer(folder: Path, given: str | Path | None) -> Tokenizer | None:
    """That of the model folder, if it has one, or of the folder that the user names."""
    check_text_files(folder)
    if given is not None:
        check_text_files(Path(given))
        return Tokenizer.load(Path(given))
    has_one = any((folder / name).exists() for name in TOKENIZER_FILES)
    return Tokenizer.load(folder) if has_one else None


def _eos_ids(folder: Path, config: Config, tokenizer: Tokenizer | None) -> list[int]:
    """End-of-sequence ids: generation_config.json, else config.json, else the tokenizer's."""
    found: Any = None
    if (folder / "generation_config.json").exists():
        found = read_json_object(folder, "generation_config.json").get("eos_token_id")
    if found is None:
        text = config.section("text_config")
        found = config.optional("eos_token_id", None if text is None else text.optional("eos_token_id"))
    if found is None and tokenizer is not None:
        found = tokenizer.eos_token_id
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise CheckpointError(f"{folder}: eos_token_id: {token!r} is not a token id")
    return sorted(set(ids))
