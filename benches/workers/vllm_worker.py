"""vLLM on the CPU. argv: model folder, JSON of keyword arguments for vllm.LLM()."""

import json
import os
import sys

from protocol import serve, take_stdout


class Vllm:
    def __init__(self, folder: str, options: dict) -> None:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"  # GB
        import vllm

        self.version = vllm.__version__
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(
            folder,
            skip_tokenizer_init=True,
            max_model_len=4096,
            max_num_seqs=64,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.4,  # of the host's memory, on the processor; other peers need some too
            **options,
        )
        self.settings = f"{options}"

    def generate(self, prompts, count):
        params = self._params(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)


if __name__ == "__main__":
    answers = take_stdout()
    serve(Vllm(sys.argv[1], json.loads(sys.argv[2])), answers)
