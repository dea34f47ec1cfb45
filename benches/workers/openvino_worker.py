"""OpenVINO GenAI, continuous batching. argv: folder of an exported model, JSON {"threads": n}."""

import json
import sys

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import serve, take_stdout


class OpenVino:
    def __init__(self, folder: str, options: dict) -> None:
        self.version = genai.__version__
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_batched_tokens = 512
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": options["threads"]}
        tokenizer = genai.Tokenizer(folder)
        self._pipeline = genai.ContinuousBatchingPipeline(folder, tokenizer, scheduler, "CPU", **properties)
        self.settings = f"{folder.rsplit('/', 1)[-1]}, {options['threads']} threads"

    def generate(self, prompts, count):
        config = genai.GenerationConfig()
        config.max_new_tokens = count
        config.min_new_tokens = count
        config.ignore_eos = True
        config.eos_token_id = 0  # the made-up tokenizer names none, which is refused
        config.stop_token_ids = {0}
        config.do_sample = False
        inputs = [ov.Tensor(np.asarray([prompt], np.int64)) for prompt in prompts]
        self._pipeline.generate(inputs, [config] * len(inputs))


if __name__ == "__main__":
    answers = take_stdout()
    serve(OpenVino(sys.argv[1], json.loads(sys.argv[2])), answers)
