"""The exact readout on tokenizers of five families, against brute force over all 101 strings."""

import math

import numpy as np
import pytest

from caopd_verl.errors import DataError
from caopd_verl.evaluation.readouts.decoding import Decoding
from caopd_verl.evaluation.readouts.expected import expected_confidences, expected_readouts
from caopd_verl.evaluation.readouts.number_strings import (
    STRINGS,
    VALUES,
    string_tokens,
    value_prefix,
)
from tests.evaluation.tokenizer_families import FAMILIES, characters

AS_MODEL = Decoding(temperature=1.0, top_p=1.0)
PAPER = Decoding(temperature=0.6, top_p=0.95)


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
