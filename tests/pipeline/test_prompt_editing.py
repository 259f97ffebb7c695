"""Prompts that change on the way, on the examples that A1111 documents and on what users get wrong."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbatch.pipeline.prompt_editing import prompt_by_step


def runs(prompt: str, steps: int = 10) -> list[tuple[str, int]]:
    """The texts in order, each with the number of steps it stands for."""
    return [(text, len(list(group))) for text, group in groupby(prompt_by_step(prompt, steps))]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [("test", 10)]),
        ("a [b:3]", [("a ", 3), ("a b", 7)]),
        ("a [b: 3]", [("a ", 3), ("a b", 7)]),
        ("a [b::3]", [("a b", 3), ("a ", 7)]),
        ("a [b:c:.5] d", [("a b d", 5), ("a c d", 5)]),
        ("a [b:c:0.25] d", [("a b d", 2), ("a c d", 8)]),
        ("a [b:c:1.0]", [("a b", 10)]),
        ("a [b:c:99]", [("a b", 10)]),
        ("a [b:c:0]", [("a c", 10)]),
        ("[(a:2):3]", [("", 3), ("(a:2)", 7)]),
        ("a[b:[c:d:2]:1]e", [("abe", 1), ("ace", 1), ("ade", 8)]),
        ("a [[[b]]:2]", [("a ", 2), ("a [[b]]", 8)]),
        ("[a:b:2] [c:d:4]", [("a c", 2), ("b c", 2), ("b d", 6)]),
        ("a [unbalanced", [("a [unbalanced", 10)]),
        ("((a][:b:c [d:3]", [("((a][:b:c ", 3), ("((a][:b:c d", 7)]),
        ("[word] [a, b]", [("[word] [a, b]", 10)]),
        ("[a:b:c:3]", [("[a:b:c:3]", 10)]),
        (r"\[a:b:3\]", [(r"\[a:b:3\]", 10)]),
        ("at 12:30 (red:1.3)", [("at 12:30 (red:1.3)", 10)]),
    ],
)
def test_a_text_takes_the_place_of_another_after_some_steps(prompt: str, expected: list[tuple[str, int]]) -> None:
    assert runs(prompt) == expected


def test_texts_take_turns() -> None:
    assert prompt_by_step("[cow|horse] in a field", 3) == ("cow in a field", "horse in a field", "cow in a field")
    assert prompt_by_step("[fe|]male", 2) == ("female", "male")
    assert prompt_by_step("[a|(b:1.1)|[c]]", 3) == ("a", "(b:1.1)", "[c]")
    assert prompt_by_step("[x:[a|b]:1]", 3) == ("x", "b", "a")


@given(st.text("ab[]():|\\.19 ", max_size=40), st.integers(1, 6))
def test_any_text_has_a_meaning_at_every_step(prompt: str, steps: int) -> None:
    texts = prompt_by_step(prompt, steps)
    assert len(texts) == steps
    assert all(len(text) <= len(prompt) for text in texts)
    if not ({":", "|"} & set(prompt)):
        assert set(texts) == {prompt}


def test_hostile_brackets_take_no_time_and_no_stack() -> None:
    deep = "[" * 20_000 + "]" * 20_000
    assert prompt_by_step(deep, 2) == (deep, deep)
    assert runs("[a:b:1]" * 2_000, 2) == [("a" * 2_000, 1), ("b" * 2_000, 1)]
