"""Describing tables with a run, and scoring it on a test set.

    python describe.py RUN "name : Blue Spice | Type : pub"     a sentence for each table given
    python describe.py RUN < tables.txt                         a table a line
    python describe.py RUN TABLE --with RUN RUN                 with several prefixes, in one batch
    python describe.py RUN TABLE --temperature 1 [--seed N]     sampled instead of searched
    python describe.py RUN --data e2e                           decodes and scores a test set

From a program:
    from describe import describe_tables, load_run
    run = load_run("runs/demo/prefix")
    sentences = describe_tables(run, ["name : Blue Spice | Type : pub"])
"""

import argparse
import math
import platform
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tiktoken
import torch

import metrics
from beam import find_banned_tokens, beam_search, check_search
from e2e_data import (check_lengths, encode_example, encode_table, group_by_table, make_batch,
                      read_examples, read_table)
from gpt2 import GPT2, generate, load_both, past_length
from prefix import load_pasts, stack_pasts
from support.commands import InputError, run_command
from support.devices import autocast, pick_device, random_generator
from support.files import sha256, write_json, write_text
from support.processes import collect, count_processes, rank, world_size
from support.reading import (CSV_NAMES, SRC1_NAMES, ZIP_NAME, decode, find_data, is_published,
                             parse_table, single_blanks, split_path)
from support.run_folder import check_new, claim, is_finished, read_source, hash_files
from support.settings import DECODER, add_arguments, add_device_arguments
from support.speed import products_library

PUBLISHED = {  # GPT-2 Medium on E2E: Li & Liang (2021), Table 1, and a later re-implementation
    "paper, prefix-tuning": "69.7 8.81 46.1 71.4 2.49",
    "paper, fine-tuning": "68.2 8.62 46.2 71.0 2.47",
    "re-implementation, prefix-tuning": "68.8 8.80 45.7 71.3 2.41",
    "re-implementation, fine-tuning": "68.8 8.68 45.8 71.2 2.45",
}


@dataclass
class Run:
    """A model that describes tables: a GPT-2, the past in front of it, and its tokenizer."""

    settings: dict  # what run.json holds
    tokenizer: tiktoken.Encoding
    model: GPT2
    past: list | None  # of a prefix


def load_run(source, device="auto", base=None):
    """Loads a run from the folder that train.py wrote, or a bare model by its name or folder.

    A folder with only a PEFT prefix is a run as well. `base` replaces the base model that a prefix
    names. Raises InputError if the folder holds neither, or no weights yet, or if the base is not
    the one that the prefix was trained on.
    """
    run, _ = load_runs([source], device, base)
    return run


def load_runs(sources, device="auto", base=None):
    """Loads several prefixes and their base model, once: (run of the first, {source: past}).

    A single source may be any run. Raises InputError.
    """
    every = {source: read_source(source) for source in sources}
    first, settings = next(iter(every.items()))
    device = pick_device(device)
    for source, its in every.items():
        if len(every) > 1 and its["mode"] != "prefix":
            raise InputError(f"leave out {source}: it is a whole model, and no prefix")
        if its["dtype"] != settings["dtype"]:
            raise InputError(f"leave out {source}: it is of {its['dtype']}, but {first} of "
                             f"{settings['dtype']}")
    if settings["mode"] != "prefix":
        if base is not None:
            raise InputError(f"{first} is a whole model, to which no other base can be given")
        model, tokenizer = load_both(first, device)
        return Run(settings, tokenizer, model, None), {first: None}
    named = {source: its["model"] for source, its in every.items()}
    model, tokenizer, pasts = load_pasts(named, device, base)
    settings["model"] = str(base or settings["model"])
    return Run(settings, tokenizer, model, pasts[first]), pasts


def describe_tables(run, tables, decoder=DECODER, batch_size=64):
    """The best sentence for each table, in any form of `read_table`. `decoder`: as in DECODER."""
    return search(run, read_prompts(run, tables), run.past, decoder, batch_size)


def read_prompts(run, tables):
    """The prompts of tables in any form of `read_table`."""
    return [encode_table(run.tokenizer, read_table(table)) for table in tables]


