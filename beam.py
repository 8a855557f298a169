"""Beam search over a key/value cache, many prompts of different lengths at once.

    python beam.py --run DIR "name : Blue Spice | Type : pub"       a trained run describes a table
    python beam.py --run DIR < tables.txt                           a table a line
    python beam.py --run DIR --data e2e                             decodes and scores the test set anew
"""

import argparse
import sys
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from common import InputError, run_command
from gpt2 import Growing


DECODER = {"num_beams": 5, "length_penalty": 1.0, "max_new_tokens": 100}  # as Li & Liang decode E2E


@dataclass
class Hypothesis:
    """A continuation of a prompt, without the prompt and without the <|endoftext|> that closes it."""

    tokens: list
    score: float  # sum of log-probabilities / (number of tokens, <|endoftext|> counted) ** length_penalty


@dataclass
class Search:
    """The state of one prompt's search; it begins with one empty beam."""

    number: int  # which prompt it is
    beams: list = field(default_factory=lambda: [[]])  # tokens of the hypotheses that still go on, best first
    scores: list = field(default_factory=lambda: [0.0])  # their sums of log-probabilities
    finished: list = field(default_factory=list)  # the num_beams best hypotheses that have ended

    def grow(self, candidates, length, is_last, eos_token, num_beams, length_penalty):
        """Makes the next beams, of `length` tokens, from 2 * num_beams candidates (score, beam, token), best first.

        Only the num_beams best candidates may end; the others are there so that num_beams can go on even if all of
        those end. Returns out of which old beam each new one grew, and nothing at all where the search is over.
        """
        beams, scores, grown_from = [], [], []
        for rank, (score, beam, token) in enumerate(candidates):
            ends = token == eos_token
            if (ends or is_last) and rank < num_beams:
                written = self.beams[beam] + [token] * (not ends)
                self.finished.append(Hypothesis(written, score / length**length_penalty))
            if not ends and len(beams) < num_beams:
                beams.append(self.beams[beam] + [token])
                scores.append(score)
                grown_from.append(beam)
        self.beams, self.scores = beams, scores
        self.finished = sorted(self.finished, key=lambda hypothesis: -hypothesis.score)[:num_beams]
        # What goes on is given up once its best could not enter the num_beams finished ones if it ended now.
        best_possible = scores[0] / length**length_penalty
        is_over = len(self.finished) == num_beams and best_possible <= self.finished[-1].score
        return [] if is_over or is_last else grown_from


@torch.no_grad()
def beam_search(model, prompts, past=None, num_beams=5, max_new_tokens=100, length_penalty=1.0, banned=(),
                batch_size=64, progress=False):
    """The best continuations of each prompt, as Hugging Face's `generate(early_stopping=False)` finds them.

    prompts     lists of tokens, of any lengths; batch_size of them are searched at once
    past        for each layer (key, value), each [1, n_head, P, head_dim], that stands in front of every prompt
    banned      tokens that are never written
    progress    whether to show a bar on stderr
    returns     for each prompt, num_beams times Hypothesis(tokens, score), best first
    Raises InputError where a prompt is empty or too long, or the vocabulary is too small for so many beams.
    """
    P = 0 if past is None else past[0][0].shape[2]
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise InputError(f"prompt {number} is empty")
        if (room := model.config.n_ctx - P - max_new_tokens + 1) < len(prompt):  # the last new token is never read
            raise InputError(f"prompt {number} has {len(prompt)} tokens, but with {P} of a prefix and {max_new_tokens} "
                             f"new ones there is room for {room}")
    if num_beams < 1 or max_new_tokens < 1 or batch_size < 1:
        raise InputError("the numbers of beams, of new tokens and of prompts at once must be at least 1")
    if 2 * num_beams > model.config.n_vocab - len(set(banned)):
        raise InputError(f"{num_beams} beams are too many for {model.config.n_vocab} tokens, of which some are banned")
    results = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # little padding in a batch
    with tqdm(total=len(prompts), desc="decoding", unit=" tables", disable=not progress) as bar:
        for at in range(0, len(prompts), batch_size):
            batch = by_length[at : at + batch_size]
            searches = [Search(number) for number in batch]
            search_batch(model, [prompts[i] for i in batch], past, searches, num_beams, max_new_tokens,
                         length_penalty, list(banned), bar)
            for search in searches:
                results[search.number] = search.finished
    return results


