"""The words of the report: the headline, and answers to the questions every newcomer asks.

Works on the plain values of ``results.json`` and the reward model's measurements. This module knows nothing of files,
charts or HTML, and never claims more than the intervals show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.report.main_comparison import main_comparison
from pipelines.report.names import SCORES, judge_name, plain_name, score_name
from pipelines.workspace.run_folder import AT_THE_GATE, FAILED

STOPPED = "stopped"  # of a stage that began and does not run now
FAR = 25.0  # nats a response; beyond this the policy has little in common with where it began
TRIVIAL = {
    "empty_answer": "an empty response",
    "constant_answer": "always the same response",
    "repeated_prompt": "the prompt itself",
    "longest_answer": "the longest response of another prompt",
}
"""What no judge should prefer, by the names of ``evaluation.adversaries``."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the words are made from."""

    results: Mapping[str, Any]
    card: Mapping[str, Any]  # the reward model's report card
    gate: Mapping[str, Any] | None  # what it means for ``reward.gate``
    failed: Sequence[str] = ()  # the gate's default lines that the card fails
    command: str
    seed: Any
    asked: Sequence[str] = ()  # stages of the recipe, in order; none where that is not known
    learnt: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # stage -> held-out curve of its first role
    stages: Sequence[Mapping[str, Any]] = ()  # those that left a trace

    def wants(self, stage: str) -> bool:
        """Whether the run was asked for a stage."""
        return stage in self.asked or not self.asked

    def status(self, stage: str) -> str:
        return next((str(s["status"]) for s in self.stages if s["name"] == stage), "")

    @property
    def simplest(self) -> str:
        """The best of the card's baselines that know no meaning, to read after "a coin gets 50 %"."""
        names = {"longest answer": "choosing the longest response", "n-grams": "counting words"}
        found = self.card.get("baselines") or {}
        known = {says: found[name].get("share") for name, says in names.items() if name in found}
        shares = [(share, says) for says, share in known.items() if isinstance(share, float | int)]
        return f", {max(shares)[1]} {_percent(max(shares)[0])}" if shares else ""

    @property
    def against(self) -> str:
        return str(self.results.get("against", "sft"))

    @property
    def main(self) -> Mapping[str, Any] | None:
        """The comparison that the headline is about."""
        return main_comparison(self.results)

    def judge(self, name: Any) -> Mapping[str, Any]:
        """What was found of a judge; empty where nothing is known."""
        return (self.results.get("judges") or {}).get(name) or {}

    def standing(self, name: Any) -> str:
        """``unreliable``, ``untested`` (a reward model with no held-out pairs, or too few for an interval), or ''."""
        judge = self.judge(name)
        if judge.get("reliable") is False:
            return "unreliable"
        return "untested" if judge.get("accuracy") and not judge["accuracy"].get("ci95") else ""

    @property
    def judged_by(self) -> str:
        """What a verdict ends with that the judge of the headline's comparison does not carry; '' where it does."""
        standing = self.standing((self.main or {}).get("by"))
        return f", by an {standing} judge" if standing else ""

    @property
    def doubt(self) -> str:
        """Why the judge of the headline's comparison may not be relied on; '' where it may, or nothing is known."""
        by = (self.main or {}).get("by")
        judge, standing = self.judge(by), self.standing(by)
        if not standing:
            return ""
        if standing == "untested":
            pairs = judge["accuracy"].get("n") or 0
            few = f"{pairs:,} held-out pairs are too few for an interval" if pairs else "no held-out pairs tested it"
            return f"Nothing shows that this judge is better than a coin: {few}."
        fooled = [n for n, one in (judge.get("adversaries") or {}).items() if one.get("verdict") == "better"]
        liked = " and ".join(TRIVIAL.get(name, name.replace("_", " ")) for name in fooled)
        why = [f"whatever the prompt, it prefers {liked}"] if fooled else []
        known = judge.get("accuracy") or {}
        ci = known.get("ci95")
        if ci and ci[0] <= 0.5:
            why.append(f"it orders {_percent(known['share'])}{_ci(ci)} of held-out pairs right, as a coin may")
        return f"That judge is unreliable: {'; '.join(why) or 'it prefers what deserves nothing'}."

    def system(self, name: str) -> Mapping[str, Any]:
        part = "greedy" if (self.main or {}).get("decoding") == "greedy" else "systems"
        return (self.results.get(part) or {}).get(name) or {}


