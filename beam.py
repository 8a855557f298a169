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
    """Runs `searches` to their ends, one for each of `prompts`."""
    device = model.wte.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)  # padded on the right
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    P = 0 if past is None else past[0][0].shape[2]
    features, past = model.features(tokens.to(device), past)
    logits = model.logits(features[torch.arange(len(prompts)), lengths - 1])  # [B, n_vocab], after each last token
    mask = torch.arange(P + tokens.shape[1], device=device) < P + lengths[:, None]  # [B, P + T]: what is no padding

    for length in range(1, max_new_tokens + 1):
        log_probs = torch.log_softmax(logits.float(), -1)  # [searches * beams, n_vocab]
        log_probs[:, banned] = -torch.inf
        n_vocab = log_probs.shape[1]
        scores = torch.tensor([search.scores for search in searches], device=device)  # [searches, beams]
        candidates = (scores.view(-1, 1) + log_probs).view(len(searches), -1)  # each beam with each token behind it
        top_scores, top = candidates.topk(2 * num_beams)  # each [searches, 2 * num_beams], best first
        beams, chosen = top // n_vocab, top % n_vocab

        going_on, rows = [], []  # rows: which row of the cache each new beam goes on from
        top_scores, beams, chosen = top_scores.tolist(), beams.tolist(), chosen.tolist()
        for i, search in enumerate(searches):
            grown_from = search.grow(zip(top_scores[i], beams[i], chosen[i]), length, length == max_new_tokens,
                                     model.config.eos_token, num_beams, length_penalty)
            if grown_from:
                going_on.append(search)
                rows += [i * scores.shape[1] + beam for beam in grown_from]
            else:
                bar.update()
        searches = going_on
        if not searches:
            break

        rows = torch.tensor(rows, device=device)
        past = [(key[rows], value[rows]) for key, value in past]
        lengths = lengths[rows]
        mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], dim=1)
        newest = torch.tensor([[beam[-1]] for search in searches for beam in search.beams], device=device)
        logits, past = model(newest, past, positions=P + lengths[:, None] + length - 1, mask=mask, return_past=True)
        logits = logits[:, -1]  # [searches * num_beams, 1, n_vocab] -> [searches * num_beams, n_vocab]


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
    parser.add_argument("--run", required=True, metavar="DIR", help="the folder that train.py wrote")
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
