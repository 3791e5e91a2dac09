"""Counts prompts in the gateway itself, by the tokenizer files that a model was published with.

For model servers without a tokenizer route, and to save the way to those that have one. A model `NAME` is counted here when
the folder holds `NAME/tokenizer.json` (NAME may hold slashes), and its chats when there is a template too: `chat_template` in
`NAME/tokenizer_config.json`, or `NAME/chat_template.jinja`. The template is rendered as transformers and vLLM do it.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

LONG_BYTES = 16_384
"""Longer prompts are counted in a thread of their own, so that other requests do not wait."""
_CLIENTS_OWN = ("chat_template", "mm_processor_kwargs", "continue_final_message")
"""With these a chat is not what the files alone say."""
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerFilesError(Exception):
    """The folder of tokenizers cannot be used as it is."""


class _Encoding(Protocol):
    @property
    def ids(self) -> list[int]: ...


class _Tokenizer(Protocol):
    def encode(self, sequence: str, *, add_special_tokens: bool) -> _Encoding: ...


@dataclass(frozen=True, slots=True)
class _Model:
    tokenizer: _Tokenizer
    render: Callable[..., str] | None

    def count(self, text: str, add_special_tokens: bool) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


class TokenizerFiles:
    """The models whose files are in `folder`, read once. Raises TokenizerFilesError when one cannot be read."""

    def __init__(self, folder: Path | None) -> None:
        self._models: dict[str, _Model] = {}
        if folder is None:
            return
        found = sorted(folder.rglob("tokenizer.json"))
        if not found:
            raise TokenizerFilesError(f"{folder} holds no MODEL/tokenizer.json")
        for path in found:
            self._models[path.parent.relative_to(folder).as_posix()] = _read(path)

    async def count_text(self, model: str, text: str) -> int | None:
        """The tokens of a prompt that is no chat; None when the model has no files here."""
        known = self._models.get(model)
        return None if known is None else await _run(partial(known.count, text, True), len(text))

    async def count_chat(self, model: str, fields: Mapping[str, Any], size: int) -> int | None:
        """The tokens of a chat of about `size` bytes; None when the files do not say how the server would put it."""
        known = self._models.get(model)
        if known is None or known.render is None or not _is_plain(fields):
            return None
        return await _run(partial(_count_chat, known, known.render, fields), size)


async def _run(count: Callable[[], int | None], size: int) -> int | None:
    return count() if size < LONG_BYTES else await asyncio.to_thread(count)


def _is_plain(fields: Mapping[str, Any]) -> bool:
    """Whether each message is a text: how pictures and parts are put is the server's own affair."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or any(fields.get(name) for name in _CLIENTS_OWN):
        return False
    return all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages)


def _count_chat(model: _Model, render: Callable[..., str], fields: Mapping[str, Any]) -> int | None:
    import jinja2

    own = fields.get("chat_template_kwargs") or {}
    try:
        text = render(
            messages=fields["messages"],
            tools=fields.get("tools"),
            documents=None,
            add_generation_prompt=fields.get("add_generation_prompt", True),
            **own,
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        # The server says what is wrong with it.
        return None
    return model.count(text, bool(fields.get("add_special_tokens")))


def _read(path: Path) -> _Model:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TokenizerFilesError("counting by tokenizer files needs: pip install 'taximeter[tokenizers]'") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
        config_path, template_path = path.with_name("tokenizer_config.json"), path.with_name("chat_template.jinja")
        config = json.loads(config_path.read_text()) if config_path.exists() else {}
        template = template_path.read_text() if template_path.exists() else config.get("chat_template")
        return _Model(tokenizer, _renderer(template, config) if isinstance(template, str) else None)
    # tokenizers raises plain Exception.
    except Exception as error:
        raise TokenizerFilesError(f"{path.parent} cannot be read: {error}") from error


def _renderer(template: str, config: Mapping[str, Any]) -> Callable[..., str]:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    for name in _SPECIAL_TOKENS:
        token = config.get(name)
        environment.globals[name] = token.get("content") if isinstance(token, dict) else token
    return environment.from_string(template).render


def _to_json(value: object, indent: int | None = None) -> str:
    """As transformers has it: jinja's own filter escapes what stands in HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
