"""The model's tokenizer and chat template, read from a Hugging Face folder without torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading.foreign import reading
from foretune.tasks.loading.tokenizer_backend import tokenizer_file
from foretune.tasks.loading.tokenizer_files import chat_templates, read_config
from foretune.tasks.loading.training_templates import training_template
from foretune.tasks.samples.chat_template import RenderedChat, has_generation_blocks, render_chat
from foretune.tasks.samples.messages import Message
from foretune.tasks.samples.template_child import Conversation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class EncodedChat:
    """A rendered conversation as tokens."""

    input_ids: list[int]
    assistant_mask: list[bool]  # True inside `{% generation %}` blocks


@dataclass(frozen=True)
class ChatTokenizer:
    """Text and conversations to token ids, to the token as transformers' tokenizer makes them."""

    backend: Tokenizer
    special_tokens: dict[str, str]  # bos_token, eos_token, ... as the template sees them
    templates: dict[str, str]  # "default" and, rarely, "tool_use" and others

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    @property
    def has_template(self) -> bool:
        return bool(self.templates)

    @property
    def marks_assistant(self) -> bool:
        """Whether the template tells the assistant's text apart, as `assistant_only_loss` needs."""
        return has_generation_blocks(self.template())

    def marked(self) -> ChatTokenizer:
        """This tokenizer with a template that marks the assistant's text, as TRL has it: its own, or where TRL knows
        that to the letter its marked twin, with and without tools; unchanged where there is none."""
        own = self.templates.get("default", "")
        twin = None if has_generation_blocks(own) else training_template(own)
        return self if twin is None else replace(self, templates={"default": twin})

    def template(self, tools: list[Any] | None = None) -> str:
        """The template for a conversation, with or without tools. Raises BadInput where there is none."""
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise BadInput(
                "the dataset holds conversations but the model's tokenizer has no chat template; "
                "add chat_template.jinja to the model folder, or give prompt and completion as text"
            )
        return self.templates[name]

    def render(
        self,
        messages: list[Message],
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> RenderedChat:
        """A conversation as text, as `apply_chat_template(tokenize=False)` gives it; in this process."""
        asked = self.conversation(0, messages, add_generation_prompt, tools, template_kwargs)
        return render_chat(asked.template, asked.messages, asked.variables)

    def conversation(
        self,
        row: int,
        messages: list[Message],
        add_generation_prompt: bool = False,
        tools: list[Any] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> Conversation:
        """What a child is to render for a row."""
        variables = {
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.special_tokens,
            **(template_kwargs or {}),
        }
        return Conversation(row, messages, self.template(tools), variables)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of plain texts, with the special tokens (a BOS) that the tokenizer adds by itself."""
        return [encoding.ids for encoding in self.backend.encode_batch(texts, add_special_tokens=True)]

    def encode_chats(self, chats: Sequence[RenderedChat]) -> list[EncodedChat]:
        """Token ids of rendered conversations; the template has written every special token."""
        encodings = self.backend.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [
            EncodedChat(encoding.ids, _assistant_mask(encoding, chat.assistant))
            for encoding, chat in zip(encodings, chats, strict=True)
        ]


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """Read tokenizer.json, tokenizer_config.json and the chat template of a model folder.

    Raises BadInput for a folder without tokenizer.json.
    """
    from tokenizers import Tokenizer

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"{folder}: no tokenizer.json; save a fast tokenizer there with AutoTokenizer.save_pretrained")
    config = read_config(folder / "tokenizer_config.json")
    with reading(folder / "tokenizer.json", "fetch the file again"):
        backend = Tokenizer.from_file(str(tokenizer_file(folder)))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
    special = _special_tokens(folder, config)
    _register(backend, config, special)
    if "eos_token" not in special:
        special |= _eos_of_model(folder, backend)
    return ChatTokenizer(backend, special, chat_templates(folder, config))


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Named special tokens; special_tokens_map.json counts only where no added_tokens_decoder is declared."""
    legacy = {} if "added_tokens_decoder" in config else read_config(folder / "special_tokens_map.json")
    named = {name: legacy.get(name) or config.get(name) for name in SPECIAL_TOKENS}
    return {name: _content(token) for name, token in named.items() if token}


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _register(backend: Tokenizer, config: dict[str, Any], special: dict[str, str]) -> None:
    """Add the tokens that only tokenizer_config.json knows, in transformers' order."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    declared = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    tokens = [AddedToken(**{name: value for name, value in token.items() if name != "__type"}) for _, token in declared]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    tokens += [AddedToken(_content(token), special=True) for token in (*special.values(), *extra)]
    for token in tokens:
        if token.content not in known:
            known.add(token.content)
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])


def _eos_of_model(folder: Path, backend: Tokenizer) -> dict[str, str]:
    """Old tokenizers (GPT-2) name no EOS token; their model's config does."""
    ids = read_config(folder / "config.json").get("eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    token = backend.id_to_token(first) if isinstance(first, int) else None
    return {"eos_token": token} if token else {}


def _assistant_mask(encoding: Any, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """As transformers maps characters to tokens, its treatment of characters outside every token included."""
    mask = [False] * len(encoding.ids)
    for start, end in spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None:
            break
        stop = last + 1 if last else len(mask)
        mask[first:stop] = [True] * (stop - first)
    return mask