def headline(words: Words) -> dict[str, str]:
    """``tone`` (good, bad or open), ``text`` and ``detail``."""
    stages = words.stages
    if stopped := [s for s in stages if s["status"] == AT_THE_GATE]:
        lines = [_sentence(str(line)) for line in stopped[0].get("lines") or words.failed]
        lines += ["What is shown of responses is of an earlier run."] if words.results else []
        return {"tone": "bad", "text": "Stopped at the gate before PPO", "detail": " ".join(lines)}
    if broken := [s for s in stages if s["status"] in (FAILED, STOPPED)]:
        return _broken(words, broken[0])
    c = words.main
    if c is None:
        return _without_comparison(words)
    a, b = plain_name(c["a"]), plain_name(c["b"])
    n = c.get("n", words.results.get("prompts", "the"))
    how = "" if c.get("decoding", "sampled") == "sampled" else " with greedy responses"
    judged = f"by {judge_name(c.get('by'))}"
    wins = f"wins {_percent(c['win_rate'])} of {n} held-out prompts{_ci(c.get('ci95'))} {judged}{how}"
    said = _verdict(c)
    detail = f"{a} {wins}; ties count half, brackets are 95 % intervals."
    if said in ("better", "worse"):
        text = f"{a} beat {b}" if said == "better" else f"{a} lost to {b}"
        if words.doubt:
            return {"tone": "open", "text": f"{text}{words.judged_by}", "detail": f"{detail} {words.doubt}"}
        return {"tone": "good" if said == "better" else "bad", "text": text, "detail": detail}
    why = str(c.get("verdict_text") or "")
    more = f" A difference is {why}." if why.startswith("not shown") else ""
    return {"tone": "open", "text": f"It is not shown that {a} beats {b}", "detail": detail + more}


def _broken(words: Words, stage: Mapping[str, Any]) -> dict[str, str]:
    """A stage that failed, or was stopped before its end."""
    failed = stage["status"] == FAILED
    done = [s["title"] for s in words.stages if s["status"] == "done"]
    said = [_sentence(str(line)) for line in stage.get("lines") or ()]
    said += [f"Finished before it: {', '.join(done)}."] if done else []
    said += ["What is shown of responses is of an earlier run."] if words.results else []
    said += ["Once that is mended, the same command resumes." if failed else "The same command resumes."]
    text = f"{stage['title']} failed" if failed else f"{stage['title']} was stopped"
    return {"tone": "bad" if failed else "open", "text": text, "detail": " ".join(said)}


def _without_comparison(words: Words) -> dict[str, str]:
    """What became of a run in which no systems were compared, with what was asked for in view."""
    done = [s["title"] for s in words.stages if s["status"] == "done"]
    left = [name for name in words.asked if words.status(name) != "done"]
    so_far = f"Finished so far: {', '.join(done)}." if done else "No stage has finished so far."
    if words.results:
        return {"tone": "open", "text": "No comparison in this run", "detail": so_far}
    if left or not done or not words.asked:
        text = "Not evaluated yet" if words.wants("evaluate") else "Not finished yet"
        return {"tone": "open", "text": text, "detail": so_far}
    known = {s["name"]: s["title"] for s in words.stages}
    found = {known.get(name, name): c for name, c in words.learnt.items() if c.get("text")}
    nothing = [title for title, c in found.items() if c.get("learnt") is False and not c.get("within_chance")]
    tone = "bad" if nothing else "good" if found and all(c.get("learnt") for c in found.values()) else "open"
    text = f"{' and '.join(nothing)}: nothing was learnt" if nothing else f"Finished: {', '.join(done)}"
    return {
        "tone": tone,
        "text": text,
        "detail": " ".join(f"{t}: {_sentence(str(c['text']))}" for t, c in found.items()),
    }


def answers_to_newcomers(words: Words) -> list[dict[str, str]]:
    """Cards: question, short answer, tone, and a sentence. What the run was not asked for is no question."""
    compared = words.main is not None
    cards = [_did_it(words)] if compared or words.results or words.wants("evaluate") else []
    cards += [_how_much(words)] if compared else []
    cards += [] if compared else [_learnt(words, stage) for stage in words.learnt]
    cards += [_trust(words)] if words.card.get("accuracy", {}).get("share") is not None or words.wants("reward") else []
    cards += [_cheating(words)] if compared else []
    return [*cards, _again(words)]


