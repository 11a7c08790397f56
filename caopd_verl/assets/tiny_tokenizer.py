"""The tokenizer of the tiny demo model: bytes, no merges, and the templates' fixed phrases as single tokens.

Lossless for any text (256 byte tokens; digits and the line break are one token each), so the real templates, parser and
revision run on it unchanged. `core.context`'s headers and closing lines, the confidence instruction and the label
`Confidence:` are added tokens: they keep a teacher prompt at about 50 tokens instead of 300, and change nothing else.
Chat template: Qwen's form, `<|im_start|>role` line break content `<|im_end|>` line break. Needs `transformers`.
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
    """The tokenizer, ready for `save_pretrained`; 270 tokens, pad `<|endoftext|>`, end of turn and eos `<|im_end|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (PAD, START, END)]
    )
    # Not special: decoding without special tokens must keep the label and the phrases.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in PHRASES])
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
