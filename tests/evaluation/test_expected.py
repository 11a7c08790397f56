"""The exact readout on tokenizers of five families, against brute force over all 101 strings."""

import itertools
import math

import numpy as np
import pytest

from caopd_verl.errors import ConfigError, DataError, TokenizerError
from caopd_verl.evaluation.readouts.decoding import Decoding, decoded_weights
from caopd_verl.evaluation.readouts.expected import expected_confidences, expected_readouts
from caopd_verl.evaluation.readouts.number_strings import (
    STRINGS,
    VALUES,
    string_tokens,
    value_prefix,
)

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

AS_MODEL = Decoding(temperature=1.0, top_p=1.0)
PAPER = Decoding(temperature=0.6, top_p=0.95)
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


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request):
    return FAMILIES[request.param]()


class TableModel:
    """A random next-token table that depends on the whole sequence; counts what it was asked."""

    def __init__(self, vocab_size):
        self.vocab_size, self.calls, self.asked = vocab_size, 0, []

    def row(self, ids):
        rng = np.random.default_rng([len(ids), *ids])
        logits = rng.normal(size=self.vocab_size) * 3
        return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()

    def __call__(self, sequences, wanted):
        self.calls += 1
        self.asked += sequences
        rows = [self.row(ids) for ids in sequences]
        return [{token: row[token] for token in wanted} for row in rows]


def read(model, prefix_ids, tokenizer, lead="", decoding=AS_MODEL):
    (found,) = expected_confidences(
        model, [prefix_ids], [lead], tokenizer=tokenizer, decoding=decoding
    )
    return found


def brute_force(model, prefix, continuations):
    log_probs = []
    for tokens in continuations:
        ids, total = list(prefix), 0.0
        for token in tokens:
            total += float(model.row(ids)[token])
            ids.append(token)
        log_probs.append(total)
    p = np.exp(np.array(log_probs))
    return float(p @ np.array(VALUES) / p.sum()), float(p.sum())


RESPONSE = "<answer>B</answer>\nConfidence: 0.62"


def test_the_tree_agrees_with_brute_force_over_all_strings(tokenizer):
    full = tokenizer.encode(RESPONSE, add_special_tokens=False)
    prefix = value_prefix(full, tokenizer)
    assert prefix.ids is not None, prefix.reason
    model = TableModel(len(tokenizer))
    result = read(model, prefix.ids, tokenizer, prefix.lead)
    continuations = string_tokens(prefix.ids, tokenizer=tokenizer, lead=prefix.lead)
    value, mass = brute_force(model, prefix.ids, continuations)
    assert result.value == pytest.approx(value, abs=1e-9)
    assert result.mass == pytest.approx(mass, rel=1e-9)
    assert len(model.asked) == len({tuple(ids) for ids in model.asked})  # no node is asked twice


def test_responses_are_read_behind_their_prompts_and_the_others_have_a_reason(tokenizer):
    prompt = tokenizer.encode("the answer", add_special_tokens=False)
    texts = (RESPONSE, "no line", RESPONSE.replace("0.62", "1.00"))
    responses = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    model = TableModel(len(tokenizer))
    options = {"tokenizer": tokenizer, "decoding": AS_MODEL}
    found = expected_readouts([prompt] * 3, responses, model=model, **options)
    assert model.calls == 1
    assert found[1].value is None and found[1].reason == "confidence missing: no number to read"
    for response, readout in zip((responses[0], responses[2]), (found[0], found[2]), strict=True):
        place = value_prefix(response, tokenizer)
        alone = read(model, [*prompt, *place.ids], tokenizer, place.lead)
        assert (readout.value, readout.mass, readout.kind) == (alone.value, alone.mass, "exact")


