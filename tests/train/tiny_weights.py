"""Tiny random models of the real classes, saved in the real folders' layouts.

A test loads them through the very code a user's weights take. Every parameter is random, gains and
biases too, so that a key mapped to the wrong place changes the outputs.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

WIDTH, LAYERS, HEADS, PATCH = 64, 2, 4, 14  # of the vision tower
LM_WIDTH, LM_LAYERS, LM_HEADS, LM_KV_HEADS = 48, 2, 4, 2
BERT_WIDTH = 32

# InternVL2.5's own; <image> in a prompt is plain text that becomes <img><IMG_CONTEXT>…</img>
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "Describe the scene in the video segment, what objects are present, and what is each person "
    "doing?",
    "Frame1: Frame2: Frame3: Frame4: system user assistant",
    "Two people walk along a path. A man is riding a bicycle beside the crowd.",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["two", "people", "walk", "along", "path", "man", "is", "riding", "bicycle", "one", "left"]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", *LETTERS]
BERT_WORDS += [f"##{letter}" for letter in LETTERS] + WORDS


def make_internvl(
    folder: Path,
    *,
    seed: int = 0,
    image_size: int = 56,
    width: int = WIDTH,
    lm_width: int = LM_WIDTH,
    tied: bool = False,
) -> Path:
    """A whole InternVL in transformers' native layout, as InternVL3-1B-hf is laid out."""
    tokenizer = chat_tokenizer()
    sizes = {"image_size": image_size, "width": width, "lm_width": lm_width}
    config = internvl_config(tokenizer, tied=tied, **sizes)
    model = InternVLForConditionalGeneration(config).eval()
    randomise(model, seed)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_talkative(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Change an InternVL of `make_internvl`, so that it does not soon repeat itself.

    As made, it attends to the mean of all words and says a few of them over and over. With one
    table of words for input and output, the last word is its own likeliest successor as well.
    """
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    language: Any = model.model.language_model
    with torch.no_grad():
        if not model.config.tie_word_embeddings:
            language.embed_tokens.weight.mul_(3)
        for layer in language.layers:
            layer.self_attn.q_proj.weight.mul_(3)
            if model.config.tie_word_embeddings:
                layer.mlp.down_proj.weight.mul_(8)
    model.save_pretrained(folder)
    return folder


def internvl_config(
    tokenizer: PreTrainedTokenizerFast, *, image_size: int, width: int, lm_width: int, tied: bool
) -> InternVLConfig:
    """What InternVL2.5-1B's config says, at the smallest size that has every part."""
    return InternVLConfig(
        vision_config={
            "hidden_size": width,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * width,
            "image_size": [image_size, image_size],
            "patch_size": [PATCH, PATCH],
            "attention_bias": True,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer) + 3,  # embeddings are padded beyond the tokenizer
            "hidden_size": lm_width,
            "intermediate_size": 2 * lm_width,
            "num_hidden_layers": LM_LAYERS,
            "num_attention_heads": LM_HEADS,
            "num_key_value_heads": LM_KV_HEADS,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": tied,
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(image_size // PATCH // 2) ** 2,
        tie_word_embeddings=tied,
    )


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on three sentences, with InternVL2.5's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT, trainer)
    bpe.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<img>", "</img>", "<IMG_CONTEXT>"],
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def make_remote_internvl(
    folder: Path, *, seed: int = 0, image_size: int = 56, tied: bool = False, shards: int = 2
) -> Path:
    """The same model as `make_internvl` of this seed in InternVL2_5-1B's own layout.

    Its Python files only raise: whatever imports them has run remote code.
    """
    native = make_internvl(folder / "native", seed=seed, image_size=image_size, tied=tied)
    model = InternVLForConditionalGeneration.from_pretrained(native)
    own = {name: tensor.contiguous() for name, tensor in remote_weights(model).items()}
    names = list(own)
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]  # a layer's tensors lie in different shards, as they may
        save_file({name: own[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    if shards == 1:
        (folder / "model-00001-of-00001.safetensors").rename(folder / "model.safetensors")
    else:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    write_json(folder / "config.json", remote_config(model.config))
    write_json(
        folder / "generation_config.json", {"eos_token_id": model.config.text_config.eos_token_id}
    )
    remote_tokenizer(folder)
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py"):
        (folder / name).write_text("raise SystemExit('remote code has been run')\n")
    shutil.rmtree(native)
    return folder


def remote_weights(model: InternVLForConditionalGeneration) -> dict[str, Tensor]:
    """Tensors under the names that InternVL's own code gives them."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    own = {
        "vision_model.embeddings.class_embedding": tower.embeddings.cls_token,
        "vision_model.embeddings.position_embedding": tower.embeddings.position_embeddings,
        "vision_model.embeddings.patch_embedding.weight": patches(tower).weight,
        "vision_model.embeddings.patch_embedding.bias": patches(tower).bias,
    }
    for number, layer in enumerate(tower.encoder.layer):
        at = f"vision_model.encoder.layers.{number}."
        heads = [layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj]
        own[at + "attn.qkv.weight"] = torch.cat([linear.weight for linear in heads])
        own[at + "attn.qkv.bias"] = torch.cat([linear.bias for linear in heads])
        own[at + "ls1"], own[at + "ls2"] = layer.lambda_1, layer.lambda_2
        for name, module in (
            ("attn.proj", layer.attention.projection_layer),
            ("mlp.fc1", layer.mlp.fc1),
            ("mlp.fc2", layer.mlp.fc2),
            ("norm1", layer.layernorm_before),
            ("norm2", layer.layernorm_after),
        ):
            own[f"{at}{name}.weight"], own[f"{at}{name}.bias"] = module.weight, module.bias
    for number, module in (
        (0, projector.layer_norm),
        (1, projector.linear_1),
        (3, projector.linear_2),
    ):
        own[f"mlp1.{number}.weight"], own[f"mlp1.{number}.bias"] = module.weight, module.bias
    for name, tensor in model.model.language_model.state_dict().items():
        own[f"language_model.model.{name}"] = tensor
    if not model.config.tie_word_embeddings:
        own["language_model.lm_head.weight"] = model.lm_head.weight
    return {name: tensor.detach() for name, tensor in own.items()}


def patches(tower: Any) -> nn.Conv2d:
    convolution: nn.Conv2d = tower.embeddings.patch_embeddings.projection
    return convolution


def remote_config(config: InternVLConfig) -> dict[str, Any]:
    """config.json as InternVL2_5-1B has it."""
    vision, text = config.vision_config, config.text_config
    return {
        "architectures": ["InternVLChatModel"],
        "auto_map": {
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
        },
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size[0],
        "llm_config": {
            "_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "max_window_layers": 21,
            "model_type": "qwen2",
            "num_attention_heads": text.num_attention_heads,
            "num_beams": 1,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "output_attentions": False,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_parameters["rope_theta"],
            "sliding_window": 32768,
            "tie_word_embeddings": config.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "use_bfloat16": True,
            "use_cache": False,
            "use_sliding_window": False,
            "vocab_size": text.vocab_size,
        },
        "max_dynamic_patch": 12,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size[0],
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": 3,
            "num_hidden_layers": vision.num_hidden_layers,
            "patch_size": vision.patch_size[0],
            "qk_normalization": False,
            "qkv_bias": True,
            "torch_dtype": "bfloat16",
            "use_flash_attn": True,
        },
    }


def remote_tokenizer(folder: Path) -> None:
    """The files of a slow Qwen2 tokenizer, as InternVL2_5-1B has them: no tokenizer.json."""
    tokenizer = chat_tokenizer()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    write_json(folder / "added_tokens.json", added)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(number): {"content": token, "special": True} | flags
                for token, number in added.items()
            },
            "additional_special_tokens": SPECIAL[1:],
            "chat_template": CHAT,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": 512,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def make_bert(
    folder: Path, *, seed: int = 0, pickled: bool = False, tokenizer_json: bool = False
) -> Path:
    """A plain BERT folder as sup-simcse-bert-base-uncased is: vocab.txt and no modules.json."""
    config = BertConfig(
        vocab_size=len(BERT_WORDS),
        hidden_size=BERT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertModel(config).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {"do_lower_case": True, "model_max_length": 64, "tokenizer_class": "BertTokenizer"},
    )
    if tokenizer_json:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def make_sentence_transformers(folder: Path, *, seed: int = 0, pooling: str = "mean") -> Path:
    """The same BERT as a folder that sentence-transformers saved, its pooling stated."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    plain = make_bert(folder / "plain", seed=seed)
    transformer = Transformer(str(plain))
    modules = [transformer, Pooling(BERT_WIDTH, pooling_mode=pooling)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    shutil.rmtree(plain)
    return folder


def randomise(model: nn.Module, seed: int) -> None:
    """Values of ordinary size everywhere, so that nothing is zero, one, or lost in noise."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.dim() > 1 and "embed" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
