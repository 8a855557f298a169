"""Whatever transformers and PEFT write for a GPT-2 opens, and means here what it means there."""

import re
import shutil

import pytest
import safetensors.torch
import torch
from conftest import ROOT, assert_close, random_model, run_here
from hypothesis import HealthCheck, given, settings, strategies as st
from peft import PrefixTuningConfig, get_peft_model
from test_hostile_weights import change_tensors, change_values
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import beam
import describe
import gpt2
from beam import find_banned_tokens, beam_search
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
    """A copy of the base to whose tokenizer ADDED was added, as transformers writes it."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(ADDED[:-1])
    tokenizer.add_special_tokens({"pad_token": ADDED[-1]})
    if form == "transformers 4, slow":
        added = {text: i for text, i in tokenizer.get_added_vocab().items() if text != END}
        write_json(folder / "added_tokens.json", added)
        write_json(folder / "special_tokens_map.json", {"eos_token": END, "pad_token": ADDED[-1]})
        return folder
    tokenizer.save_pretrained(folder)
    if form == "transformers 5":
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
    else:
        values = read_json(folder / "tokenizer.json")
        del values["model"]["type"]
        values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
        write_json(folder / "tokenizer.json", values)
    return folder


@pytest.fixture(scope="module",
                params=["transformers 5", "transformers 4", "transformers 4, slow"])
def tokenizers(request, base, tmp_path_factory):
    """(ours, Hugging Face's) of a folder with added tokens."""
    folder = with_added_tokens(base, tmp_path_factory.mktemp("added") / "model", request.param)
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@settings(max_examples=40, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.text(max_size=5) | st.sampled_from(
    [*ADDED, END, " ", "\n", " the pub", "é", "pub", "<", "|>", "name>"]), max_size=8))
def test_added_tokens_are_used_as_hugging_face_uses_them(tokenizers, parts):
    ours, theirs = tokenizers
    text = "".join(parts)
    assert ours.encode(text, allowed_special="all") == theirs(text)["input_ids"]
    tokens = ours.encode_text(text)
    assert ours.decode(tokens) == text and ours.eot_token not in tokens
    if END not in text:
        assert tokens == theirs(text)["input_ids"]


@pytest.mark.parametrize("name, values", [
    ("special_tokens_map.json", {"bos_token": {"content": "<name>"}, "pad_token": "[PAD]"}),
    ("special_tokens_map.json", {"additional_special_tokens": ["<name>"]}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": "<name>"}}}),
])
def test_a_word_of_the_vocabulary_that_is_named_as_special_is_one_token(folder, name, values):
    change_values(folder / "vocab.json", **{"<name>": 300})
    write_json(folder / name, values)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode_text("a <name>pub") == theirs("a <name>pub")["input_ids"]
    assert ours.encode_text("<name>") == [300]


@pytest.mark.parametrize("part, change, named", [
    ("model", {"type": "WordPiece"}, "its model is not {'type': 'BPE'}"),
    ("normalizer", {"type": "NFC"}, "its normalizer is not {'type': None}"),
    ("pre_tokenizer", {"type": "Whitespace"}, "its pre_tokenizer is not {'type': 'ByteLevel', "),
    ("pre_tokenizer", {"add_prefix_space": True}, "its pre_tokenizer is not"),
    ("pre_tokenizer", {"use_regex": False}, "its pre_tokenizer is not"),
    ("config", {"add_prefix_space": True}, "add_prefix_space is not supported"),
    ("config", {"added_tokens_decoder": {"301": {"content": "<name>", "rstrip": True}}},
     "its token '<name>' takes more than its letters"),
    ("<name>", {"lstrip": True}, "its token '<name>' takes more than its letters"),
    ("<name>", {"single_word": True}, "its token '<name>' takes more than its letters"),
    ("<name>", {"id": 5}, "a text is another after encoding and decoding"),
])
def test_a_tokenizer_that_differs_from_gpt2s_is_refused_by_name(
        base, tmp_path, part, change, named):
    folder = with_added_tokens(base, tmp_path / "model", "transformers 5")
    path = folder / "tokenizer.json"
    values = read_json(path)
    if part == "config":
        change_values(folder / "tokenizer_config.json", **change)
    elif part == "<name>":
        next(entry for entry in values["added_tokens"] if entry["content"] == part).update(change)
    else:
        values[part] = (values[part] or {}) | change
    write_json(path, values)
    with pytest.raises(InputError, match=rf"tokenizer\.json and .* hold no .*{re.escape(named)}"):
        load_tokenizer(folder)


def test_ids_without_a_text_are_never_written_and_added_tokens_may_be(base, tmp_path):
    folder = with_added_tokens(base, tmp_path / "model", "transformers 4, slow")
    model, tokenizer = load_both(folder)
    known = len(AutoTokenizer.from_pretrained(folder))
    banned = tokenizer.ids_without_text(model.config.n_vocab)
    assert banned == list(range(known, 320)) and known > 300
    with torch.no_grad():  # the padding is what the model would like best
        model.wte.weight[:] *= 0.01
        model.wte.weight[known:] = 5 * model.ln_f.bias
        model.ln_f.weight[:] *= 0.01
    prompts = [[5, 6, 7], [9]]
    assert next(generate(model, prompts[0], 1)) >= known
    assert all(token < known for token in generate(model, prompts[0], 9, banned=banned))
    found = beam_search(model, prompts, num_beams=3, max_new_tokens=5,
                        banned=find_banned_tokens(model, tokenizer))
    assert all(token < known for beams in found for beam in beams for token in beam.tokens)


def test_a_word_of_the_vocabulary_that_no_merge_makes_is_not_used(folder):
    change_values(folder / "vocab.json", Zqzq=300)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode_text("Zqzq") == theirs("Zqzq")["input_ids"] != [300]
    assert 300 in ours.ids_without_text(320)


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
    "form", ["vocab.json", "transformers 5", "transformers 4, slow"]
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
    with pytest.raises(InputError, match=f"{path} is a file: give the folder that contains it"):
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