def test_the_strings_continue_the_prefix_as_the_response_itself_does(tokenizer):
    for i in (0, 7, 62, 99, 100):
        full = tokenizer.encode(RESPONSE.replace("0.62", STRINGS[i]), add_special_tokens=False)
        prefix = value_prefix(full, tokenizer)
        continuations = string_tokens(prefix.ids, tokenizer=tokenizer, lead=prefix.lead)
        assert len(set(continuations)) == 101
        assert [*prefix.ids, *continuations[i]] == full


def test_a_model_sure_of_one_string_gives_its_value_and_full_mass(tokenizer):
    for i in (0, 33, 100):
        full = tokenizer.encode(RESPONSE.replace("0.62", STRINGS[i]), add_special_tokens=False)
        prefix = value_prefix(full, tokenizer)

        def sure(sequences, wanted, full=full):
            return [{full[len(ids)]: 0.0} if ids == full[: len(ids)] else {} for ids in sequences]

        result = read(sure, prefix.ids, tokenizer, prefix.lead)
        assert (result.value, result.mass) == pytest.approx((VALUES[i], 1.0))


def test_digits_need_sixteen_nodes_in_one_call():
    tokenizer = characters()
    model = TableModel(len(tokenizer))
    prefix = tokenizer.encode("46\nConfidence: ", add_special_tokens=False)
    read(model, prefix, tokenizer)
    # nodes: "", "0", "1", "0.", "1.", "0.0" ... "0.9", "1.0"
    assert len(model.asked) == 16 and model.calls == 1


def test_merged_digits_are_merged_in_the_tree():
    tokenizer = byte_level(split_digits=False)
    prefix = tokenizer.encode("x\nConfidence:", add_special_tokens=False)
    strings = string_tokens(prefix, tokenizer=tokenizer, lead=" ")
    # some numbers take fewer tokens than characters
    assert min(len(tokens) for tokens in strings) < 4


def test_prefixes_of_a_batch_do_not_mix(tokenizer):
    texts = [f"{body}\nConfidence: 0.62" for body in ("B", "<answer>", "The answer")]
    prefixes = [
        value_prefix(tokenizer.encode(t, add_special_tokens=False), tokenizer) for t in texts
    ]
    model = TableModel(len(tokenizer))
    batch = ([p.ids for p in prefixes], [p.lead for p in prefixes])
    options = {"tokenizer": tokenizer, "decoding": AS_MODEL}
    together = expected_confidences(model, *batch, **options)
    assert model.calls == 1
    assert expected_confidences(model, *batch, **options, max_sequences=4) == together
    for prefix, result in zip(prefixes, together, strict=True):
        assert read(model, prefix.ids, tokenizer, prefix.lead) == result
    assert expected_confidences(model, [], [], **options) == []


@pytest.mark.parametrize("ending", ["", "\n", "<|im_end|>", "<|im_end|>\n"])
def test_value_prefix_takes_the_last_confidence_line(tokenizer, ending):
    text = "Confidence: 0.11\nthe answer B\nConfidence: 0.62" + ending
    full = tokenizer.encode(text, add_special_tokens=False)
    prefix = value_prefix(full, tokenizer)
    assert prefix.ids is not None, prefix.reason
    assert list(prefix.ids) == full[: len(prefix.ids)]
    rest = tokenizer.decode(full[len(prefix.ids) :], skip_special_tokens=True).replace(" ", "")
    assert rest.startswith("0.62")


def test_value_prefix_of_a_long_response_and_of_ones_without_a_number(tokenizer):
    body = tokenizer.encode("the answer is high\n" * 400, add_special_tokens=False)
    line = tokenizer.encode("\nConfidence: 0.62", add_special_tokens=False)
    prefix = value_prefix(body + line, tokenizer)
    assert prefix.ids is not None and len(prefix.ids) > len(body)
    for text, reason in {
        "": "missing",
        "the answer": "missing",
        "x\nConfidence: high": "malformed",
    }.items():
        none = value_prefix(tokenizer.encode(text, add_special_tokens=False), tokenizer)
        assert none.ids is None and reason in none.reason
    assert value_prefix(body, tokenizer).ids is None


