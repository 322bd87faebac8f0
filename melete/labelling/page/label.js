"use strict";
// What a model wrote goes into the page by textContent only.
const $ = (id) => document.getElementById(id);
let state = null, unsafe = new Set(), asking = false, busy = false, review = false, pending = null;
let seconds = 0, since = 0;

const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
const stopClock = () => { if (since) seconds += (performance.now() - since) / 1000; since = 0; };
const startClock = () => { if (!since && !document.hidden) since = performance.now(); };
document.addEventListener("visibilitychange", () => (document.hidden ? stopClock() : startClock()));

function note(text, bad) {
  $("note").textContent = text;
  $("note").className = bad ? "bad" : "";
  $("note").hidden = !text;
}

const choices = () => (state.mode === "safety"
  ? [["safe", "Safe", "1"], ["unsafe", "Unsafe", "2"], ["skip", "Skip", "s"], ["undo", "Undo", "z"]]
  : [["left", "Left is better", "1"], ["tie", "Tie", "0"], ["right", "Right is better", "2"],
    ["mark", "Mark unsafe", "u"], ["skip", "Skip", "s"], ["undo", "Undo", "z"]]);

function help() {
  const told = state.mode === "safety"
    ? [["1 ←", "safe"], ["2 → u", "unsafe"]]
    : [["1 ←", "left is better"], ["2 →", "right is better"], ["0 =", "a tie"], ["u, then 1 or 2", "mark as unsafe"]];
  $("help").replaceChildren(...[...told, ["s", "skip"], ["z", "undo"], ["t", "show thoughts"], ["?", "this help"]].map(([key, what]) => {
    const line = make("span");
    line.append(make("kbd", "", key), ` ${what}`);
    return line;
  }));
}

function answerBox(text, number) {
  const box = make("article", "answer");
  const two = state.item.answers.length === 2;
  box.append(make("p", "name", two ? ["Left", "Right"][number] : "Answer"));
  const end = text.indexOf("</think>");
  let rest = text;
  if (end >= 0 || text.trimStart().startsWith("<think>")) {
    const thought = text.slice(0, end < 0 ? undefined : end).replace(/^\s*<think>/, "").trim();
    rest = end < 0 ? "" : text.slice(end + 8).trim();
    const fold = make("details", "thought");
    fold.append(make("summary", "", `Thought, ${thought.split(/\s+/).filter(Boolean).length} words`), make("div", "", thought));
    box.append(fold);
  }
  box.append(make("div", "text", rest));
  return box;
}

function show(next) {
  state = next;
  unsafe = new Set();
  asking = false;
  seconds = 0;
  since = 0;
  startClock();
  const item = state.item;
  $("who").textContent = `labelled by ${state.by}`;
  $("progress").max = state.total;
  $("progress").value = state.done;
  $("count").textContent = review ? `${state.waiting} to review` : `${state.done} of ${state.total}`;
  $("prompt").replaceChildren();
  $("answers").replaceChildren();
  $("answers").className = item && item.answers.length === 1 ? "one" : "";
  $("finished").hidden = Boolean(item);
  $("finished").textContent = review ? "Nothing is left to review." : "Everything is answered. Thank you.";
  if (item) {
    for (const turn of item.messages) {
      $("prompt").append(make("p", "name", turn.role), make("div", "turn", turn.content));
    }
    $("answers").append(...item.answers.map(answerBox));
  }
  $("said").hidden = !item || !item.said;
  if (item && item.said) {
    $("said").textContent = `Said before: ${Object.entries(item.said).map(([who, what]) => `${who}: ${what}`).join(", ")}`;
  }
  $("choices").replaceChildren(...choices().map(([what, text, key]) => {
    const button = make("button", "", `${text} `);
    button.type = "button";
    button.dataset.what = what;
    button.append(make("kbd", "", key));
    button.disabled = !item && what !== "undo";
    button.addEventListener("click", () => choose(what));
    return button;
  }));
  const told = state.agreement.map((one) => `with ${one.other}: ${Math.round(one.share * 100)}% the same on ${one.num}`
    + `, kappa ${one.kappa === null ? "not defined" : one.kappa.toFixed(2)}`);
  if (state.left.num >= 10) told.push(`left preferred in ${Math.round(state.left.share * 100)}% of ${state.left.num}`);
  $("agreement").textContent = told.join(" · ");
  const differing = state.agreement.reduce((sum, one) => sum + one.differing, 0);
  $("review").hidden = !review && !differing;
  $("review").textContent = review ? "Back" : `Review ${differing} that differ`;
  help();
  document.querySelector("main").scrollTop = 0;
  document.body.dataset.item = item ? item.id : "none";
}

async function ask(path, body) {
  const reply = await fetch(path, body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const told = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(told.error.message), { code: told.error.code });
  return told;
}

async function send(path, body) {
  if (busy) return;
  busy = true;
  try {
    // the same request again has the same id: what the server had saved before it died is not saved twice
    const key = JSON.stringify([path, body.item, body.answer, body.unsafe]);
    if (!pending || pending.key !== key) pending = { key, id: newId() };
    const next = await ask(path, { ...body, id: pending.id });
    pending = null;
    note("");
    show(next);
  } catch (error) {
    if (error.code === "already_answered") {
      pending = null;
      note(error.message, true);
      await load().catch(() => {});
    } else {
      note(`${error instanceof TypeError ? "not saved: the server does not answer" : error.message}. Give the answer again.`, true);
    }
  } finally {
    busy = false;
  }
}

async function load() {
  show(await ask(`/api/state?review=${review}`));
  if (state.notes.length && $("note").hidden) note(state.notes.join("; "));
}

function mark(number) {
  const side = ["left", "right"][number];
  if (unsafe.has(side)) unsafe.delete(side); else unsafe.add(side);
  document.querySelectorAll(".answer")[number].classList.toggle("unsafe", unsafe.has(side));
  asking = false;
  note("");
}

function choose(what) {
  if (!state || busy) return;
  if (what === "undo") return void (review ? note("In a review answers are changed, not undone.") : send("/api/undo", {}));
  if (!state.item) return;
  if (asking && (what === "left" || what === "right")) return mark(what === "left" ? 0 : 1);
  if (what === "mark") {
    asking = !asking;
    return note(asking ? "Which is unsafe? 1 or ← the left, 2 or → the right." : "");
  }
  stopClock();
  const spent = seconds;
  startClock();
  send("/api/answer", { item: state.item.id, answer: what, unsafe: [...unsafe].sort(), seconds: Math.min(spent, 86400), review });
}

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const safety = state.mode === "safety";
  const keys = { 1: safety ? "safe" : "left", 2: safety ? "unsafe" : "right", 0: "tie", "=": "tie", u: safety ? "unsafe" : "mark", s: "skip", z: "undo" };
  keys.ArrowLeft = keys[1];
  keys.ArrowRight = keys[2];
  if (event.key === "?") $("helper").click();
  else if (event.key === "t") document.querySelectorAll(".thought").forEach((fold) => { fold.open = !fold.open; });
  else if (event.key === "Escape" && asking) { asking = false; note(""); }
  else if (keys[event.key] && !(safety && keys[event.key] === "tie")) choose(keys[event.key]);
  else return;
  event.preventDefault();
});
$("helper").addEventListener("click", () => {
  $("help").hidden = !$("help").hidden;
  $("helper").setAttribute("aria-expanded", String(!$("help").hidden));
});
$("review").addEventListener("click", () => { review = !review; note(""); load().catch((error) => note(error.message, true)); });
load().catch((error) => note(error.message, true));
