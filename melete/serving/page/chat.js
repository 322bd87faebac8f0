"use strict";
// What a model wrote comes into the page by textContent only.

const $ = (id) => document.getElementById(id);
const KEPT = "melete-chat";
let turns = []; // {asked, lanes: [{model, answers: [{thought, words, finish}], votes, problem, stopped, count}]}
let running = null; // the AbortController of the answers that are being written

function make(tag, kind, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- what is shown of an answer; each view is made once and brought up to date as words come

class AnswerView {
  constructor(kind) {
    this.box = make("div", kind);
    this.thought = make("details", "thought");
    this.summary = make("summary", "", "Thought");
    this.thoughtWords = make("div");
    this.thought.append(this.summary, this.thoughtWords);
    this.thought.hidden = true;
    this.touched = false; // who opened or closed it has decided
    this.summary.addEventListener("click", () => { this.touched = true; });
    this.content = make("div", "content");
    this.note = make("p", "note");
    this.note.hidden = true;
    this.box.append(this.thought, this.content, this.note);
  }

  show(answer, isWriting) {
    const thinks = isWriting && answer.thought !== "" && answer.words === "";
    this.box.classList.toggle("writing", isWriting && !answer.finish);
    if (answer.thought !== "") {
      this.thought.hidden = false;
      setText(this.thoughtWords, answer.thought);
      const length = answer.thought.trim().split(/\s+/).length;
      this.summary.textContent = thinks ? "Thinking…" : `Thought, ${length} word${length === 1 ? "" : "s"}`;
      if (!this.touched) this.thought.open = thinks;
    }
    setText(this.content, answer.words);
    this.note.hidden = answer.finish !== "length";
    this.note.textContent = "cut off at the longest answer";
  }
}

// appends where it can: a long text is not laid out anew for each token
function setText(element, text) {
  const node = element.firstChild;
  if (node && text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else element.textContent = text;
}

class LaneView {
  constructor(lane) {
    this.lane = lane;
    this.box = make("article", "lane");
    this.name = make("p", "name", lane.model);
    this.main = new AnswerView("main-answer");
    this.tally = make("ul", "tally");
    this.all = make("details", "all");
    this.allSummary = make("summary");
    this.ones = make("div", "ones");
    this.all.append(this.allSummary, this.ones);
    this.views = lane.answers.map(() => new AnswerView("one"));
    this.ones.append(...this.views.map((view) => view.box));
    this.problem = make("p", "problem");
    this.problem.setAttribute("role", "alert");
    this.note = make("p", "note");
    this.box.append(this.name, this.main.box, this.tally, this.all, this.problem, this.note);
    this.all.open = true;
  }

  show(isWriting) {
    const { lane } = this;
    const several = lane.answers.length > 1;
    this.all.hidden = !several;
    this.tally.hidden = !lane.votes;
    this.main.box.hidden = several && !lane.votes;
    if (!several) this.main.show(lane.answers[0], isWriting);
    else if (lane.votes) this.main.show(lane.answers[leader(lane)], false);
    if (several) {
      const done = lane.answers.filter((answer) => answer.finish).length;
      this.allSummary.textContent = isWriting ? `${done} of ${lane.answers.length} answers` : `All ${lane.answers.length} answers`;
      this.views.forEach((view, number) => view.show(lane.answers[number], isWriting));
    }
    this.problem.hidden = !lane.problem;
    this.problem.textContent = lane.problem || "";
    this.note.textContent = [lane.stopped && "stopped", lane.count].filter(Boolean).join(" · ");
    this.note.hidden = this.note.textContent === "";
  }

  showVotes() {
    const { lane } = this;
    if (!lane.votes) return;
    this.tally.replaceChildren(...lane.votes.map((vote) => {
      const line = make("li");
      const bar = make("progress");
      bar.max = 1;
      bar.value = vote.share;
      const told = `${Math.round(100 * vote.share)} % (${vote.members.length} of ${lane.answers.length})`;
      bar.setAttribute("aria-label", told);
      line.append(make("b", "", vote.answer || "no final answer"), bar, make("span", "", told));
      return line;
    }));
    this.all.open = false;
  }
}

// the answer that stands for a lane: the first of those that most agree with
function leader(lane) {
  return lane.votes ? lane.votes[0].members[0] : 0;
}

function showTurn(turn) {
  $("empty").hidden = true;
  const box = make("section", turn.lanes.length > 1 ? "turn wide" : "turn");
  const lanes = make("div", turn.lanes.length > 1 ? "lanes two" : "lanes");
  const views = turn.lanes.map((lane) => new LaneView(lane));
  lanes.append(...views.map((view) => view.box));
  box.append(make("p", "mine", turn.asked), lanes);
  $("log").append(box);
  views.forEach((view) => { view.showVotes(); view.show(false); });
  return views;
}

function followDown(change) {
  const log = $("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// ---- asking

function messagesFor(model, asked) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const lane = turn.lanes.find((one) => one.model === model) || turn.lanes[0];
    const words = lane.answers[leader(lane)].words;
    if (words) messages.push({ role: "user", content: turn.asked }, { role: "assistant", content: words });
  }
  return [...messages, { role: "user", content: asked }];
}

function inRange(id, otherwise) {
  const input = $(id);
  return input.value.trim() !== "" && input.checkValidity() ? Number(input.value) : otherwise;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function said(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

async function write(lane, messages, signal, changed) {
  const body = {
    model: lane.model, messages, stream: true, n: lane.answers.length, temperature: inRange("temperature", 0.7),
    stream_options: { include_usage: true },
  };
  const most = inRange("max-tokens", null);
  if (most !== null) body.max_tokens = most;
  const begin = performance.now();
  const headers = { "Content-Type": "application/json" };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await said(response));
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) {
      const seconds = (performance.now() - begin) / 1000;
      lane.count = `${chunk.usage.completion_tokens} tokens in ${seconds.toFixed(1)} s`;
    }
    for (const choice of chunk.choices) {
      const answer = lane.answers[choice.index];
      answer.thought += choice.delta.reasoning_content || "";
      answer.words += choice.delta.content || "";
      answer.finish = choice.finish_reason || answer.finish;
    }
    changed();
  }
  if (lane.answers.length > 1) {
    const texts = lane.answers.map((answer) => answer.words);
    const counted = await fetch("/votes", { method: "POST", headers, body: JSON.stringify({ texts }), signal });
    if (!counted.ok) throw new Error(await said(counted));
    lane.votes = (await counted.json()).votes;
  }
}

async function follow(view, messages, signal) {
  const { lane } = view;
  let planned = false; // words come faster than a screen shows them
  const changed = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => { planned = false; if (running) followDown(() => view.show(true)); });
  };
  try {
    await write(lane, messages, signal, changed);
  } catch (error) {
    if (error.name === "AbortError") lane.stopped = true;
    else lane.problem = error.message === "Failed to fetch" ? "the server cannot be reached" : error.message;
  }
  followDown(() => { view.showVotes(); view.show(false); });
}

