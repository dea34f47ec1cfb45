"""llama.cpp through llama-cpp-python's low-level calls. argv: GGUF file, JSON {"threads": n, "flash": bool}."""

import json
import sys
import time

import llama_cpp
import numpy as np
from protocol import serve, take_stdout

BATCH = 4096


class LlamaCpp:
    def __init__(self, path: str, options: dict) -> None:
        self.version = llama_cpp.__version__
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._options = options
        self._streams = 0
        self._context = None
        self.settings = f"{path.rsplit('/', 1)[-1]}, KV f16, flash {options['flash']}, {options['threads']} threads"

    def _use_context(self, streams):
        """A context for that many sequences of 4096 tokens (512 in a batch), its own part of the cache each."""
        if self._streams == streams:
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 4096 if streams == 1 else 512 * streams
        params.n_batch = BATCH
        params.n_ubatch = 512
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = self._options["threads"]
        params.kv_unified = False
        params.flash_attn_type = 1 if self._options["flash"] else 0
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp could not make a context")
        self._streams = streams

    def _decode(self, tokens):
        """One call of (token, position, sequence, wants logits) rows."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wants) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _argmax(self, row):
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _prefill(self, prompts):
        self._use_context(len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        first = []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            self._decode([(token, i, sequence, i == last) for i, token in enumerate(prompt)])
            first.append(self._argmax(last))
        return first

    def _steps(self, tokens, start, count):
        for step in range(count):
            self._decode([(token, start[s] + step, s, True) for s, token in enumerate(tokens)])
            tokens = [self._argmax(s) for s in range(len(tokens))]
        return tokens

    def generate(self, prompts, count):
        tokens = self._prefill(prompts)
        self._steps(tokens, [len(p) for p in prompts], count - 1)

    def decode_seconds(self, prompts, steps):
        start = [len(p) for p in prompts]
        tokens = self._steps(self._prefill(prompts), start, 2)
        begin = time.perf_counter()
        self._steps(tokens, [s + 2 for s in start], steps)
        return time.perf_counter() - begin


if __name__ == "__main__":
    answers = take_stdout()
    serve(LlamaCpp(sys.argv[1], json.loads(sys.argv[2])), answers)