def test_no_mass_gives_no_value_and_underflow_still_does():
    tokenizer = characters()
    prefix = tokenizer.encode("B\nConfidence: ", add_special_tokens=False)
    nothing = read(lambda seqs, wanted: [{} for _ in seqs], prefix, tokenizer)
    assert (nothing.value, nothing.mass) == (None, 0.0)
    assert nothing.reason == "no string from 0.00 to 1.00 has any probability"
    tiny = read(lambda seqs, wanted: [dict.fromkeys(wanted, -300.0)] * len(seqs), prefix, tokenizer)
    assert tiny.mass == 0.0 and tiny.value == pytest.approx(0.5)


def test_bad_callbacks_are_named():
    tokenizer = characters()
    prefix = tokenizer.encode("B\nConfidence: ", add_special_tokens=False)
    for log_prob in (0.0, math.nan, 1e9):

        def wrong(sequences, wanted, log_prob=log_prob):
            return [dict.fromkeys(wanted, log_prob)] * len(sequences)

        with pytest.raises(DataError, match="did not return log-probabilities"):
            read(wrong, prefix, tokenizer)
    with pytest.raises(DataError, match="gave 0 rows for 16 sequences"):
        read(lambda seqs, wanted: [], prefix, tokenizer)
    with pytest.raises(DataError, match="1 prefixes but 0 leads"):
        expected_confidences(
            lambda seqs, wanted: [], [prefix], [], tokenizer=tokenizer, decoding=AS_MODEL
        )


def test_a_tokenizer_that_cannot_spell_the_strings_is_an_error():
    class Deaf:
        def encode(self, text, *, add_special_tokens):
            return []

        def decode(self, token_ids, *, skip_special_tokens, clean_up_tokenization_spaces):
            return "x" * len(token_ids)

    with pytest.raises(TokenizerError, match=r"can't continue 'xxx' with ' 0\.00'"):
        string_tokens([1, 2, 3], tokenizer=Deaf(), lead=" ")


def test_the_strings_are_the_rendered_grid():
    from caopd_verl.core.confidence import LABEL, parse, render

    assert len(STRINGS) == 101 and STRINGS[0] == "0.00" and STRINGS[-1] == "1.00"
    for value, string in zip(VALUES, STRINGS, strict=True):
        assert render(value) == f"{LABEL} {string}" and parse(render(value)).value == value
    for a, b in itertools.pairwise(VALUES):
        assert a < b


def drawn_by_hand(model, prefix, continuations, decoding):
    """Mean by walking all 101 strings.

    At each token it is the chance among the tokens that go on spelling one of the strings.
    """
    value = 0.0
    for own, number in zip(continuations, VALUES, strict=True):
        chance = 1.0
        for depth, token in enumerate(own):
            ways = sorted(
                {c[depth] for c in continuations if c[:depth] == own[:depth] and len(c) > depth}
            )
            p = np.exp(model.row([*prefix, *own[:depth]])[ways]) ** (1 / decoding.temperature)
            p = dict(zip(ways, p / p.sum(), strict=True))
            kept, total = set(), 0.0
            for way in sorted(ways, key=lambda w: -p[w]):
                kept.add(way)
                total += p[way]
                if total >= decoding.top_p:
                    break
            chance *= p[token] / total if token in kept else 0.0
        value += chance * number
    return value


@pytest.mark.parametrize("decoding", [PAPER, Decoding(0.3, 1.0), Decoding(1.0, 0.7)], ids=str)
def test_the_mean_as_decoded_agrees_with_a_walk_over_all_strings(tokenizer, decoding):
    full = tokenizer.encode(RESPONSE, add_special_tokens=False)
    prefix = value_prefix(full, tokenizer)
    model = TableModel(len(tokenizer))
    result = read(model, prefix.ids, tokenizer, prefix.lead, decoding)
    continuations = string_tokens(prefix.ids, tokenizer=tokenizer, lead=prefix.lead)
    assert result.value == pytest.approx(
        drawn_by_hand(model, prefix.ids, continuations, decoding), abs=1e-9
    )
    assert result.value_t1 == pytest.approx(
        brute_force(model, prefix.ids, continuations)[0], abs=1e-9
    )
    assert result.value != pytest.approx(result.value_t1, abs=1e-3)