def _learnt(words: Words, stage: str) -> dict[str, str]:
    """What held-out rows showed of a training."""
    titles = {s["name"]: str(s["title"]).lower() for s in words.stages} | {"sft": "SFT", "reward": "the reward model"}
    found, name = words.learnt[stage], titles.get(stage, stage)
    learnt = found.get("learnt")
    short, tone = ("Too few rows", "open") if learnt is None else ("Yes", "good") if learnt else ("No", "bad")
    if found.get("within_chance"):
        short, tone = "Not shown", "open"
    return _card(f"Did {name} learn?", short, tone, _sentence(str(found.get("text", ""))))


def _did_it(words: Words) -> dict[str, str]:
    c = words.main
    question = "Did PPO beat SFT?" if c is None else f"Did {plain_name(c['a'])} beat {plain_name(c['b'])}?"
    if c is None and words.results:
        return _card(question, "Not compared", "open", "The evaluation has no judge, or no system to compare with.")
    if c is None:
        status = {s["status"]: s["title"] for s in words.stages}
        why = (
            "The gate stopped the run before PPO."
            if AT_THE_GATE in status
            else f"{status[FAILED]} failed."
            if FAILED in status
            else "The evaluation comes last and has not run yet."
        )
        return _card(question, "Not yet", "open", why)
    short, tone = {"better": ("Yes", "good"), "worse": ("No", "bad")}.get(_verdict(c), ("Not shown", "open"))
    if words.doubt and tone != "open":
        short, tone = f"{short}, if one trusts the judge", "open"
    counts = f"{c.get('wins')} wins, {c.get('ties')} ties, {c.get('losses')} losses"
    adjusted = c.get("p_value_holm")
    p = c.get("p_value") if adjusted is None else adjusted
    test = "" if p is None else ", sign test p < 0.001" if p < 0.001 else f", sign test p = {p:.3f}"
    test += " after Holm" if adjusted is not None else ""
    by = judge_name(c.get("by"))
    return _card(question, short, tone, f"{counts} by {by}{test}. {words.doubt}".strip())


def _how_much(words: Words) -> dict[str, str]:
    c = words.main
    assert c is not None
    by = str(c.get("by"))
    before, after = words.system(c["b"]).get(by, {}).get("mean"), words.system(c["a"]).get(by, {}).get("mean")
    text = f"of prompts won{_ci(c.get('ci95')) or ', too few prompts for an interval'}."
    if before is not None and after is not None:
        gain = (c.get("difference") or {}).get("ci95")
        bracket = f" [{gain[0]:+.2f}, {gain[1]:+.2f}]" if gain else ""
        text += f" Mean {score_name(by)}: {before:.2f} → {after:.2f}, {after - before:+.2f}{bracket}."
    return _card("By how much?", _percent(c["win_rate"]), "plain", text)


def _trust(words: Words) -> dict[str, str]:
    """By the reward model's card, the gate before PPO, and what evaluation found of over-optimisation."""
    question = "May I trust the reward?"
    accuracy = words.card.get("accuracy") or {}
    share, ci = accuracy.get("share"), accuracy.get("ci95")
    marks = ("over-optimised", "judge is unreliable") if words.results.get("judge") == "reward" else ("over-optimised",)
    doubts = [w for w in words.results.get("warnings") or [] if any(m in w for m in marks)]
    gate = words.gate or {}
    failed = [str(line) for line in words.failed]  # never the gate's own: no gate changes the verdict
    if share is None and words.asked and words.status("reward") != "done":
        return _card(question, "Not yet", "open", "The reward model is not trained yet.")
    if share is None:
        return _card(question, "Unknown", "open", "No reward model of this run was evaluated on held-out rankings.")
    low = ci[0] if ci else 0.5
    short, tone = ("Mostly", "good") if round(low, 2) >= 0.8 else ("With care", "open") if low > 0.5 else ("No", "bad")
    if words.card.get("warnings") and tone == "good":
        short, tone = "With care", "open"
    if not ci:
        short, tone = "Unknown", "open"  # too few held-out rankings for an interval
    if doubts or failed:
        short, tone = "No", "bad"
    asked = [str(line) for line in gate.get("lines") or []]
    pairs = accuracy.get("n")
    among = f" of {pairs:,} held-out pairs" if isinstance(pairs, int) else " of held-out pairs"
    simple = words.simplest
    text = [f"It orders {_percent(share)}{among} as people did{_ci(ci)}; a coin gets 50 %{simple}."]
    sentences = {"passed": "The gate before PPO passed.", "failed": "The gate before PPO failed."}
    sentences |= {"accuracy not judged": "The gate before PPO did not judge its accuracy."}
    sentences |= {"off": "The gate before PPO was switched off; this card fails it."} if failed else {}
    text += [sentences[gate["state"]]] if gate.get("state") in sentences else []
    return _card(question, short, tone, " ".join([*text, *(_sentence(w) for w in [*failed, *asked, *doubts][:1])]))