def search_batch(model, prompts, past, searches, num_beams, max_new_tokens, length_penalty, banned, bar):
    """Runs `searches` to their ends, one for each of `prompts`.

    The beams of a search are so many queries against the keys and values of one row: those of the prefix and of its
    prompt, computed once and shared, and behind them those of all that its beams ever wrote. Which of them a beam may
    see, its own tokens and no others, is the mask's affair; so what grows out of what changes the mask alone, and no
    key or value is ever copied from beam to beam.
    """
    device = model.wte.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)  # padded on the right
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    P = 0 if past is None else past[0][0].shape[2]
    real = torch.arange(tokens.shape[1], device=device) < lengths[:, None]  # [B, T]
    is_last = torch.arange(tokens.shape[1], device=device) == lengths[:, None] - 1  # [B, T]
    features, past = model.features(tokens.to(device), past, real=real, wanted=is_last)  # [B, n_embd]
    past = [(Growing(key), Growing(value)) for key, value in past]
    logits = model.logits(features)[:, None]  # [B, 1, n_vocab]
    mask = torch.cat([real.new_ones(len(prompts), P), real], dim=1)[:, None]  # [B, beams, P + T]; 1 beam, k from now on
    own = torch.eye(num_beams, dtype=torch.bool, device=device)  # of the newest tokens a beam sees its own

    for length in range(1, max_new_tokens + 1):
        log_probs = torch.log_softmax(logits.float(), -1)  # [B, beams, n_vocab]
        log_probs[..., banned] = -torch.inf
        scores = torch.tensor([search.scores for search in searches], device=device)  # [B, beams]
        candidates = (scores[..., None] + log_probs).flatten(1)  # [B, beams * n_vocab]: each beam with each token
        top_scores, top = candidates.topk(2 * num_beams)  # each [B, 2 * num_beams], best first
        beams, chosen = top // log_probs.shape[2], top % log_probs.shape[2]

        grown_from = []  # for each search, out of which old beam each new one grew
        top_scores, beams, chosen = top_scores.tolist(), beams.tolist(), chosen.tolist()
        for row, search in enumerate(searches):
            grown_from.append(search.grow(zip(top_scores[row], beams[row], chosen[row]), length,
                                          length == max_new_tokens, model.config.eos_token, num_beams, length_penalty))
        rows = rows_that_stay(grown_from)
        bar.update(len(searches) - len(rows))
        if not rows:
            break
        if len(rows) < len(searches):
            searches, lengths = [searches[row] for row in rows], lengths[rows]
            for layer in past:
                for tensor in layer:
                    tensor.keep(rows)
        grown_from = torch.tensor([grown_from[row] for row in rows], device=device)  # [B, k]
        mask = mask[torch.tensor(rows, device=device)[:, None], grown_from]  # [B, k, P + T + all that was written]
        mask = torch.cat([mask, own.expand(len(rows), -1, -1)], dim=2)
        newest = torch.tensor([[beam[-1] for beam in search.beams] for search in searches], device=device)  # [B, k]
        logits = model(newest, past, positions=P + lengths[:, None] + length - 1, mask=mask)  # [B, k, n_vocab]


def rows_that_stay(grown_from):
    """The rows of the searches that go on, in an order in which few move: the last ones take the places of the ended.

    >>> rows_that_stay([[0, 1], [], [1, 0], [0, 0]])
    [0, 3, 2]
    """
    going_on = [row for row, grown in enumerate(grown_from) if grown]
    stay = set(range(len(going_on))) & set(going_on)
    movers = [row for row in going_on if row not in stay]
    return [row if row in stay else movers.pop() for row in range(len(going_on))]


def banned_tokens(tokenizer):
    """The line breaks that are single tokens (198 and 628 in GPT-2): Li & Liang never write them."""
    encoded = [tokenizer.encode_ordinary(text) for text in ("\n", "\n\n")]
    return [tokens[0] for tokens in encoded if len(tokens) == 1]


def add_decoder_arguments(parser):
    """The decoder's settings as arguments of a command line."""
    parser.add_argument("--num-beams", type=int, default=DECODER["num_beams"], metavar="K",
                        help="beams of the search (default: %(default)s)")
    parser.add_argument("--length-penalty", type=float, default=DECODER["length_penalty"], metavar="A",
                        help="a beam's score is divided by its length to this power (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=DECODER["max_new_tokens"], metavar="N",
                        help="the longest sentence, in tokens (default: %(default)s)")
    parser.add_argument("--decode-batch-size", type=int, default=64, metavar="N",
                        help="tables described at once; fewer need less memory (default: %(default)s)")
    parser.add_argument("--device", default="auto",
                        help="auto (default: a GPU where there is one), cpu, cuda, mps, ...")


def main():
    from train import describe, load_run, score_test_set  # the whole road, which itself imports this module

    parser = argparse.ArgumentParser(description="A trained run describes tables.",
                                     epilog='example: python beam.py --run runs/demo "name : Blue Spice | Type : pub"')
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="such as \"name : Blue Spice | Type : pub\"; "
                        "without any, and without --data, lines of stdin")
    parser.add_argument("--run", required=True, metavar="DIR|MODEL",
                        help="the folder that train.py wrote, or a bare model: tiny, gpt2-medium, ... or its folder")
    parser.add_argument("--data", metavar="e2e|sample|DIR", help="decode and score this data set's test tables")
    parser.add_argument("--out", metavar="DIR", help="with --data: also write outputs.txt, references.txt, scores.json")
    add_decoder_arguments(parser)
    args = parser.parse_args()
    if args.data and args.tables:
        raise InputError("give either tables or --data")
    if args.out and not args.data:
        raise InputError("--out goes with --data")
    run = load_run(args.run, args.device)
    decoder = {name: getattr(args, name) for name in DECODER}
    if args.data:
        score_test_set(run, args.data, decoder, args.decode_batch_size, args.out)
        return
    tables = args.tables or [line.strip() for line in sys.stdin if line.strip()]
    for sentence in describe(run, tables, decoder, args.decode_batch_size, progress=len(tables) > 20):
        print(sentence)


if __name__ == "__main__":
    run_command(main)
