"""A past for each row: rows follow their prompts, and each is what its prefix alone writes."""

import random
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import hugging_face_twin, random_model, random_past, random_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

import describe
from beam import beam_search
from describe import (
    describe_tables,
    describe_with_each,
    draw_sentences,
    load_run,
    load_runs,
    log_probability,
)
from gpt2 import GPT2Config, generate, load_both, load_model, save_model
from prefix import Prefix, save_prefix, stack_pasts
from support.files import InputError, read_json, write_json
from support.settings import Settings

N_VOCAB, EOS = 50, 49
TABLES = [
    "name : Blue Spice | Type : pub",
    "name : The Vaults | area : north | food : Thai | Type : pub",
    "name : Zizzi",
]


@torch.no_grad()
def model_that_ends(seed, n_ctx=40):
    """A random model whose hidden state 0 is always 1, a bias of each token: some end early."""
    model = random_model(GPT2Config(N_VOCAB, n_ctx, n_embd=16, n_head=2, n_layer=2), seed)
    model.ln_f.weight[0], model.ln_f.bias[0] = 0, 1
    model.wte.weight[:, 0] = 0
    model.wte.weight[EOS, 0] = 3
    return model


def assert_same(ours, truth):
    """The same hypotheses in the same order; scores to float32's rounding, as log-softmax is."""
    assert [[best.tokens for best in row] for row in ours] == [
        [best.tokens for best in row] for row in truth
    ]
    scores, true_scores = (
        torch.tensor([[best.score for best in row] for row in rows]) for rows in (ours, truth)
    )
    assert ((scores - true_scores).abs() / true_scores.abs().clamp(min=1)).max() <= 1e-5


def single_searches(model, prompts, pasts, **options):
    return [
        beam_search(model, [prompt], past, **options)[0] for prompt, past in zip(prompts, pasts)
    ]


# --------------------------------------------------------------------------------------------------
# Searching
# --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_beams=st.sampled_from([1, 2, 3, 5]),
    batch_size=st.sampled_from([1, 3, 64]),
    penalty=st.sampled_from([0.0, 1.0, -0.5]),
    garbage=st.booleans(),
)
def test_every_row_behind_a_prefix_of_its_own_length_equals_its_single_search(
    seed, num_beams, batch_size, penalty, garbage
):
    draw = random.Random(seed)
    model = model_that_ends(seed % 7)
    prompts = random_prompts(seed, N_VOCAB, draw.choices(range(1, 12), k=draw.randint(1, 9)))
    pasts = [
        random_past(model.config, draw.randint(0, 8), 1, seed + i) for i in range(len(prompts))
    ]
    options = {
        "num_beams": num_beams,
        "max_new_tokens": 9,
        "length_penalty": penalty,
        "banned": [3, 17],
    }
    past, past_lengths = stack_pasts(pasts)
    if garbage:
        for layer in past:
            for tensor in layer:
                for row, length in enumerate(past_lengths):
                    tensor[row, :, : tensor.shape[2] - length].normal_(std=30)
    ours = beam_search(
        model, prompts, past, past_lengths=past_lengths, batch_size=batch_size, **options
    )
    assert_same(ours, single_searches(model, prompts, pasts, **options))


@pytest.mark.parametrize("batch_size", [2, 64])
def test_rows_of_a_past_follow_their_prompts_which_are_sorted_by_length(batch_size):
    model = model_that_ends(1)
    prompts = random_prompts(1, N_VOCAB, [2, 9, 4, 9, 1, 7])
    past = random_past(model.config, 4, len(prompts), 1)
    pasts = [
        [(key[i : i + 1], value[i : i + 1]) for key, value in past] for i in range(len(prompts))
    ]
    options = {"num_beams": 3, "max_new_tokens": 8}
    assert_same(
        beam_search(model, prompts, past, batch_size=batch_size, **options),
        single_searches(model, prompts, pasts, **options),
    )


def test_the_past_that_is_given_is_not_changed():
    model, prompts = model_that_ends(2), random_prompts(2, N_VOCAB, [3, 5, 2, 6])
    past, past_lengths = stack_pasts(
        [random_past(model.config, length, 1, length) for length in (1, 4, 0, 3)]
    )
    before = [(key.clone(), value.clone()) for key, value in past]
    beam_search(model, prompts, past, past_lengths=past_lengths, max_new_tokens=8)
    assert all(torch.equal(old, new) for pairs in zip(before, past) for old, new in zip(*pairs))