def search_with_each(run, pasts, prompts, decoder=DECODER, batch_size=64):
    """Yields {name: sentence} for each prompt, after each of `pasts`, {name: past}, all in one
    batch."""
    at_once = max(1, batch_size // len(pasts))
    for at in range(0, len(prompts), at_once):
        some = prompts[at : at + at_once]
        rows = [prompt for prompt in some for _ in pasts]
        past, past_lengths = stack_pasts([*pasts.values()] * len(some))
        sentences = iter(search(run, rows, past, decoder, batch_size, past_lengths))
        yield from ({name: next(sentences) for name in pasts} for _ in some)


def search(run, prompts, past, decoder, batch_size, past_lengths=None):
    """The best sentence for each prompt, in one line, after pasts as in `beam_search`."""
    with autocast(run.model.device, run.settings["dtype"]):
        found = beam_search(run.model, prompts, past, **decoder,
                            banned=find_banned_tokens(run.model, run.tokenizer),
                            past_lengths=past_lengths, batch_size=batch_size)
    return [single_blanks(run.tokenizer.decode(best.tokens)) for best, *_ in found]


def draw_sentences(run, tables, temperature, seed=0, max_new_tokens=DECODER["max_new_tokens"]):
    """Yields for each table, in any form of `read_table`, a sentence sampled from the model."""
    return sample(run, read_prompts(run, tables), temperature, seed, max_new_tokens)


def sample(run, prompts, temperature, seed, max_new_tokens):
    """Yields for each prompt a sentence sampled from the model; temperature 1 leaves its
    distribution as it is."""
    banned, generator = find_banned_tokens(run.model, run.tokenizer), random_generator(seed)
    for prompt in prompts:
        with autocast(run.model.device, run.settings["dtype"]):
            tokens = list(generate(run.model, prompt, max_new_tokens, temperature, generator,
                                   banned, run.past))
        yield single_blanks(run.tokenizer.decode(tokens))


@torch.no_grad()
def log_probability(run, table, sentence):
    """log p(sentence and its end | table) in nats, summed over the tokens. The model reads
    " " + table + "<|endoftext|>" + " " + sentence + "<|endoftext|>"."""
    example = encode_example(run.tokenizer, read_table(table), sentence)
    batch = make_batch([example], run.model.device)
    with autocast(run.model.device, run.settings["dtype"]):
        logits = run.model(batch.tokens, run.past)  # [1, T, n_vocab]
    logits = logits.flatten(0, 1)[batch.loss_indices]  # -> [M, n_vocab]
    return logits.float().log_softmax(-1).gather(1, batch.targets[:, None]).sum().item()


def score_test_set(run, data, decoder, batch_size, out=None, costs=None):
    """Describes each distinct table of a test set once, then prints and returns the scores.

    With `out`, a folder, it writes tables.txt, outputs.txt, references.txt and scores.json there.
    """
    test_file = split_path(find_data(data), "test")
    examples = read_examples(test_file.parent, "test")
    groups = group_by_table(example for _, example in examples)
    tables, references = list(groups), list(groups.values())
    prompts = {table: encode_table(run.tokenizer, table) for table in tables}
    P = past_length(run.past)
    check_lengths([(location, P, prompts[table], decoder["max_new_tokens"])
                   for location, (table, _) in examples], run.model.config.n_ctx)
    share = list(prompts.values())[rank() :: world_size()]  # each process decodes its share
    outputs = collect(search(run, share, run.past, decoder, batch_size))
    if rank() > 0:  # one process scores and writes
        return None
    if out is not None:
        write_sentences(Path(out), tables, outputs, references)
    scores = metrics.evaluate(references, outputs)
    if out is not None:
        signature = make_signature(run, data, test_file, decoder, Path(out))
        write_json(Path(out) / "scores.json", scores | {"signature": signature, "costs": costs})
    for i in range(0, len(tables), math.ceil(len(tables) / 4)):  # a few, spread over the test set
        print(f"\ntable      {tables[i]}\nmodel      {outputs[i]}\nreference  {references[i][0]}")
    print_scores(f"{run.settings['mode']}, {Path(run.settings['model']).name}, {Path(data).name}",
                 scores, test_file)
    return scores


def write_sentences(folder, tables, outputs, references):
    """Writes tables.txt and outputs.txt, a line each, and references.txt, groups of lines."""
    groups = ["\n".join(group) for group in references]  # with a blank line between them
    write_text(folder / "references.txt", "\n\n".join(groups) + "\n")
    write_text(folder / "tables.txt", "\n".join(tables) + "\n")
    write_text(folder / "outputs.txt", "\n".join(outputs) + "\n")


def make_signature(run, data, test_file, decoder, folder):
    """What scores were made from: without it they could not be compared with others."""
    versions = {name: version(name) for name in ("torch", "tiktoken")}
    versions |= {"python": platform.python_version(), "products": products_library()}
    return {
        "data": str(data), "test_sha256": sha256(test_file), "model": run.settings["model"],
        "mode": run.settings["mode"], "seed": run.settings["seed"], "decoder": decoder,
        "settings": run.settings, "versions": versions, "files": hash_files(folder),
    }


def print_scores(name, scores, test_file):
    """Prints the row of a run, above the published rows where they are of the same test set."""
    rows = [(name, scores)]
    if test_file.name == SRC1_NAMES["test"] and is_published(test_file):
        rows += [(name, dict(zip(metrics.METRICS, figures.split())))
                 for name, figures in PUBLISHED.items()]
    print("\n" + metrics.format_table(rows))
    if scores["METEOR"] is None:
        print(metrics.meteor.HOW_TO_GET)
    if test_file.name in (CSV_NAMES["test"], ZIP_NAME):
        print(f"Published scores are on the tokenised references of {SRC1_NAMES['test']}; those on "
              f"{test_file} cannot be compared with them.")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Describes tables with a run, or scores it on a test set.",
        epilog='example: python describe.py runs/demo/prefix "name : Blue Spice | Type : pub"')
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder that train.py wrote, or a bare model: tiny, "
        "gpt2-medium, ... or its folder")
    add("tables", nargs="*", metavar="TABLE", help='such as "name : Blue Spice | Type : pub", '
        '"name[Blue Spice], eatType[pub]" or \'{"name": "Blue Spice"}\'; without any, and without '
        "--data, lines of stdin")
    add("--model", metavar="NAME|DIR",
        help="the base to put a prefix before (default: the one that it was trained on)")
    way = parser.add_mutually_exclusive_group().add_argument
    way("--data", metavar="e2e|sample|DIR",
        help="describe and score the test tables of this data set")
    way("--with", dest="others", nargs="+", default=[], metavar="RUN",
        help="describe each table with these prefixes, too; a line is a run, a tab, its sentence")
    way("--temperature", type=float, help="draw sentences; 1: as the model says, 0: the likeliest "
        "token each time")
    add("--out", metavar="DIR", help="with --data: keep sentences and scores in this new folder")
    add("--seed", type=int, default=0, metavar="N",
        help="for sampling (default: %(default)s)")
    add_arguments(parser, DECODER)
    add_device_arguments(parser)
    args = parser.parse_intermixed_args()
    check_arguments(args)
    decoder = {name: getattr(args, name) for name in DECODER}
    if not args.data:
        return describe(args, decoder)
    with claim(Path(args.out)) if args.out else nullcontext():
        run = load_run(args.run, args.device, args.model)
        if tell_unfinished([args.run]):
            run.settings["unfinished"] = True  # so that it is no seed of a finished one
        score_test_set(run, args.data, decoder, args.decode_batch_size, args.out)


