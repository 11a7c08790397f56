"""A sampled response and its revision, for the tests of several modules."""

from __future__ import annotations

from itertools import compress

from caopd_verl.core.revise import revise_response
from caopd_verl.core.tokens import decode, find_eot_id

LIMIT = 4096
BODY = "the acid reacts with a base.\n<answer>B</answer>"


def sample(tokenizer, text, *, end=True):
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [*ids, find_eot_id(tokenizer)] if end else ids


def revise(tokenizer, ids, value=0.62, limit=LIMIT, **kwargs):
    eot_id = find_eot_id(tokenizer)
    return revise_response(
        ids, value, tokenizer=tokenizer, eot_id=eot_id, max_response_tokens=limit, **kwargs
    )


def squeeze(text):
    return "".join(text.split())


def marked_text(tokenizer, revision, mask):
    """What the masked tokens spell, without blanks."""
    return squeeze(decode(tokenizer, list(compress(revision.token_ids, mask))))
