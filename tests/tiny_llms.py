"""Tiny randomly initialised causal LMs with tokenizers, written to disk as their families publish them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from reeltalk.llm.prompts import TEMPLATES

KINDS = ("qwen3", "llama", "glm4", "bert")
POSITIONS = 320
WIDTH = 16

# pad token, side it pads on, tokens put before a text and after it
_TOKENS: dict[str, tuple[str | None, str, tuple[str, ...], tuple[str, ...]]] = {
    "qwen3": ("<|endoftext|>", "left", (), ()),
    "llama": (None, "right", ("<|begin_of_text|>",), ()),
    "glm4": ("<|endoftext|>", "left", ("[gMASK]", "<sop>"), ()),
    "bert": ("[PAD]", "right", ("[CLS]",), ("[SEP]",)),
}
_END = {"qwen3": "<|im_end|>", "llama": "<|end_of_text|>", "glm4": "<|endoftext|>", "bert": None}
_SIZES: dict[str, dict[str, Any]] = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "glm4": {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def save_llm(folder: Path, kind: str, *, seed: int = 0, num_layers: int = 2) -> Path:
    """A folder with config, weights and tokenizer; that of BERT, a text encoder, is without a head."""
    words = tokenizer(kind)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": num_layers, "num_attention_heads": 4}
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = transformers.AutoConfig.for_model(
        kind,
        **sizes,
        **ids,
        **_SIZES[kind],
        vocab_size=len(words),
        initializer_range=0.5,
        max_position_embeddings=POSITIONS,
    )
    torch.manual_seed(seed)
    loader = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    loader.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    words.save_pretrained(folder)
    return folder


@cache
def tokenizer(kind: str) -> Any:
    """Made from the templates' words: pieces of words for BERT, pairs of bytes for the others."""
    pad, side, before, after = _TOKENS[kind]
    special = list(dict.fromkeys(token for token in (pad, *before, *after, _END[kind]) if token))
    text = TEMPLATES.read_text(encoding="utf-8")
    if kind == "bert":
        known = set(re.findall(r"\w+|[^\w\s]", text.lower()))
        pieces = sorted({f"{lead}{letter}" for word in known for letter in word for lead in ("", "##")})
        vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(known), *pieces])
        words = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
        words.normalizer = normalizers.BertNormalizer()
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words.decoder = decoders.WordPiece()
    else:
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        words.train_from_iterator(text.splitlines(), trainer)
    if before or after:
        words.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", *after]),
            special_tokens=[(token, words.token_to_id(token)) for token in (*before, *after)],
        )
    names: dict[str, Any] = {
        "pad_token": pad,
        "eos_token": _END[kind],
        "bos_token": before[0] if kind == "llama" else None,
    }
    if kind == "bert":
        names |= {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        padding_side=side,
        model_max_length=1_000,
        **{name: token for name, token in names.items() if token is not None},
    )
