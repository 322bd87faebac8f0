"""How much each kind of stage does, from its settings alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from melete.planning.graph import Graph, NotEstimated, Part, Text, num_rows
from melete.planning.work import Held, Reading, Work, Writing

ADAPTER_SHARE = 0.1  # of the model's weights, generously: an adapter of a usual rank has a few hundredths
DRAWS_ASSUMED = 2  # of dynamic sampling, which draws again where groups teach nothing
JUDGING = Text("written", "judgements")  # the length of a question to a judge and of its reply
REJECTION_AT_ONCE, PROMPTS_AT_ONCE = 512, 32  # rollouts of rejection sampling, and problems of pairs and labels


def work_of(stage: Any, graph: Graph) -> Work:
    """Raises `NotEstimated` for a kind of stage that is not known here."""
    try:
        work = _KINDS[stage.kind]
    except KeyError:
        raise NotEstimated(f"nothing is known about stages of kind {stage.kind}") from None
    return work(stage, graph)


def _pretrain(stage: Any, _graph: Graph) -> Work:
    return Work(
        readings=(Reading(stage.name, learns=True, num_tokens=stage.num_tokens),),
        held=(Held("model", stage.name, learns=True),) * stage.num_workers,
        num_updates=stage.num_tokens // stage.tokens_per_batch,
        max_tokens=stage.tokens_per_batch // stage.num_workers,
        rows_per_update=stage.tokens_per_batch,
        writes_model=True,
        split_over=stage.num_workers,
    )


def _updating(stage: Any, num_updates: int, **more: Any) -> Work:
    """What all stages that train have in common."""
    others = more.pop("held", ())
    if stage.adapter:  # the model without its adapter is the reference
        others = [other for other in others if (other.role, other.model) != ("reference", stage.model)]
        more["saves_reference"] = False
    return Work(
        held=(Held("model", stage.model, learns=True, share=ADAPTER_SHARE if stage.adapter else 1.0), *others),
        num_updates=num_updates,
        checkpoint_every=stage.checkpoint_every_steps,
        max_tokens=stage.max_tokens_per_microbatch,
        writes_model=True,
        **more,
    )


def _sft(stage: Any, graph: Graph) -> Work:
    parts = graph.parts(stage.data, stage)
    num_steps = stage.num_epochs * -(-num_rows(parts) // stage.rows_per_step)
    return _updating(
        stage,
        num_steps,
        writings=tuple(_evaluations(stage, num_steps)) if stage.task is not None else (),
        readings=tuple(_over(parts, stage.model, stage.num_epochs, learns=True)),
        rows_per_update=stage.rows_per_step,
    )


def _over(parts: Sequence[Part], model: str, times: float, *, learns: bool) -> Iterator[Reading]:
    """A model goes over a data set so many times."""
    for part in parts:
        rows = part.num_rows * part.texts_per_row * times
        yield Reading(model, part.text, rows, part.writer, part.max_new_tokens, learns)


def _evaluations(stage: Any, num_steps: int, points: Sequence[float] | None = None) -> Iterator[Writing]:
    """The tries of held-out problems: the full ones, and the small ones between them."""
    settings = stage.evaluation
    at = {round(share * num_steps) for share in (settings.at if points is None else points)}
    common = {"model": stage.model, "text": Text.of_task(stage.task), "max_new_tokens": stage.max_new_tokens}
    if at:
        rows, samples = settings.num_problems * settings.num_samples, settings.num_samples
        yield Writing(**common, num_rows=rows, num_calls=len(at), siblings=samples, is_kept=True)
    if settings.quick_every_steps and num_steps > 1:
        quick = (num_steps - 1) // settings.quick_every_steps
        yield Writing(**common, num_rows=settings.quick_num_problems, num_calls=quick)


def _rl(stage: Any, graph: Graph) -> Work:
    return _rl_with(stage, _needs(stage.algorithm, stage), stage.evaluation.at)


def _rl_with(stage: Any, needs: frozenset[str], points: Sequence[float]) -> Work:
    rows = stage.prompts_per_step * stage.group_size
    texts = list(_texts(stage))
    draws = min(DRAWS_ASSUMED, stage.max_draws) if "dynamic_sampling" in needs else 1
    writings = [
        Writing(
            stage.model,
            text,
            rows * draws,
            stage.max_new_tokens,
            num_calls=max(round(share * stage.num_steps), 1),
            siblings=stage.group_size,
        )
        for text, share in texts
    ]
    checked = getattr(getattr(stage, "support", None), "num_problems", 0)
    if checked and stage.group_size > 1:
        once = Writing(stage.model, texts[0][0], checked * stage.group_size, stage.max_new_tokens, 1, stage.group_size)
        writings.append(once)
    writings += _evaluations(stage, stage.num_steps, points)

    def reads(model: str, times: float, *, learns: bool = False) -> Iterator[Reading]:
        for text, share in texts:
            count = rows * stage.num_steps * share * times
            yield Reading(model, text, count, stage.model, stage.max_new_tokens, learns)

    readings = list(reads(stage.model, stage.num_epochs, learns=True))
    is_only_update = stage.num_epochs * stage.num_minibatches == 1 and not stage.max_staleness
    if "old_logprobs" in needs and not (is_only_update and "old_logprobs is optional" in needs):
        readings += reads(stage.model, 1)
    held: list[Held] = []
    for role, model in _frozen(stage, needs):
        held.append(Held(role, model))
        readings += reads(model, 1) if role != "judge" else ()
    for judge in _judges(stage):
        asked = round(rows * judge.num_calls)
        held.append(Held("judge", judge.model))
        writings.append(Writing(judge.model, JUDGING, asked, judge.max_new_tokens, stage.num_steps))
    if stage.critic is not None and "values" in needs:
        critic = stage.critic.model or stage.model
        own = stage.critic.trunk == "own"
        held += [Held("critic", critic, learns=True)] if own else []
        readings += [*reads(critic, 1), *(reads(critic, stage.num_epochs, learns=True) if own else ())]
    if stage.max_staleness:
        held.append(Held("sampler", stage.model))
    return _updating(
        stage,
        stage.num_steps,
        held=held,
        writings=tuple(writings),
        readings=tuple(readings),
        saves_reference="ref_logprobs" in needs,
        rows_per_update=-(-rows // stage.num_minibatches),
        texts_logged=stage.num_steps * stage.group_size,
    )


def _texts(stage: Any) -> Iterator[tuple[Text, float]]:
    """Each source of problems with its share of the stage's rollouts."""
    late = getattr(stage, "late", None)
    share = (1 - late.start) * late.share if late else 0.0
    yield Text.of_task(stage.task), 1 - share
    if late:
        yield Text.of_task(late.task), share


