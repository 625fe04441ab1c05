"""Functions that the scripts for tiny models share."""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

COMMON = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HIDDEN = 256


def chat_template(parts):
    """A template with the special tokens that stand for a part of each type."""
    media = "".join(f"{{%- elif c.type == '{kind}' %}}{token}\n" for kind, token in parts.items())
    return (
        "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content -%}\n"
        "{% if c.type == 'text' %}{{ c.text }}\n" + media + "{%- endif %}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def tokenizer(special):
    """A tokenizer with a token for each byte."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens(COMMON + special)
    return t


def text(tokenizer, **more):
    """Configuration of the language model; the other members decide between Llama and Qwen2."""
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "hidden_size": HIDDEN,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        **more,
    }


def weights(kind, config):
    """Random weights for a model of this kind."""
    torch.manual_seed(1)
    m = kind(config).float()
    for parameter in m.parameters():
        if parameter.dim() > 1:  # larger than the usual initial weights; otherwise all prompts get the same answer
            torch.nn.init.normal_(parameter, std=0.15)
    return m.state_dict()


def save(directory, tokenizer, settings, preprocessor, config, weights):
    directory.mkdir(parents=True, exist_ok=True)

    def write(name, content):
        (directory / name).write_text(json.dumps(content, indent=1))

    tokenizer.save(str(directory / "tokenizer.json"))
    write("tokenizer_config.json", {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        **settings,
    })
    write("preprocessor_config.json", preprocessor)
    write("config.json", config)
    write("generation_config.json", {"eos_token_id": tokenizer.token_to_id("<|im_end|>"), "do_sample": False})
    save_file(weights, directory / "model.safetensors")


def run(make):
    if len(sys.argv) != 2:
        sys.exit(sys.modules["__main__"].__doc__)
    make(pathlib.Path(sys.argv[1]))
