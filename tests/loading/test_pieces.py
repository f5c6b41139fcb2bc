"""Tokens as the parts of their text: characters of several tokens stay whole, a space before a word stays."""

from __future__ import annotations

from foretune.tasks.loading.pieces import token_texts


class Marked:
    """A SentencePiece tokenizer as transformers shows it: the space is in the piece, not in what it decodes to."""

    pieces = ("▁the", "▁gate", "s")

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.pieces[token]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids).replace("▁", " ").strip()


def test_tokens_join_to_their_text(tiny_llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = "Wo ist die Tür? 東京"
    texts = token_texts(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(texts) == text and "ü" in texts and "東京" in texts
    assert token_texts(Marked(), [0, 1, 2]) == [" the", " gate", "s"]
