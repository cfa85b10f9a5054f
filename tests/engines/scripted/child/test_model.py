import math
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines.scripted.child.model import BOS, EOS, VOCABULARY, Prefix, ScriptedAnswer, embedding
from trilithon.engines.scripted.engine import Script

TOKENS = st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=40)


def said(script: Script, limit: int = 400) -> str:
    tokens = islice(ScriptedAnswer(script).tokens(ignore_eos=False), limit)
    return VOCABULARY.detokenize([token for token in tokens if token != EOS])


@given(st.text() | st.text(alphabet="abcxyz ABé漢дж\n"))
def test_detokenize_undoes_tokenize(text):
    tokens = VOCABULARY.tokenize(text)
    assert VOCABULARY.detokenize(tokens) == text
    assert not {BOS, EOS} & set(tokens)


def test_half_surrogates_are_replaced():
    assert VOCABULARY.detokenize(VOCABULARY.tokenize("a\ud800b")) == "a?b"


def test_about_32_000_tokens_and_all_different():
    assert 31_000 < len(VOCABULARY) < 33_000
    assert len({VOCABULARY.bytes_of(token) for token in range(len(VOCABULARY))}) == len(VOCABULARY)


@given(TOKENS)
def test_any_tokens_have_a_text(tokens):
    assert isinstance(VOCABULARY.detokenize(tokens), str)


@given(TOKENS, st.floats(0, 1))
def test_distributions_are_distributions(tokens, wrong):
    distribution = Prefix(tokens).distribution(wrong)
    top = distribution.top(64)
    logprobs = [logprob for _, logprob in top]
    assert len({token for token, _ in top}) == 64
    assert logprobs == sorted(logprobs, reverse=True)
    assert all(distribution.logprob(token) == logprob for token, logprob in top)


def test_probabilities_add_up_to_one():
    distribution = Prefix([BOS, 5, 7]).distribution(0)
    assert math.fsum(math.exp(logprob) for _, logprob in distribution.top(len(VOCABULARY))) == pytest.approx(1)


def test_any_text_is_moderately_surprising():
    """Between knowing the text and knowing no language: perplexity with unlisted tokens counted as the 64th."""
    surprises = [-Prefix([BOS, n]).distribution(0).logprob_of_rank(63) for n in range(500)]
    assert 200 < math.exp(math.fsum(surprises) / len(surprises)) < 700


@given(TOKENS, st.integers(0, len(VOCABULARY) - 1))
def test_a_prefix_grown_is_the_prefix_made(tokens, last):
    grown = Prefix(tokens)
    grown.append(last)
    assert grown.distribution(0) == Prefix([*tokens, last]).distribution(0)


def test_wrong_changes_that_fraction_of_the_positions():
    def differing(wrong):
        return {n for n in range(1000) if Prefix([BOS, n]).distribution(wrong) != Prefix([BOS, n]).distribution(0)}

    assert differing(0) == set()
    assert len(differing(1)) == 1000
    assert 200 < len(differing(0.25)) < 300
    assert differing(0.25) < differing(0.5)


def test_the_answer_is_the_text_and_its_end():
    assert list(ScriptedAnswer(Script(text="Hello there.")).tokens(ignore_eos=False))[-1] == EOS
    assert said(Script(text="Hello there.")) == "Hello there."
    assert len(said(Script()).split()) > 70


def test_thinking_comes_first():
    assert said(Script(text="Yes.", thinking="Hm.")) == "<think>\nHm.\n</think>\n\nYes."


def test_garbage():
    assert said(Script(garbage="empty")) == ""
    assert said(Script(garbage="loop"), 10_000).count("the same") > 1000
    noise = said(Script(garbage="noise"), 10_000)
    assert len(noise) == 200
    assert not any(character.isalnum() for character in noise)


def test_ignoring_the_end_begins_anew():
    tokens = islice(ScriptedAnswer(Script(text="Ab.")).tokens(ignore_eos=True), 50)
    assert VOCABULARY.detokenize(list(tokens)).count("Ab.") > 10
    assert next(ScriptedAnswer(Script(garbage="empty")).tokens(ignore_eos=True)) != EOS


@given(TOKENS)
def test_embeddings_are_unit_vectors_of_the_tokens_alone(tokens):
    assert math.hypot(*embedding(tokens)) == pytest.approx(1)
    assert embedding(tokens) == embedding(list(tokens))
    assert embedding(tokens) != embedding([*tokens, 3])
