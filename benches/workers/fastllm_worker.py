"""fastllm. argv: model folder, JSON of keyword arguments for LLM()."""

import json
import sys
from pathlib import Path

from protocol import serve, take_stdout


class FastLLM:
    def __init__(self, folder: str, options: dict) -> None:
        from importlib.metadata import PackageNotFoundError, version

        from fastllm import LLM, SamplingParams

        try:
            self.version = version("fastllm-runtime")
        except PackageNotFoundError:
            self.version = "checkout"
        self._params = SamplingParams
        self._llm = LLM(
            folder,
            skip_tokenizer_init=True,
            max_model_len=4096,
            max_num_seqs=64,
            enable_prefix_caching=False,
            **options,
        )
        info = self._llm.info()
        if "packed_cache" in options:  # where it lies is this machine's business
            options = {**options, "packed_cache": Path(options["packed_cache"]).name}
        self.settings = f"{info['backend']}, {info['dtype']}, KV {info['kv_cache_dtype']}, {options}"

    def generate(self, prompts, count):
        params = self._params(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        self._llm.generate([list(prompt) for prompt in prompts], params)


if __name__ == "__main__":
    answers = take_stdout()
    serve(FastLLM(sys.argv[1], json.loads(sys.argv[2])), answers)
