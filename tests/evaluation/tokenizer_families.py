"""Small tokenizers of five families, each trained here on a few confidence lines."""

import pytest

from caopd_verl.evaluation.readouts.number_strings import STRINGS

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

CORPUS = [
    "<answer>\nB\n</answer>\nConfidence: 0.62",
    "The confidence is high.\nConfidence: 0.85\n",
    *[f"Confidence: {s}" for s in STRINGS],
    *[f"\nConfidence: 0.{d}{d}" for d in range(10)] * 5,
]


def _wrap(tokenizer, **kwargs):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        **kwargs,
    )


def characters():
    """Every character is a token."""
    alphabet = sorted(set("".join(CORPUS)) | set("abcdefghijklmnopqrstuvwxyz+=?"))
    vocab = {c: i for i, c in enumerate([*alphabet, "<unk>", "<|im_end|>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\s\S]"), "isolated"
    )
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return _wrap(tokenizer)


def byte_level(split_digits):
    """Byte-level BPE.

    Digits one by one (as Qwen, SmolLM) or merged, with the blank joined to the first (as GPT-2).
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    steps.append(tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>"],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrap(tokenizer)


def metaspace():
    """SentencePiece-like: blanks become a marker, the first word gets one too."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<|im_end|>"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _wrap(tokenizer)


def word_piece():
    """WordPiece-like: lower case, blanks around punctuation when decoded; line breaks stay."""
    alphabet = sorted(set("".join(CORPUS).lower()) - {" "})
    words: list[str] = [
        "[UNK]",
        "<|im_end|>",
        "confidence",
        "answer",
        "high",
        *alphabet,
        *["##" + c for c in alphabet],
    ]
    words += [f"{i:02d}" for i in range(0, 100, 7)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Split("\n", "isolated"), split.Split(" ", "removed"), split.Punctuation("isolated")]
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return _wrap(tokenizer)


FAMILIES = {
    "characters": characters,
    "byte_level_digits": lambda: byte_level(True),
    "byte_level_merged": lambda: byte_level(False),
    "metaspace": metaspace,
    "word_piece": word_piece,
}
