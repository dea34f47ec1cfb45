"""fastllm as a model of EleutherAI's lm-evaluation-harness.

    python -m fastllm.lm_eval --model fastllm --model_args pretrained=FOLDER --tasks arc_easy

is `lm_eval` with this model known to it: the harness (0.4) has no way to find models of other packages by itself. In
Python, `import fastllm.lm_eval` before `lm_eval.simple_evaluate(model="fastllm", ...)` does the same.
Needs `pip install lm_eval`.
"""

from __future__ import annotations

from typing import Any

from lm_eval import utils
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from fastllm.errors import InvalidRequestError
from fastllm.evaluation.likelihood import encode_pair, loglikelihoods
from fastllm.llm import LLM
from fastllm.params import SamplingParams

_MAX_STOPS = 16  # of the engine; a text is cut at further ones when it is done


@register_model("fastllm")
class FastLLM(LM):  # type: ignore[misc]
    """Log-likelihoods and greedy or sampled texts from one engine, which batches by itself.

    Args:
        pretrained: checkpoint folder or hub id; None and ``"demo"`` are the demo model.
        batch_size: sequences of a batch at most; "auto" is the engine's default.
        max_length: longest sequence in tokens; None is the model's.
        device: as of ``LLM``; the harness's "cuda:0" is "cuda".
        engine: further options of ``LLM``, such as dtype, memory_budget, num_threads.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        **engine: Any,
    ) -> None:
        super().__init__()
        if batch_size is not None and not str(batch_size).startswith("auto"):
            engine.setdefault("max_num_seqs", int(batch_size))
        if device is not None:
            engine.setdefault("device", device.partition(":")[0] if device.startswith("cuda") else device)
        self._llm = LLM(pretrained, max_model_len=max_length, **engine)
        info = self._llm.info()
        self._longest = info["max_model_len"]
        self._folder = info["model"]
        ids = info["eos_token_ids"]
        self._start_id = ids[0] if ids else None
        self._is_templated = False

    def _encode(self, text: str) -> list[int]:
        # A chat template writes the special tokens itself.
        return self._llm._runtime._tokenizer().encode(text, add_special_tokens=not self._is_templated)

    def _prefix(self) -> int:
        """What stands before a text whose first token counts."""
        if self._start_id is None:
            raise InvalidRequestError(
                f"{self._folder}: the model has no end-of-text id, from which the first token of a text would be "
                "predicted; name one as eos_token_id in its generation_config.json"
            )
        return int(self._start_id)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [encode_pair(self._encode, *request.args) for request in requests]
        start_id = self._prefix() if any(not context for context, _ in pairs) else None
        found = loglikelihoods(self._llm, pairs, start_id=start_id, use_tqdm=not disable_tqdm)
        self._remember("loglikelihood", requests, found)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Each token of a text is predicted once, with as much before it as fits; the first from the end-of-text id."""
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            ids = self._encode(request.args[0])
            windows = utils.get_rolling_token_windows(
                token_list=ids, prefix_token=self._prefix(), max_seq_len=self._longest - 2, context_len=1
            )
            for context, continuation in map(utils.make_disjoint_window, windows):
                pairs.append((list(context), list(continuation)))
                owners.append(i)
        sums = [0.0] * len(requests)
        scores = loglikelihoods(self._llm, pairs, use_tqdm=not disable_tqdm)
        for i, (score, _) in zip(owners, scores, strict=True):
            sums[i] += score
        self._remember("loglikelihood_rolling", requests, sums)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        prompts: list[list[int]] = []
        params: list[SamplingParams] = []
        further_stops: list[list[str]] = []
        for request in requests:
            context, wanted = request.args
            until = wanted.get("until") or []
            stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
            further_stops.append(stops[_MAX_STOPS:])
            count = min(int(wanted.get("max_gen_toks", wanted.get("max_tokens", 256))), self._longest - 1)
            is_greedy = not wanted.get("do_sample", False)
            prompts.append(self._encode(context)[-(self._longest - count) :])
            params.append(
                SamplingParams(
                    max_tokens=count,
                    temperature=0.0 if is_greedy else float(wanted.get("temperature", 1.0)),
                    top_p=float(wanted.get("top_p", 1.0)),
                    top_k=int(wanted.get("top_k", 0)),
                    stop=stops[:_MAX_STOPS],
                )
            )
        outputs = self._llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        texts = [output.outputs[0].text for output in outputs]
        for i, stops in enumerate(further_stops):
            for stop in stops:
                texts[i] = texts[i].partition(stop)[0]
        self._remember("generate_until", requests, texts)
        return texts

    def _remember(self, kind: str, requests: list[Any], results: list[Any]) -> None:
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)

    @property
    def tokenizer_name(self) -> str:
        return str(self._folder).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Which template it is, for the harness's records and cache: that of the model's folder."""
        return "" if not chat_template else self.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        template = self._llm._runtime.chat_template
        if template is None:
            raise ValueError(f"{self._folder}: the model has no chat template")
        self._is_templated = True
        return template.render(chat_history, add_generation_prompt=add_generation_prompt)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
