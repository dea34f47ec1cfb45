"""``fastllm serve``: an OpenAI-compatible HTTP server on the public ``AsyncLLM``. Needs the extra ``[server]``."""