def test_the_mean_as_decoded_is_the_mean_of_what_is_sampled():
    """20,000 draws by temperature and top-p, where nothing but numbers is possible."""
    tokenizer = characters()
    digits = tokenizer.encode("0123456789", add_special_tokens=False)
    point = tokenizer.encode(".", add_special_tokens=False)[0]
    prefix = tokenizer.encode("46\nConfidence: ", add_special_tokens=False)
    rng = np.random.default_rng(0)
    rows = {depth: rng.dirichlet(np.full(10, 0.5)) for depth in (2, 3)}

    def row(depth, first):
        p = np.zeros(len(tokenizer))
        if depth == 0:
            p[digits[:2]] = 0.8, 0.2
        elif depth == 1:
            p[point] = 1.0
        elif first == digits[1]:
            p[digits[0]] = 1.0
        else:
            p[digits] = rows[depth]
        return p

    def model(sequences, wanted):
        rows = []
        for sequence in sequences:
            drawn = sequence[len(prefix) :]
            p = row(len(drawn), drawn[0] if drawn else None)
            rows.append({token: math.log(p[token]) for token in wanted if p[token] > 0})
        return rows

    result = read(model, prefix, tokenizer, decoding=PAPER)
    values = []
    for _ in range(20_000):
        ids: list[int] = []
        while len(ids) < 4:
            p = row(len(ids), ids[0] if ids else None) ** (1 / PAPER.temperature)
            p /= p.sum()
            order = np.argsort(-p)
            keep = order[: int(np.searchsorted(np.cumsum(p[order]), PAPER.top_p)) + 1]
            ids.append(int(rng.choice(keep, p=p[keep] / p[keep].sum())))
        values.append(float(tokenizer.decode(ids)))
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - result.value) < 4 * error
    assert abs(np.mean(values) - result.value_t1) > 4 * error


def test_greedy_decoding_and_plain_sampling_read_the_model_itself():
    tokenizer = characters()
    prefix = tokenizer.encode("46\nConfidence: ", add_special_tokens=False)
    for decoding in (Decoding(0.0, 0.95), AS_MODEL):
        result = read(TableModel(len(tokenizer)), prefix, tokenizer, decoding=decoding)
        assert result.value == result.value_t1


def test_weights_by_hand_and_bad_settings():
    log_probs = np.log([0.5, 0.3, 0.2])
    assert decoded_weights(log_probs, AS_MODEL) == pytest.approx([0.5, 0.3, 0.2])
    assert decoded_weights(log_probs, Decoding(1.0, 0.8)) == pytest.approx([0.625, 0.375, 0.0])
    assert decoded_weights(log_probs, Decoding(0.5, 1.0)) == pytest.approx(
        [25 / 38, 9 / 38, 4 / 38]
    )
    assert decoded_weights(log_probs, Decoding(1.0, 0.1)) == pytest.approx([1.0, 0.0, 0.0])
    assert decoded_weights(log_probs, Decoding(1.0, 1.0, top_k=2)) == pytest.approx(
        [0.625, 0.375, 0.0]
    )
    assert not Decoding(1.0, 1.0, top_k=2).as_model
    assert decoded_weights([-math.inf, -700.0], PAPER) == pytest.approx([0.0, 1.0])
    assert decoded_weights([-math.inf, -math.inf], PAPER).tolist() == [0.0, 0.0]
    for temperature, top_p in ((-0.1, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, 1.1)):
        with pytest.raises(ConfigError, match="temperature"):
            Decoding(temperature, top_p)
