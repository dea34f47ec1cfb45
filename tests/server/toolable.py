"""The demo model as one that has tools: it writes noise, so whatever fits a grammar does so because of the grammar."""

from fastllm import AsyncLLM


class ToolableLLM(AsyncLLM):
    def __init__(self, template="", **options):
        super().__init__(max_model_len=1024, max_num_seqs=8, kv_cache_tokens=8192, num_threads=2, **options)
        self._template = template

    @property
    def chat_template(self):
        return self._template

    async def render_chat(self, messages, /, *, add_generation_prompt=True, **variables):
        text = "\n".join(str(message["content"]) for message in messages)
        return await self.encode(text + ("<think>" if variables.get("open_think") else ""))