def _sentence(text: str) -> str:
    """With a full stop, and a capital where it does not begin with a setting's name."""
    first = text.split(":", 1)[0]
    return (text if "_" in first and " " not in first else text[:1].upper() + text[1:]).rstrip(".") + "."


def _cheating(words: Words) -> dict[str, str]:
    question = "Did it cheat?"
    c = words.main
    assert c is not None
    new, old = words.system(c["a"]), words.system(c["b"])
    signs, facts = [], []
    kl = new.get("kl", {}).get("mean")
    if kl is not None:
        facts.append(f"KL {kl:.1f} nats")
        below = (new["kl"].get("ci95") or [0, kl])[1] < 0
        signs += ["far from the reference"] if kl > FAR else ["negative KL"] if below else []
    x, y = (s.get("length", {}).get("mean") for s in (old, new))
    if x is not None and y is not None:
        facts.append(f"length {x:.0f} → {y:.0f} tokens")
        signs += ["longer responses"] if y > 1.5 * x else []
    x, y = old.get("distinct_2"), new.get("distinct_2")
    if x is not None and y is not None:
        facts.append(f"distinct-2 {x:.3f} → {y:.3f}")
        signs += ["monotonous responses"] if y < 0.6 * x else []
    if (y := new.get("truncated")) is not None:
        facts.append(f"{_percent(y)} cut off")
        signs += ["responses cut off"] if y > 0.2 else []
    change = {SCORES[k]: _gain(new, old, k) for k in SCORES}
    facts += [f"{k} {v:+.2f}" for k, v in change.items() if v is not None]
    others = {k: v for k, v in change.items() if v is not None and k != "reward"}
    signs += [f"reward up, {k} down" for k, v in others.items() if (change["reward"] or 0) > 0 > v]
    trusted = [k for k in ("held_out_reward", "gold") if _gain(new, old, k) is not None]
    trusted = [k for k in trusted if not words.standing(k)]
    facts += [] if trusted else ["no independent judge that can be trusted" if others else "no independent judge"]
    short, tone = ("No sign of it", "good") if trusted else ("No sign, unjudged", "open")
    if signs:
        short, tone = signs[0][0].upper() + signs[0][1:], "bad"
    return _card(
        question, short, tone, (f"Also: {', '.join(signs[1:])}. " if signs[1:] else "") + " · ".join(facts) + "."
    )


def _again(words: Words) -> dict[str, str]:
    seed = "unknown seed" if words.seed is None else f"Seed {words.seed}"
    card = _card("How do I run it again?", seed, "plain", "From the resolved recipe, into a folder next to this one:")
    return card | {"code": words.command}


def _card(question: str, short: str, tone: str, text: str) -> dict[str, str]:
    return {"question": question, "short": short, "tone": tone, "text": text}


def _verdict(c: Mapping[str, Any]) -> str:
    """The recorded verdict; for results from a third party, what their interval says."""
    if "verdict" in c:
        return str(c["verdict"])
    low, high = c.get("ci95") or (0, 1)
    return "better" if low > 0.5 else "worse" if high < 0.5 else "not shown"


def _gain(new: Mapping[str, Any], old: Mapping[str, Any], key: str) -> float | None:
    x, y = old.get(key, {}).get("mean"), new.get(key, {}).get("mean")
    return None if x is None or y is None else y - x


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _ci(ci: Any) -> str:
    return f" [{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]" if ci else ""
