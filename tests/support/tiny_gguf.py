"""Make a tiny language model for llama.cpp: random weights, and a tokenizer trained on the standard library's text.

It needs no download: ``python tests/support/tiny_gguf.py OUT.gguf [--embd 64] [--layers 2]``, with numpy, gguf and
tokenizers installed. What it says is nonsense; the model, its file and its server are real. A wider or deeper one is
slower, nearer to a real model's pace.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sysconfig
from pathlib import Path
from typing import Any, Final

# Imported by name: they live in the environment of llama.cpp, which need not be the tests' own.
np: Any = importlib.import_module("numpy")
gguf: Any = importlib.import_module("gguf")
tokenizers: Any = importlib.import_module("tokenizers")

_SPECIAL: Final = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
_HEADS: Final = 4
_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE tokenizer."""
    texts = sorted(str(path) for path in Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train(files=texts, vocab_size=size, min_frequency=2, special_tokens=list(_SPECIAL), show_progress=False)
    model = json.loads(tokenizer._tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, merges


def write_model(out: Path, *, embd: int, layers: int, vocab: int = 2048, context: int = 8192, seed: int = 0) -> None:
    """Write the model to ``out``. The same arguments (and Python) give the same model."""
    tokens, merges = _vocabulary(vocab)
    kinds = [gguf.TokenType.CONTROL if token in _SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    ff = 2 * embd
    writer = gguf.GGUFWriter(str(out), "llama")
    writer.add_name("tiny-random-llama")
    writer.add_context_length(context)
    writer.add_embedding_length(embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embd // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|eos|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)

    dice = np.random.default_rng(seed)

    def weights(name: str, *shape: int, scale: float = 0.05) -> None:
        writer.add_tensor(name, (dice.standard_normal(shape) * scale).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(embd, dtype=np.float32))

    weights("token_embd.weight", len(tokens), embd, scale=1.0)
    for layer in range(layers):
        block = f"blk.{layer}."
        ones(block + "attn_norm.weight")
        ones(block + "ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"{block}{name}.weight", embd, embd)
        weights(block + "ffn_gate.weight", ff, embd)
        weights(block + "ffn_up.weight", ff, embd)
        weights(block + "ffn_down.weight", embd, ff)
    ones("output_norm.weight")
    weights("output.weight", len(tokens), embd, scale=0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a tiny llama.cpp model with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--embd", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    write_model(options.out, embd=options.embd, layers=options.layers)
