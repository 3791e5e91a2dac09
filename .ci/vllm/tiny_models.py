"""Makes the models that the vLLM suite and demo run on: random weights, made on the spot, the same every time.

    python tiny_models.py FOLDER

A small Llama with a byte-level BPE tokenizer and a chat template, two LoRA adapters for it, and a smaller one as an embedding
model and as a reranker. They say nothing sensible; they count, cache and stop as large ones do. The first is large enough for a
long prompt to take its time, as it does on a real one: what a shared cache gives away by time is to be seen on it.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

HEADS, POSITIONS = 4, 4096
LARGER = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024}
SMALLER = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256}
VOCABULARY = 384
LORA_RANK = 8
ADAPTERS = ("adapter-a", "adapter-b")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "A taximeter counts what a ride costs while it lasts.",
    "Each request is tagged before it reaches a GPU, counted once, priced when it happens.",
    '{"model": "tiny", "messages": [{"role": "user", "content": "How much was it?"}]}',
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text has tokens, none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
    )


def make_config(tokenizer: PreTrainedTokenizerFast, size: dict[str, int], **labels: int) -> LlamaConfig:
    """A Llama that has everything a large one has."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=size["hidden_size"] // HEADS,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        **size,
        **labels,
    )


def make_adapter(folder: Path, seed: int) -> None:
    """A LoRA adapter in PEFT's format for the query and value projections."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    hidden = LARGER["hidden_size"]
    for layer in range(LARGER["num_hidden_layers"]):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(LORA_RANK, hidden, generator=generator)
            weights[f"{prefix}.lora_B.weight"] = torch.randn(hidden, LORA_RANK, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": LORA_RANK,
        "lora_alpha": LORA_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main(folder: Path) -> None:
    """Make them all."""
    tokenizer = make_tokenizer()
    torch.manual_seed(20261124)
    for name, model in (
        ("generator", LlamaForCausalLM(make_config(tokenizer, LARGER))),
        ("embedder", LlamaForCausalLM(make_config(tokenizer, SMALLER))),
        ("reranker", LlamaForSequenceClassification(make_config(tokenizer, SMALLER, num_labels=1))),
    ):
        model.to(torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for seed, name in enumerate(ADAPTERS):
        make_adapter(folder / name, seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
