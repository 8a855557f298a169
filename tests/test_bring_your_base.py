"""Whatever transformers and PEFT write for a GPT-2 opens, and means here what it means there."""

import re
import shutil
import time

import pytest
import safetensors.torch
import torch
from conftest import ROOT, assert_close, random_model, run_here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PrefixTuningConfig, get_peft_model
from test_hostile_weights import change_tensors, change_values
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import beam
import describe
import gpt2
from beam import banned_tokens, beam_search
from describe import load_run, read_source
from gpt2 import GPT2Config, generate, load_both, load_model, load_tokenizer, save_model
from prefix import Prefix, load_prefix, save_prefix
from support import bases
from support.commands import InputError
from support.files import read_json, write_json

END = "<|endoftext|>"
ADDED = ["<name>", "</name>", "Zizzi", "Zizzi Cafe", "pu", " pub", "Ġthe", "<|pad|>"]


@pytest.fixture(scope="module")
def base(small_vocabulary, tmp_path_factory):
    """A folder of a small random GPT-2, as `save_model` writes it; 20 of its ids have no text."""
    folder = tmp_path_factory.mktemp("base")
    model = random_model(GPT2Config(320, 32, 12, 3, 2, eos_token=0), seed=0, dtype=torch.float32)
    save_model(model, folder, small_vocabulary)
    return folder


@pytest.fixture
def folder(base, tmp_path):
    """A copy of the base that may be changed."""
    return shutil.copytree(base, tmp_path / "model")


# --------------------------------------------------------------------------------------------------
# Tokenizers
# --------------------------------------------------------------------------------------------------


def with_added_tokens(base, folder, form):
    """A copy of the base to whose tokenizer ADDED was added, in a form that transformers writes."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(ADDED[:-1])
    tokenizer.add_special_tokens({"pad_token": ADDED[-1]})
    if form.startswith("tokenizer.json"):
        tokenizer.save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):  # which transformers 4 leaves beside it
            if form == "tokenizer.json alone":
                (folder / name).unlink()
    else:  # what the slow tokenizers of transformers 4 write
        added = {text: i for text, i in tokenizer.get_added_vocab().items() if text != END}
        write_json(folder / "added_tokens.json", added)
        if form == "tokenizer_config.json":
            (folder / "added_tokens.json").unlink()
        if form in ("tokenizer_config.json", "added_tokens.json and its flags"):
            flags = {}
            for text, i in (added | {END: 0}).items():
                is_special = text in (END, ADDED[-1])
                flags[i] = {"content": text, "lstrip": False, "rstrip": False, "single_word": False,
                            "normalized": not is_special, "special": is_special}
            write_json(folder / "tokenizer_config.json", {
                "added_tokens_decoder": flags, "add_prefix_space": False, "eos_token": END,
                "pad_token": ADDED[-1], "tokenizer_class": "GPT2Tokenizer"})
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "tokenizer.json alone",
        "tokenizer.json and others",
        "added_tokens.json",
        "added_tokens.json and its flags",
        "tokenizer_config.json",
    ],
)
def tokenizers(request, base, tmp_path_factory):
    """(ours, Hugging Face's) of a folder with added tokens."""
    folder = with_added_tokens(base, tmp_path_factory.mktemp("added") / "model", request.param)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.sampled_from([*ADDED, END, " ", "\n", " the pub", "é", "pub", "<", "|>", "name>"])
        | st.text(max_size=5),
        max_size=8,
    )
)
def test_added_tokens_are_used_as_hugging_face_uses_them(tokenizers, parts):
    ours, theirs = tokenizers
    text = "".join(parts)
    assert ours.encode(text, allowed_special="all") == theirs(text)["input_ids"]
    assert ours.decode(ours.encode_text(text)) == text
    if END not in text:
        assert ours.encode_text(text) == theirs(text)["input_ids"]


def test_endoftext_in_the_data_is_letters_also_beside_added_tokens(tokenizers):
    ours, _ = tokenizers
    tokens = ours.encode_text(f"<name> The end{END}")
    (name,) = ours.encode("<name>", allowed_special="all")
    assert tokens[0] == name and ours.eot_token not in tokens


def test_merges_are_pairs_or_texts(base, tmp_path):
    folder = with_added_tokens(base, tmp_path / "model", "tokenizer.json alone")
    path = folder / "tokenizer.json"
    before, values = load_tokenizer(folder), read_json(path)
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    write_json(path, values)
    assert load_tokenizer(folder)._mergeable_ranks == before._mergeable_ranks


