"use strict";
// What a model or a file wrote goes into the page by textContent only.
const $ = (id) => document.getElementById(id);
const EVERY = 1000, FIRST = ["reward", "pass@1", "evaluation/pass@1", "quick_evaluation/pass@1", "loss", "length_mean", "entropy", "kl", "approx_kl",
  "dead_groups", "truncated_share", "clip_fraction", "grad_norm", "accuracy"];
let chosen = "", followed = true, version = -1, drawn = "", recipe = "";

const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const svg = (tag, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
const short = (value) => (Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : Number(value).toPrecision(3));
const isFirst = (name) => FIRST.includes(name) || name.startsWith("reward/");
const rank = (name) => (name.startsWith("reward/") ? 0.5 : FIRST.includes(name) ? FIRST.indexOf(name) : 99);

function figure(name) {
  const node = make("figure");
  node.dataset.name = name;
  const caption = make("figcaption");
  caption.append(make("span", "", name), make("span"));
  const plot = svg("svg", { viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": name });
  const cursor = svg("line", { y1: 0, y2: 100, visibility: "hidden" });
  plot.append(svg("polyline", { points: "" }), cursor);
  const range = make("div", "range");
  range.append(make("span"), make("span"));
  node.append(caption, plot, range);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * 300;
    const near = node.places.reduce((best, place) => (Math.abs(place[0] - x) < Math.abs(best[0] - x) ? place : best));
    cursor.setAttribute("x1", near[0]);
    cursor.setAttribute("x2", near[0]);
    cursor.setAttribute("visibility", "visible");
    caption.lastChild.textContent = `step ${near[1]}: ${short(near[2])}`;
    node.hovered = true;
  });
  plot.addEventListener("pointerleave", () => {
    node.hovered = false;
    cursor.setAttribute("visibility", "hidden");
    caption.lastChild.textContent = node.newest;
  });
  return node;
}

function draw(node, points) {
  const steps = points.map((point) => point[0]), values = points.map((point) => point[1]);
  const low = Math.min(...values), high = Math.max(...values), first = Math.min(...steps), last = Math.max(...steps);
  const x = (step) => (last > first ? 2 + (296 * (step - first)) / (last - first) : 150);
  const y = (value) => (high > low ? 95 - (90 * (value - low)) / (high - low) : 50);
  node.places = points.map(([step, value]) => [x(step), step, value]);
  const shown = points.length === 1 ? [[146, y(values[0])], [154, y(values[0])]] : points.map(([step, value]) => [x(step), y(value)]);
  node.querySelector("polyline").setAttribute("points", shown.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(" "));
  node.newest = `${short(values.at(-1))} at step ${steps.at(-1)}`;
  if (!node.hovered) node.querySelector("figcaption").lastChild.textContent = node.newest;
  const range = node.querySelector(".range");
  range.firstChild.textContent = `lowest ${short(low)}`;
  range.lastChild.textContent = `highest ${short(high)}`;
}

function drawCurves(curves) {
  const names = Object.keys(curves).sort((one, two) => rank(one) - rank(two) || (one < two ? -1 : 1));
  for (const [place, wanted] of [[$("curves"), names.filter(isFirst)], [$("others"), names.filter((name) => !isFirst(name))]]) {
    const known = new Map([...place.children].map((node) => [node.dataset.name, node]));
    const nodes = wanted.map((name) => known.get(name) || figure(name));
    if (nodes.length !== place.children.length || nodes.some((node, number) => node !== place.children[number])) place.replaceChildren(...nodes);
    nodes.forEach((node, number) => draw(node, curves[wanted[number]]));
  }
  $("more").hidden = !names.some((name) => !isFirst(name));
}

function signed(value) {
  return `${value > 0 ? "+" : ""}${short(value)}`;
}

function drawRollouts(rows) {
  const largest = Math.max(1e-9, ...rows.flatMap((row) => row.credit.map(([, value]) => Math.abs(value))));
  $("rollouts").replaceChildren(...rows.map((row) => {
    const box = make("article", "rollout");
    const parts = Object.entries(row.reward_parts || {}).map(([name, value]) => `${name} ${value === null ? "unknown" : short(value)}`);
    const told = [`step ${row.step}`, row.reward === null ? "reward unknown" : `reward ${short(row.reward)}`, ...parts];
    const values = row.credit.map(([, value]) => value);
    if (values.length) told.push(`advantage ${[...new Set([Math.min(...values), Math.max(...values)])].map(signed).join(" to ")}`);
    if (row.num_tokens !== null) told.push(`${row.num_tokens} tokens`);
    const spans = (row.credit.length ? row.credit : [[row.text, 0]]).map(([words, value]) => {
      const text = make("span", "", words);
      if (value) {
        const strength = 0.08 + 0.32 * (Math.abs(value) / largest);
        text.style.backgroundColor = `rgba(var(--${value > 0 ? "up" : "down"}), ${strength.toFixed(2)})`;
        text.title = `advantage ${signed(value)}`;
      }
      return text;
    });
    const body = make("div", "text");
    body.append(...spans);
    box.append(make("p", "", told.join(" · ")), make("p", "", row.prompt), body);
    if (row.reason) box.append(make("p", "", row.reason));
    return box;
  }));
  if (!rows.length) $("rollouts").append(make("p", "dim", "This stage has written none."));
}

function drawStages(stages) {
  const known = [...$("stages").children];
  stages.forEach((stage, number) => {
    let node = known[number];
    if (!node) {
      node = make("button");
      node.type = "button";
      node.append(make("span"), make("progress"), make("span", "dim"));
      node.addEventListener("click", () => { followed = false; chosen = node.dataset.name; version = -1; tick(); });
      $("stages").append(node);
    }
    node.dataset.name = stage.name;
    node.children[0].textContent = stage.name;
    node.children[1].max = stage.total || 1;
    node.children[1].value = stage.is_finished ? stage.total || 1 : Math.min(stage.done, stage.total || 1);
    node.children[2].textContent = stage.is_finished ? "finished" : stage.has_rows ? `${stage.done}${stage.total ? ` of ${stage.total}` : ""}` : "waits";
    node.setAttribute("aria-pressed", String(stage.name === chosen));
  });
  known.slice(stages.length).forEach((node) => node.remove());
  const found = stages.find((stage) => stage.name === chosen);
  $("health").replaceChildren(...(found ? found.health : []).map((one) => {
    const box = make("div", `finding ${one.severity === "note" ? "note" : ""}`);
    box.append(make("b", "", `${one.severity}: `), `${one.says} ${one.cause || ""} ${one.try ? `Try ${one.try}.` : ""}`);
    return box;
  }));
}

async function ask(path) {
  const reply = await fetch(path);
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  return reply.json();
}

let working = false, timer = 0;
async function tick() {
  if (working) return;
  working = true;
  clearTimeout(timer);
  try {
    const run = await ask("/api/run");
    $("run").textContent = run.run;
    document.title = `${run.run} · melete`;
    const live = run.stages.filter((stage) => stage.has_rows);
    if (followed || !chosen) chosen = (live.at(-1) || run.stages[0] || { name: "" }).name;
    drawStages(run.stages);
    if (chosen && (run.version !== version || drawn !== chosen)) {
      const stage = await ask(`/api/stage?name=${encodeURIComponent(chosen)}`);
      drawCurves(stage.curves);
      drawRollouts(stage.rollouts);
      [version, drawn] = [run.version, chosen];
    }
    if (!recipe) $("recipe").textContent = recipe = JSON.stringify(await ask("/api/config"), null, 2);
    $("status").textContent = run.stages.every((stage) => stage.is_finished) ? "finished" : "live";
  } catch (error) {
    $("status").textContent = error instanceof TypeError ? "the server does not answer" : error.message;
  } finally {
    working = false;
    timer = setTimeout(tick, EVERY);
  }
}
tick();
