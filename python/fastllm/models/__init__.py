"""The table of architectures: a name in config.json -> the family that reads it.

A family is a module with
    spec(config, max_model_len) -> _core.ModelSpec
    fills(config, names) -> rules that say which tensor goes into which slot; `names` are those of the checkpoint,
        for the cases where one model is saved under different names
    ignored(config) -> patterns of tensors that have no place here
"""

from __future__ import annotations

from types import ModuleType

from fastllm.checkpoint.config import Config
from fastllm.errors import UnsupportedModelError
from fastllm.models import gemma, gpt_oss, llama, mixtral, olmo2, phi3, qwen_moe

FAMILIES: dict[str, ModuleType] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": llama,
    "Qwen2ForCausalLM": llama,
    "Qwen3ForCausalLM": llama,
    "Phi3ForCausalLM": phi3,
    "Gemma2ForCausalLM": gemma,
    "Gemma3ForCausalLM": gemma,
    "Gemma3ForConditionalGeneration": gemma,
    "Olmo2ForCausalLM": olmo2,
    "MixtralForCausalLM": mixtral,
    "Qwen2MoeForCausalLM": qwen_moe,
    "Qwen3MoeForCausalLM": qwen_moe,
    "GptOssForCausalLM": gpt_oss,
}


def family_of(config: Config) -> ModuleType:
    name = config.architecture
    family = FAMILIES.get(name)
    if family is None:
        raise UnsupportedModelError(
            f"{config.where}: architectures is {name[:100]!r}, which is not supported; known: {', '.join(FAMILIES)}"
        )
    return family
