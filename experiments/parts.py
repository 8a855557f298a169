"""The parts of the experiment: what each runs, what is kept of that, which tables and figures show
it. All that is told of a part stands in PARTS, below; make.py runs them, show.py shows them."""

import json
import random
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

from e2e_data import read_split
from experiments import draw, tables
from experiments.tables import ALONE, FINE_TUNING, PREFIX_TUNING
from gpt2 import GPT2Config
from models.tiny.make import make_base
from support.commands import InputError
from support.files import ROOT, write_text
from support.reading import SPLITS, find_data
from support.tokenizer import END

RUNS = "runs/results"  # in the repository's root
RESULTS = ROOT / "experiments/results"
SEEDS = 0, 1, 2
E2E_SEEDS = 0, 1  # five epochs take up to two hours


@dataclass(frozen=True)
class Group:
    """Runs of one command, with several seeds: a row, a cell or a point of what is shown."""

    label: str | tuple  # in tables and figures; where they have rows and columns, (row, column)
    name: str  # of each run, but for its seed
    command: str  # but for --lr, where several are tried, --seed and --out
    seeds: tuple = SEEDS  # none where nothing is drawn
    middle: float = None  # of the learning rates that are tried


@dataclass(frozen=True)
class Part:
    """What is run and shown together."""

    groups: list
    prepare: Callable = None  # makes what the commands read
    keeps_sentences: bool = False  # or scores and validation losses alone
    shows: dict = field(default_factory=dict)  # a table's place in the documents, or a figure's
    #                                            file -> (its function, other parts that it shows)


# --------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------

SAMPLE_EXAMPLE = shlex.quote(
    f"{END} name : The Copper Kettle | Type : brasserie | food : vegetarian | area : seafront"
    f" | family friendly : yes{END} The Copper Kettle is a vegetarian brasserie on the seafront ."
    f" It welcomes families .{END}")
E2E_EXAMPLES = (  # made up, in the form of the training set
    f" name : Cocum | Type : pub | food : Indian | price : cheap | family friendly : no{END}"
    f" Cocum is a cheap pub serving Indian food . It is not family friendly .{END}",
    f" name : The Rice Boat | Type : restaurant | food : Italian | customer rating : 5 out of 5"
    f" | area : riverside | near : Café Rouge{END} The Rice Boat is a restaurant near Café Rouge by"
    f" the riverside . It serves Italian food and is rated 5 out of 5 .{END}",
    f" name : Zizzi | Type : coffee shop | price : less than £ 20 | area : city centre | family"
    f" friendly : yes{END} Zizzi is a family friendly coffee shop in the city centre . Its prices"
    f" are less than £ 20 .{END}",
    f" name : Green Man | food : Chinese | price : moderate | customer rating : low | near : All"
    f" Bar One{END} Near All Bar One you can find Green Man , which has Chinese food in the"
    f" moderate price range and a low customer rating .{END}")
FROM_EXAMPLES = {50: 1, 100: 2, 200: 4}  # length -> the examples that fill it
PREFIX = "train.py --mode prefix --model tiny"
FINETUNE = "train.py --mode finetune --model tiny"
BASE = "describe.py tiny --data e2e"
THOUSAND = "--data e2e --max-steps 1000"


def words(length):
    """The examples that a prefix of such a length starts from, as an argument."""
    return shlex.quote(END + "".join(E2E_EXAMPLES[: FROM_EXAMPLES[length]]))


def from_examples(length, model="tiny"):
    """The command for a direct prefix that starts from what the base makes of examples."""
    return (f"train.py --mode prefix --model {model} --prefix-form direct --prefix-length {length} "
            f"--prefix-words {words(length)}")


RATES = {  # forms of a prefix -> learning rates tried
    "network": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "per-layer": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "direct": (1e-2, 3e-2, 1e-1, 3e-1, 1),
    "direct, from words": (1e-2, 3e-2, 1e-1, 3e-1, 1),
}
CLIPS = {"network": (1, 1000), "direct": (1, 1000)}  # the gradient's largest norm; 1000 clips none