def test_stacked_pasts_are_the_pasts_at_the_ends_of_their_rows():
    config = GPT2Config(N_VOCAB, n_ctx=9, n_embd=6, n_head=2, n_layer=3)
    pasts = [random_past(config, length, 1, length) for length in (2, 5, 1)]
    past, past_lengths = stack_pasts(pasts)
    assert past_lengths == [2, 5, 1] and len(past) == 3
    for layer, (key, value) in enumerate(past):
        assert key.shape == value.shape == (3, 2, 5, 3)
        for row, length in enumerate(past_lengths):
            assert torch.equal(key[row, :, 5 - length :], pasts[row][layer][0][0])
            assert torch.equal(value[row, :, 5 - length :], pasts[row][layer][1][0])


@pytest.mark.parametrize(
    "rows, lengths, message",
    [
        (2, None, "the past has 2 rows, but there are 3 prompts"),
        (4, None, "the past has 4 rows, but there are 3 prompts"),
        (3, [4, 4], "past_lengths must be 3 numbers, each from 0 to 4"),
        (3, [4, 5, 4], "past_lengths must be 3 numbers, each from 0 to 4"),
        (3, [4, -1, 4], "past_lengths must be 3 numbers, each from 0 to 4"),
    ],
)
def test_pasts_that_are_not_those_of_the_prompts_are_refused(rows, lengths, message):
    model = model_that_ends(0)
    with pytest.raises(InputError, match=message):
        beam_search(
            model,
            [[1], [2], [3]],
            random_past(model.config, 4, rows, 0),
            past_lengths=lengths,
            max_new_tokens=5,
        )


def test_the_models_last_position_counts_for_each_row_by_its_own_past():
    model = model_that_ends(
        3, n_ctx=24
    )  # the long prompt and the long past would not fit in one row
    with torch.no_grad():
        model.wte.weight[EOS, 0] = -50  # none ends
    pasts = [random_past(model.config, length, 1, length) for length in (16, 0, 7)]
    prompts = random_prompts(3, N_VOCAB, [24 - 16 - 4, 24 - 0 - 4, 5])
    options = {"num_beams": 2, "max_new_tokens": 5}
    past, past_lengths = stack_pasts(pasts)
    ours = beam_search(model, prompts, past, past_lengths=past_lengths, **options)
    assert_same(ours, single_searches(model, prompts, pasts, **options))
    assert all(len(best.tokens) == 5 for row in ours for best in row)
    for number, room in ((1, 4), (2, 20)):
        longer = [prompt + [1] * (i == number - 1) for i, prompt in enumerate(prompts)]
        with pytest.raises(
            InputError, match=f"prompt {number} has {room + 1} tokens, but with .* room for {room}"
        ):
            beam_search(model, longer, past, past_lengths=past_lengths, **options)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_one_batch_of_many_prefixes_writes_what_peft_writes_one_adapter_at_a_time(
    tmp_path, num_beams
):
    from peft import PeftModel

    model, draw = model_that_ends(5), random.Random(5)
    prefixes = [Prefix(model.config, length, form="direct") for length in (3, 1, 6, 3)]
    for number, prefix in enumerate(prefixes):
        save_prefix(prefix, tmp_path / str(number), "base")
    theirs = PeftModel.from_pretrained(hugging_face_twin(model), tmp_path / "0", adapter_name="0")
    for number in range(1, len(prefixes)):
        theirs.load_adapter(tmp_path / str(number), adapter_name=str(number))
    theirs.double().eval()
    rows = draw.choices(range(len(prefixes)), k=24)
    prompts = random_prompts(5, N_VOCAB, draw.choices(range(1, 12), k=24))
    pasts = [
        [(key.detach(), value.detach()) for key, value in prefix.double()()] for prefix in prefixes
    ]
    past, past_lengths = stack_pasts([pasts[row] for row in rows])
    ours = beam_search(model, prompts, past, num_beams, 9, past_lengths=past_lengths)
    for row, prompt, hypotheses in zip(rows, prompts, ours):
        theirs.set_adapter(str(row))
        tokens = torch.tensor([prompt])
        output = theirs.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=num_beams,
            do_sample=False,
            early_stopping=False if num_beams > 1 else None,
            max_new_tokens=9,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=0,
        )
        written = output.sequences[0, len(prompt) :].tolist()
        assert hypotheses[0].tokens == (
            written[: written.index(EOS)] if EOS in written else written
        )
        if num_beams > 1:
            assert hypotheses[0].score == pytest.approx(output.sequences_scores.item(), abs=1e-5)


