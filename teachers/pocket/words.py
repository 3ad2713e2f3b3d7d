"""Tokenizers and text encoders of pocket teachers with a T5: every word of the captions is one token."""

from collections.abc import Iterable
from typing import Any

from transformers import T5TokenizerFast


def word_tokenizer(words: Iterable[str], length: int) -> T5TokenizerFast:
    """A T5 tokenizer (Unigram) whose pieces are words, the comma, and single characters for all other words.

    Args:
        words: The words, in the order of their tokens; repeated ones count once.
        length: Tokens of a caption with padding.
    """
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("\u2581" + word, -1.0) for word in dict.fromkeys(words)] + [(",", -1.0), ("\u2581", -5.0)]
    pieces += [(chr(c), -10.0) for c in range(33, 127) if chr(c) != ","]
    return T5TokenizerFast(vocab=special + pieces, extra_ids=0, model_max_length=length)


def words_of(captions: Iterable[str]) -> list[str]:
    """The words of captions, commas among them."""
    return " ".join(captions).replace(",", " ,").split()


def encoder_options(tokenizer: T5TokenizerFast, width: int) -> dict[str, Any]:
    """Arguments of the configuration of a T5 or UMT5 encoder with two layers for a tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "d_model": width,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
