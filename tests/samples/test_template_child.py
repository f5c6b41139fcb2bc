"""A chat template from outside cannot take the machine: in one line, whatever it tries."""

from __future__ import annotations

import pytest

from foretune.tasks.samples.chat_template import ChatTemplateError, render_chat
from foretune.tasks.samples.template_child import BATCH, Conversation, renderer

pytestmark = pytest.mark.slow

TURNS = [{"role": "user", "content": "Hi é\u2028"}, {"role": "assistant", "content": "Hello"}]
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{{ n }}{% endfor %}"


def test_a_child_renders_what_this_process_would_in_order():
    asked = [Conversation(row, TURNS, MARKED, {"n": row}) for row in range(BATCH + 3)]
    with renderer(len(asked)) as renders:
        made = renders.render(asked)
        assert made[0].assistant == ((0, 5), (7, 12))
        assert made == [render_chat(MARKED, TURNS, {"n": row}) for row in range(BATCH + 3)]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'a' * 10**10 }}", "it needs more than 2 GB"),
        ("{{ 'a' * 10**8 }}", "more than 16 million characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "macros call each other without end"),
        ("{{ 10 ** (10 ** 8) }}", "it takes too long"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it takes too long"),
        ("{{ range(10**9)|list }}", "Range too big"),
    ],
)
def test_a_hostile_template_is_one_line_with_the_row(template: str, said: str):
    asked = [Conversation(4, TURNS, "fine", {}), Conversation(7, TURNS, template, {})]
    with renderer(2) as renders, pytest.raises(ChatTemplateError, match=rf"^row 7: .*{said}.*mend the row"):
        renders.render(asked)
