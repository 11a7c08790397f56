"""The tokenizer of the tiny demo model: bytes, no merges, the templates' phrases as single tokens.

Lossless for any text (256 byte tokens; digits and the line break are one token each), so that the
real templates, parser and revision run on it unchanged. The headers and closing lines of
`core.context`, the confidence instruction and the label `Confidence:` are added tokens: they keep a
teacher's prompt at about 50 tokens instead of 300, and change nothing else. Chat template: Qwen's
form, `<|im_start|>role` line break content `<|im_end|>` line break. Needs `transformers`.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caopd_verl.core.confidence import LABEL
from caopd_verl.core.context import TEMPLATES
from caopd_verl.data.prompts import CONFIDENCE_INSTRUCTION

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PHRASES = (
    CONFIDENCE_INSTRUCTION,
    LABEL,
    *(words.strip() for template in TEMPLATES.values() for words in template),
    "system",
    "user",
    "assistant",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of 270 tokens, ready for `save_pretrained`.

    It pads with `<|endoftext|>`; `<|im_end|>` is the end of turn and the eos token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)]
    tokenizer.add_special_tokens(special)
    # Not special: decoding without special tokens must keep the label and the phrases.
    phrases = [AddedToken(text, special=False, normalized=False) for text in PHRASES]
    tokenizer.add_tokens(phrases)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