def _needs(algorithm: str, stage: Any, settings: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The streams that the algorithm asks for; nothing is assumed where the row cannot be made."""
    from melete.algorithms import resolve  # the checks of the recipe have loaded it already

    own = stage.algorithm_settings if settings is None else settings
    row = resolve(algorithm, max_new_tokens=stage.max_new_tokens, **own)
    extra = {f"{name} is optional" for name in row.optional}
    return frozenset({*row.needs, *extra, *(("dynamic_sampling",) if row.settings.dynamic_sampling else ())})


def _frozen(stage: Any, needs: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Models that only read: reference, teacher, reward models."""
    if "ref_logprobs" in needs or stage.reference not in ("start", "none"):
        yield "reference", stage.model if stage.reference in ("start", "none") else stage.reference
    if stage.teacher:
        yield "teacher", stage.teacher
    if stage.step_rewards not in ("", "task"):
        yield "reward model", stage.step_rewards
    yield from (("reward model", part.model) for part in stage.reward_models.values())


def _judges(stage: Any) -> Iterator[Any]:
    """Judges that are models on this machine."""
    judge = getattr(stage, "judge", None)
    for found in (*getattr(stage, "reward_judges", {}).values(), *((judge,) if judge else ())):
        if not found.base_url:
            yield found


def _compare(stage: Any, graph: Graph) -> Work:
    """The same work for each row and seed; the streams are those that any of the rows asks for."""
    needs = frozenset[str]().union(*(_needs(name, stage, stage.settings_for(name)[0]) for name in stage.algorithms))
    # the base is evaluated for the first algorithm only
    points = [1.0] if len(stage.algorithms) > 1 else stage.evaluation.at
    jobs = len(stage.algorithms) * len(stage.seeds)
    return replace(_rl_with(stage, needs, points), num_copies=jobs, num_at_once=min(stage.num_workers, jobs))


def _sampled(stage: Any, graph: Graph, prompts_at_once: int = PROMPTS_AT_ONCE) -> Work:
    """Pairs, labels, rejection sampling: samples of each problem, and perhaps a judge."""
    samples, prompts = stage.samples_per_prompt, stage.num_prompts
    text, at_once = Text.of_task(stage.task), min(prompts, prompts_at_once)
    calls = -(-prompts // at_once)
    held, writings = (
        [Held("model", stage.model)],
        [Writing(stage.model, text, at_once * samples, stage.max_new_tokens, calls, samples)],
    )
    for judge in _judges(stage):
        per_prompt = 1 if stage.kind == "pairs" else samples
        held.append(Held("judge", judge.model))
        asked = at_once * per_prompt * judge.num_calls
        writings.append(Writing(judge.model, JUDGING, asked, judge.max_new_tokens, calls))
    return Work(writings=tuple(writings), held=tuple(held), rows_written=tuple(graph.parts(stage.name)))


def _reject(stage: Any, graph: Graph) -> Work:
    return _sampled(stage, graph, prompts_at_once=max(1, REJECTION_AT_ONCE // stage.samples_per_prompt))


def _generate(stage: Any, graph: Graph) -> Work:
    parts = graph.parts(stage.name)
    num_prompts = max(1, num_rows(parts) // stage.samples_per_prompt)
    at_once = min(num_prompts, max(1, stage.max_rows // stage.samples_per_prompt))
    calls, samples = -(-num_prompts // at_once), stage.samples_per_prompt
    writing = Writing(stage.model, parts[0].text, at_once * samples, stage.max_new_tokens, calls, samples)
    return Work(writings=(writing,), held=(Held("model", stage.model),), rows_written=tuple(parts))


def _written(stage: Any, graph: Graph) -> Work:
    """No model takes part."""
    return Work(rows_written=tuple(graph.parts(stage.name)))


def _reward_model(stage: Any, graph: Graph) -> Work:
    parts = graph.parts(stage.data, stage)
    learnt = 1 - stage.held_out_share
    more = 1 / (1 - stage.replay_share) if stage.replay else 1.0
    num_steps = stage.num_epochs * -(-round(num_rows(parts) * learnt * more) // stage.rows_per_step)
    return _updating(
        stage,
        num_steps,
        readings=(
            *_over(parts, stage.model, stage.num_epochs * learnt * more, learns=True),
            *_over(parts, stage.model, stage.held_out_share, learns=False),
        ),
        rows_per_update=stage.rows_per_step * max(part.texts_per_row for part in parts),
    )


def _preference(stage: Any, graph: Graph) -> Work:
    parts = graph.parts(stage.data, stage) if stage.data else _online_pairs(stage)
    whole = stage.num_epochs * -(-num_rows(parts) // stage.pairs_per_step)
    num_steps = min(stage.num_steps or whole, whole) if stage.data else stage.num_steps
    passes = stage.num_epochs * num_steps / max(whole, 1) if stage.data else 1.0
    held, writings = [Held("reference", stage.model)], list(_evaluations(stage, num_steps)) if stage.task else []
    readings = [
        *_over(parts, stage.model, passes, learns=True),
        *_over(parts, stage.model, min(passes, 1.0), learns=False),
    ]
    if not stage.data:
        text, samples = Text.of_task(stage.task), stage.samples_per_prompt
        rows = stage.pairs_per_step * samples
        writings.append(Writing(stage.model, text, rows, stage.max_new_tokens, num_steps, samples))
        if stage.reward_model:
            held.append(Held("reward model", stage.reward_model))
            scored = rows * num_steps
            readings.append(Reading(stage.reward_model, text, scored, stage.model, stage.max_new_tokens))
        for judge in _judges(stage):
            held.append(Held("judge", judge.model))
            writings.append(Writing(judge.model, JUDGING, rows * judge.num_calls, judge.max_new_tokens, num_steps))
    return _updating(
        stage,
        num_steps,
        held=held,
        writings=tuple(writings),
        readings=tuple(readings),
        saves_reference=True,
        rows_per_update=2 * stage.pairs_per_step,
    )


def _online_pairs(stage: Any) -> list[Part]:
    count = stage.num_steps * stage.pairs_per_step
    return [Part(count, Text.of_task(stage.task), stage.model, stage.max_new_tokens, 2)]


def _distill(stage: Any, graph: Graph) -> Work:
    text, rows = Text.of_task(stage.task), stage.prompts_per_step
    students = {"on_policy": 1.0, "gkd": stage.student_share}.get(stage.method, 0.0)
    writings = list(_evaluations(stage, stage.num_steps))
    for model, share in ((stage.model, students), (stage.teacher, 1 - students)):
        if share:
            writings.append(Writing(model, text, max(round(rows * share), 1), stage.max_new_tokens, stage.num_steps))
    count = rows * stage.num_steps
    readings = [Reading(stage.model, text, count, stage.model, stage.max_new_tokens, learns=True)]
    if stage.method != "sequence":
        readings.append(Reading(stage.teacher, text, count, stage.model, stage.max_new_tokens))
    return _updating(
        stage,
        stage.num_steps,
        held=[Held("teacher", stage.teacher)],
        writings=tuple(writings),
        readings=tuple(readings),
        rows_per_update=rows,
    )


def _evaluate(stage: Any, graph: Graph) -> Work:
    """One model after the other on every task; only one is held at a time."""
    writings = [
        Writing(
            model,
            Text.of_task(exam.task),
            exam.num_problems * exam.num_samples,
            exam.max_new_tokens,
            siblings=exam.num_samples,
            is_kept=True,
            rows_at_once=stage.max_rows,
        )
        for model in stage.models
        for exam in stage.tasks.values()
    ]
    held = tuple(Held("model", model) for model in stage.models)
    return Work(writings=tuple(writings), held=held, one_at_a_time=True)


_KINDS: Mapping[str, Callable[[Any, Graph], Work]] = {
    "pretrain": _pretrain,
    "sft": _sft,
    "rl": _rl,
    "compare": _compare,
    "pairs": _sampled,
    "labels": _sampled,
    "reject": _reject,
    "generate": _generate,
    "write": _written,
    "mix": _written,
    "reward_model": _reward_model,
    "preference": _preference,
    "distill": _distill,
    "evaluate": _evaluate,
}
