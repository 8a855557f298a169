"""The experiment: its runs, what is gathered of them, the documents' tables, the figures."""

import json
import re
import shlex

import pytest
import torch
from conftest import (ROOT, assert_close, hugging_face_cache, hugging_face_twin, random_config,
                      random_examples, random_model, random_past, run_here)

import metrics
import train
from beam import banned_tokens, beam_search
from e2e_data import encode_table
from figures import make as figures
from gpt2 import load_both
from prefix import Prefix
from results import make, tables

MEASURED = [part for part in make.PARTS if (ROOT / "results" / f"{part}.json").exists()]


@pytest.mark.parametrize("part", MEASURED)
def test_the_results_are_those_of_the_commands_of_today(part):
    runs = {run.name: run.command for run in make.PARTS[part]()}
    assert runs == {name: told["command"] for name, told in tables.read(part).items()}


@pytest.mark.parametrize("part", make.PARTS)
def test_every_run_has_its_own_folder_and_a_command_that_train_takes(part, monkeypatch):
    runs = list(make.PARTS[part]())
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        if run.arguments.startswith("train.py"):
            monkeypatch.setattr("sys.argv", shlex.split(run.command)[1:])
            train.parse_arguments()


@pytest.mark.parametrize("name", tables.DOCUMENTS)
def test_the_tables_of_the_documents_are_those_of_the_results(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables.filled(text) == text
    places = set(re.findall(r"<!-- results: (\w+) -->", text))
    assert places <= set(tables.TABLES) and text.count("<!-- end -->") == len(places)


def test_every_measured_part_has_its_table_in_the_documents():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in tables.DOCUMENTS)
    assert MEASURED and all(f"<!-- results: {part} -->" in text for part in MEASURED)


