"""Where texts could end, and how likely a model ends them there."""

import torch
from conftest import ROOT, assert_close, run_python
from transformers import GPT2LMHeadModel

from describe import load_run
from e2e_data import encode_example
from gpt2 import load_tokenizer
from experiments.endings import MOST, end_probabilities, stops

TABLE = ("name : The Mill | Type : pub | food : Italian | price : cheap | area : riverside"
         " | near : Café Rouge")
SENTENCE = "The Mill is a pub . It is rated 4.5 . It serves cheap Italian food by the river ."


def test_a_text_can_end_behind_each_full_stop_and_the_values_unsaid_are_counted_there():
    tokenizer = load_tokenizer("tiny")
    _, tokens = encode_example(tokenizer, TABLE, SENTENCE)
    found = stops(tokenizer, TABLE, SENTENCE)
    assert [tokenizer.decode(tokens[:i]) for i, _, _ in found] == [
        " The Mill is a pub .", " The Mill is a pub . It is rated 4.5 .", f" {SENTENCE}"]
    assert [(unsaid, is_end) for _, unsaid, is_end in found] == [(4, False), (4, False), (1, True)]


def test_many_values_unsaid_are_counted_together():
    table = f"{TABLE} | customer rating : low | family friendly : yes"
    assert stops(load_tokenizer("tiny"), table, "A pub .")[0][1] == MOST


def test_the_probabilities_of_an_end_are_hugging_faces():
    run = load_run("tiny", "cpu")
    prompt, tokens = encode_example(run.tokenizer, TABLE, SENTENCE)
    twin = GPT2LMHeadModel.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float64).eval()
    run.model.double()
    for i, probability in enumerate(end_probabilities(run, TABLE, SENTENCE)):
        with torch.no_grad():
            logits = twin(torch.tensor([prompt + tokens[:i]])).logits[0, -1]  # before token i
        assert_close(probability, logits.softmax(-1)[run.tokenizer.eot_token])


def test_the_command_prints_for_each_number_of_values_unsaid_the_cases_and_how_many_of_them_end(
        tmp_path):
    short = "The Mill is a cheap Italian pub ."
    lines = f"{TABLE}||{SENTENCE}\n{TABLE}||{short}\n"
    (tmp_path / "src1_valid.txt").write_text(lines, encoding="utf-8")
    done = run_python("-m", "experiments.endings", "tiny", "--data", tmp_path)
    assert done.returncode == 0, done.stderr
    head, cases, tiny, references = (line.split() for line in done.stdout.strip().splitlines())
    assert head[-3:] == ["4", "or", "more"]
    assert cases == ["cases", "0", "1", "1", "0", "2"]
    assert references == ["the", "references", "-", "1.000", "1.000", "-", "0.000"]
    run = load_run("tiny", "cpu")

    def at_stops(sentence):
        ends = end_probabilities(run, TABLE, sentence)
        return [ends[i].item() for i, _, _ in stops(run.tokenizer, TABLE, sentence)]

    first, second, last = at_stops(SENTENCE)  # unsaid there: 4, 4, and 1 at the end
    (only,) = at_stops(short)  # 2
    assert tiny == ["tiny", "-", f"{last:.3f}", f"{only:.3f}", "-", f"{(first + second) / 2:.3f}"]