def forms():
    """Which form of a prefix, at which learning rate: a hundred steps, as in TUTORIAL.md."""
    for form, rates in RATES.items():
        own, _, from_words = form.partition(", ")
        command = f"{PREFIX} --data {RUNS}/forms/data --max-steps 100 --prefix-form {own}"
        if from_words:
            command += f" --prefix-words {SAMPLE_EXAMPLE}"
        for clip in CLIPS.get(form, (1,)):
            for lr in rates:
                yield Group((form + ", not clipped" * (clip > 1), lr),
                            f"{form.replace(', ', '-').replace(' ', '-')}-{lr:g}-clip-{clip}",
                            f"{command} --prefix-length 20 --lr {lr:g} --clip {clip}")


FEW_STEPS = 400
FEW_RATES = {50: 1e-4, 100: 1e-4, 200: 3e-4, 500: 3e-4}  # of fine-tuning, by examples


def small():
    """Few examples (the paper's section 6.3): several draws, the best epoch by validation."""
    for n, rate in FEW_RATES.items():
        own = (f"--data {RUNS}/small/data-{n}-{{seed}} --epochs {FEW_STEPS * 10 // n} --keep best "
               "--num-beams 3")
        yield Group((n, PREFIX_TUNING), f"prefix-{n}", f"{from_examples(50)} {own} --lr 0.02")
        yield Group((n, FINE_TUNING), f"finetune-{n}", f"{FINETUNE} {own} --lr {rate:g}")


BASES = {"64": GPT2Config(n_vocab=4096, n_ctx=512, n_embd=64, n_head=4, n_layer=2),
         "128": GPT2Config(n_vocab=4096, n_ctx=512, n_embd=128, n_head=4, n_layer=4)}


def size():
    """A prefix against fine-tuning on smaller bases, each at its best learning rate."""
    for name in BASES:
        base = f"{RUNS}/bases/{name}"
        yield Group((name, ALONE), f"{name}/base", f"describe.py {base} --data e2e", ())
        yield Group((name, PREFIX_TUNING), f"{name}/prefix",
                    f"{from_examples(50, base)} {THOUSAND}", middle=0.1)
        yield Group((name, FINE_TUNING), f"{name}/finetune",
                    f"train.py --mode finetune --model {base} {THOUSAND}", middle=1e-3)


def to_the_best(length, epochs):
    """The command for a prefix whose rate decays to 0 at its end, and whose best epoch counts."""
    return f"{from_examples(length)} --data e2e --epochs {epochs} --keep best --lr 0.05"


# --------------------------------------------------------------------------------------------------
# What the commands read
# --------------------------------------------------------------------------------------------------


def make_sample(pretrain):
    """The sample without a test set, and with a quarter of its validation set."""
    folder = find_data("sample")
    write_data(ROOT / RUNS / "forms/data", train=read_split(folder, "train"),
               valid=read_split(folder, "valid")[::4])


