"""A checkpoint of shapes.py for OpenVINO GenAI. argv: model folder, folder to write, kind (int8, or int4 in groups of
128). Runs in the environment of optimum-intel[openvino,nncf] and openvino-genai.

The pipeline wants a tokenizer although it is given token ids: it gets one that knows a single word.
"""

import sys
from pathlib import Path

import openvino as ov
from openvino_tokenizers import convert_tokenizer
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


def export(source: Path, target: Path, kind: str) -> None:
    weights = {
        "int8": OVWeightQuantizationConfig(bits=8, sym=True),
        "int4": OVWeightQuantizationConfig(bits=4, sym=False, group_size=128, ratio=1.0),
    }[kind]
    model = OVModelForCausalLM.from_pretrained(source, export=True, quantization_config=weights)
    model.save_pretrained(target)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), unk_token="a")
    encoder, decoder = convert_tokenizer(words, with_detokenizer=True)
    ov.save_model(encoder, target / "openvino_tokenizer.xml")
    ov.save_model(decoder, target / "openvino_detokenizer.xml")


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