# --------------------------------------------------------------------------------------------------
# Running and gathering
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_experiment(tmp_path, monkeypatch, small_data):
    """An experiment of two runs of a few steps, in a folder of its own."""
    quick = f"--data {small_data} --max-steps 3 --num-beams 1 --max-new-tokens 3 --device cpu"
    runs = [make.Run("few", "a/prefix", f"{make.PREFIX} {quick}"),
            make.Run("few", "tuned", f"{make.FINETUNE} {quick}")]
    monkeypatch.setattr(make, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(make, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make, "PARTS", {"few": lambda: runs})
    return runs


def test_it_runs_what_is_not_finished_and_gathers_what_the_runs_tell(small_experiment, tmp_path):
    done = run_here(make.main, "few", "--jobs", 2)
    assert done.error is None, done.error
    told = json.loads((tmp_path / "results" / "few.json").read_text())
    assert list(told) == ["a/prefix", "tuned"]
    scores = json.loads((small_experiment[0].folder / "scores.json").read_text())
    assert told["a/prefix"]["scores"] == {name: scores[name] for name in metrics.METRICS}
    assert told["a/prefix"]["kept"] == 5 * 2 * 6 * 256 and told["tuned"]["trained"] > 5e6
    assert [step for step, _ in told["tuned"]["validation"]] == [3]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    (small_experiment[1].folder / "scores.json").unlink()  # as if stopped before its end
    (tmp_path / "results" / "few.json").unlink()
    assert run_here(make.main, "--jobs", 1).error is None
    assert json.loads((tmp_path / "results" / "few.json").read_text())["tuned"] == told["tuned"]
    first = small_experiment[0].folder / "scores.json"
    assert first.stat().st_mtime_ns == before[first]
    assert run_here(make.main, "--list").stdout.count("done  python train.py") == 2


def test_a_run_that_fails_is_named_with_its_log_and_no_result_is_written(small_experiment,
                                                                         tmp_path, monkeypatch):
    wrong = make.Run("few", "wrong", "train.py --mode prefix --lr -1")
    monkeypatch.setattr(make, "PARTS", {"few": lambda: [wrong]})
    done = run_here(make.main)
    assert "wrong.log says why" in done.error and "--lr -1" in done.error
    assert "must be above 0" in (tmp_path / "runs" / "few" / "wrong.log").read_text()
    assert not (tmp_path / "results").exists()
    assert "the parts are few" in run_here(make.main, "many").error


def test_few_examples_are_drawn_with_a_validation_set_of_three_tenths():
    examples = list(range(1000))
    assert make.pick(examples, 50, 0) == make.pick(examples, 50, 0) != make.pick(examples, 50, 1)
    assert len(set(make.pick(examples, 500, 2))) == 500


def test_losses_are_means_over_steps():
    log = [{"step": step, "loss": float(step), "steps": 10} for step in range(10, 211, 10)]
    log += [{"step": 215, "loss": 1.0, "steps": 5}, {"step": 215, "validation_loss": 9.0}]
    assert make.mean_losses(log) == [[100, 55.0], [200, 155.0], [215, 140.3333]]  # of 15 steps


def test_sentences_are_judged_by_the_rules_for_slots():
    pairs = [("name : A | area : riverside", "A by the river ."), ("name : B | near : C", "B .")]
    assert make.judge(pairs) == {"left out": 25.0, "contradicted": 0.0, "near twice": 0.0}


# --------------------------------------------------------------------------------------------------
# Tables and figures
# --------------------------------------------------------------------------------------------------


def made_up(mode, seed, bleu, loss):
    scores = {"BLEU": bleu, "NIST": 8.5, "METEOR": 0.4, "ROUGE_L": 0.6, "CIDEr": 2.0}
    return {"settings": {"mode": mode, "seed": seed}, "scores": scores, "trained": 1234, "kept": 12,
            "validation": [[5, 3.0], [10, loss]], "training": [[5, 3.5], [10, loss]],
            "sentences": {"left out": 100 * bleu, "contradicted": 0.0}}


@pytest.fixture
def made_up_e2e(monkeypatch):
    told = {f"{mode}-{seed}": made_up(mode, seed, bleu + seed / 100, bleu + seed)
            for mode, bleu in (("prefix", 0.5), ("finetune", 0.7)) for seed in (0, 1)}
    told["base"] = {"scores": made_up("", 0, 0.25, 0)["scores"]}
    for module in (tables, figures):
        monkeypatch.setattr(module, "read", lambda part: told)


def test_the_table_of_the_experiment_has_means_and_spreads(made_up_e2e):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.e2e().splitlines()]
    assert rows[2] == ["the base alone", "25.00", "8.500", "40.00", "60.00", "2.000", "", "0"]
    assert rows[3][:3] == ["prefix-tuning", "50.50", "8.500"] and rows[3][-2:] == ["1.000", "1,234"]
    assert rows[4][:3] == ["highest - lowest", "1.00", "0.000"]
    assert rows[5][:2] == ["fine-tuning", "70.50"]
    assert "| prefix-tuning | 50.5 (50.0 to 51.0) | 0.0" in tables.sentences()


def test_a_place_in_a_document_is_filled_and_the_rest_stays(made_up_e2e):
    text = "A\n<!-- results: sentences -->\nold\n<!-- end -->\nB\n"
    filled = tables.filled(text)
    assert filled == text.replace("old\n", tables.sentences()) == tables.filled(filled)


@pytest.fixture
def drawn(monkeypatch):
    found = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: found.append(figure))
    return found


def test_the_losses_of_both_modes_are_drawn(made_up_e2e, drawn):
    figures.draw_losses("losses.png")
    (axes,) = drawn[0].axes
    assert [line.get_marker() for line in axes.lines] == 4 * ["None", "o"]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["prefix-tuning", "fine-tuning"]


@pytest.mark.parametrize("part", [part for part in MEASURED if part != "e2e"])
def test_each_measured_part_is_drawn_with_all_its_scores(part, drawn):
    figures.DRAWN[part](f"{part}.png")
    (axes,) = drawn[0].axes
    assert len(axes.containers) >= 1 and axes.get_xlabel() and axes.get_ylabel()


