"""A tokenizer without a model: byte-level, ChatML."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from foretune.tasks.samples.chat import ChatTokenizer, load_tokenizer
from tests.conftest import write_tokenizer

# A busy machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def chat(chat_folder: Path) -> ChatTokenizer:
    return load_tokenizer(chat_folder)


@pytest.fixture(scope="session")
def plain(chat: ChatTokenizer) -> ChatTokenizer:
    """The same tokenizer without a chat template."""
    return ChatTokenizer(chat.backend, chat.special_tokens, {})
