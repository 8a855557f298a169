"""A finished run: what describes tables, and how well it does on a test set.

    python describe.py RUN "name : Blue Spice | Type : pub"     a sentence for each table given
    python describe.py RUN < tables.txt                         a table a line
    python describe.py RUN TABLE --with RUN RUN [--pick]        with several prefixes, in one batch
    python describe.py RUN TABLE --temperature 1 [--seed N]     drawn, not searched
    python describe.py RUN --data e2e                           decodes and scores the test set anew

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
from beam import banned_tokens, beam_search, check_search
from support.files import InputError, run_command, seed_number, sha256, write_json, write_text
from e2e_data import (SRC1_NAMES, check_length, data_file, decode, encode_example, encode_table,
                      find_data, group_by_table, is_known, make_batch, read_examples)
from gpt2 import GPT2, NAMES, autocast, generate, load_both, model_folder, pick_device
from prefix import load_past, read_adapter, stack_pasts
from support.processes import RANK, WORLD, collect
from support.run_folder import check_new, claim, fingerprints, read_settings

DECODER = {"num_beams": 5, "length_penalty": 1.0, "max_new_tokens": 100}  # as Li & Liang decode E2E
PUBLISHED = {  # GPT-2 Medium on E2E: Li & Liang (2021), Table 1, and a later re-implementation
    "paper, prefix-tuning": "69.7 8.81 46.1 71.4 2.49",
    "paper, fine-tuning": "68.2 8.62 46.2 71.0 2.47",
    "re-implementation, prefix-tuning": "68.8 8.80 45.7 71.3 2.41",
    "re-implementation, fine-tuning": "68.8 8.68 45.8 71.2 2.45",
}


@dataclass
class Run:
    """What describes a table: a GPT-2, the past in front of it, and how both read text."""

    settings: dict  # what run.json holds
    tokenizer: tiktoken.Encoding
    model: GPT2
    past: list | None  # of a prefix


def load_run(source, device="auto", base=None):
    """The run that train.py wrote to the folder `source`, or a bare model by its name or folder.

    A folder with a PEFT prefix alone is a run as well. `base` is the model to put a prefix before,
    where that is not the one it names. Raises InputError where the folder holds neither, its
    training has not ended, or the base is not the one that the prefix was trained on.
    """
    folder = model_folder(source)
    settings = {"mode": "the base alone", "model": str(source), "seed": None, "dtype": "float32"}
    if (folder / "run.json").exists():
        settings = read_settings(folder)
        is_prefix = settings["mode"] == "prefix"
        weights = "adapter_model.safetensors" if is_prefix else "model.safetensors"
        if not (folder / weights).exists():
            raise InputError(f"{folder} has no {weights}: its training has not ended; go on with "
                             "train.py --resume")
    elif (folder / "adapter_config.json").exists():
        named = str(read_adapter(folder)["base_model_name_or_path"] or None)
        hub_name = named.removeprefix("openai-community/")  # where Hugging Face has OpenAI's
        settings |= {"mode": "prefix", "model": hub_name if hub_name in NAMES else named,
                     "adapter": str(source)}
    elif not any((folder / name).exists() for name in ("config.json", "hparams.json")):
        raise InputError(f"{folder} holds neither a run nor a model: run.json, "
                         "adapter_config.json, config.json and hparams.json are all missing")
    if settings["mode"] != "prefix":
        if base is not None:
            raise InputError(f"{source} is a whole model, to which no other base can be given")
        model, tokenizer = load_both(source, pick_device(device))
        return Run(settings, tokenizer, model, None)

    named = base or settings["model"]
    settings["model"] = str(named)
    try:
        model_folder(named)
    except InputError as error:
        raise InputError(f"{folder} needs the base that it was trained on: {error}; give it with "
                         "--model") from None
    model, tokenizer = load_both(named, pick_device(device))
    past, made_from = load_past(folder, model)
    now = fingerprints(model, tokenizer) if base is None else {}  # a base that is given may differ
    for name, value in now.items():
        if made_from.get(name, value) != value:
            raise InputError(f"{folder} was trained on another {name.removesuffix('_sha256')} than "
                             f"what {named} holds now; bring that back, or use this one all the "
                             f"same with --model {named}")
    return Run(settings, tokenizer, model, past)


def load_runs(sources, device="auto", base=None):
    """Prefixes over one base: (one of the runs, {source: past} of all). Raises InputError."""
    pasts, made_of = {}, set()
    for source in sources:
        run = load_run(source, device, base)
        if len(sources) == 1:
            return run, {source: run.past}
        base_of_run = fingerprints(run.model, run.tokenizer)
        made_of.add((*base_of_run.values(), run.settings["dtype"]))
        if run.past is None or len(made_of) > 1:
            raise InputError(f"leave out {source}: it is no prefix for the same base and dtype")
        pasts[source] = run.past
    return run, pasts


def describe_tables(run, tables, decoder=DECODER, batch_size=64, progress=False):
    """The best sentence for each table, in one line. `decoder`: settings as in DECODER."""
    mine = tables[RANK::WORLD]  # of several processes each describes its share
    found = search_tables(run, mine, run.past, decoder, batch_size, progress=progress)
    return collect([sentence for sentence, _ in found])


def describe_with_each(run, pasts, tables, decoder=DECODER, batch_size=64):
    """Yields {name: (sentence, score)} for each table, behind each of `pasts`, {name: past}, all in
    one batch. The model is surest of what it writes where the score is highest."""
    at_once = max(1, batch_size // len(pasts))
    for at in range(0, len(tables), at_once):
        some = tables[at : at + at_once]
        rows = [table for table in some for _ in pasts]
        past, past_lengths = stack_pasts([*pasts.values()] * len(some))
        found = iter(search_tables(run, rows, past, decoder, batch_size, past_lengths))
        yield from ({name: next(found) for name in pasts} for _ in some)


def search_tables(run, tables, past, decoder, batch_size, past_lengths=None, progress=False):
    """The best (sentence, score) for each table, behind pasts as in `beam_search`."""
    prompts = [encode_table(run.tokenizer, table) for table in tables]
    with autocast(run.model.wte.weight.device, run.settings["dtype"]):
        found = beam_search(run.model, prompts, past, **decoder,
                            banned=banned_tokens(run.model, run.tokenizer),
                            past_lengths=past_lengths, batch_size=batch_size, progress=progress)
    return [(" ".join(run.tokenizer.decode(best.tokens).split()), best.score) for best, *_ in found]


def draw_sentences(run, tables, temperature, seed=0, max_new_tokens=DECODER["max_new_tokens"]):
    """Yields for each table a sentence drawn from the model; at temperature 1 as it says."""
    banned, generator = banned_tokens(run.model, run.tokenizer), torch.Generator().manual_seed(seed)
    for table in tables:
        with autocast(run.model.wte.weight.device, run.settings["dtype"]):
            tokens = list(generate(run.model, encode_table(run.tokenizer, table), max_new_tokens,
                                   temperature, generator, banned, run.past))
        yield " ".join(run.tokenizer.decode(tokens).split())


@torch.no_grad()
def log_probability(run, table, sentence):
    """log p(sentence and its end | table) in nats, summed over their tokens. What the model reads
    is " " + table + "<|endoftext|>" + " " + sentence + "<|endoftext|>"."""
    example = encode_example(run.tokenizer, table, sentence)
    batch = make_batch([example], run.model.wte.weight.device)
    with autocast(batch.tokens.device, run.settings["dtype"]):
        logits = run.model(batch.tokens, run.past, wanted=batch.wanted)  # [M, n_vocab]
    return logits.float().log_softmax(-1).gather(1, batch.targets[:, None]).sum().item()


def score_test_set(run, data, decoder, batch_size, out=None, costs=None):
    """Describes each distinct table of a test set once, scores and prints.

    Where `out` is a folder, outputs.txt, references.txt and scores.json are written there; scored
    is what was written.
    """
    test_file = data_file(find_data(data), "test")
    examples = read_examples(test_file.parent, "test")
    P = 0 if run.past is None else run.past[0][0].shape[2]
    for where, (table, _) in examples:
        check_length(where, P, encode_table(run.tokenizer, table), decoder["max_new_tokens"],
                     run.model.config.n_ctx, run.settings["model"])
    groups = group_by_table(example for _, example in examples)
    tables, references = list(groups), list(groups.values())
    outputs = describe_tables(run, tables, decoder, batch_size, progress=True)
    if RANK > 0:  # one process scores and writes
        return
    if out is not None:
        reference_file, output_file = Path(out) / "references.txt", Path(out) / "outputs.txt"
        blocks = ["".join(f"{reference}\n" for reference in group) for group in references]
        write_text(reference_file, "\n".join(blocks))
        write_text(output_file, "".join(f"{output}\n" for output in outputs))
        (corpus,) = metrics.read_corpora(reference_file, [output_file])
        references, outputs = corpus.references, corpus.outputs
    scores = metrics.evaluate(references, outputs)
    if out is not None:
        versions = {"python": platform.python_version()}
        versions |= {name: version(name) for name in ("torch", "tiktoken")}
        signature = {
            "data": str(data), "test_sha256": sha256(test_file), "model": run.settings["model"],
            "mode": run.settings["mode"], "seed": run.settings["seed"], "decoder": decoder,
            "settings": run.settings, "versions": versions,
        }
        write_json(Path(out) / "scores.json", scores | {"signature": signature, "costs": costs})
    for i in range(0, len(tables), math.ceil(len(tables) / 4)):  # a few, spread over the test set
        print(f"\ntable      {tables[i]}\nmodel      {outputs[i]}\nreference  {references[i][0]}")

    label = ", ".join((run.settings["mode"], Path(run.settings["model"]).name, Path(data).name))
    rows = [(label, scores)]
    is_papers = test_file.name == SRC1_NAMES["test"] and is_known(test_file)
    if is_papers:
        for name, figures in PUBLISHED.items():
            rows.append((name, dict(zip(metrics.METRICS, figures.split()))))
    print("\n" + metrics.format_table(rows))
    if scores["METEOR"] is None:
        print(metrics.meteor.HOW_TO_GET)
    if not is_papers:
        print(f"Published scores are on the tokenised references of {SRC1_NAMES['test']}; those on "
              f"{test_file} cannot be compared with them.")


def add_decoder_arguments(parser):
    """The decoder's settings as arguments of a command line."""
    add = parser.add_argument
    add("--num-beams", type=int, default=DECODER["num_beams"], metavar="K",
        help="beams of the search (default: %(default)s)")
    add("--length-penalty", type=float, default=DECODER["length_penalty"], metavar="A",
        help="a beam's score is divided by its length to this power (default: %(default)s)")
    add("--max-new-tokens", type=int, default=DECODER["max_new_tokens"], metavar="N",
        help="the longest sentence, in tokens (default: %(default)s)")
    add("--decode-batch-size", type=int, default=64, metavar="N",
        help="tables described at once; fewer need less memory (default: %(default)s)")
    add("--device", default="auto",
        help="auto (default: a GPU where there is one), cpu, cuda, mps, ...")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="A run describes tables, or is scored on a test set.",
        epilog='example: python describe.py runs/demo/prefix "name : Blue Spice | Type : pub"')
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder that train.py wrote, or a bare model: tiny, "
        "gpt2-medium, ... or its folder")
    add("tables", nargs="*", metavar="TABLE", help='such as "name : Blue Spice | Type : pub" or '
        '"name[Blue Spice], eatType[pub]"; without any, and without --data, lines of stdin')
    add("--model", metavar="NAME|DIR",
        help="the base to put a prefix before (default: the one that it was trained on)")
    way = parser.add_mutually_exclusive_group().add_argument
    way("--data", metavar="e2e|sample|DIR", help="describe and score this data set's test tables")
    way("--with", dest="others", nargs="+", default=[], metavar="RUN",
        help="describe each table with these prefixes, too; a line is a run, a tab, its sentence")
    way("--temperature", type=float, default=0.0, help="draw sentences; 1: as the model says")
    add("--out", metavar="DIR", help="with --data: keep sentences and scores in this new folder")
    add("--pick", action="store_true", help="with --with: only the sentence of the surest run")
    add("--seed", type=seed_number, default=0, metavar="N",
        help="for drawing (default: %(default)s)")
    add_decoder_arguments(parser)
    args = parser.parse_intermixed_args()
    if WORLD > 1:
        raise InputError("describe.py is one process; start it without torchrun")
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    for pair in (("--out", "--data"), ("--pick", "--with"), ("--seed", "--temperature")):
        if given & set(pair) == {pair[0]}:
            raise InputError(" goes with ".join(pair))
    if "--temperature" in given and given & {"--num-beams", "--length-penalty"}:
        raise InputError("--temperature draws: --num-beams and --length-penalty are of the search")
    if args.data and args.tables:
        raise InputError("give either tables or --data")
    if args.temperature and not 0.01 <= args.temperature <= 100:
        raise InputError("--temperature must be 0, or from 0.01 to 100")
    decoder = {name: getattr(args, name) for name in DECODER}
    if args.out:  # before any work is done
        check_new(Path(args.out), "the sentences and scores")
    run, pasts = load_runs([args.run, *args.others], args.device, args.model)
    if args.data:
        with claim(Path(args.out)) if args.out else nullcontext():
            score_test_set(run, args.data, decoder, args.decode_batch_size, args.out)
        return
    tables = args.tables
    if not tables:
        lines = decode("stdin", sys.stdin.buffer.read()).split("\n")
        tables = [line for line in lines if line.strip()]
    prompts = [encode_table(run.tokenizer, table) for table in tables]
    longest = max(0 if past is None else past[0][0].shape[2] for past in pasts.values())
    check_search(run.model, prompts, [longest] * len(prompts), **decoder,
                 banned=banned_tokens(run.model, run.tokenizer))
    if args.others:
        for found in describe_with_each(run, pasts, tables, decoder, args.decode_batch_size):
            surest = max(found, key=lambda source: found[source][1])
            for source in [surest] if args.pick else found:
                print(f"{source}\t{found[source][0]}")
        return
    if args.temperature:
        sentences = draw_sentences(run, tables, args.temperature, args.seed, args.max_new_tokens)
    else:
        sentences = describe_tables(run, tables, decoder, args.decode_batch_size, len(tables) > 20)
    for sentence in sentences:
        print(sentence)


if __name__ == "__main__":
    run_command(main)