# --------------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_what_is_drawn_behind_a_prefix_is_drawn_from_the_whole_text_behind_it(seed):
    model, prompt, banned = model_that_ends(seed), [4, 8, 15], [1, 2, 3]
    past = random_past(model.config, 4, 1, seed)
    ours = list(generate(model, prompt, 12, 0.8, torch.Generator().manual_seed(seed), banned, past))
    generator, truth = torch.Generator().manual_seed(seed), []
    for _ in range(12):  # without a cache
        with torch.no_grad():
            logits = model(torch.tensor([prompt + truth]), past)[:, -1]
        logits[:, banned] = -torch.inf
        truth.append(torch.multinomial((logits / 0.8).softmax(-1), 1, generator=generator).item())
        if truth[-1] == EOS:
            truth.pop()
            break
    assert ours == truth


@pytest.mark.parametrize("temperature", [0, 1e-6])
def test_at_a_temperature_of_0_or_near_it_the_likeliest_is_drawn(temperature):
    model, past = model_that_ends(6), random_past(model_that_ends(6).config, 3, 1, 6)
    ((best,),) = beam_search(model, [[5, 9]], past, num_beams=1, max_new_tokens=9)
    generator = torch.Generator().manual_seed(0)
    assert list(generate(model, [5, 9], 9, temperature, generator, past=past)) == best.tokens


def test_the_command_draws_at_a_temperature_of_0_what_one_beam_finds(described):
    short = ["tiny", TABLES[0], "--max-new-tokens", 12, "--device", "cpu"]
    assert described(*short, "--temperature", 0) == described(*short, "--num-beams", 1)


