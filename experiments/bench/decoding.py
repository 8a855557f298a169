"""Decoding test tables with 5 beams: ours, and transformers' `generate`, on the same weights.

    python -m experiments.bench.decoding --data e2e --tokenizer gpt2-medium

The weights are random, in GPT-2 Medium's shape. <|endoftext|> is banned on both sides, so that both
write the same number of tokens. `generate` gets batches of several sizes (padded on the left, as it
asks for), and one table at a time.
"""

import argparse
import time

import torch
from torch.nn.utils.rnn import pad_sequence

from beam import beam_search
from experiments.bench.training import add_arguments, peak_flops, wait
from experiments.bench.twins import hugging_face_twin
from support.bases import PUBLISHED
from support.devices import pick_device
from support.files import InputError, run_command
from support.reading import find_data
from e2e_data import encode_table, group_by_table, read_split
from gpt2 import GPT2, GPT2Config, load_tokenizer

NUM_BEAMS = 5


def our_search(model, prompts, max_new_tokens):
    """What `beam_search` writes: for each prompt the tokens of the best hypothesis."""
    found = beam_search(model, prompts, num_beams=NUM_BEAMS, max_new_tokens=max_new_tokens,
                        banned=[model.config.eos_token])
    return [best.tokens for best, *_ in found]


def their_search(twin, prompts, max_new_tokens, batch_size, device):
    """What `generate` writes, as `our_search`. Prompts of similar lengths go together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    written = {}
    for at in range(0, len(order), batch_size):
        numbers = order[at : at + batch_size]
        rows = [torch.tensor(prompts[i]) for i in numbers]
        ones = [torch.ones_like(row) for row in rows]
        tokens = pad_sequence(rows, batch_first=True, padding_side="left").to(device)  # [B, T]
        mask = pad_sequence(ones, batch_first=True, padding_side="left").to(device)
        output = twin.generate(
            input_ids=tokens, attention_mask=mask, num_beams=NUM_BEAMS, do_sample=False,
            max_new_tokens=max_new_tokens, bad_words_ids=[[twin.config.eos_token_id]])
        written |= zip(numbers, output[:, tokens.shape[1] :].tolist())
    return [written[i] for i in range(len(prompts))]


def timed(device, search, *arguments):
    """(seconds that a search takes, what it writes)."""
    wait(device)
    started = time.perf_counter()
    written = search(*arguments)
    wait(device)
    return time.perf_counter() - started, written


def linear_flops(model, prompts, max_new_tokens):
    """The floating-point operations of the linear layers alone, the output layer included.

    They are 2 for each weight and token (see experiments/bench/training.py).
    """
    config = model.config
    weights = 12 * config.n_embd**2 * config.n_layer
    new_tokens = len(prompts) * NUM_BEAMS * (max_new_tokens - 1)  # the last is never read
    tokens, outputs = sum(map(len, prompts)) + new_tokens, len(prompts) + new_tokens
    return 2 * (weights * tokens + model.wte.weight.numel() * outputs)


def main():
    parser = argparse.ArgumentParser(
        description="Decoding with 5 beams: ours against transformers' generate.")
    add_arguments(parser)
    parser.add_argument("--tables", type=int, default=64,
                        help="how many, if there are so many (default: 64)")
    parser.add_argument("--max-new-tokens", type=int, default=30,
                        help="that each gets (default: 30)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32], metavar="N",
                        help="tables at once for generate, besides 1 (default: 8 16 32)")
    args = parser.parse_args()
    if min(args.tables, args.max_new_tokens, *args.batch_sizes) < 1:
        raise InputError("all numbers must be at least 1")
    torch.manual_seed(0)
    device, length = pick_device(args.device), args.max_new_tokens
    with device:
        model = GPT2(GPT2Config(**PUBLISHED[args.model])).eval()
    twin = hugging_face_twin(model)
    tokenizer = load_tokenizer(args.tokenizer)
    tables = list(group_by_table(read_split(find_data(args.data), "test")))
    every = max(1, len(tables) // args.tables)
    tables = tables[::every][: args.tables]  # spread over the whole test set
    prompts = [encode_table(tokenizer, table) for table in tables]

    ours, our_tokens = timed(device, our_search, model, prompts, length)
    peak = peak_flops(device)
    speed = linear_flops(model, prompts, length) / ours
    print(f"{args.model}'s shape, {len(prompts)} tables of {args.data}, {NUM_BEAMS} beams, "
          f"{length} new tokens, float32, {device} ({torch.get_num_threads()} threads)\n\n"
          f"ours                      {ours:8.1f} s   {speed / 1e9:,.0f} GFLOP/s in linear layers, "
          f"{speed / peak:.0%} of the machine's in matrix products", flush=True)
    for size in [*args.batch_sizes, 1]:
        theirs, their_tokens = timed(device, their_search, twin, prompts, length, size, device)
        same = sum(a == b for a, b in zip(our_tokens, their_tokens))
        print(f"generate, {size:>3} at a time  {theirs:8.1f} s   {theirs / ours:.2f} times as long;"
              f" {same} of {len(prompts)} sentences are the same", flush=True)


if __name__ == "__main__":
    run_command(main)
