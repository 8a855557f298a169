"""The figures of README.md, TUTORIAL.md and RESULTS.md (figures/idea.svg is drawn by hand).

    python -m experiments.draw                  all of them
    python -m experiments.draw attention tree   these alone

forms, small, length, size and losses show results/*.json. attention and tree show the small base
with a prefix that is trained first, 400 steps, where it is not there yet; edits shows the five
scores.
"""

import argparse
import math
from contextlib import nullcontext
from statistics import mean

import numpy as np
import torch

import metrics
from beam import WatchedSearch, banned_tokens, search_batch
from e2e_data import encode_example, encode_table, group_by_table, make_batch, read_split
from experiments.make import (FEW_EXAMPLES, FROM_EXAMPLES, LENGTHS, RATES, STEPS,
                              check_names)
from experiments.tables import (MODES, blaming_results, bleu, form_lines, is_measured, kept_loss,
                                named, of_bases, read)
from gpt2 import concatenate, load_both
from prefix import load_past
from support import drawing
from support.drawing import PUBLISHED_CURVE, branches, draw_points, figure_at
from support.files import ROOT, run_command
from support.reading import find_data
from support.settings import Settings
from train import train_and_score

PREFIX = Settings(mode="prefix", model="tiny", data="sample", prefix_form="direct",
                  prefix_length=20, max_steps=400, num_beams=1)
PREFIX_RUN = ROOT / "runs/figures"


# --------------------------------------------------------------------------------------------------
# From results/*.json
# --------------------------------------------------------------------------------------------------


def draw_forms(path):
    """Validation loss against learning rate, a line for each form: mean, lowest and highest."""
    with figure_at(path) as (_, axes):
        for form, label, losses in form_lines():
            draw_points(axes, losses, label=label, linestyle="-" if label == form else "--",
                        color=f"C{list(RATES).index(form)}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss a token (nats)",
                 ylim=(0.4, 6.9))
        axes.legend(loc="upper right")


def draw_small(path):
    """BLEU against the number of examples."""
    runs = read("small")
    with figure_at(path) as (_, axes):
        for (mode, label), beside in zip(MODES.items(), (0.99, 1.01)):  # no bar hides another
            points = {n * beside: bleu(named(runs, f"{mode}-{n}-")) for n in FEW_EXAMPLES}
            draw_points(axes, points, label=label)
        axes.set(xscale="log", xlabel="training examples", ylabel="BLEU, mean of three draws",
                 xticks=FEW_EXAMPLES, xticklabels=FEW_EXAMPLES)
        axes.minorticks_off()
        axes.legend()


def draw_length(path):
    """BLEU against prefix length (Figure 2), with fine-tuning and what is known of GPT-2 Medium."""
    runs = read("length")
    with figure_at(path) as (_, axes):
        scores = {P: bleu(named(runs, f"length-{P}-")) for P in LENGTHS}
        draw_points(axes, {0: bleu([runs["base"]])} | scores,
                    label=f"tiny, prefix, {STEPS:,} steps")
        if is_measured("longer"):
            further = {P: bleu(named(read("longer"), f"length-{P}-")) for P in FROM_EXAMPLES}
            draw_points(axes, further, color="C2", label="the same, from examples")
        tuned = bleu(named(runs, "finetune"))
        axes.axhspan(min(tuned), max(tuned), color="C1", alpha=0.3)
        axes.axhline(mean(tuned), color="C1", label=f"tiny, fine-tuning, {STEPS:,} steps")
        axes.plot(*zip(*PUBLISHED_CURVE.items()), "s--", color="gray",
                  label="GPT-2 Medium, a re-implementation's outputs")
        axes.set(xlabel="prefix length (0: the base alone)", ylabel="BLEU")
        axes.legend(loc="lower right")


def draw_size(path):
    """The prefix's share of fine-tuning's BLEU, and the gap in loss, against the base's size."""
    shares, gaps = {}, {}  # parameters -> a value for each seed of the prefix
    for _, _, prefixes, tuned in of_bases():
        size = tuned[0]["trained"]
        shares[size] = [100 * score / mean(bleu(tuned)) for score in bleu(prefixes)]
        gaps[size] = [loss - mean(kept_loss(tuned)) for loss in kept_loss(prefixes)]
    with figure_at(path, 9, 4) as (figure, axes):
        axes.remove()
        left, right = figure.subplots(1, 2)
        draw_points(left, shares)
        draw_points(right, gaps)
        left.set(xscale="log", xlabel="parameters of the base",
                 ylabel="the prefix's BLEU, % of fine-tuning's")
        right.set(xscale="log", xlabel="parameters of the base",
                  ylabel="the prefix's loss - fine-tuning's")


