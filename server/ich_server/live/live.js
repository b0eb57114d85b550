// The live page: asks the server for its status every two seconds and shows it. Texts are set as text, never as HTML.
"use strict";

const EVERY = 2000;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const say = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

function ago(moment) {
  if (!moment) return "never";
  const seconds = Math.max(0, (Date.now() - Date.parse(moment)) / 1000);
  return seconds < 15 ? "just now" : `${duration(seconds)} ago`;
}

function rows(id, lines) {
  const body = at(id).tBodies[0];
  body.replaceChildren(...lines.map((cells) => {
    const row = document.createElement("tr");
    cells.forEach((cell, place) => {
      const made = document.createElement(place ? "td" : "th");
      if (!place) made.scope = "row";
      const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
      made.textContent = text;
      if (kind) made.className = kind;
      row.append(made);
    });
    return row;
  }));
  at(id).hidden = lines.length === 0;
}

const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function draw(history) {
  const names = Object.keys(history[0].losses);
  const series = names.map((name) => history.map((one) => one.losses[name]));
  const known = series.flat().filter((value) => value !== null);
  at("chart-box").hidden = known.length === 0;
  if (!known.length) return;
  const low = Math.min(...known), high = Math.max(...known), span = high - low || 1;
  const first = history[0].round, last = Math.max(history.at(-1).round, first + 1);
  const x = (round) => 52 + (round - first) / (last - first) * 570;
  const y = (value) => 12 + (high - value) / span * 170;
  const make = (tag, facts, text = "") => {
    const made = document.createElementNS(SVG, tag);
    Object.entries(facts).forEach(([name, value]) => made.setAttribute(name, value));
    made.textContent = text;
    return made;
  };
  const line = (values, kind) => make("polyline", {
    class: kind,
    points: values.map((value, place) => (value === null ? "" : `${x(history[place].round)},${y(value)}`)).join(" "),
  });
  at("chart").replaceChildren(
    make("line", { class: "axis", x1: 52, x2: 622, y1: 190, y2: 190 }),
    make("text", { x: 46, y: y(high) + 4, "text-anchor": "end" }, high.toFixed(3)),
    make("text", { x: 46, y: y(low) + 4, "text-anchor": "end" }, low.toFixed(3)),
    make("text", { x: 52, y: 208 }, `round ${first}`),
    make("text", { x: 622, y: 208, "text-anchor": "end" }, `${last}`),
    ...series.map((values, place) => (names[place] === "all" ? null : line(values, "fold"))).filter(Boolean),
    ...series.map((values, place) => (names[place] === "all" ? line(values, "all") : null)).filter(Boolean),
  );
}

function show(found) {
  document.title = `${found.study}: ${found.phase}`;
  say("study", found.study);
  say("about", `hash ${found.federation.slice(0, 16)}, version ${found.package}, at ${found.address}`);
  say("phase", found.phase);
  say("message", found.message);
  const over = ["finished", "stopped", "failed"].includes(found.phase);
  const seeds = found.seeds.length, place = found.seed === null ? 0 : found.seeds.indexOf(found.seed);
  say("round", found.seed === null ? "not begun" : `${found.round} of ${found.rounds}`);
  at("bar").value = (place * found.rounds + found.round) / (seeds * found.rounds);
  say("left", over ? "–" : duration(found.seconds_left));
  say("pace", found.round_seconds === null ? "" : `${found.round_seconds.toFixed(1)} s for the last round`
    + (seeds > 1 ? `; seed ${found.seed}, ${place + 1} of ${seeds}` : ""));
  const here = found.hospitals.filter((one) => one.connected && found.alive);
  say("connected", `${here.length} of ${found.hospitals.length}`);
  const latest = found.history.at(-1);
  say("replied", latest ? `${latest.replied} of ${latest.hospitals} took part in round ${latest.round}` : "");
  rows("hospitals", found.hospitals.map((one) => [
    one.name,
    one.connected && found.alive ? ["connected", "good"] : ["away", "bad"],
    ago(one.last_seen),
    one.late ? [String(one.late), "bad"] : "0",
    one.version + (one.version && one.version !== found.package ? " (not this server's)" : ""),
  ]));
  at("no-rounds").hidden = found.history.length > 0;
  if (found.history.length) {
    draw(found.history);
    const first = found.history[0].losses, last = latest.losses;
    rows("folds", Object.keys(last).map((name) => [name, number(first[name], 4), number(last[name], 4)]));
  }
  at("no-figures").hidden = found.found.length > 0;
  rows("found", found.found.flatMap((one) => Object.entries(one.auroc).map(([kind, value]) => [
    one.hospital + (kind ? `, ${kind}` : ""), one.arm, String(one.seed), String(one.patients),
    one.events === null ? "withheld" : String(one.events), number(value),
  ])));
  at("no-faults").hidden = found.set_aside.length > 0;
  at("faults").replaceChildren(...[...found.set_aside].reverse().slice(0, 50).map((one) => {
    const made = document.createElement("li");
    made.textContent = `seed ${one.seed}, ${one.when}: ${one.hospital}: ${one.reason}`;
    return made;
  }));
  say("updated", `As of ${new Date(found.updated).toLocaleString()}. The same in a terminal: ich-server status --watch`);
  at("banner").hidden = found.alive || over;
  say("banner", "The server has not renewed its status for a while: it may have died.");
}

let ended = false;

async function renew() {
  try {
    const answer = await fetch("/status.json", { cache: "no-store" });
    if (answer.ok) {
      const found = await answer.json();
      ended = ["finished", "stopped", "failed"].includes(found.phase);
      show(found);
    }
  } catch {
    at("banner").hidden = false;
    say("banner", ended ? "The server has ended; this is what it said last."
      : "The server does not answer. What you see is what it said last; ich-server status tells more.");
  }
  setTimeout(renew, EVERY);
}

renew();
