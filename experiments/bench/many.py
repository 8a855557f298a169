"""Many tasks with one frozen model: what a batch costs in which each row has a prefix of its own.

    python -m experiments.bench.many                GPT-2 Medium's shape, random weights
    python -m experiments.bench.many --model tiny   quick

The same tables of as many tasks as there are prefixes are described in three ways: in one batch;
one task after the other; and one adapter after the other with PEFT's set_adapter and `generate`.
The three are timed in turn. <|endoftext|> is banned everywhere, so that all write as many tokens.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent

from beam import beam_search
from experiments.bench.twins import hugging_face_twin
from support.bases import PUBLISHED
from support.devices import pick_device
from support.files import InputError, run_command
from support.reading import find_data
from e2e_data import encode_table, group_by_table, read_split
from gpt2 import GPT2, GPT2Config, load_config, load_tokenizer
from prefix import Prefix, stack_pasts

NUM_BEAMS = 5


def peft_adapters(twin, prefixes):
    """PEFT's model around the Hugging Face twin, with an adapter "0", "1", ... for each prefix."""
    from peft import PrefixTuningConfig, get_peft_model

    peft_model = None
    for number, prefix in enumerate(prefixes):
        key_values = prefix.key_values().detach()
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(key_values))
        if peft_model is None:
            peft_model = get_peft_model(twin, config, adapter_name="0")
        else:
            peft_model.add_adapter(str(number), config)
        weight = peft_model.prompt_encoder[str(number)].embedding.weight
        weight.data = key_values.to(weight.device, weight.dtype).clone()
    return peft_model.eval()


def one_batch(model, pasts, tasks, max_new_tokens):
    """Each task's prompts behind its past, all as rows of one batch."""
    rows = [(past, prompt) for past, prompts in zip(pasts, tasks) for prompt in prompts]
    past, past_lengths = stack_pasts([past for past, _ in rows])
    found = beam_search(model, [prompt for _, prompt in rows], past, NUM_BEAMS, max_new_tokens,
                        banned=[model.config.eos_token], past_lengths=past_lengths,
                        batch_size=len(rows))
    return [best.tokens for best, *_ in found]


def one_by_one(model, pasts, tasks, max_new_tokens):
    """One task after the other."""
    written = []
    for past, prompts in zip(pasts, tasks):
        found = beam_search(model, prompts, past, NUM_BEAMS, max_new_tokens,
                            banned=[model.config.eos_token], batch_size=len(prompts))
        written += [best.tokens for best, *_ in found]
    return written


def by_peft(peft_model, tasks, max_new_tokens):
    """One adapter after the other; a task's prompts are one batch, padded on the left."""
    device, written = peft_model.base_model.device, []
    for number, prompts in enumerate(tasks):
        peft_model.set_adapter(str(number))
        T = max(map(len, prompts))
        tokens = torch.tensor([[0] * (T - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = peft_model.generate(
            input_ids=tokens.to(device), attention_mask=mask.to(device), num_beams=NUM_BEAMS,
            do_sample=False, max_new_tokens=max_new_tokens,
            bad_words_ids=[[peft_model.config.eos_token_id]])
        written += output[:, T:].tolist()
    return written


def main():
    parser = argparse.ArgumentParser(
        description="Many prefixes in one batch, against one after the other, and against PEFT.")
    add = parser.add_argument
    add("--model", default="gpt2-medium", choices=("tiny", *PUBLISHED),
        help="the shape, with random weights (default: %(default)s)")
    add("--tasks", type=int, default=16, metavar="N", help="prefixes (default: %(default)s)")
    add("--tables", type=int, default=1, metavar="K", help="of each task (default: %(default)s)")
    add("--prefix-length", type=int, default=5, metavar="P", help="(default: %(default)s)")
    add("--max-new-tokens", type=int, default=30, metavar="N",
        help="that each table gets (default: %(default)s)")
    add("--rounds", type=int, default=3, metavar="N",
        help="timed rounds, after one that is not (default: %(default)s)")
    add("--data", default="sample", metavar="e2e|sample|DIR", help="(default: %(default)s)")
    add("--tokenizer", default="tiny", metavar="NAME|DIR", help="(default: %(default)s)")
    add("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    numbers = args.tasks, args.tables, args.prefix_length, args.max_new_tokens, args.rounds
    if min(numbers) < 1:
        raise InputError("all numbers must be at least 1")
    torch.manual_seed(0)
    device, tokenizer = pick_device(args.device), load_tokenizer(args.tokenizer)
    config = load_config("tiny") if args.model == "tiny" else GPT2Config(**PUBLISHED[args.model])
    with device:
        model = GPT2(config).eval()
        prefixes = [Prefix(config, args.prefix_length, form="direct") for _ in range(args.tasks)]
    pasts = [[(key.detach(), value.detach()) for key, value in prefix()] for prefix in prefixes]
    tables = list(group_by_table(read_split(find_data(args.data), "test")))
    prompts = [encode_table(tokenizer, table) for table in tables]
    tasks = [[prompts[(i * args.tables + k) % len(prompts)] for k in range(args.tables)]
             for i in range(args.tasks)]
    peft_model = peft_adapters(hugging_face_twin(model), prefixes)
    ways = {
        "one batch": lambda: one_batch(model, pasts, tasks, args.max_new_tokens),
        "one by one": lambda: one_by_one(model, pasts, tasks, args.max_new_tokens),
        "PEFT": lambda: by_peft(peft_model, tasks, args.max_new_tokens),
    }
    seconds, written = {name: [] for name in ways}, {}
    for number in range(args.rounds + 1):
        for name in ways if number % 2 else reversed(ways):
            started = time.perf_counter()
            written[name] = ways[name]()  # lists: the device has done all of it
            seconds[name].append(time.perf_counter() - started)
    print(f"{args.model}'s shape, {args.tasks} prefixes of length {args.prefix_length}, "
          f"{args.tables} tables each, {NUM_BEAMS} beams, {args.max_new_tokens} new tokens, "
          f"float32, {device} "
          f"({torch.get_num_threads()} threads); medians of {args.rounds} rounds\n")
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[name][1:], seconds["one batch"][1:])]
        same = sum(a == b for a, b in zip(written[name], written["one batch"]))
        print(f"{name:<11} {statistics.median(seconds[name][1:]):8.2f} s   "
              f"{statistics.median(ratios):.2f} times as long as one batch; {same} of "
              f"{len(written[name])} sentences are the same")


if __name__ == "__main__":
    run_command(main)