def draw_examples(pretrain):
    """Draws of E2E, with a validation set of three tenths as many examples, as in the paper."""
    train, valid, test = (read_split(find_data("e2e"), split) for split in SPLITS)
    for n in FEW_RATES:
        for seed in SEEDS:
            write_data(ROOT / RUNS / f"small/data-{n}-{seed}", train=pick(train, n, seed),
                       valid=pick(valid, 3 * n // 10, seed), test=test)


def pick(examples, n, seed):
    """`n` of the examples, for each seed others."""
    return random.Random(f"{seed}").sample(examples, n)


def write_data(folder, **splits):
    """A data set as train.jsonl and so on, from lists of (table, sentence)."""
    for split, examples in splits.items():
        rows = [json.dumps({"table": table, "text": text}, ensure_ascii=False) + "\n"
                for table, text in examples]
        write_text(folder / f"{split}.jsonl", "".join(rows))


def make_bases(pretrain):
    """The bases that are missing. Raises InputError where nothing is given to make them of."""
    for name, config in BASES.items():
        folder = ROOT / RUNS / "bases" / name
        if not (folder / "model.safetensors").exists():
            if pretrain is None:
                raise InputError(f"{folder} is missing: --pretrain DIR makes it, in hours, of the "
                                 "data that models/tiny/README.md tells of")
            make_base(pretrain, folder, config, vocabulary=ROOT / "models/tiny")


# --------------------------------------------------------------------------------------------------
# The parts
# --------------------------------------------------------------------------------------------------

PARTS = {
    "forms": Part([*forms()], prepare=make_sample,
                  shows={"forms": (tables.forms,), "forms.png": (draw.forms,)}),

    "small": Part([*small()], prepare=draw_examples,
                  shows={"small": (tables.small,), "small.png": (draw.small,)}),

    # Score against prefix length (Figure 2), from 0, with fine-tuning beside it.
    "length": Part(
        [Group("0: the base alone", "base", BASE, ()),
         *(Group(f"{P}", f"length-{P}-seed",
                 f"{PREFIX} --prefix-form direct {THOUSAND} --prefix-length {P}")
           for P in (1, 5, 20, 50)),
         Group(FINE_TUNING, "finetune-seed", f"{FINETUNE} {THOUSAND}")],
        shows={"length": (tables.lengths, "longer"), "length.png": (draw.lengths, "longer")}),

    # The same, further: longer prefixes, which start from examples.
    "longer": Part(
        [Group(f"{P}, from {n} example{'s' * (n > 1)}", f"length-{P}-seed",
               f"{from_examples(P)} {THOUSAND} --lr 0.05") for P, n in FROM_EXAMPLES.items()]),

    # The experiment itself: five epochs of E2E, a prefix against fine-tuning.
    "e2e": Part(
        [Group(ALONE, "base", BASE, ()),
         Group(PREFIX_TUNING, "prefix/length-50-seed",
               f"{PREFIX} --data e2e --prefix-form direct --prefix-length 50 "
               f"--prefix-words {words(50)} --lr 0.05", E2E_SEEDS),
         Group(FINE_TUNING, "finetune/seed", f"{FINETUNE} --data e2e", E2E_SEEDS)],
        keeps_sentences=True,
        shows={"scores": (tables.scores, "best"), "e2e": (tables.scores_and_costs,),
               "faults": (tables.faults,), "losses.png": (draw.losses,)}),

    # The first prefix of e2e without a search, and made to write longer sentences.
    "decoding": Part(
        [Group(option, option.strip("-").replace(" ", "-"),
               f"describe.py {RUNS}/e2e/prefix/length-50-seed-0 --data e2e {option}", ())
         for option in ("--num-beams 1", "--length-penalty 1.5", "--length-penalty 2.5")],
        keeps_sentences=True, shows={"decoding": (tables.decoding, "e2e")}),

    # Each mode to its own best, one seed: a longer prefix, ten epochs, and fine-tuning, five.
    "best": Part(
        [Group(PREFIX_TUNING, "prefix-seed", to_the_best(100, 10), (0,)),
         Group(FINE_TUNING, "finetune-seed", f"{FINETUNE} --data e2e --keep best", (0,))],
        keeps_sentences=True,
        shows={"best": (tables.scores_and_costs,), "best_faults": (tables.faults,)}),

    # Was it the length or the time? The half of each.
    "time": Part(
        [Group("50 positions, ten epochs", "length-50-seed", to_the_best(50, 10), (0,)),
         Group("100 positions, five epochs", "length-100-seed", to_the_best(100, 5), (0,))],
        keeps_sentences=True, shows={"time": (tables.times, "e2e", "best")}),

    # As far as a prefix goes.
    "end": Part(
        [Group("200 positions, twenty epochs", "prefix-seed", to_the_best(200, 20), (0,))],
        keeps_sentences=True,
        shows={"end": (tables.scores_and_costs,), "end_faults": (tables.faults,)}),

    # As many numbers as a prefix has in other places, each at its best learning rate.
    "place": Part(
        [Group("keys and values before the tokens' (a prefix)", "prefix",
               f"{from_examples(50)} {THOUSAND}", middle=0.1),
         *(Group(f"LoRA of rank {rank} beside `{layer}`", layer,
                 f"-m experiments.lora --place {layer} --rank {rank} {THOUSAND}", middle=1e-2)
           for layer, rank in (("c_attn", 25), ("c_fc", 20))),
         Group("all weights (fine-tuning)", "finetune", f"{FINETUNE} {THOUSAND}", middle=1e-3)],
        shows={"place": (tables.places,)}),

    "size": Part([*size()], prepare=make_bases,
                 shows={"size": (tables.bases, "place", "e2e"),
                        "size.png": (draw.bases, "place", "e2e")}),
}


def check_parts(names):
    """Raises InputError where one of the names on a command line is no part's."""
    if unknown := set(names) - set(PARTS):
        raise InputError(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