# --------------------------------------------------------------------------------------------------
# Runs over models/tiny
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of three prefixes for models/tiny, of lengths 4, 2 and 7: of words, and noise."""
    from prefix import activations

    folder = tmp_path_factory.mktemp("runs")
    model, tokenizer = load_both("tiny")
    torch.manual_seed(0)
    for name, length in (("a", 4), ("b", 2), ("c", 7)):
        words = tokenizer.encode_ordinary(f" {TABLES[1]} is {name} pub")[-length:]
        start = activations(model, words)
        start = start + 0.1 * torch.randn_like(start)
        save_prefix(Prefix(model.config, length, form="direct", start=start), folder / name, "tiny")
    return [folder / name for name in "abc"]


@pytest.fixture
def described(monkeypatch, capsys):
    """What describe.py prints, as lines, with some arguments."""

    def run_main(*arguments):
        monkeypatch.setattr("sys.argv", ["describe.py", *map(str, arguments)])
        describe.main()
        return capsys.readouterr().out.splitlines()

    return run_main


SHORT = {"num_beams": 3, "length_penalty": 1.0, "max_new_tokens": 12}
OPTIONS = ["--num-beams", 3, "--max-new-tokens", 12, "--device", "cpu"]


def singles(runs, tables=TABLES):
    """{run: [(sentence, score) of each table]}, by a search of its own for each."""
    found = {}
    for source in runs:
        run = load_run(source, "cpu")
        found[source] = [
            describe.search_tables(run, [table], run.past, SHORT, 1)[0] for table in tables
        ]
    return found


def test_describing_with_each_gives_what_each_alone_gives_in_any_batch_size(runs):
    truth = singles(runs)
    run, pasts = load_runs(runs, "cpu")
    for batch_size in (1, 4, 6, 64):
        found = list(describe_with_each(run, pasts, TABLES, SHORT, batch_size))
        assert [list(row) for row in found] == [runs] * 3
        for source in runs:
            assert [row[source][0] for row in found] == [sentence for sentence, _ in truth[source]]
            assert [row[source][1] for row in found] == pytest.approx(
                [score for _, score in truth[source]], abs=1e-4
            )
    alone = describe_tables(load_run(runs[0], "cpu"), TABLES, SHORT)
    assert alone == [sentence for sentence, _ in truth[runs[0]]]


def test_the_command_prints_a_line_for_each_table_and_run(runs, described):
    truth = singles(runs)
    assert described(runs[0], *OPTIONS, *TABLES, "--with", *runs[1:]) == [
        f"{source}\t{truth[source][i][0]}" for i in range(3) for source in runs
    ]


def test_a_base_of_several_prefixes_is_loaded_and_hashed_once(runs, monkeypatch):
    called = []
    for name in ("load_both", "fingerprints"):
        monkeypatch.setattr(describe, name, lambda *given, name=name, real=getattr(describe, name):
                            called.append(name) or real(*given))
    load_runs(runs, "cpu")
    assert called == ["load_both", "fingerprints"]


def test_runs_of_another_base_or_dtype_or_without_a_prefix_are_refused(runs, tmp_path):
    model = load_model("tiny")
    with torch.no_grad():
        model.h[0].ln_1.bias[0] += 1e-3
    save_model(model, tmp_path / "base", "tiny")
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    write_json(
        other / "adapter_config.json",
        read_json(other / "adapter_config.json")
        | {"base_model_name_or_path": str(tmp_path / "base")},
    )
    lowered = tmp_path / "lowered"
    shutil.copytree(runs[1], lowered)
    write_json(
        lowered / "run.json",
        asdict(Settings("prefix", "tiny", "sample", lr=0.1, dtype="bfloat16")),
    )
    for source in (other, lowered, "tiny"):
        for sources in ([runs[0], source], [runs[0], runs[2], source]):
            with pytest.raises(
                InputError, match=f"leave out {source}: it is no prefix for the same base and dtype"
            ):
                load_runs(sources, "cpu")
    run, pasts = load_runs(
        [runs[0], other], "cpu", base="tiny"
    )  # a base that is given is the same for all
    assert list(pasts) == [runs[0], other]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seed", "3"], "error: --seed goes with --temperature"),
        (["--out", "x"], "error: --out goes with --data"),
        (["--with", "tiny", "--data", "sample"], "--data: not allowed with argument --with"),
        (
            ["--temperature", "1", "--data", "sample"],
            "--data: not allowed with argument --temperature",
        ),
        (
            ["--with", "tiny", "--temperature", "1"],
            "--temperature: not allowed with argument --with",
        ),
        (["--temperature", "1", "--num-beams", "5"], "error: --temperature draws: --num-beams"),
        (["--temperature", "1", "--length-penalty=1"], "error: --temperature draws: --num-beams"),
        *(
            (["--temperature", value], "error: --temperature must be 0, or from 0.01 to 100")
            for value in ("nan", "inf", "-1", "1e-40")
        ),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message, described, capsys):
    with pytest.raises((InputError, SystemExit)) as caught:
        described("tiny", "name : x", *arguments)
    printed = f"error: {caught.value}" if caught.type is InputError else capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_a_table_too_long_for_the_longest_prefix_is_refused_by_its_number_before_any_is_described(
    runs, described, capsys
):
    with pytest.raises(InputError, match="prompt 3 has .* tokens, but with 7 of a prefix"):
        described(runs[0], "name : x", "name : y", "name : " + "x y " * 400, "--with", *runs[1:])
    assert capsys.readouterr().out == ""


def test_drawn_sentences_are_those_of_the_seed_and_of_the_prefix(runs, described):
    options = ["--temperature", 1.5, "--max-new-tokens", 15, "--device", "cpu", *TABLES]
    first, again, other = (described(runs[0], *options, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(TABLES)
    run = load_run(runs[0], "cpu")
    assert first == list(draw_sentences(run, TABLES, 1.5, 1, 15))
    run.past = load_run(runs[2], "cpu").past
    assert first != list(draw_sentences(run, TABLES, 1.5, 1, 15))


def test_banned_tokens_are_not_drawn(runs, monkeypatch):
    run = load_run(runs[0], "cpu")
    allowed = {run.tokenizer.encode_ordinary(text)[0] for text in (" pub", " is")}
    monkeypatch.setattr(
        describe, "banned_tokens", lambda *_: sorted(set(range(run.model.config.n_vocab)) - allowed)
    )
    drawn = list(draw_sentences(run, TABLES, 5.0, 0, 10))
    words = {run.tokenizer.decode([token]).strip() for token in allowed}
    assert all(len(sentence) > 0 and set(re.split(" ", sentence)) <= words for sentence in drawn)


def test_the_log_probability_of_a_sentence_is_the_sum_over_hugging_faces_logits(runs):
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(describe.model_folder("tiny"), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, runs[2]).eval()
    run = load_run(runs[2], "cpu")
    for table, sentence in zip(
        TABLES, ("Blue Spice is a pub .", "  A caf\u00e9, <|endoftext|> ", "Z")
    ):
        end = [run.tokenizer.eot_token]
        prompt = run.tokenizer.encode_ordinary(" " + table) + end
        answer = run.tokenizer.encode_ordinary(" " + sentence.strip()) + end
        with torch.no_grad():
            logits = theirs(torch.tensor([prompt + answer])).logits[0].double()
        log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        total = sum(log_probs[at, token].item() for at, token in enumerate(answer))
        assert log_probability(run, table, sentence) == pytest.approx(total, abs=2e-3, rel=1e-5)


def test_the_three_lines_in_the_docstring_describe_a_table(runs):
    lines = re.search(r"From a program:\n((?:    .*\n)+)", describe.__doc__)[1].replace("    ", "")
    assert len(lines.splitlines()) == 3
    values = {}
    exec(lines.replace("runs/demo/prefix", str(runs[0])), values)
    (sentence,) = values["sentences"]
    assert isinstance(sentence, str)
