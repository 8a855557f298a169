"""Decoding test tables with 5 beams: ours, and transformers' `generate`, on the same weights.

    python -m experiments.bench.decoding --data e2e --tokenizer gpt2-medium

The weights are random, in GPT-2 Medium's shape. <|endoftext|> is banned on both sides, so that both
write the same number of tokens. Two things are measured: one model that describes many tables,
where `generate` gets batches of several sizes (padded on the left, as it asks for); and many tasks,
each with a prefix of its own, in one batch, one after the other, and one after the other by PEFT.
"""

import argparse
import time

import torch
from torch.nn.utils.rnn import pad_sequence

from beam import beam_search
from e2e_data import encode_table, group_by_table, read_split
from experiments.bench.training import (PREFIX_LENGTH, add_arguments, print_row, random_model,
                                         wait)
from experiments.bench.twins import hugging_face_twin, peft_twin
from gpt2 import load_tokenizer
from prefix import Prefix, stack_pasts
from support.commands import InputError, run_command
from support.devices import pick_device
from support.reading import find_data

NUM_BEAMS, N_PREFIXES = 5, 16


def our_search(model, prompts, max_new_tokens, past=None, past_lengths=None):
    """What `beam_search` writes: for each prompt the tokens of the best hypothesis."""
    found = beam_search(model, prompts, past, NUM_BEAMS, max_new_tokens,
                        banned=[model.config.eos_token], past_lengths=past_lengths)
    return [best.tokens for best, *_ in found]


def their_search(twin, prompts, max_new_tokens, batch_size):
    """What `generate` writes, as `our_search`. Prompts of similar lengths go together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    written = {}
    for at in range(0, len(order), batch_size):
        numbers = order[at : at + batch_size]
        rows = [torch.tensor(prompts[i]) for i in numbers]
        ones = [torch.ones_like(row) for row in rows]
        tokens = pad_sequence(rows, batch_first=True, padding_side="left")  # [B, T]
        mask = pad_sequence(ones, batch_first=True, padding_side="left")
        output = twin.generate(
            input_ids=tokens.to(twin.device), attention_mask=mask.to(twin.device),
            num_beams=NUM_BEAMS, do_sample=False, max_new_tokens=max_new_tokens,
            min_new_tokens=max_new_tokens)  # as a bad word <|endoftext|> would not be banned
        written |= zip(numbers, output[:, tokens.shape[1] :].tolist())
    return [written[i] for i in range(len(prompts))]


def ways_of_one_model(model, prompts, length, batch_sizes):
    """{name: a search for all prompts}."""
    twin = hugging_face_twin(model)
    ways = {"ours": lambda: our_search(model, prompts, length)}
    for size in [*batch_sizes, 1]:
        ways[f"generate, {size} at a time"] = (
            lambda size=size: their_search(twin, prompts, length, size))
    return ways


def ways_of_many_prefixes(model, prompts, length):
    """{name: a search for all prompts, each with a prefix of its own}."""
    with model.device:
        prefixes = [Prefix(model.config, PREFIX_LENGTH, form="direct") for _ in prompts]
    pasts = [[(key.detach(), value.detach()) for key, value in prefix()] for prefix in prefixes]
    twin = hugging_face_twin(model)
    twins = [peft_twin(twin, prefix) for prefix in prefixes]
    return {
        "each row its prefix, one batch":
            lambda: our_search(model, prompts, length, *stack_pasts(pasts)),
        "one prefix after the other":
            lambda: [our_search(model, [prompt], length, past)[0]
                     for prompt, past in zip(prompts, pasts)],
        "PEFT, one after the other":
            lambda: [their_search(adapted, [prompt], length, 1)[0]
                     for prompt, adapted in zip(prompts, twins)],
    }


def compare_ways(ways, device):
    """Prints what each way took, and how many sentences are those of the first."""
    print_row("", ["seconds", "over the first", "the same sentences"])
    first = None
    for name, search in ways.items():
        wait(device)
        started = time.perf_counter()
        written = search()
        wait(device)
        seconds = time.perf_counter() - started
        first = first or (seconds, written)
        same = sum(a == b for a, b in zip(written, first[1]))
        print_row(name, [f"{seconds:.2f}", f"{seconds / first[0]:.2f}",
                         f"{same} of {len(written)}"])


def main():
    parser = argparse.ArgumentParser(
        description="Decoding with 5 beams: ours against transformers' generate, and PEFT's.")
    add_arguments(parser)
    add = parser.add_argument
    add("--tables", type=int, default=64, metavar="N",
        help="how many, if there are so many (default: %(default)s)")
    add("--max-new-tokens", type=int, default=30, metavar="N",
        help="that each gets (default: %(default)s)")
    add("--batch-sizes", type=int, nargs="+", default=[8, 16, 32], metavar="N",
        help="tables at once for generate, besides 1 (default: 8 16 32)")
    args = parser.parse_args()
    if min(args.tables, args.max_new_tokens, *args.batch_sizes) < 1:
        raise InputError("all numbers must be at least 1")
    device, length = pick_device(args.device), args.max_new_tokens
    model = random_model(args.model, device)
    tokenizer = load_tokenizer(args.tokenizer)
    tables = list(group_by_table(read_split(find_data(args.data), "test")))
    every = max(1, len(tables) // args.tables)  # spread over the whole test set
    prompts = [encode_table(tokenizer, table) for table in tables[::every][: args.tables]]
    print(f"{args.model}'s shape, {len(prompts)} tables of {args.data}, {NUM_BEAMS} beams, "
          f"{length} new tokens, float32, {device} ({torch.get_num_threads()} threads)\n")
    compare_ways(ways_of_one_model(model, prompts, length, args.batch_sizes), device)
    prompts = prompts[:N_PREFIXES]
    print(f"\n{len(prompts)} of them, each with a prefix of {PREFIX_LENGTH} positions\n")
    compare_ways(ways_of_many_prefixes(model, prompts, length), device)


if __name__ == "__main__":
    run_command(main)
