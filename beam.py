"""Beam search over a KV cache, for many prompts of different lengths at once.

    python beam.py "name : Blue Spice | Type : pub"      one search, as a tree of its beams
    python beam.py --prefix runs/demo/prefix             the same with a prefix in front
"""

import argparse
import math
from dataclasses import dataclass, field

import torch

from e2e_data import check_lengths, encode_table, read_table
from gpt2 import load_both, past_length
from prefix import load_pasts
from support.bases import NAMES
from support.commands import InputError, progress_bar, run_command
from support.devices import pick_device
from support.drawing import draw_tree
from support.reading import parse_table
from support.run_folder import read_source
from support.settings import DECODER, add_arguments
from support.speed import KVCache, compact_rows, fast_products, packed_logits, pad


@dataclass
class Hypothesis:
    """A continuation of a prompt, without the prompt and without the <|endoftext|> that ends it."""

    tokens: list
    score: float  # sum of log-probabilities / (tokens, <|endoftext|> counted) ** length_penalty


@dataclass
class Search:
    """The state of the search for one prompt. It starts with one empty beam."""

    beams: list = field(default_factory=lambda: [[]])  # tokens of the unfinished beams, best first
    scores: list = field(default_factory=lambda: [0.0])  # the sum of log-probabilities of each
    finished: list = field(default_factory=list)  # the num_beams best finished hypotheses

    def advance(self, candidates, length, is_last, eos_token, num_beams, length_penalty):
        """Selects the next beams, of `length` tokens, from candidates (score, beam, token).
        Candidates that end are added to the finished hypotheses.

        There are 2 * num_beams candidates, best first. Only the num_beams best may end; the others
        ensure that num_beams can continue even if all of those end. Returns for each new beam the
        old beam that it continues, and an empty list when the search is over.
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
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[num_beams:]
        # The search ends once its best beam, if it finished now, would not be among the best. This
        # is a heuristic, as in Hugging Face: divided by a greater length, the score may still rise.
        best_now = scores[0] / length**length_penalty
        is_full = len(self.finished) == num_beams
        is_over = is_full and best_now <= self.finished[-1].score
        return [] if is_over or is_last else grown_from


def beam_search(model, prompts, past=None, num_beams=5, max_new_tokens=100, length_penalty=1.0,
                banned=(), past_lengths=None, batch_size=64):
    """The best continuations of each prompt, as Hugging Face's `generate(early_stopping=False)`.

    prompts       lists of tokens, of any lengths; batch_size of them are searched at once, and
                  where there are many a bar on stderr shows how many are done
    past          for each layer (key, value), each [B, n_head, P, head_dim]: one before every
                  prompt (B = 1), or a row for each prompt, in the prompts' order
    past_lengths  for each prompt the length of its real past, after padding in front, as
                  `stack_pasts` gives them; by default P
    banned        tokens that are never written
    returns       for each prompt, num_beams times Hypothesis(tokens, score), best first
    Raises InputError where a prompt is empty or too long, the pasts are not as many, or the
    vocabulary is too small for so many beams.
    """
    n_pasts, _, P, _ = (1, 0, 0, 0) if past is None else past[0][0].shape
    past_lengths = past_lengths or [P] * len(prompts)
    if n_pasts not in (1, len(prompts)):
        raise InputError(f"the past has {n_pasts} rows, but there are {len(prompts)} prompts: give "
                         "one row for all, or one for each")
    if len(past_lengths) != len(prompts) or not all(0 <= length <= P for length in past_lengths):
        raise InputError(f"past_lengths must be {len(prompts)} numbers, each from 0 to {P}")
    check_search(model, prompts, past_lengths, num_beams, max_new_tokens, length_penalty, banned)
    if batch_size < 1:
        raise InputError("the number of prompts at once must be at least 1")
    searches = [Search() for _ in prompts]
    # Prompts of similar lengths go together, so that there is little padding in a batch.
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    with fast_products(), progress_bar(total=len(prompts), desc="decoding", unit=" tables",
                                       disable=len(prompts) <= 20) as bar:
        for at in range(0, len(prompts), batch_size):
            batch = by_length[at : at + batch_size]
            its_past = past if n_pasts == 1 else [(key[batch], value[batch]) for key, value in past]
            search_batch(model, [prompts[i] for i in batch], its_past,
                         [past_lengths[i] for i in batch], [searches[i] for i in batch], num_beams,
                         max_new_tokens, length_penalty, list(banned), on_finish=bar.update)
    return [search.finished for search in searches]


def check_search(model, prompts, past_lengths, num_beams, max_new_tokens, length_penalty, banned):
    """Raises InputError where such a search, each prompt after its past, is impossible."""
    if num_beams < 1 or max_new_tokens < 1:
        raise InputError("the numbers of beams and of new tokens must be at least 1")
    # A score must stay a number: a length to this power, times a sum of log-probabilities.
    if not abs(length_penalty) * math.log10(max_new_tokens + 1) < 300:
        raise InputError(f"a length penalty of {length_penalty} is too large for {max_new_tokens} "
                         "new tokens: their number to this power is none that a computer holds")
    if 2 * num_beams > model.config.n_vocab - len(set(banned)):
        raise InputError(f"{num_beams} beams are too many for {model.config.n_vocab} tokens, of "
                         "which some are banned")
    if [] in prompts:
        raise InputError(f"prompt {prompts.index([]) + 1} is empty")
    check_lengths([(f"prompt {number}", P, prompt, max_new_tokens)
                   for number, (P, prompt) in enumerate(zip(past_lengths, prompts), 1)],
                  model.config.n_ctx)


@torch.no_grad()
def search_batch(model, prompts, past, past_lengths, searches, num_beams, max_new_tokens,
                 length_penalty, banned, on_finish=lambda number: None):
    """Runs `searches` to their ends, one for each of `prompts`; calls `on_finish` with the number
    that end.

    The beams of a search are so many queries against the keys and values of one row: those of the
    prefix and of its prompt, computed once and shared, and after them those of all that its beams
    ever wrote. The mask alone says which of them are a beam's own. So where one beam is continued
    twice and another is dropped, only the mask changes, and no key or value is ever copied.
    """
    device, P = model.device, past_length(past)
    past_lengths = torch.tensor(past_lengths, device=device)[:, None]  # [B, 1]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]  # [B, 1]
    tokens, token_indices = pad(prompts, device)  # [B, T], [N]
    # A past is padded in front, a prompt at its end, so the real positions are contiguous.
    T = tokens.shape[1]
    at = torch.arange(-P, T, device=device)  # [P + T]; prompts begin at 0
    mask = ((at >= -past_lengths) & (at < lengths))[:, None]  # [B, beams, P + T]
    positions = (past_lengths + at[P:]).clamp(max=model.config.n_ctx - 1)  # [B, T]; cuts padding's
    last = lengths[:, 0] - 1 + T * torch.arange(len(prompts), device=device)  # [B], in B * T
    # The same as `model(tokens, past, positions, mask, return_past=True)`, of the last tokens.
    logits, past = packed_logits(model, tokens, token_indices, last, past, positions, mask,
                                 return_past=True)
    logits = logits[:, None]  # [B, n_vocab] -> [B, beams, n_vocab]; 1 beam, k from now on
    past = [(KVCache(key), KVCache(value)) for key, value in past]
    positions = past_lengths + lengths  # [B, 1], of what is written next
    own = torch.eye(num_beams, dtype=torch.bool, device=device)  # each sees its own newest token

    for length in range(1, max_new_tokens + 1):
        log_probs = torch.log_softmax(logits.float(), -1)  # [B, beams, n_vocab]
        log_probs[..., banned] = -torch.inf
        scores = log_probs.new_tensor([search.scores for search in searches])  # [B, beams]
        candidates = scores[..., None] + log_probs  # each beam with each token
        candidates = candidates.flatten(1)  # [B, beams * n_vocab]
        top_scores, top = candidates.topk(2 * num_beams)  # each [B, 2 * num_beams], best first
        beams, chosen = top // log_probs.shape[2], top % log_probs.shape[2]

        grown_from = []  # for each search, out of which old beam each new one grew
        top_scores, beams, chosen = top_scores.tolist(), beams.tolist(), chosen.tolist()
        is_last = length == max_new_tokens
        for row, search in enumerate(searches):
            best = zip(top_scores[row], beams[row], chosen[row])
            grown_from.append(search.advance(best, length, is_last, model.config.eos_token,
                                             num_beams, length_penalty))
        rows = compact_rows([not grown for grown in grown_from])
        on_finish(len(searches) - len(rows))
        if not rows:
            break
        if len(rows) < len(searches):
            searches, positions = [searches[row] for row in rows], positions[rows]
            for key, value in past:
                key.keep(rows)
                value.keep(rows)
        grown_from = torch.tensor([grown_from[row] for row in rows], device=device)  # [B, k]
        kept = torch.tensor(rows, device=device)[:, None]
        mask = mask[kept, grown_from]  # [B, k, P + T + all that was written]
        mask = torch.cat([mask, own.expand(len(rows), -1, -1)], dim=2)
        newest = [[beam[-1] for beam in search.beams] for search in searches]
        newest = torch.tensor(newest, device=device)  # [B, k]
        logits = model(newest, past, positions, mask)  # [B, k, n_vocab]; past grows in place
        positions = positions + 1


def find_banned_tokens(model, tokenizer):
    """What is never written: line breaks that are single tokens, as with Li & Liang (198 and 628 in
    GPT-2), and ids without a text."""
    encoded = [tokenizer.encode_text(text) for text in ("\n", "\n\n")]
    line_breaks = [tokens[0] for tokens in encoded if len(tokens) == 1]
    return line_breaks + tokenizer.ids_without_text(model.config.n_vocab)


# --------------------------------------------------------------------------------------------------
# One search, to look at
# --------------------------------------------------------------------------------------------------


class WatchedSearch(Search):
    """A search that remembers every beam it ever had, with its sum of log-probabilities."""

    def advance(self, *args):
        grown_from = super().advance(*args)
        self.seen = getattr(self, "seen", {}) | dict(zip(map(tuple, self.beams), self.scores))
        return grown_from


def main():
    parser = argparse.ArgumentParser(
        description="Shows one search as a tree of its beams: what was tried, how likely it was, "
        "what ended.")
    add = parser.add_argument
    add("table", nargs="?", default="name : Blue Spice | Type : pub | area : riverside",
        metavar="TABLE", help="what to describe (default: %(default)s)")
    add("--model", metavar="NAME|DIR", help=f"{', '.join(NAMES)} or a folder (default: the one "
        "that the prefix was trained on, or tiny)")
    add("--prefix", metavar="DIR", help="a folder with a prefix, such as a run's")
    add_arguments(parser, DECODER | {"num_beams": 3, "max_new_tokens": 40})
    add("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    device, past = pick_device(args.device), None
    if args.prefix:
        named = {args.prefix: read_source(args.prefix)["model"]}
        model, tokenizer, pasts = load_pasts(named, device, args.model)
        past = pasts[args.prefix]
    else:
        model, tokenizer = load_both(args.model or "tiny", device)
    table = read_table(parse_table(args.table))
    prompt, banned = encode_table(tokenizer, table), find_banned_tokens(model, tokenizer)
    P = past_length(past)
    check_search(model, [prompt], [P], args.num_beams, args.max_new_tokens, args.length_penalty,
                 banned)
    search = WatchedSearch()
    search_batch(model, [prompt], past, [P], [search], args.num_beams, args.max_new_tokens,
                 args.length_penalty, banned)
    print(f"{table}\n\n  sum of log-probabilities, and what was written\n")
    print("\n".join(draw_tree(search, tokenizer)))


if __name__ == "__main__":
    run_command(main)