@pytest.mark.parametrize("part, change, named", [
    ("model", {"type": "WordPiece"}, "type of its model is 'WordPiece', not 'BPE'"),
    ("model", {"dropout": 0.1}, "dropout of its model is 0.1"),
    ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix of its model is '</w>'"),
    ("model", {"ignore_merges": True}, "ignore_merges of its model is True"),
    ("normalizer", {"type": "NFC"}, "type of its normalizer is 'NFC'"),
    ("pre_tokenizer", {"type": "Whitespace"}, "type of its pre_tokenizer is 'Whitespace'"),
    ("pre_tokenizer", {"add_prefix_space": True}, "add_prefix_space of its pre_tokenizer is True"),
    ("pre_tokenizer", {"use_regex": False}, "use_regex of its pre_tokenizer is False"),
    ("decoder", {"type": "WordPiece"}, "type of its decoder is 'WordPiece'"),
    ("post_processor", {"special_tokens": {END: {}}}, "special_tokens of its post_processor"),
    ("<name>", {"lstrip": True}, "lstrip of its token '<name>' is not supported"),
    ("<name>", {"id": 5}, "ids must be whole numbers, each another one"),
    ("<name>", {"content": ""}, "'' is empty"),
    ("config", {"add_prefix_space": True}, "add_prefix_space is not supported"),
    ("config", {"added_tokens_decoder": {"300": {"content": "<name>", "rstrip": True}}},
     "rstrip of its token '<name>'"),
    ("config", {"added_tokens_decoder": {"301": {"content": "<name>"}}},
     "'<name>' is empty or has two ids"),
])
def test_a_tokenizer_that_differs_from_gpt2s_is_refused_by_name(
        base, tmp_path, part, change, named):
    folder = with_added_tokens(base, tmp_path / "model", "tokenizer.json alone")
    path = folder / "tokenizer.json"
    values = read_json(path)
    if part == "config":
        change_values(folder / "tokenizer_config.json", **change)
    elif part == "<name>":
        next(entry for entry in values["added_tokens"] if entry["content"] == part).update(change)
    else:
        values[part] = (values[part] or {}) | change
    write_json(path, values)
    with pytest.raises(InputError, match=rf"tokenizer\.json.*({named})"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "name, values",
    [
        ("special_tokens_map.json", {"pad_token": "<name>", "eos_token": END}),
        ("special_tokens_map.json", {"pad_token": {"content": "<name>", "normalized": False}}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<name>"], "unk_token": None}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<name>"], "pad_token": END}),
        ("tokenizer_config.json", {"mask_token": "<name>", "add_bos_token": False}),
        ("tokenizer_config.json", {"bos_token": "<name>", "pad_token": "[PAD]"}),  # without an id
    ],
)
def test_a_word_of_the_vocabulary_that_is_named_as_special_is_one_token(folder, name, values):
    ids = read_json(folder / "vocab.json")
    change_values(folder / "vocab.json", **{"<name>": len(ids)})
    write_json(folder / name, values)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("<name>", "a <name>pub", "<nam>", f"<name>{END}"):
        assert ours.encode(text, allowed_special="all") == theirs(text)["input_ids"], text
    assert ours.encode_text("<name>") == [len(ids)]


def test_a_merge_that_never_comes_about_is_refused(folder):
    """Where others of its letters come first, tiktoken would make the token all the same."""
    ids = read_json(folder / "vocab.json")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    x, y = next(merge.split() for merge in merges if re.fullmatch("[a-z] [a-z]", merge))
    z = next(text for text in "zqxjk" if text + x not in ids)
    change_values(folder / "vocab.json", **{z + x: len(ids), z + x + y: len(ids) + 1})
    merges += [f"{z} {x}", f"{z + x} {y}"]  # but x goes with y first
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs.tokenize(z + x + y)) == 2 and len(theirs.tokenize(z + x)) == 1
    with pytest.raises(InputError, match=f"merges.txt, line {len(merges)}: other merges come"):
        load_tokenizer(folder)


def test_reading_merges_takes_time_that_grows_with_the_file(folder):
    ids = {text: i for text, i in read_json(folder / "vocab.json").items()
           if len(text) == 1 or text == END}
    merges, token = [], "a"
    for number in range(16):
        merges.append(f"{token} {token}")
        token += token
        ids[token] = 1000 + number
    write_json(folder / "vocab.json", ids)
    (folder / "merges.txt").write_text("\n".join(merges))
    began = time.process_time()
    tokenizer = load_tokenizer(folder)
    assert time.process_time() - began < 5  # quadratic time is minutes
    assert tokenizer.n_vocab == 1016


