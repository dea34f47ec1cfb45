"""Trains the model pair of the package: a small Qwen3 and a draft model about ten times smaller, with one tokenizer.

    python tools/train_demo_model.py --docs PATH_TO_CPYTHON/Doc --out python/fastllm/demo --minutes 60

Needs torch, transformers and tokenizers. Writes `main/` and `draft/` as Hugging Face checkpoints in bfloat16, and
prints the held-out bits per byte of both as saved. A checkpoint is written every few minutes; `--resume` goes on from
its weights with a new schedule. On cores that others use too, `--threads 1` is faster than waiting for a busy core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import demo_data

VOCAB_SIZE = 4096
SPECIAL = [demo_data.END, "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHAPES = {
    "main": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4},
    "draft": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: every text can be written, and decoding gives it back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(name: str) -> Qwen3ForCausalLM:
    """A freshly initialised model of the pair."""
    shape = SHAPES[name]
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        head_dim=64,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=[0, 2],
        pad_token_id=0,
        attn_implementation="sdpa",
        **shape,
    )
    return Qwen3ForCausalLM(config)


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """A Hugging Face checkpoint in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = make_model(folder.name)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "bos_token": None,
        "add_bos_token": False,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    generation = {"eos_token_id": [0, 2], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over 2 %, constant, then a linear decay over the last 40 % of the time."""
    if progress < 0.02:
        return peak * progress / 0.02
    return peak * min(1.0, max(0.02, (1.0 - progress) / 0.4))


def train(name: str, ids: Tensor, tokenizer: Tokenizer, args: argparse.Namespace, minutes: float) -> Qwen3ForCausalLM:
    """Trains for a given time: the schedule follows the clock, so it always reaches its end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = args.out / name
    model = make_model(name)
    if args.resume and (folder / "model.safetensors").exists():
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(folder).state_dict())
    model = model.to(device).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    peak = args.learning_rate * (2.0 if name == "draft" else 1.0)
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    start = time.monotonic()
    saved = start
    step = tokens = 0
    loss_mean = math.log(VOCAB_SIZE)
    while (elapsed := time.monotonic() - start) < minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(elapsed / (minutes * 60), peak)
        at = torch.randint(0, len(ids) - args.length - 1, (args.batch,), generator=generator)
        rows = torch.stack([ids[i : i + args.length + 1] for i in at]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += rows.numel() - len(rows)
        loss_mean += 0.05 * (loss.item() - loss_mean)
        if step % 20 == 0:
            rate = tokens / (time.monotonic() - start)
            print(
                f"{name}: {elapsed / 60:6.1f} min  step {step}  loss {loss_mean:.3f}  {rate:.0f} tokens/s", flush=True
            )
        if time.monotonic() - saved > 180:
            save(model, tokenizer, folder)
            saved = time.monotonic()
    save(model, tokenizer, folder)
    print(f"{name}: {tokens} tokens in {minutes:.1f} min")
    return model


@torch.no_grad()
def bits_per_byte(folder: Path, tokenizer: Tokenizer, texts: list[str], length: int) -> float:
    """Held-out cross-entropy in bits per UTF-8 byte, of the weights as saved, in windows of `length` tokens."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bits = num_bytes = 0.0
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text).ids)
        for i in range(0, len(ids) - 1, length):
            window = ids[i : i + length + 1]
            if len(window) < 2:
                continue
            logits = model(input_ids=window[None, :-1]).logits[0]
            bits += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item() / math.log(2)
        num_bytes += len(text.encode())
    return bits / num_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, required=True, help="documentation sources (Doc/ of a CPython checkout)")
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="standard library")
    parser.add_argument("--out", type=Path, default=Path("python/fastllm/demo"), help="gets main/ and draft/")
    parser.add_argument("--minutes", type=float, default=60.0, help="training time of the main model")
    parser.add_argument("--draft-minutes", type=float, default=5.0, help="training time of the draft model")
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak of the schedule")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order of texts and batches")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice); one a core in use")
    parser.add_argument("--only", choices=sorted(SHAPES), help="train one of the pair; keeps the tokenizer in --out")
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out (same tokenizer)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)

    texts, held_out = demo_data.build(args.docs, args.stdlib, args.seed)
    known = args.out / "main" / "tokenizer.json"
    keep = (args.resume or args.only) and known.exists()
    tokenizer = Tokenizer.from_file(str(known)) if keep else train_tokenizer(texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(args.seed)).tolist()
    encoded = tokenizer.encode_batch([texts[i] + demo_data.END for i in order])
    ids = torch.tensor([i for e in encoded for i in e.ids])
    print(
        f"{sum(map(len, texts)) / 1e6:.1f} M characters, {len(ids) / 1e6:.2f} M tokens; "
        f"{sum(map(len, held_out)) / 1e3:.0f} k characters held out"
    )
    names = [args.only] if args.only else list(SHAPES)
    for name in names:
        train(name, ids, tokenizer, args, args.minutes if name == "main" else args.draft_minutes)
    for name in names:
        score = bits_per_byte(args.out / name, tokenizer, held_out, args.length)
        print(f"{name}: {score:.3f} bits per byte held out")


if __name__ == "__main__":
    main()
