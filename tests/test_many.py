"""A past for each row: rows follow their prompts, and each is what its prefix alone writes."""

import random
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import (EOS, N_VOCAB, assert_same, dtypes_seen, hugging_face_twin,
                      model_that_ends, random_past, random_prompts, run_here)
from hypothesis import given, settings, strategies as st
from peft import PeftModel
from transformers import GPT2LMHeadModel

import describe
from beam import Hypothesis, beam_search
from describe import (describe_tables, draw_sentences, load_run, load_runs, log_probability,
                      read_prompts, search_with_each)
from gpt2 import GPT2Config, generate, load_both, load_model, save_model
from prefix import Prefix, activations, save_prefix, stack_pasts
from support.bases import model_folder
from support.commands import InputError
from support.files import read_json, write_json
from support.settings import Settings

TABLES = ["name : Blue Spice | Type : pub",
          "name : The Vaults | area : north | food : Thai | Type : pub", "name : Zizzi"]


def single_searches(model, prompts, pasts, **options):
    return [beam_search(model, [prompt], past, **options)[0]
            for prompt, past in zip(prompts, pasts)]


# --------------------------------------------------------------------------------------------------
# Searching
# --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_beams=st.sampled_from([1, 2, 3, 5]),
       batch_size=st.sampled_from([1, 3, 64]), penalty=st.sampled_from([0.0, 1.0, -0.5]),
       garbage=st.booleans())
def test_rows_of_a_past_follow_their_prompts_and_each_after_its_own_length_is_its_single_search(
        seed, num_beams, batch_size, penalty, garbage):
    draw, model = random.Random(seed), model_that_ends(seed % 7)
    prompts = random_prompts(seed, N_VOCAB, draw.choices(range(1, 12), k=draw.randint(1, 9)))
    pasts = [random_past(model.config, draw.randint(0, 8), 1, seed + i)
             for i in range(len(prompts))]
    options = {"num_beams": num_beams, "max_new_tokens": 9, "length_penalty": penalty,
               "banned": [3, 17]}
    past, past_lengths = stack_pasts(pasts)
    if garbage:
        for tensor in (tensor for layer in past for tensor in layer):
            for row, length in enumerate(past_lengths):
                tensor[row, :, : tensor.shape[2] - length].normal_(std=30)
    before = [(key.clone(), value.clone()) for key, value in past]
    ours = beam_search(model, prompts, past, past_lengths=past_lengths, batch_size=batch_size,
                       **options)
    assert_same(ours, single_searches(model, prompts, pasts, **options))
    # The past that is given is not changed.
    assert all(torch.equal(old, new) for pairs in zip(before, past) for old, new in zip(*pairs))


def test_stacked_pasts_are_the_pasts_at_the_ends_of_their_rows():
    config = GPT2Config(N_VOCAB, n_ctx=9, n_embd=6, n_head=2, n_layer=3)
    pasts = [random_past(config, length, 1, length) for length in (2, 5, 1)]
    past, past_lengths = stack_pasts(pasts)
    assert past_lengths == [2, 5, 1] and len(past) == 3
    for layer, pair in enumerate(past):
        for which, vectors in enumerate(pair):
            assert vectors.shape == (3, 2, 5, 3)
            for row, length in enumerate(past_lengths):
                assert torch.equal(vectors[row, :, 5 - length :], pasts[row][layer][which][0])


def test_the_models_last_position_counts_for_each_row_by_its_own_past():
    model = model_that_ends(3, bias=-50, n_ctx=24)  # none ends
    # The long prompt and the long past would not fit in one row.
    pasts = [random_past(model.config, length, 1, length) for length in (16, 0, 7)]
    prompts = random_prompts(3, N_VOCAB, [24 - 16 - 4, 24 - 0 - 4, 5])
    options = {"num_beams": 2, "max_new_tokens": 5}
    past, past_lengths = stack_pasts(pasts)
    ours = beam_search(model, prompts, past, past_lengths=past_lengths, **options)
    assert_same(ours, single_searches(model, prompts, pasts, **options))
    assert all(len(best.tokens) == 5 for row in ours for best in row)
    for number, P, room in ((1, 16, 4), (2, 0, 20)):
        longer = [prompt + [1] * (i == number - 1) for i, prompt in enumerate(prompts)]
        message = (f"prompt {number}: a prefix of {P}, a table of {room + 1} and a sentence of 5 "
                   "tokens are more than the 24")
        with pytest.raises(InputError, match=message):
            beam_search(model, longer, past, past_lengths=past_lengths, **options)


