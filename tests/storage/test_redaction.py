"""Secrets in text: none comes out, what is shown stays as it is, and ordinary text is not touched."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from foretune.storage import redaction
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.redaction import by_form, redact_error, redacted, redacted_tree

LETTERS = string.ascii_letters + string.digits
URL_SAFE = LETTERS + "-_"


def of(alphabet: str, least: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most or least)


# (secret, the text in which it stands)
FORMS = st.one_of(
    of(LETTERS + "-_.~%", 8, 40).map(lambda s: (s, f"cannot reach http://key:{s}@minio.local:9000/bucket")),
    of(LETTERS + "/+", 40).map(lambda s: (s, f"s3://AKIAIOSFODNN7EXAMPLE:{s}@bucket/rows.jsonl")),
    of(LETTERS, 12, 40).map(lambda s: (s, f"https://{s}@github.com/a/b")),
    of(LETTERS + "-._~%", 8, 80).map(lambda s: (s, f"https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature={s}&x=1")),
    of(LETTERS + "%", 8, 60).map(lambda s: (s, f"https://a.blob.core.windows.net/c/f?sv=2024-01-01&sig={s}")),
    of(LETTERS, 8, 60).map(lambda s: (s, f"GET http://api/v1?access_token={s} failed")),
    of(LETTERS, 8, 60).map(lambda s: (s, f"http://api/?q=1&amp;token={s}#top")),
    of(string.ascii_uppercase + string.digits, 16).map(lambda s: (f"AKIA{s}", f"key 'AKIA{s}' is unknown")),
    of(LETTERS + "/+", 40).map(lambda s: (s, f"ASIAIOSFODNN7EXAMPLE {s}")),
    of(LETTERS, 34).map(lambda s: (f"hf_{s}", f"401 for hf_{s}.")),
    of(LETTERS, 36).map(lambda s: (f"ghp_{s}", f"(ghp_{s})")),
    of(LETTERS + "_", 60).map(lambda s: (f"github_pat_{s}", f"use github_pat_{s}")),
    of(URL_SAFE, 40).map(lambda s: (f"sk-1{s}", f"key=sk-1{s}")),
    of(LETTERS, 20, 60).map(lambda s: (f"{s}9", f"Authorization: Bearer {s}9")),
    of(LETTERS, 20, 60).map(lambda s: (f"{s}9", f"bearer {s}9")),
    of(string.printable[:94], 4, 30).map(lambda s: base64.b64encode(f"user:{s}".encode()).decode()).map(
        lambda s: (s, f"header Basic {s} was refused")
    ),
    of(LETTERS + "/+\n", 60, 400).filter(str.strip).map(
        lambda s: (s.strip(), f"-----BEGIN RSA PRIVATE KEY-----\n{s}\n-----END RSA PRIVATE KEY----- after")
    ),
    st.tuples(of(URL_SAFE, 12), of(URL_SAFE, 12), of(URL_SAFE, 20)).map(
        lambda p: (f"eyJ{p[0]}.{p[1]}.{p[2]}", f"jwt eyJ{p[0]}.{p[1]}.{p[2]}")
    ),
    of(LETTERS + "/+", 40).map(lambda s: (s, f"aws_secret_access_key = {s}")),
    of(LETTERS, 20).map(lambda s: (s, f'{{"SecretAccessKey": "{s}"}}')),
)  # fmt: skip
AROUND = st.text(max_size=12).filter(lambda text: by_form(text) == text)


@settings(max_examples=400)
@given(FORMS, AROUND, AROUND)
def test_no_secret_of_a_known_form_comes_out(form, before, after):
    secret, text = form
    assume(secret not in before + after + text.replace(secret, "", 1))
    out = redacted(f"{before} {text} {after}")
    assert secret not in out
    assert "***" in out


@settings(max_examples=400)
@given(st.one_of(st.text(), FORMS.map(lambda form: form[1])), st.text(max_size=5))
@example(text="A://AKIA0000000000000000:00000/0000000000000000000000000000000000@", more="")
@pytest.mark.slow
def test_redacting_again_changes_nothing(text, more):
    once = redacted(text + more + text)
    assert redacted(once) == once


@given(of(LETTERS + "/+=!", 8, 40), st.text(max_size=10))
def test_a_value_of_the_environment_under_a_secret_name_does_not_come_out(secret, around):
    for name in ("MY_SECRET", "HF_TOKEN", "DB_PASSWORD", "OPENAI_API_KEY", "PREFECT_API_AUTH_STRING"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, secret)
            assert secret not in redacted(f"{around}{secret}{around}")


def test_a_remembered_secret_does_not_come_out(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())
    redaction.remember_secret("admin:hunter22")
    redaction.remember_secret(None)
    assert redacted("auth admin:hunter22 refused") == "auth *** refused"


@pytest.mark.parametrize(
    "text",
    [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "C:\\Users\\key\\secret tokens\\a.jsonl",
        "/data/tokens/key=1/part-0001.parquet",
        "write to ann.b+c@example.org or mailto:x@y.z",
        "s3://bucket/prefix/ann@example.org/rows.jsonl",
        "http://localhost:4200/api?limit=5&offset=ann@example.org",
        "http://host:9000/a@b and http://[::1]:9000/a@b",
        "f(x) = a?b:c; sig = 3 & key=4 in {x | x < 2}",
        "a basic understanding of JavaScript and the bearer of this letter",
        "authorization is needed; token count 4096; the secret is out",
        "sk-learn-is-a-library-for-machine-learning and hf_hub_download_of_many_files",
        "20261122-211438-tickets-1a2b",
        "model.layers.0.self_attn.q_proj.weight",
        "postgres key 7 is not present in table users",
        "foretune: s3://bucket/key: S3 at http://127.0.0.1:9000 failed 7 times in 11 s (SlowDown)",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert redacted(text) == text


@given(st.binary(min_size=20, max_size=32).map(bytes.hex))
def test_digests_stay_as_they_are(digest):
    assert redacted(f"sha256 {digest}, key {digest[:40]}") == f"sha256 {digest}, key {digest[:40]}"


@pytest.mark.parametrize("value", ["short", "********", "/tmp", "***"])
def test_a_value_that_tells_nothing_is_not_looked_for(monkeypatch, value):
    monkeypatch.setenv("MY_SECRET", value)
    assert redacted(f"a {value} b") == f"a {value} b"


def test_a_name_that_only_looks_secret_is_not_taken_for_one(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    monkeypatch.setenv("KEY_PATH", "key-in-a-place")
    assert redacted("falsefalse key-in-a-place") == "falsefalse key-in-a-place"


def test_a_tree_is_redacted_in_names_and_values():
    tree = {"http://a:b@c": ["hf_" + "a1" * 17, 3, None, ("x",)], "n": 1.5}
    assert redacted_tree(tree) == {"http://***@c": ["***", 3, None, ["x"]], "n": 1.5}


def test_errors_are_redacted_with_their_causes_and_notes():
    inner = OSError(2, "No such file", "s3://k:secretpass@b/x")
    outer = RuntimeError("at http://k:secretpass@h")
    outer.__cause__ = inner
    outer.add_note("http://k:secretpass@h failed")
    redact_error(outer)
    assert "secretpass" not in f"{outer} {inner} {outer.__notes__} {inner.filename} {inner.args}"


@pytest.mark.parametrize("kind", [BadInput, StorageFault])
def test_our_errors_never_hold_a_secret(kind):
    assert str(kind("at http://key:SECRET99@host:\n gone")) == "at http://***@host: gone"