@pytest.mark.parametrize("seed", range(3))
def test_attention_is_added_up_as_hugging_face_weighs_it(seed, in_float64):
    config = random_config(seed)
    model, past = random_model(config, seed), random_past(config, 4, 1, seed)
    examples = random_examples(seed, config.n_vocab, count=3)
    twin = hugging_face_twin(model)
    twin.set_attn_implementation("eager")  # the one that tells its weights
    expected = 0
    for prompt, answer in examples:
        tokens = torch.tensor([prompt + answer])
        output = twin(tokens, past_key_values=hugging_face_cache(past, 1), output_attentions=True)
        weights = torch.cat(output.attentions)  # [n_layer, n_head, T, P + T]
        own = weights[:, :, len(prompt) - 1 : -1].mean(2)
        ends = (4, 4 + len(prompt))
        parts = own[..., : ends[0]], own[..., ends[0] : ends[1]], own[..., ends[1] :]
        expected += torch.stack([part.sum(-1) for part in parts], -1) / len(examples)
    shares = figures.attention_shares(model, past, examples)
    assert_close(shares, expected, 1e-6)
    assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]), 1e-6)


@pytest.fixture
def prefixed(monkeypatch):
    """tiny behind a prefix that was not trained, in place of one that takes minutes."""
    model, tokenizer = load_both("tiny")
    torch.manual_seed(0)
    past = Prefix(model.config, 3, form="direct")()
    monkeypatch.setattr(figures, "load_all", lambda: (model, tokenizer, past))
    return model, tokenizer, past


def test_the_tree_shows_every_run_of_tokens_and_marks_the_best_and_greedys(prefixed, drawn):
    model, tokenizer, past = prefixed
    figures.draw_tree("tree.png")
    texts = {color: "".join(text.get_text() for text in drawn[0].axes[0].texts
                            if text.get_color() == color) for color in ("C0", "C3")}
    best = beam_search(model, [encode_table(tokenizer, figures.TREE_TABLE)], past, 3, 60,
                       banned=banned_tokens(model, tokenizer))[0][0]
    assert texts["C0"] == tokenizer.decode(best.tokens)  # it begins at the first fork
    greedy = beam_search(model, [encode_table(tokenizer, figures.TREE_TABLE)], past, 1, 60,
                         banned=banned_tokens(model, tokenizer))[0][0]
    assert tokenizer.decode(greedy.tokens).startswith(texts["C3"])


def test_attention_is_drawn_for_every_layer_and_head(prefixed, drawn):
    figures.draw_attention("attention.png")
    panels = drawn[0].axes[:3]
    assert [len(axes.texts) for axes in panels] == [24, 24, 24]
    shown = [sum(int(axes.texts[i].get_text()[:-1]) for axes in panels) for i in range(24)]
    assert all(abs(total - 100) <= 1 for total in shown)  # rounded


def test_what_is_left_of_each_score_is_drawn_for_each_edit(drawn):
    figures.draw_edits("edits.png")
    (axes,) = drawn[0].axes
    edits = [label.get_text() for label in axes.get_yticklabels()]
    assert edits == [name for name in figures.EDITS if name != "as it is"]
    assert len(axes.texts) == len(edits) * len(axes.get_xticklabels())


def test_an_edit_does_to_a_sentence_what_its_name_says():
    text = "A cheap Thai inn serves Thai food ."
    edited = {name: edit(text, "Thai", "Greek") for name, edit in figures.EDITS.items()}
    assert edited == {
        "as it is": text,
        "a value dropped": "A cheap inn serves food .",
        "a value swapped": "A cheap Greek inn serves Greek food .",
        "halves swapped": "serves Thai food A cheap Thai inn .",
        "synonyms": "A inexpensive Thai inn provides Thai food .",
        "said twice": f"{text} {text}",
    }


def test_the_sentences_that_are_edited_say_the_value_and_never_the_other():
    cases = list(figures.edit_cases())
    assert len(cases) > 30
    for text, value, other, others in cases:
        assert value in text and other not in text and others


def test_no_score_sees_an_untrue_value_as_it_sees_a_repetition():
    scores = figures.edit_scores()
    for name in metrics.METRICS:
        if scores["as it is"][name] is not None:
            assert scores["a value swapped"][name] > 0.8 * scores["as it is"][name]
            assert scores["said twice"][name] < scores["a value swapped"][name]


def test_figures_that_there_are_not_are_told():
    assert "the figures are attention, " in run_here(figures.main, "nonsense").error