def test_one_batch_of_many_prefixes_writes_what_peft_writes_one_adapter_at_a_time(tmp_path):
    model, draw = model_that_ends(5), random.Random(5)
    prefixes = [Prefix(model.config, length, form="direct") for length in (3, 1, 6)]
    for number, prefix in enumerate(prefixes):
        save_prefix(prefix, tmp_path / str(number), "base")
    theirs = PeftModel.from_pretrained(hugging_face_twin(model), tmp_path / "0", adapter_name="0")
    for number in range(1, len(prefixes)):
        theirs.load_adapter(tmp_path / str(number), adapter_name=str(number))
    theirs.double().eval()
    rows = draw.choices(range(len(prefixes)), k=12)
    prompts = random_prompts(5, N_VOCAB, draw.choices(range(1, 12), k=12))
    with torch.no_grad():
        past, past_lengths = stack_pasts([prefixes[row].double()() for row in rows])
    ours = beam_search(model, prompts, past, 4, 9, past_lengths=past_lengths)
    for row, prompt, (best, *_) in zip(rows, prompts, ours):
        theirs.set_adapter(str(row))
        tokens = torch.tensor([prompt])
        output = theirs.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), num_beams=4, do_sample=False,
            early_stopping=False, max_new_tokens=9, return_dict_in_generate=True,
            output_scores=True, pad_token_id=0)
        written = output.sequences[0, len(prompt) :].tolist()
        written = written[: written.index(EOS)] if EOS in written else written
        assert_same([[best]], [[Hypothesis(written, output.sequences_scores.item())]])


# --------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_what_is_drawn_after_a_prefix_is_drawn_from_the_whole_text_after_it(seed):
    model, prompt, banned = model_that_ends(seed), [4, 8, 15], [1, 2, 3]
    past = random_past(model.config, 4, 1, seed)
    ours = list(generate(model, prompt, 12, 0.8, torch.Generator().manual_seed(seed), banned, past))
    generator, truth = torch.Generator().manual_seed(seed), []
    while len(truth) < 12 and EOS not in truth:  # without a cache
        logits = model(torch.tensor([prompt + truth]), past)[:, -1]
        logits[:, banned] = -torch.inf
        truth.append(torch.multinomial((logits / 0.8).softmax(-1), 1, generator=generator).item())
    assert ours == [token for token in truth if token != EOS]


@pytest.mark.parametrize("temperature", [0, 0.01])
def test_at_a_temperature_of_0_or_near_it_the_likeliest_is_drawn(temperature):
    model = model_that_ends(6)
    past = random_past(model.config, 3, 1, 6)
    ((best,),) = beam_search(model, [[5, 9]], past, num_beams=1, max_new_tokens=9)
    generator = torch.Generator().manual_seed(0)
    assert list(generate(model, [5, 9], 9, temperature, generator, past=past)) == best.tokens


