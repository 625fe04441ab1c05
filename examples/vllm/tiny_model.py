#!/usr/bin/env python3
"""Makes a tiny Qwen2.5-VL with random weights, to run vLLM's encoders, prefill and decode on CPUs.

Usage: tiny_model.py DIR

Its answers are nonsense, but depend on the images: E+PD and E+P+D must give the same answer as
a single engine that runs all stages. It needs only packages that vLLM needs.
"""

import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]
CHAT_TEMPLATE = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content -%}
{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
{%- else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens(SPECIAL)
    return t


def config(token):
    hidden = 256
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "torch_dtype": "float32",
        "hidden_size": hidden,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "max_window_layers": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": False,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_token_id": token("<|vision_pad|>"),
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
        },
    }


def weights(directory):
    torch.manual_seed(1)
    model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(directory)).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # larger than the usual initial weights; otherwise all prompts get the same answer
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def main(directory):
    directory.mkdir(parents=True, exist_ok=True)

    def write(name, content):
        (directory / name).write_text(json.dumps(content, indent=1))

    t = tokenizer()
    t.save(str(directory / "tokenizer.json"))
    write("tokenizer_config.json", {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": SPECIAL[1:],
        "chat_template": CHAT_TEMPLATE,
    })
    write("preprocessor_config.json", {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 56 * 56,
        "max_pixels": 1024 * 1024,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    })
    write("config.json", config(t.token_to_id))
    weights(directory).save_pretrained(directory)
    write("config.json", config(t.token_to_id))  # the saved configuration has names that older releases of vLLM do not know
    write("generation_config.json", {"eos_token_id": t.token_to_id("<|im_end|>"), "do_sample": False})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
