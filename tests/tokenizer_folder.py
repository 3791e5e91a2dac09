"""A model's tokenizer files, made on the spot: a token for each word, and a chat template with all that templates use."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

TEMPLATE = (
    "{{ bos_token }} {% if tools %}tools {{ tools | tojson }} {% endif %}\n"
    "{% for message in messages %}\n"
    "{% if message.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}\n"
    "{{ message.content }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Write tokenizer.json, and tokenizer_config.json with that chat template. `<s>` stands before each plain prompt."""
    words = ["<unk>", "<s>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
