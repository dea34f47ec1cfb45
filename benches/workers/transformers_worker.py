"""transformers on torch. argv: model folder, JSON {"dtype": "bfloat16", "threads": n}."""

import json
import sys
import time

from protocol import serve, take_stdout


class Transformers:
    def __init__(self, folder: str, options: dict) -> None:
        import torch
        import transformers

        torch.set_num_threads(options["threads"])
        self._torch = torch
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        dtype = getattr(torch, options["dtype"])
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.settings = f"{options['dtype']}, sdpa, {options['threads']} threads"

    def _prefill(self, prompts):
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            out = self._model(ids, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values

    def _steps(self, token, cache, count):
        with self._torch.inference_mode():
            for _ in range(count):
                out = self._model(token, past_key_values=cache, use_cache=True)
                token = out.logits[:, -1].argmax(-1, keepdim=True)

    def generate(self, prompts, count):
        token, cache = self._prefill(prompts)
        self._steps(token, cache, count - 1)

    def decode_seconds(self, prompts, steps):
        token, cache = self._prefill(prompts)
        self._steps(token, cache, 2)
        start = time.perf_counter()
        self._steps(token, cache, steps)
        return time.perf_counter() - start


if __name__ == "__main__":
    answers = take_stdout()
    serve(Transformers(sys.argv[1], json.loads(sys.argv[2])), answers)
