#!/usr/bin/env python3
"""Makes a tiny Qwen2.5-Omni with random weights, for images, sounds, videos, and videos with their sound.

Usage: omni.py DIR

It has only the thinker, the part that vLLM serves.
"""

from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

import tiny

TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
MEL_BINS = 80


def thinker(tokenizer):
    token = tokenizer.token_to_id
    return {
        "model_type": "qwen2_5_omni_thinker",
        "image_token_index": token("<|IMAGE|>"),
        "audio_token_index": token("<|AUDIO|>"),
        "video_token_index": token("<|VIDEO|>"),
        "audio_start_token_id": token("<|audio_bos|>"),
        "audio_end_token_id": token("<|audio_eos|>"),
        "seconds_per_chunk": 1,  # video and sound are interleaved in chunks; a video of one second has two of each
        "vision_start_token_id": token("<|vision_bos|>"),
        "vision_end_token_id": token("<|vision_eos|>"),
        "text_config": tiny.text(
            tokenizer,
            model_type="qwen2_5_omni_text",
            max_window_layers=2,
            rope_theta=1e6,
            rope_scaling={"rope_type": "default", "mrope_section": [8, 12, 12]},
        ),
        "vision_config": {
            "model_type": "qwen2_5_omni_vision_encoder",
            "depth": 2,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": tiny.HIDDEN,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 25,
        },
        "audio_config": {
            "model_type": "qwen2_5_omni_audio_encoder",
            "num_mel_bins": MEL_BINS,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "d_model": 128,
            "output_dim": tiny.HIDDEN,
        },
    }


def make(directory):
    tokenizer = tiny.tokenizer(list(TOKENS.values()))
    config = thinker(tokenizer)
    weights = tiny.weights(Qwen2_5OmniThinkerForConditionalGeneration, Qwen2_5OmniThinkerConfig(**config))
    tiny.save(
        directory,
        tokenizer,
        {
            **TOKENS,
            "extra_special_tokens": TOKENS,
            "chat_template": tiny.chat_template({
                "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
                "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
                "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
            }),
        },
        {
            "processor_class": "Qwen2_5OmniProcessor",
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 1024 * 1024,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": MEL_BINS,
            "sampling_rate": 16000,
            "hop_length": 160,
            "n_fft": 400,
            "chunk_length": 30,
            "return_attention_mask": True,
        },
        {
            "architectures": ["Qwen2_5OmniModel"],
            "model_type": "qwen2_5_omni",
            "torch_dtype": "float32",
            "enable_audio_output": False,
            "enable_talker": False,
            "thinker_config": config,
        },
        {f"thinker.{name}": weight for name, weight in weights.items()},
    )


if __name__ == "__main__":
    tiny.run(make)
