"""Hostile chat templates: each ends in one clear error within seconds, and the next text is rendered, as usual."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data import template_sandbox as rendering
from data.common.errors import UserError
from data.template import Renderer
from data.template_sandbox import RenderingError, render_foreign
from tests.conftest import word_tokenizer

TURNS = [{"role": "user", "content": "w1"}]
DOUBLING = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
HOSTILE = {
    "endless loop": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "CPU time"),
    "one endless operation": ("{{ 7 ** (7 ** 12) }}", "seconds of CPU|memory"),
    "terabytes": ("{{ 'a' * 10 ** 12 }}", "memory"),
    "three gigabytes": ("{{ ('a' * 3000000000) | length }}", "memory"),
    "terabytes by doubling": (DOUBLING, "memory|seconds"),
    "a wide format": ("{{ '%1000000000000d' % 1 }}", "memory|too big|seconds"),
    "a long text": ("{{ 'a' * 2000000 }}", "characters"),
    "a long range": ("{{ range(10 ** 9) | list }}", "too big|Range"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
    "a deep text": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "without end|ended"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('touch owned') }}", "unsafe"),
    "format string": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "unsafe"),
    "changing what it was given": ("{{ messages.append(1) }}", "unsafe"),
    "namespace": ("{% set n = namespace(__class__=1) %}", "underscore|unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "an import": ("{% import 'os' as os %}", "no loader"),
    "its own refusal": ("{{ raise_exception('no') }}", "no"),
    "no template at all": ("{% for %}", "expected|Expected"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rendering, "SECONDS", 0.7)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_an_error_and_no_more(name: str, tmp_path: Path) -> None:
    template, told = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(RenderingError, match=told):
        render_foreign(template, TURNS, True, {})
    assert time.process_time() - started < 1  # of this process
    assert render_foreign("{{ messages[0].content }}!", TURNS, True, {}) == "w1!"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "template",
    [
        "{{ '{m.__class__}'.format_map({'m': messages}) }}",
        "{{ messages | attr('__class__') | attr('__base__') }}",
        "{{ messages | map(attribute='__class__') | list | length and '' }}",
        "{{ self.__init__ }}{{ lipsum.__globals__ }}{{ joiner.__init__ }}",
    ],
)
def test_what_the_sandbox_hides_is_empty(template: str) -> None:
    assert render_foreign(template, TURNS, True, {}) == ""


def test_the_user_is_told_which_template_it_is() -> None:
    with pytest.raises(UserError, match=r"a jinja string in the recipe.*seconds of CPU"):
        Renderer(word_tokenizer(), template=HOSTILE["endless loop"][0])


def test_a_template_that_waits_for_its_moment(tmp_path: Path) -> None:
    """Data choose what a template does: every text has its own bound."""
    trap = "{% if m.content == 'w3' %}{{ 'a' * 10 ** 12 }}{% endif %}"
    template = "{% for m in messages %}{{ m.content }} " + trap + "{% endfor %}"
    renderer = Renderer(word_tokenizer(), template=template, stop=("<eos>",))
    assert renderer.prompt_ids([{"role": "user", "content": "w1"}])
    with pytest.raises(UserError, match=r"seconds of CPU|memory"):
        renderer.prompt_ids([{"role": "user", "content": "w3"}])
    assert renderer.prompt_ids([{"role": "user", "content": "w2"}])


@pytest.mark.parametrize("content", [b"\xff\xfe{{", b"x" * 2_000_000])
def test_template_files_that_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.jinja"):
        Renderer(word_tokenizer(), template="t.jinja")
    (tmp_path / "t.jinja").unlink()
    (tmp_path / "t.jinja").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"t\.jinja"):
        Renderer(word_tokenizer(), template="t.jinja")


def test_the_process_that_renders_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuv")
    process = rendering._Process()
    try:
        request = {"template": "x", "messages": [], "generate": True, "special": {}, "most": 9, "seconds": 3}
        assert process.ask(request) == {"text": "x"}
        assert process._child is not None
        environment = Path(f"/proc/{process._child.pid}/environ")
        if environment.exists():
            assert b"hf_abc" not in environment.read_bytes() and b"PATH=" in environment.read_bytes()
    finally:
        if process._child is not None:
            process._stop(process._child)


def test_a_forked_process_has_a_renderer_of_its_own() -> None:
    import multiprocessing

    assert render_foreign("{{ messages[0].content }}", TURNS, True, {}) == "w1"
    ours = rendering._PROCESS._child
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(render_foreign, ("{{ messages[0].content }}?", TURNS, True, {})) == "w1?"
    assert rendering._PROCESS._child is ours and ours is not None and ours.poll() is None


def test_texts_are_those_of_transformers_own_renderer() -> None:
    tokenizer = word_tokenizer()
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}{{ messages | tojson }}{% if tools %}no{% endif %}"
    )
    for turns in (TURNS, [], [*TURNS, {"role": "assistant", "content": " a\u2028é\ud83d\n"}]):
        for generate in (True, False):
            own = tokenizer.apply_chat_template(
                [turns], chat_template=template, tokenize=False, add_generation_prompt=generate
            )[0]
            assert render_foreign(template, turns, generate, dict(tokenizer.special_tokens_map)) == own
