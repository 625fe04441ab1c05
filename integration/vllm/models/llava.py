#!/usr/bin/env python3
"""Makes a tiny LLaVA-NeXT with random weights; encoders of this model report no shapes of images.

Usage: llava.py DIR

Larger images have more tokens, unlike those of the first LLaVA.
"""

from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

import tiny

PATCH, TILE = 14, 112  # pixels
TILES = [[TILE * high, TILE * wide] for high, wide in [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]]


def llava(tokenizer):
    token = tokenizer.token_to_id
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "torch_dtype": "float32",
        "image_token_index": token("<image>"),
        "image_grid_pinpoints": TILES,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",  # leaves out CLIP's token for the whole image
        "text_config": tiny.text(
            tokenizer,
            model_type="llama",
            architectures=["LlamaForCausalLM"],
        ),
        "vision_config": {
            "model_type": "clip_vision_model",
            "num_hidden_layers": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "projection_dim": 128,
            "image_size": TILE,
            "patch_size": PATCH,
        },
    }


def make(directory):
    tokenizer = tiny.tokenizer(["<image>"])
    config = llava(tokenizer)
    weights = tiny.weights(LlavaNextForConditionalGeneration, LlavaNextConfig(**config))
    tiny.save(
        directory,
        tokenizer,
        {"extra_special_tokens": {"image_token": "<image>"}, "chat_template": tiny.chat_template({"image": "<image>"})},
        {
            "processor_class": "LlavaNextProcessor",
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": TILE},
            "crop_size": {"height": TILE, "width": TILE},
            "image_grid_pinpoints": TILES,
        },
        config,
        {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()},
    )


if __name__ == "__main__":
    tiny.run(make)