def check_arguments(args):
    """Raises InputError where arguments do not go together."""
    if count_processes() > 1:
        raise InputError("describe.py is one process; start it without torchrun")
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    for pair in (("--out", "--data"), ("--seed", "--temperature")):
        if given & set(pair) == {pair[0]}:
            raise InputError(" goes with ".join(pair))
    if "--temperature" in given and given & {"--num-beams", "--length-penalty"}:
        raise InputError("--temperature draws: --num-beams and --length-penalty are of the search")
    if args.data and args.tables:
        raise InputError("give either tables or --data")
    if args.out:
        check_new(Path(args.out), "the sentences and scores")


def describe(args, decoder):
    """Prints a sentence for each given table, or one for each table and prefix."""
    tables = read_tables(args.tables)
    run, pasts = load_runs([args.run, *args.others], args.device, args.model)
    tell_unfinished(pasts)
    prompts = [encode_table(run.tokenizer, table) for table in tables]
    longest = max(map(past_length, pasts.values()))
    check_search(run.model, prompts, [longest] * len(prompts), **decoder,
                 banned=find_banned_tokens(run.model, run.tokenizer))
    if args.others:
        found = search_with_each(run, pasts, prompts, decoder, args.decode_batch_size)
        lines = (f"{source}\t{sentence}" for each in found for source, sentence in each.items())
    elif args.temperature is not None:
        lines = sample(run, prompts, args.temperature, args.seed, args.max_new_tokens)
    else:
        lines = search(run, prompts, run.past, decoder, args.decode_batch_size)
    for line in lines:
        print(line)


def tell_unfinished(sources):
    """Says which of the runs are not finished, and returns them."""
    unfinished = [source for source in sources
                  if (Path(source) / "run.json").exists() and not is_finished(source)]
    for source in unfinished:
        print(f"note: {source} is not finished; its weights are those after its last whole epoch",
              file=sys.stderr)
    return unfinished


def read_tables(given):
    """The tables of the command line or, where none is given, of stdin, a line each, as the model
    reads them. Raises InputError that says which is none."""
    location, texts = "table", given
    if not given and sys.stdin:
        location, texts = "stdin, line", decode("stdin", sys.stdin.buffer.read()).split("\n")
    tables = []
    for number, text in enumerate(texts, 1):
        if not given and not text.strip():  # a blank line
            continue
        try:
            tables.append(read_table(parse_table(text)))
        except InputError as error:
            raise InputError(f"{location} {number}: {error}") from None
    if not tables:
        raise InputError("there is no table: give one as an argument, or a table a line on stdin")
    return tables


if __name__ == "__main__":
    run_command(main)
