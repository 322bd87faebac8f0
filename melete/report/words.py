"""What a stage of the recipe does, in a sentence for someone who has never trained a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from melete.report.charts import number
from melete.report.files import Row, RunFiles
from melete.report.measures import percent

KINDS: Mapping[str, str] = {
    "pretrain": "pre-training",
    "sft": "imitation (SFT)",
    "rl": "reinforcement learning",
    "reject": "rejection sampling",
    "generate": "samples",
    "mix": "mixture of data",
    "write": "written examples",
    "pairs": "preferences",
    "labels": "labels of safety",
    "reward_model": "reward model",
    "preference": "learning from preferences",
    "distill": "distillation",
    "evaluate": "measurement",
    "compare": "comparison",
    "replicate": "repetition with other seeds",
}
PARTS: Mapping[str, str] = {
    "accuracy": "a right answer",
    "format": "tags in order",
    "format_with_thought": "tags in order, with a thought",
    "language": "the language of the question",
    "random": "nothing but a number drawn by lot",
}
WRITTEN: Mapping[str, str] = {
    "chains": "worked sums",
    "chains_es": "worked sums in Spanish",
    "short_chains": "worked short sums",
    "countdowns": "worked number puzzles",
    "general": "everyday requests with good answers",
    "judgements": "answers with a verdict",
}


def sentence(files: RunFiles, settings: Row) -> str:
    """What a finished stage did; nothing for a kind that is not known."""
    say = _SENTENCES.get(str(settings.get("kind")))
    return capital(say(files, settings, files.entry(settings["name"]))) if say else ""


def earned_by(files: RunFiles, settings: Row) -> str:
    """What the reward of a stage is made of, dearest first."""
    learned = settings.get("reward_models") or {}
    rewards = settings.get("rewards") or {}
    paid = sorted(((name, weight) for name, weight in rewards.items() if weight), key=lambda part: -part[1])
    found = []
    for name, weight in paid:
        said = PARTS.get(name, name)
        if name in learned:
            said = f"the score of the reward model {files.label(learned[name].get('model', name))}"
        found.append(said + ("" if weight == 1 else f" (×\N{NO-BREAK SPACE}{number(weight)})"))
    return join(found)


def attempts(settings: Row) -> str:
    """How often a problem is tried in a step.

    >>> attempts({"group_size": 8}), attempts({"group_size": 1})
    ('8 attempts', 'one attempt')
    """
    size = settings.get("group_size", 1)
    return "one attempt" if size == 1 else f"{size} attempts"


def called(files: RunFiles, model: str) -> str:
    """What a model is called inside a sentence."""
    label = files.label(model)
    return f"the {label}" if label == "base" else label


def capital(text: str) -> str:
    """With a capital letter where a sentence begins with an article; a name stays as it is.

    >>> capital("the base wrote"), capital("dev1 wrote")
    ('The base wrote', 'dev1 wrote')
    """
    return text.replace("the", "The", 1) if text.startswith("the ") else text


def join(parts: list[str]) -> str:
    """A list as people write it.

    >>> join(["a", "b", "c"]), join(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def count(number_of: float | None, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "row"), count(1250, "row"), count(None, "row")
    ('1 row', '1,250 rows', 'rows')
    """
    plural = noun if number_of == 1 else f"{noun}s"
    return plural if number_of is None else f"{number_of:,.0f} {plural}"


def _task(settings: Row) -> str:
    """Names of the tasks, those of a mixture one by one."""
    task = settings.get("task") or {}
    inner = [part.get("label") or part.get("task") for part in task.get("tasks") or () if isinstance(part, Mapping)]
    return join(list(dict.fromkeys(str(name) for name in inner if name))) or str(task.get("name", "the task"))


def _rl(files: RunFiles, s: Row, _entry: Row) -> str:
    first = next((stage["name"] for stage in files.planned() if stage.get("kind") == "rl"), "")
    said = f"In each of {s.get('num_steps')} steps, {called(files, s.get('model', ''))} wrote {attempts(s)} at each of"
    said += f" {s.get('prompts_per_step')} problems ({_task(s)})."
    if s["name"] == first:  # the others go the same way
        than = "the other attempts at the same problem" if s.get("group_size", 1) > 1 else "was expected"
        said += f" What earned more than {than} became more likely; nobody showed it a solution."
    said += f" What earned: {earned_by(files, s)}."
    if late := s.get("late"):
        begins, share = percent(late.get("start")), percent(late.get("share"))
        said += f" After {begins} of the steps, {share} of the problems were others ({_task(late)})."
    return said


def _reject(files: RunFiles, s: Row, entry: Row) -> str:
    judge = (s.get("judge") or {}).get("model")
    marked = f"the model {files.label(judge)} judged to be right" if judge else "were right"
    said = f"{called(files, s['model'])} wrote {s.get('samples_per_prompt')} answers to each of {s.get('num_prompts')} "
    said += f"questions ({_task(s)})."
    if entry:
        told = f"Of {count(entry.get('num_sampled'), 'answer')}, {number(entry.get('num_rows', 0))} were kept"
        return f"{said} {told}: those that {marked}, readable and not yet there."
    return f"{said} Those that {marked}, readable and not yet there are kept."


def _sft(files: RunFiles, s: Row, entry: Row) -> str:
    examples = count(entry.get("num_rows"), "example")
    times = {1: "once", 2: "twice"}.get(s.get("num_epochs", 1), f"{s.get('num_epochs')} times")
    data = files.label(s.get("data", ""))
    return f"{called(files, s['model'])} read {examples} ({data}) {times} and learned to write as they do."


def _write(_files: RunFiles, s: Row, entry: Row) -> str:
    rows = {part["name"]: part["num_rows"] for part in entry.get("parts") or ()} or s.get("rows") or {}
    return f"A program wrote {join([f'{number(n)} {WRITTEN.get(name, name)}' for name, n in rows.items()])}."


def _mix(files: RunFiles, s: Row, entry: Row) -> str:
    if entry:
        parts = [f"{number(p['num_rows'])} from {files.label(p['name'])}" for p in entry.get("parts") or ()]
        return f"{count(entry.get('num_rows'), 'example')} were put together: {join(parts)}."
    parts = [f"{files.label(name)} × {number(weight)}" for name, weight in (s.get("parts") or {}).items()]
    return f"Examples are put together: {join(parts)}."


def _pairs(files: RunFiles, s: Row, entry: Row) -> str:
    judge = (s.get("judge") or {}).get("model")
    by = f"the model {files.label(judge)}" if judge else "a rule that stands in for people"
    return (
        f"{called(files, s['model'])} answered {s.get('num_prompts')} requests ({_task(s)}) several times;"
        f" {by} said which of two answers is better: {count(entry.get('num_rows'), 'pair')}."
    )


def _labels(files: RunFiles, s: Row, entry: Row) -> str:
    said = f"{called(files, s['model'])} answered {s.get('num_prompts')} requests, some of them harmful; a rule marked"
    said += " each answer as safe or not"
    if entry.get("num_rows") is not None and entry.get("num_safe") is not None:
        return f"{said}. Of {count(entry['num_rows'], 'answer')}, {number(entry['num_safe'])} are safe."
    return f"{said}."


def _reward_model(files: RunFiles, s: Row, entry: Row) -> str:
    points = s.get("loss") == "pointwise"
    said = f"A copy of {called(files, s['model'])} learned from {files.label(s.get('data', ''))} to give any answer a"
    said += " score, high for a safe one." if points else " score, higher for the better one of two."
    held_out = entry.get("held_out") or {}
    share = held_out.get("label_accuracy", held_out.get("pair_accuracy"))
    if share is None:
        return said
    return f"{said} On {'answers' if points else 'pairs'} that it had not seen it was right in {percent(share)}."


def _distill(files: RunFiles, s: Row, _entry: Row) -> str:
    return f"{called(files, s['model'])} learned from what its teacher {files.label(s.get('teacher', ''))} writes."


def _preference(files: RunFiles, s: Row, _entry: Row) -> str:
    data = f" ({files.label(s['data'])})" if s.get("data") else ""
    said = f"{called(files, s['model'])} learned from preferences{data}, with the algorithm “{s.get('algorithm')}”:"
    return f"{said} better answers became more likely, worse ones less."


def _pretrain(_files: RunFiles, _s: Row, _entry: Row) -> str:
    return "A new model learned to continue text, piece by piece."


def _generate(files: RunFiles, s: Row, entry: Row) -> str:
    rows = f"{count(entry['num_rows'], 'answer')}, all of them kept" if entry.get("num_rows") else "answers"
    return f"{called(files, s['model'])} wrote {rows}."


def _evaluate(_files: RunFiles, s: Row, entry: Row) -> str:
    models = len(entry.get("checkpoints") or s.get("models") or ())
    tasks = join(list(s.get("tasks") or ()))
    return f"{models} models answered the same held-out problems{f' ({tasks})' if tasks else ''}."


def _compare(_files: RunFiles, s: Row, _entry: Row) -> str:
    return f"Several algorithms were tried on the same problems ({_task(s)})."


def _replicate(_files: RunFiles, s: Row, _entry: Row) -> str:
    seeds, arms = s.get("seeds") or (), s.get("arms") or {}
    changed = f", each also in {count(len(arms), 'changed version')} ({join(list(arms))})" if arms else ""
    return f"The recipe {s.get('recipe')} was run with {count(len(seeds), 'seed')}{changed}."


_SENTENCES: Mapping[str, Callable[[RunFiles, Row, Row], str]] = {
    "rl": _rl,
    "reject": _reject,
    "sft": _sft,
    "write": _write,
    "mix": _mix,
    "pairs": _pairs,
    "labels": _labels,
    "reward_model": _reward_model,
    "distill": _distill,
    "preference": _preference,
    "pretrain": _pretrain,
    "evaluate": _evaluate,
    "generate": _generate,
    "compare": _compare,
    "replicate": _replicate,
}
