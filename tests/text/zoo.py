"""Tokenizers of every style that published checkpoints use, trained here on a small multilingual text.

`build(name, folder)` writes the files of a model folder: `tokenizer.json` or `tokenizer.model`, and
`tokenizer_config.json`.
Vocabularies are tiny, so merges, byte fallback and added tokens all matter in nearly every text.
"""

import io
import json
import zlib
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# One line per script or difficulty; also what the tests encode.
TEXTS = {
    "latin": "The quick brown fox's 3 jumps, don't they'll I've 2024-11-24! Grüße, façade, naïve, Œuvre, İstanbul",
    "greek": "Η γρήγορη αλεπού πηδά πάνω από το τεμπέλικο σκυλί",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "hebrew": "אב גדול נשא את הילד, שָׁלוֹם עֲלֵיכֶם",
    "arabic": "أبجد هوز حطي كلمن، السَّلَامُ عَلَيْكُمْ ١٢٣",
    "devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा १२३",
    "bengali": "আমি কাচ খেতে পারি, তাতে আমার কোনো ক্ষতি হয় না",
    "tamil": "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல்",
    "thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "georgian": "ვეპხის ტყაოსანი შოთა რუსთაველი",
    "armenian": "Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ",
    "amharic": "ሰማይ አይታረስ ንጉሥ አይከሰስ",
    "khmer": "ខ្ញុំអាចញុំកញ្ចក់បាន ដោយគ្មានបញ្ហា",
    "japanese": "いろはにほへと ちりぬるを 吾輩は猫である。カタカナ ﾊﾝｶｸ",
    "chinese": "天地玄黃，宇宙洪荒。我能吞下玻璃而不伤身体。",
    "korean": "다람쥐 헌 쳇바퀴에 타고파, 한글 한글",
    "cherokee": "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "gothic": "𐌼𐌰𐌲 𐌲𐌻𐌴𐍃 𐌹̈𐍄𐌰𐌽, 𝒜𝓁𝓅𝒽𝒶",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 1️⃣ 🇪🇺🇯🇵 ☺️ 🤷🏿‍♀️",
    "combining": "e\u0301 a\u0300\u0316\u0317 Z\u0335\u0321\u0353 \u0301alone n\u0303\u0303\u0303",
    "right_to_left": "abc \u202eמימין\u202c לשמאל \u200f(1)\u200e \u2066x\u2069",
    "control": "a\x00b\x01\x07\x08\x0b\x0c\x1b[0m\x7f\x80\x9f\u200b\u200d\ufeff\u2028\u2029\ufffd\ufffe",
    "spaces": "  two   three\t\ttab \n\n \r\n\r x\u00a0y\u3000z   ",
    "code": "def f(x):\n    return {'a': [1, 22, 333, 4444]}  # 0x1F\n\n\n\tif x != y ** 2: pass\n",
}
LINES = list(TEXTS.values()) * 3
# The other scripts need byte fallback.
SENTENCEPIECE_LINES = [TEXTS[name] for name in ("latin", "greek", "cyrillic", "arabic", "code", "korean", "spaces")] * 5

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# o200k splits words at a change from lower to upper case.
O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Name -> the folder's form. LOSSLESS: decode(encode(x)) == x for every text without special tokens in it.
JSON = ("gpt2", "qwen2", "llama3", "o200k", "llama2", "llama2_metaspace", "gemma", "metaspace_first", "metaspace_never")
SENTENCEPIECE = ("spm_llama", "spm_mistral", "spm_gemma", "spm_unigram", "spm_nfkc")
LOSSLESS = ("gpt2", "llama3", "o200k", "llama2", "gemma", "spm_llama", "spm_gemma", "spm_unigram")


def build(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name in SENTENCEPIECE:
        _sentencepiece(name, folder)
    elif name in ("gpt2", "qwen2", "llama3", "o200k"):
        _byte_level(name, folder)
    else:
        _converted(name, folder)
    return folder


def _write_config(folder: Path, **values) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **values})
    )


def _byte_level(name: str, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if name == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = {"qwen2": QWEN_SPLIT, "llama3": LLAMA3_SPLIT, "o200k": O200K_SPLIT}[name]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|begin_of_text|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    # Not special: part of the text. `<tool_call>` is such a token in published vocabularies.
    tokenizer.add_tokens(["<tool_call>", AddedToken("<|user|>", rstrip=True, normalized=False)])
    config = {"eos_token": "<|endoftext|>"}
    if name == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A",
            special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
        )
        config["bos_token"] = {"__type": "AddedToken", "content": "<|begin_of_text|>", "special": True}
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, **config)


_MODELS: dict[tuple, bytes] = {}


def sentencepiece_model(**changes) -> bytes:
    """A trained tokenizer.model: Llama's settings with changes."""
    settings = {
        "model_type": "bpe",
        "vocab_size": 700,
        "character_coverage": 1.0,
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "num_threads": 1,
        "minloglevel": 2,
        **changes,
    }
    key = tuple(sorted((k, str(v)) for k, v in settings.items()))
    if key not in _MODELS:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCEPIECE_LINES), model_writer=model, **settings
        )
        _MODELS[key] = model.getvalue()
    return _MODELS[key]


GEMMA = {"add_dummy_prefix": False, "user_defined_symbols": ["<start_of_turn>", "\n\n", "▁▁", "▁▁▁"]}


def _sentencepiece(name: str, folder: Path) -> None:
    changes = {
        "spm_llama": {},
        "spm_mistral": {"user_defined_symbols": ["[INST]", "[/INST]"]},
        "spm_gemma": GEMMA,
        "spm_unigram": {"model_type": "unigram", "vocab_size": 425},
        "spm_nfkc": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    }[name]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**changes))
    _write_config(
        folder,
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        add_eos_token=False,
        added_tokens_decoder={"700": {"content": "<|extra|>", "special": True}} if name == "spm_llama" else {},
    )


def _converted(name: str, folder: Path) -> None:
    """The tokenizer.json that conversion of a SentencePiece BPE gives."""
    gemma = name == "gemma"
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(**(GEMMA if gemma else {})))
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    # Merges: every way to cut a piece into two, in the order in which the pieces were learned.
    merges = []
    for piece, i in vocab.items():
        if processor.is_control(i) or processor.is_byte(i) or processor.is_unknown(i):
            continue
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        merges += [
            cut for cut in sorted((c for c in cuts if c[0] in vocab and c[1] in vocab), key=lambda c: vocab[c[0]])
        ]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    space = decoders.Replace("▁", " ")
    strip = decoders.Strip(content=" ", left=1, right=0)
    bytes_back = [decoders.ByteFallback(), decoders.Fuse()]
    if name == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([space, *bytes_back, strip])
    elif gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        tokenizer.decoder = decoders.Sequence([space, *bytes_back])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("\n\n", "▁▁", "▁▁▁")])
        tokenizer.add_special_tokens(["<start_of_turn>"])
    else:
        scheme = {"llama2_metaspace": "first", "metaspace_first": "always", "metaspace_never": "never"}[name]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=name == "metaspace_first")
        if name == "llama2_metaspace":
            tokenizer.decoder = decoders.Sequence([space, *bytes_back, strip])
        else:
            metaspace = decoders.Metaspace(prepend_scheme=scheme)
            tokenizer.decoder = decoders.Sequence([metaspace, *bytes_back])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_config(folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True)


def pseudo_random(*key: object) -> int:
    """A number that depends on the key alone."""
    return zlib.crc32(repr(key).encode())