def draw_losses(path):
    """Loss against steps of the experiment's runs."""
    logs = {}
    for mode, label in MODES.items():
        logs[label] = [
            [{"step": step, "loss": loss} for step, loss in told["training"]]
            + [{"step": step, "validation_loss": loss} for step, loss in told["validation"]]
            for told in named(read("e2e"), mode)]
    drawing.draw_losses(logs, path)


# --------------------------------------------------------------------------------------------------
# From the small base
# --------------------------------------------------------------------------------------------------


def load_all():
    """The base, its tokenizer, and the past of the prefix, which is trained where it is missing."""
    train_and_score(PREFIX, PREFIX_RUN, resume=(PREFIX_RUN / "run.json").exists())
    model, tokenizer = load_both("tiny")
    past, _ = load_past(PREFIX_RUN, model)
    return model, tokenizer, past


@torch.no_grad()
def attention_shares(model, past, encoded):
    """How much the tokens that write a sentence take from where (Vaswani et al. 2017, equation 1).

    Returns [n_layer, n_head, 3]: the attention weights on the prefix, on the table and on the
    sentence so far, added up; the mean over the sentences' tokens, and over the examples.
    """
    total = 0
    for prompt, answer in encoded:
        batch = make_batch([(prompt, answer)])
        x, visible = model.embed(batch.tokens, past, None), model.visible(batch.tokens, past, None)
        shares = []
        for block, (key, value) in zip(model.h, past):
            q, k, _ = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=2)  # [1, T, n_embd]
            q, k = block.attn.split_heads(q), concatenate(key, block.attn.split_heads(k))
            scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # [1, n_head, T, P + T]
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            weights = weights[0, :, batch.wanted].mean(1)  # [n_head, P + T]
            parts = weights.split([key.shape[2], len(prompt), len(answer) - 1], dim=1)
            shares.append(torch.stack([part.sum(1) for part in parts], 1))  # [n_head, 3]
            x, _ = block(x, (key, value), visible)
        total += torch.stack(shares) / len(encoded)
    return total


def draw_attention(path):
    """Where each head of each layer looks while a sentence is written."""
    model, tokenizer, past = load_all()
    examples = read_split(find_data("sample"), "valid")[:20]
    shares = attention_shares(model, past, [encode_example(tokenizer, *pair) for pair in examples])
    heads, layers = range(model.config.n_head), range(model.config.n_layer)
    with figure_at(path, 9, 4) as (figure, axes):
        axes.remove()
        panels = figure.subplots(1, 3, sharey=True)
        for number, title in enumerate(("the prefix", "the table", "the sentence so far")):
            image = draw_shares(panels[number], shares[:, :, number])
            panels[number].set(title=title, xlabel="head", xticks=heads, yticks=layers)
        panels[0].set_ylabel("layer")
        figure.colorbar(image, ax=panels, label="share of attention")


def draw_shares(axes, shares):
    """A matrix of shares of 1 as colours, with their per cents; returns the image."""
    for (row, column), share in np.ndenumerate(shares.numpy()):
        color = "white" if share < 0.6 else "black"
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=color)
    return axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")


TREE_TABLE = "name : The Juniper Lantern | Type : bistro | customer rating : good"


def draw_tree(path):
    """All beams of one search, with what they write, and what greedy writing would have written.

    A run of tokens from fork to fork is a text. It stands right of what it continues: the likeliest
    in the same row, the others below. At its end, or below its middle where it goes on, stands the
    log-probability of all up to there.
    """
    model, tokenizer, past = load_all()
    prompt, banned = encode_table(tokenizer, TREE_TABLE), banned_tokens(model, tokenizer)
    searches = {}
    for num_beams in (1, 3):
        searches[num_beams] = search = WatchedSearch()
        search_batch(model, [prompt], past, [past[0][0].shape[2]], [search], num_beams, 60, 1.0,
                     banned)
    forks, seen = branches(searches[3]), searches[3].seen
    finished = [tuple(hypothesis.tokens) for hypothesis in searches[3].finished]
    best, greedy = (tuple(searches[num_beams].finished[0].tokens) for num_beams in (3, 1))
    with figure_at(path, 10, 6) as (_, axes):
        style = {"va": "center", "family": "monospace", "fontsize": 9}  # 125 letters fill 10 inches
        below = style | {"ha": "center", "zorder": 1,
                         "bbox": {"color": "white", "pad": 0}}  # hides a line behind it

        def draw(fork, x, row):
            """Draws all behind a fork at (x, row); returns the first row that is free below."""
            for number, end in enumerate(forks[fork]):
                if number:
                    axes.plot([x, x], [row_before, row], color="lightgray", linewidth=1, zorder=0)
                row_before = row
                text = tokenizer.decode(list(end[len(fork) :]))
                color = ("C0" if end == best[: len(end)] else "C3" if end == greedy[: len(end)]
                         else "dimgray")
                axes.text(x, row, text, color=color, **style)
                shown = f"{seen[end]:.1f}" + ", ends" * (end in finished)
                if forks[end]:
                    axes.text(x + len(text) / 2, row + 0.45, shown, **below)
                else:
                    axes.text(x + len(text) + 2, row, shown, **style)
                row = draw(end, x + len(text), row)
            return row if forks[fork] else row + 1

        rows = draw((), 0, 0)
        axes.set(xlim=(0, 125), ylim=(rows, -1))
        axes.axis("off")