def test_a_word_of_the_vocabulary_that_no_merge_makes_is_not_used(folder):
    ids = read_json(folder / "vocab.json")
    change_values(folder / "vocab.json", Zqzq=len(ids))
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode_text("Zqzq") == theirs("Zqzq")["input_ids"] and len(
        ids
    ) not in ours.encode_text("Zqzq")
    assert len(ids) in ours.ids_without_text(320)


def test_ids_without_a_text_are_never_written_and_added_tokens_may_be(base, tmp_path):
    folder = with_added_tokens(base, tmp_path / "model", "tokenizer.json alone")
    model, tokenizer = load_both(folder)
    known = len(AutoTokenizer.from_pretrained(folder))
    banned = tokenizer.ids_without_text(model.config.n_vocab)
    assert banned == list(range(known, model.config.n_vocab)) and len(banned) == 20 - known + 300
    with torch.no_grad():  # the padding is what the model would like best
        model.wte.weight[:] *= 0.01
        model.wte.weight[known:] = 5 * model.ln_f.bias
        model.ln_f.weight[:] *= 0.01
    prompts = [[5, 6, 7], [9]]
    assert next(generate(model, prompts[0], 1)) >= known
    assert all(token < known for token in generate(model, prompts[0], 9, banned=banned))
    found = beam_search(model, prompts, num_beams=3, max_new_tokens=5,
                        banned=banned_tokens(model, tokenizer))
    assert all(token < known for beams in found for beam in beams for token in beam.tokens)


def test_the_vocabulary_of_another_model_is_refused_by_every_command(folder):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(ROOT / "models" / "tiny" / name, folder / name)
    for main, arguments in ((gpt2.main, ["--model", folder, "the"]),
                            (beam.main, ["--model", folder]),
                            (describe.main, [folder, "name : Cocum"])):
        told = run_here(main, *arguments, "--device", "cpu").error
        assert f"{folder}: " in told and " of different models" in told


# --------------------------------------------------------------------------------------------------
# Weights and configuration
# --------------------------------------------------------------------------------------------------


def same_logits(folder, twin):
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(load_model(folder, dtype=torch.float64)(tokens), twin.double()(tokens).logits)


@pytest.fixture
def sharded(folder):
    """A folder in shards as transformers writes them, and the same model as it reads it."""
    twin = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    twin.save_pretrained(folder, max_shard_size="8KB")
    return folder, twin


def test_shards_are_read_by_their_index(sharded):
    folder, twin = sharded
    assert len([path for path in folder.iterdir() if "-of-" in path.name]) >= 3
    same_logits(folder, twin)


def test_a_shard_outside_the_folder_is_refused(sharded):
    index = sharded[0] / "model.safetensors.index.json"
    values = read_json(index)
    for name in ("../model.safetensors", "/etc/passwd", "a/b.bin", "", 5):
        values["weight_map"]["transformer.wpe.weight"] = name
        write_json(index, values)
        with pytest.raises(InputError, match=re.escape(index.name)):
            load_model(sharded[0])


def test_a_tensor_in_two_shards_must_be_the_same(sharded):
    folder, twin = sharded
    index, wpe = folder / "model.safetensors.index.json", twin.transformer.wpe.weight.detach()
    weight_map = read_json(index)["weight_map"]
    change_values(index, weight_map=weight_map | {"again": "more.safetensors"})
    safetensors.torch.save_file({"wpe.weight": wpe}, folder / "more.safetensors")
    load_model(folder)
    safetensors.torch.save_file({"wpe.weight": wpe + 1}, folder / "more.safetensors")
    with pytest.raises(InputError, match="wpe.weight is given twice and differs"):
        load_model(folder)


@pytest.mark.parametrize("kept", ["lm_head.weight", "both"])
def test_one_of_the_two_tied_matrices_is_enough(folder, kept):
    twin = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)

    def change(tensors):
        matrix = tensors.pop("transformer.wte.weight")
        names = ("lm_head.weight", "transformer.wte.weight") if kept == "both" else (kept,)
        tensors.update({name: matrix.clone() for name in names})

    change_tensors(folder, change)
    same_logits(folder, twin)


def test_the_end_may_be_the_vocabularys_or_a_list_of_one_and_several_are_refused(folder):
    for value in (None, [0]):
        change_values(folder / "config.json", eos_token_id=value)
        assert load_both(folder)[0].config.eos_token == 0
    for value in ([0, 1], "0", True):
        change_values(folder / "config.json", eos_token_id=value)
        message = r"config\.json.*eos_token_id is .* must be a single token"
        with pytest.raises(InputError, match=message):
            load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json", "merges.txt"])