# --------------------------------------------------------------------------------------------------
# Runs over models/tiny
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three prefixes for models/tiny, of lengths 4, 2 and 7: of words, and noise."""
    folder = tmp_path_factory.mktemp("runs")
    model, tokenizer = load_both("tiny")
    torch.manual_seed(0)
    for name, length in (("a", 4), ("b", 2), ("c", 7)):
        words = tokenizer.encode_ordinary(f" {TABLES[1]} is {name} pub")[-length:]
        start = activations(model, words)
        start = start + 0.1 * torch.randn_like(start)
        save_prefix(Prefix(model.config, length, form="direct", start=start), folder / name, "tiny")
    return [folder / name for name in "abc"]


def described(*arguments):
    """What describe.py prints, as lines, with some arguments."""
    done = run_here(describe.main, *arguments, "--device", "cpu")
    assert done.error is None, done.error
    return done.stdout.splitlines()


DECODER = {"num_beams": 3, "length_penalty": 1.0, "max_new_tokens": 12}
OPTIONS = ["--num-beams", 3, "--max-new-tokens", 12]


def test_describing_with_each_gives_what_each_alone_gives_in_any_batch_size(runs):
    alone = {}
    for source in runs:
        run = load_run(source, "cpu")
        alone[source] = [*(describe_tables(run, [table], DECODER)[0] for table in TABLES)]
    assert len({tuple(sentences) for sentences in alone.values()}) == 3
    run, pasts = load_runs(runs, "cpu")
    truth = [{source: alone[source][i] for source in runs} for i in range(len(TABLES))]
    for batch_size in (1, 64):
        prompts = read_prompts(run, TABLES)
        assert list(search_with_each(run, pasts, prompts, DECODER, batch_size)) == truth
    assert described(runs[0], *OPTIONS, *TABLES, "--with", *runs[1:]) == [
        f"{source}\t{sentence}" for row in truth for source, sentence in row.items()]


def test_runs_of_another_base_or_dtype_or_without_a_prefix_are_refused(runs, tmp_path):
    model = load_model("tiny")
    with torch.no_grad():
        model.h[0].ln_1.bias[0] += 1e-3
    save_model(model, tmp_path / "base", "tiny")
    other, lowered = (shutil.copytree(runs[1], tmp_path / name) for name in ("other", "lowered"))
    config = read_json(other / "adapter_config.json")
    write_json(other / "adapter_config.json",
               config | {"base_model_name_or_path": str(tmp_path / "base")})
    settings = Settings("prefix", "tiny", "sample", lr=0.1, dtype="bfloat16")
    write_json(lowered / "run.json", asdict(settings))
    for source, message in ((other, f"leave out {other}: it was trained on another model than"),
                            (lowered, f"leave out {lowered}"), ("tiny", "leave out tiny")):
        for sources in ([runs[0], source], [runs[0], runs[2], source]):
            with pytest.raises(InputError, match=message):
                load_runs(sources, "cpu")
    _, pasts = load_runs([runs[0], other], "cpu", base="tiny")  # one that is given is for all
    assert list(pasts) == [runs[0], other]


def test_a_table_too_long_for_the_longest_prefix_is_refused_before_any_is_described(runs):
    tables = ["name : x", "name : y", "name : " + "x y " * 400]
    done = run_here(describe.main, runs[0], *tables, "--with", *runs[1:], "--device", "cpu")
    assert "prompt 3: a prefix of 7, a table of" in done.error
    assert done.stdout == ""


def test_drawn_sentences_are_those_of_the_seed_and_of_the_prefix(runs):
    options = ["--max-new-tokens", 8, *TABLES]
    first, again, other = (described(runs[0], *options, "--temperature", 1.5, "--seed", seed)
                           for seed in (1, 1, 2))
    assert first == again != other and len(first) == len(TABLES)
    run, pasts = load_runs([runs[0], runs[2]], "cpu")
    assert first == list(draw_sentences(run, TABLES, 1.5, 1, 8))
    run.past = pasts[runs[2]]
    assert first != list(draw_sentences(run, TABLES, 1.5, 1, 8))
    # At a temperature of 0 it is what one beam finds.
    assert described("tiny", *options, "--temperature", 0) == described("tiny", *options,
                                                                        "--num-beams", 1)


def test_bfloat16_is_what_a_run_of_it_multiplies_in_to_search_to_draw_and_to_measure(runs):
    run = load_run(runs[0], "cpu")
    run.settings["dtype"] = "bfloat16"
    seen = dtypes_seen(run.model)
    for use in (lambda: describe_tables(run, TABLES, DECODER),
                lambda: list(draw_sentences(run, TABLES, 1.0, max_new_tokens=3)),
                lambda: log_probability(run, TABLES[0], "A pub .")):
        seen.clear()
        use()
        assert seen == {(False, torch.bfloat16)}


def test_banned_tokens_are_not_drawn(monkeypatch):
    run = load_run("tiny", "cpu")
    allowed = [run.tokenizer.encode_ordinary(text)[0] for text in (" pub", " is")]
    words = {run.tokenizer.decode([token]).strip() for token in allowed}
    others = set(range(run.model.config.n_vocab)) - set(allowed)
    monkeypatch.setattr(describe, "find_banned_tokens", lambda *_: sorted(others))
    for sentence in draw_sentences(run, TABLES, 5.0, 0, 10):
        assert sentence and set(sentence.split()) <= words


def test_the_log_probability_of_a_sentence_is_the_sum_over_hugging_faces_logits(runs):
    theirs = GPT2LMHeadModel.from_pretrained(model_folder("tiny"), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, runs[2]).eval()
    run = load_run(runs[2], "cpu")
    sentences = ("Blue Spice is a pub .", "  A caf\u00e9, <|endoftext|> ", "Z")
    for table, sentence in zip(TABLES, sentences):
        end = [run.tokenizer.eot_token]
        prompt = run.tokenizer.encode_ordinary(" " + table) + end
        answer = run.tokenizer.encode_ordinary(" " + sentence.strip()) + end
        with torch.no_grad():
            logits = theirs(torch.tensor([prompt + answer])).logits[0].double()
        log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        total = sum(log_probs[at, token].item() for at, token in enumerate(answer))
        assert log_probability(run, table, sentence) == pytest.approx(total, 1e-5, 2e-3)


def test_the_three_lines_in_the_docstring_describe_a_table(runs):
    lines = re.search(r"From a program:\n((?:    .*\n)+)", describe.__doc__)[1].replace("    ", "")
    assert len(lines.splitlines()) == 3
    values = {}
    exec(lines.replace("runs/demo/prefix", str(runs[0])), values)
    (sentence,) = values["sentences"]
    assert isinstance(sentence, str)