async function ask(asked) {
  const names = [...new Set([$("model").value, $("compare").value].filter(Boolean))];
  const count = inRange("votes", 1);
  const fresh = () => ({ thought: "", words: "", finish: null });
  const turn = { asked, lanes: names.map((model) => ({ model, answers: Array.from({ length: count }, fresh) })) };
  const messages = names.map((model) => messagesFor(model, asked));
  const views = showTurn(turn);
  running = new AbortController();
  busy(true);
  views.forEach((view) => view.show(true));
  $("log").scrollTop = $("log").scrollHeight;
  await Promise.all(views.map((view, number) => follow(view, messages[number], running.signal)));
  running = null;
  turns.push(turn);
  busy(false);
  keep();
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("reset").disabled = is;
  $("input").focus();
}

// ---- the page

// a reload of the tab loses nothing; private windows may refuse to keep
function keep() {
  const settings = Object.fromEntries(["system", "temperature", "max-tokens", "votes"].map((id) => [id, $(id).value]));
  try { sessionStorage.setItem(KEPT, JSON.stringify({ turns, settings })); } catch { /* not kept */ }
}

function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) || "{}");
    Object.entries(kept.settings || {}).forEach(([id, value]) => { $(id).value = value; });
    turns = kept.turns || [];
    turns.forEach(showTurn);
  } catch { turns = []; }
}

function fit() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

async function listModels() {
  try {
    const response = await fetch("/v1/models");
    if (!response.ok) throw new Error(await said(response));
    const names = (await response.json()).data.map((model) => model.id);
    const option = (name, text) => Object.assign(make("option", "", text), { value: name });
    $("model").replaceChildren(...names.map((name) => option(name, name)));
    $("compare").replaceChildren(option("", "none"), ...names.map((name) => option(name, name)));
    $("compare-picker").hidden = names.length < 2;
  } catch (error) {
    $("empty").hidden = false;
    $("empty").textContent = `The models cannot be listed: ${error.message}`;
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = $("input").value.trim();
  if (!asked || running || !$("model").value) return;
  $("input").value = "";
  fit();
  ask(asked);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("input").addEventListener("input", fit);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
$("stop").addEventListener("click", () => { if (running) running.abort(); });
$("toggle").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("toggle").setAttribute("aria-expanded", String(!$("settings").hidden));
});
$("settings").addEventListener("change", keep);
$("reset").addEventListener("click", () => {
  turns = [];
  document.querySelectorAll(".turn").forEach((box) => box.remove());
  $("empty").hidden = false;
  keep();
  $("input").focus();
});
restore();
listModels();