def test_a_git_lfs_pointer_is_called_one(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(InputError, match=f"{name} is a Git LFS pointer, .* run git lfs pull"):
        load_both(folder)


# --------------------------------------------------------------------------------------------------
# What is written opens in transformers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["vocab.json", "tokenizer.json alone", "added_tokens.json and its flags"]
)
def test_a_fine_tuned_model_opens_in_transformers_as_it_is(base, tmp_path, form):
    source = base if form == "vocab.json" else with_added_tokens(base, tmp_path / "base", form)
    model, tokenizer = load_both(source)
    with torch.no_grad():  # a model that ends after a while, and never writes what has no text
        model.wte.weight[len(AutoTokenizer.from_pretrained(source)) :] = -model.ln_f.bias
        model.wpe.weight[9:] = 30 * model.wte.weight[0]
        model.ln_f.bias[:] += model.wte.weight[0]
    run = tmp_path / "run"
    save_model(model, run, source)
    text = "The Vaults <name> is"
    theirs = AutoTokenizer.from_pretrained(run)
    assert theirs(text)["input_ids"] == tokenizer.encode_text(text)
    twin = AutoModelForCausalLM.from_pretrained(run)
    prompt = theirs("The pub", return_tensors="pt")
    written = twin.generate(**prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    ours = list(generate(model, tokenizer.encode_text("The pub"), 20))
    assert written == [*theirs("The pub")["input_ids"], *ours, tokenizer.eot_token]
    assert len(ours) < 19


# --------------------------------------------------------------------------------------------------
# Prefixes
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("is_safe", [True, False])
def test_a_prefix_that_peft_saved_describes_as_it_does_in_peft(base, tmp_path, projection, is_safe):
    twin = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32)
    kind = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=7,
                              prefix_projection=projection)
    peft_model = get_peft_model(twin, kind)
    with torch.no_grad():
        for parameter in peft_model.prompt_encoder.parameters():
            torch.nn.init.normal_(parameter)
    peft_model.save_pretrained(tmp_path, safe_serialization=is_safe)
    assert (tmp_path / "adapter_model.bin").exists() is not is_safe
    run = load_run(tmp_path, "cpu")
    assert run.settings["mode"] == "prefix" and run.settings["model"] == str(base)
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(run.model(tokens, run.past), peft_model.eval()(tokens).logits, 1e-4)


@pytest.fixture
def adapter(base, tmp_path):
    """A prefix of ours for the base."""
    save_prefix(Prefix(load_model(base).config, 3, form="direct"), tmp_path / "adapter", base)
    return tmp_path / "adapter"


def test_a_prefix_opens_by_its_folder_alone_unless_its_base_is_not_there(adapter, base):
    assert load_run(adapter, "cpu").settings["model"] == str(base)
    assert not (adapter / "run.json").exists()
    for name in ("nowhere/gpt2-medium", 5, None, ""):
        change_values(adapter / "adapter_config.json", base_model_name_or_path=name)
        message = f" needs the base .*: there is no model '{name}': .*or" if name else \
            "/adapter_config.json names no base;"
        with pytest.raises(InputError, match=f"{adapter}{message} give it with --model"):
            load_run(adapter, "cpu")
    assert load_run(adapter, "cpu", str(base)).settings["model"] == str(base)


@pytest.mark.parametrize("load", [load_model, load_tokenizer, load_prefix, load_run])
def test_a_file_given_where_a_folder_is_wanted_is_called_a_file(base, load):
    path = base / "config.json"
    with pytest.raises(InputError, match=f"{path} is a file: give the folder that it lies in"):
        load(path)


@pytest.mark.parametrize("load, names", [(load_tokenizer, bases.VOCABULARY_FILES),
                                         (load_model, bases.WEIGHT_FILES)])
def test_a_tokenizer_fetches_no_weights_and_weights_no_tokenizer(
        monkeypatch, tmp_path, load, names):
    asked = []

    def download(url, path, *_):
        asked.append(path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")

    monkeypatch.setattr(bases, "ROOT", tmp_path)
    monkeypatch.setattr(bases, "download", download)
    with pytest.raises(InputError):
        load("gpt2-medium")
    assert set(asked) == set(names)


def test_openais_names_on_the_hub_are_ours(adapter):
    for name in ("openai-community/gpt2-medium", "gpt2-medium"):
        change_values(adapter / "adapter_config.json", base_model_name_or_path=name)
        assert read_source(adapter)["model"] == "gpt2-medium"


def test_an_adapter_that_holds_more_than_a_prefix_is_refused(adapter):
    change_tensors(adapter, lambda tensors: tensors.update(wte=torch.ones(2)))
    with pytest.raises(InputError, match="holds prompt_embeddings, wte, but a prefix is"):
        load_prefix(adapter)