SYNONYMS = {"offers": "provides", "serves": "provides", "cheap": "inexpensive",
            "excellent": "outstanding", "dishes": "meals", "near": "close to"}
EDITS = {  # of a sentence that says `value`, where `other` would be untrue
    "as it is": lambda text, value, other: text,
    "a value dropped": lambda text, value, other: text.replace(f" {value}", ""),
    "a value swapped": lambda text, value, other: text.replace(value, other),
    "halves swapped": lambda text, value, other: swap_halves(text.split()),
    "synonyms": lambda text, value, other: " ".join(
        SYNONYMS.get(word, word) for word in text.split()),
    "said twice": lambda text, value, other: f"{text} {text}",
}


def swap_halves(words):
    """The second half of a sentence first; its last word, the full stop, stays."""
    half = len(words) // 2
    return " ".join([*words[half:-1], *words[:half], words[-1]])


def edit_cases():
    """(sentence, value, other value, other references) of the sample's test tables.

    The value is the table's food, or its type; tables where neither is said as it stands there, or
    with a single reference, are left out.
    """
    groups = group_by_table(read_split(find_data("sample"), "test"))
    tables = {table: dict(slot.split(" : ") for slot in table.split(" | ")) for table in groups}
    for table, (text, *others) in groups.items():
        for slot in ("food", "Type"):
            value = tables[table].get(slot)
            if value and f" {value} " in text and others:
                known = sorted({values[slot] for values in tables.values() if slot in values})
                yield text, value, known[known.index(value) - 1], others
                break


def edit_scores():
    """{edit: its scores}: what the five scores make of good sentences, broken in known ways."""
    cases = list(edit_cases())
    scorer = metrics.Scorer([others for *_, others in cases])
    return {name: scorer.score([edit(*case) for *case, _ in cases])[0]
            for name, edit in EDITS.items()}


def draw_edits(path):
    """How much of its score a sentence keeps after each edit."""
    scores = edit_scores()
    whole = scores.pop("as it is")
    names = [name for name in metrics.METRICS if whole[name] is not None]
    kept = torch.tensor([[of_edit[name] / whole[name] for name in names]
                         for of_edit in scores.values()])
    with figure_at(path) as (_, axes):
        axes.grid(False)
        draw_shares(axes, kept)
        axes.set(title="What is left of each score", xticks=range(len(names)),
                 xticklabels=[name.replace("_", "-") for name in names], yticks=range(len(scores)),
                 yticklabels=list(scores))


DRAWN = {  # a figure's name -> (its function, the parts of the experiment that it shows)
    "attention": (draw_attention,), "tree": (draw_tree,), "edits": (draw_edits,),
    "forms": (draw_forms, "forms"), "small": (draw_small, "small"),
    "length": (draw_length, "length"), "losses": (draw_losses, "e2e"),
    "size": (draw_size, "size", "place", "e2e")}


def main():
    parser = argparse.ArgumentParser(description="Draws the figures of the three documents.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"{', '.join(DRAWN)} (default: all)")
    args = parser.parse_args()
    check_names(args.names, DRAWN, "figures")
    for name in args.names or DRAWN:
        path = ROOT / "experiments/figures" / f"{name}.png"
        draw, *parts = DRAWN[name]
        if not is_measured(*parts):
            print(f"{path.relative_to(ROOT)} is left as it is: `python -m experiments.make "
                  f"{parts[0]}` makes what it shows")
            continue
        with blaming_results(*parts) if parts else nullcontext():
            draw(path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    run_command(main)
