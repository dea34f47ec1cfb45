"""vLLM on the CPU. argv: model folder, JSON of keyword arguments for vllm.LLM()."""

import json
import sys

from protocol import serve, take_stdout


class Vllm:
    def __init__(self, folder: str, options: dict) -> None:
        import vllm

        self.version = vllm.__version__
        self._params = vllm.SamplingParams
        self._llm = vllm.LLM(
            folder,
            skip_tokenizer_init=True,
            max_model_len=4096,
            max_num_seqs=64,
            enable_prefix_caching=False,
            **options,
        )
        self.settings = f"{options}"

    def generate(self, prompts, count):
        params = self._params(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        self._llm.generate([{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False)


if __name__ == "__main__":
    answers = take_stdout()
    serve(Vllm(sys.argv[1], json.loads(sys.argv[2])), answers)
