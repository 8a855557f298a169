"""The same models as Hugging Face and PEFT build them, with our weights: to test and time ours."""


def hugging_face_twin(model):
    """Hugging Face's GPT-2 with the same weights, in the same dtype, on the same device."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    twin = GPT2LMHeadModel(GPT2Config(
        vocab_size=config.n_vocab, n_positions=config.n_ctx, n_embd=config.n_embd,
        n_head=config.n_head, n_layer=config.n_layer, eos_token_id=config.eos_token,
        bos_token_id=config.eos_token, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0,
    )).to(model.wte.weight)  # its dtype and device
    twin.transformer.load_state_dict(model.state_dict())
    return twin.eval()


def peft_twin(twin, prefix):
    """PEFT's prefix-tuning model around `hugging_face_twin(...)`, with the weights of `prefix`.

    PEFT knows two of the forms: one network for all layers (which starts from nothing), and direct.
    """
    from peft import PrefixTuningConfig, get_peft_model

    has_network = prefix.form == "network"
    peft_model = get_peft_model(twin, PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=len(prefix.embedding.weight),
        prefix_projection=has_network,
        encoder_hidden_size=prefix.networks[0][0].out_features if has_network else None,
    )).to(prefix.embedding.weight)
    encoder = peft_model.prompt_encoder["default"]
    encoder.embedding.load_state_dict(prefix.embedding.state_dict())
    if has_network:
        encoder.transform.load_state_dict(prefix.networks[0].state_dict())
    return peft_model.eval()
