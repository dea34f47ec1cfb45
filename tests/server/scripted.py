"""An AsyncLLM that says what a test tells it to, in pieces of a given size: for what is made of the model's text."""

import asyncio

from fastllm import AsyncLLM, CompletionOutput, RequestMetrics, RequestOutput


class ScriptedLLM(AsyncLLM):
    """Everything but the text is the demo model's."""

    def __init__(self, **options):
        super().__init__(max_model_len=512, kv_cache_tokens=4096, **options)
        self.text, self.size, self.template = "", 3, None
        self.special = ()  # markers that are special tokens
        self.prompts = []

    @property
    def chat_template(self):
        return self.template

    async def render_chat(self, messages, /, *, add_generation_prompt=True, **variables):
        self.prompts.append((messages, variables))
        text = "\n".join(str(message["content"]) for message in messages)
        return await self.encode(text + ("<think>" if variables.get("open_think") else ""))

    async def generate(self, prompt, sampling_params=None, *, priority=0, cache_salt="", deltas=False):
        text, size = self.text, self.size
        for marker in self.special if sampling_params.skip_special_tokens else ():
            text = text.replace(marker, "")
        for end in range(size, len(text) + size, size):
            await asyncio.sleep(0)
            finished = end >= len(text)
            shown = text[:end]
            begin = end - size if deltas else 0
            token_ids = list(range(begin, len(shown)))
            outputs = [
                CompletionOutput(i, shown[begin:], token_ids, None, None, "stop" if finished else None, None)
                for i in range(sampling_params.n)
            ]
            metrics = RequestMetrics(0.0, 0.0, 0.0, None, len(prompt["prompt_token_ids"]), 0, len(shown), 0)
            yield RequestOutput("1", None, prompt["prompt_token_ids"], None, outputs, finished, metrics)
