from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbatch.pipeline.prompt import Span, parse_prompt


def weights(prompt: str) -> list[tuple[str, float]]:
    return [(span.text, round(span.weight, 4)) for span in parse_prompt(prompt) if span.kind == "text"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("((red))", [("red", 1.21)]),
        ("[red]", [("red", 0.9091)]),
        ("(red:1.3) cat", [("red", 1.3), (" cat", 1.0)]),
        ("(red : 0.5)", [("red ", 0.5)]),
        ("(red:.5)", [("red", 0.5)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        (r"\(red\) \[x\]", [("(red) [x]", 1.0)]),
        ("(unclosed", [("unclosed", 1.1)]),
        ("closed) ] too", [("closed) ] too", 1.0)]),
        ("12:30) o'clock", [("12:30) o'clock", 1.0)]),
        ('${x}, {a|b}, "q", Big B', [('${x}, {a|b}, "q", Big B', 1.0)]),
        ("a\\b", [("a\\b", 1.0)]),
        ("", []),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert weights(prompt) == expected


def test_break_stands_alone_and_only_as_a_word() -> None:
    assert [span.kind for span in parse_prompt("a BREAK b")] == ["text", "break", "text"]
    assert weights("BREAKFAST") == [("BREAKFAST", 1.0)]


def test_embeddings_by_name_by_prefix_and_by_file_name_longest_first() -> None:
    spans = parse_prompt("a (EasyNeg:1.2), embedding:EasyNeg2 EasyNegs, EasyNeg.safetensors, easyneg.png", {"EasyNeg", "EasyNeg2"})
    named = [(span.text, span.weight) for span in spans if span.kind == "embedding"]
    assert named == [("EasyNeg", 1.2), ("EasyNeg2", 1.0), ("EasyNeg", 1.0), ("EasyNeg", 1.0)]
    assert Span(" EasyNegs, ", 1.0) in spans
    assert spans[-1] == Span(".png", 1.0)


def test_case_does_not_matter_to_a_name_unless_two_differ_by_nothing_else() -> None:
    """A1111 finds embeddings by their tokens, and CLIP's tokenizer knows no capitals."""
    assert parse_prompt("easyneg", {"EasyNeg"}) == [Span("EasyNeg", 1.0, "embedding")]
    assert parse_prompt("EASYNEG EasyNeg", {"EasyNeg", "EASYNEG"}) == [Span("EASYNEG", 1, "embedding"), Span("EasyNeg", 1, "embedding")]


@given(st.text(max_size=60))
def test_any_text_parses_and_plain_text_is_kept(text: str) -> None:
    spans = parse_prompt(text)
    if not any(sign in text for sign in "()[]\\") and "BREAK" not in text:
        assert "".join(span.text for span in spans) == text
    assert all(span.weight > 0 or ":" in text for span in spans)
