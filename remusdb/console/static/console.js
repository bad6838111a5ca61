// SPDX-License-Identifier: Apache-2.0
// Keeps a page live: fragments that the server rendered, samples for the plots, and the actions' dialogs.
"use strict";
(() => {
  const live = document.querySelector("[data-live]");
  const word = document.querySelector('meta[name="remusdb-console"]').content;
  const headers = { "content-type": "application/json", "x-remusdb-console": word };
  const SILENT_MS = 6000;
  let heard = Date.now();

  // --- plots; the positions are those of PLOTTED in watching.py, after the time ---
  const bytes = (v) => {
    const units = ["B", "KiB", "MiB", "GiB"];
    let at = 0;
    while (v >= 1024 && at < units.length - 1) { v /= 1024; at += 1; }
    return `${v >= 10 || at === 0 ? v.toFixed(0) : v.toFixed(1)} ${units[at]}`;
  };
  const clock = (s) => new Date(1000 * s).toTimeString().slice(0, 8);
  const ms = (v) => `${v >= 100 ? v.toFixed(0) : v.toFixed(1)} ms`;
  const PLOTS = [
    { title: "Commit latency", series: [[1, "median"], [2, "slowest 1 %"]], show: ms },
    { title: "Pause", series: [[3, "median"], [4, "slowest 1 %"]], show: ms },
    { title: "Epoch length", series: [[5, ""]], show: ms, of: (v) => (v ? 1000 / v : null) },
    { title: "Dirty pages an epoch", series: [[6, ""]], show: (v) => v.toFixed(0) },
    { title: "Sent to the backup", series: [[7, ""]], show: (v) => `${bytes(v)}/s` },
    { title: "Held output", series: [[8, ""]], show: bytes },
    { title: "Clock lag of the guest", series: [[9, ""]], show: ms },
  ];
  const KEPT = 600;
  let samples = [];
  let drawn = [];
  const box = document.getElementById("plots");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const dataOf = (plot) => [
    samples.map((one) => one[0]),
    ...plot.series.map(([at]) => samples.map((one) => (one[at] === null ? null : plot.of ? plot.of(one[at]) : one[at]))),
  ];
  const lastOf = (column) => { const v = column[column.length - 1]; return v === undefined ? null : v; };

  function makePlots() {
    for (const one of drawn) one.chart.destroy();
    box.replaceChildren();
    const axis = { stroke: css("--soft"), grid: { stroke: css("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    drawn = PLOTS.map((plot) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.append(plot.title);
      const value = document.createElement("span");
      caption.append(value);
      const canvas = document.createElement("div");
      canvas.setAttribute("role", "img");
      figure.append(caption, canvas);
      box.append(figure);
      const chart = new uPlot({
        width: Math.max(200, figure.clientWidth - 26), height: 150, legend: { show: false }, cursor: { show: false },
        scales: { y: { range: (_u, _low, high) => [0, high > 0 ? high * 1.1 : 1] } },
        axes: [{ ...axis, space: 70, size: 32, values: (_u, all) => all.map(clock) }, { ...axis, size: 62, values: (_u, all) => all.map(plot.show) }],
        series: [{}, ...plot.series.map((_one, at) => ({ stroke: css(at ? "--two" : "--one"), width: 1.75, points: { show: false }, fill: at ? undefined : `${css("--one")}22` }))],
      }, dataOf(plot), canvas);
      return { plot, chart, canvas, value };
    });
    fillPlots();
  }
  function fillPlots() {
    for (const { plot, chart, canvas, value } of drawn) {
      const data = dataOf(plot);
      chart.setData(data);
      value.replaceChildren();
      const told = plot.series.map(([, label], at) => {
        const v = lastOf(data[at + 1]);
        return `${v === null ? "–" : plot.show(v)}${label ? ` ${label}` : ""}`;
      });
      told.forEach((text, at) => {
        const part = document.createElement("span");
        part.className = at ? "key-two" : "key-one";
        part.textContent = text;
        value.append(at ? " · " : "", part);
      });
      canvas.setAttribute("aria-label", `${plot.title}, over the last ten minutes; now ${told.join(", ")}`);
    }
  }
  async function startPlots() {
    if (!box || typeof uPlot === "undefined") return;
    try {
      samples = await (await fetch(`/vm/${encodeURIComponent(live.dataset.vm)}/samples`)).json();
    } catch { samples = []; }
    makePlots();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", makePlots);
    let wide = box.clientWidth;
    new ResizeObserver(() => { if (box.clientWidth !== wide) { wide = box.clientWidth; makePlots(); } }).observe(box);
  }
  function addSamples(news) {
    const last = samples.length ? samples[samples.length - 1][0] : 0;
    samples = samples.concat(news.filter((one) => one[0] > last)).slice(-KEPT);
    if (drawn.length) fillPlots();
  }

  // --- live fragments ---
  function show(fragments) {
    for (const [id, html] of Object.entries(fragments)) {
      const part = document.getElementById(id);
      if (!part || part.querySelector("dialog[open]")) continue; // nothing changes under a question that is open
      const focused = part.contains(document.activeElement) ? document.activeElement : null;
      const again = focused && (focused.dataset.dialog ? `[data-dialog="${focused.dataset.dialog}"]` : focused.getAttribute("href") ? `[href="${focused.getAttribute("href")}"]` : null);
      part.innerHTML = html; // rendered and escaped by the server
      if (again) part.querySelector(again)?.focus();
    }
    const head = document.querySelector(".verdict h1");
    if (head) document.title = `${head.textContent.trim().replace(/\s+/g, " ")} · remusdb`;
  }
  function listen() {
    const source = new EventSource(live.dataset.live);
    source.onmessage = (message) => {
      heard = Date.now();
      const { fragments, samples: news } = JSON.parse(message.data);
      show(fragments);
      if (box) addSamples(news);
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000); // refused: the session may be over
    };
  }
  setInterval(() => { document.getElementById("offline").hidden = Date.now() - heard < SILENT_MS; }, 1000);

  // --- actions ---
  document.addEventListener("click", (event) => {
    const opens = event.target.closest("[data-dialog]");
    if (opens) document.getElementById(opens.dataset.dialog).showModal();
    if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
  });
  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.dataset.do) return;
    event.preventDefault();
    const problem = form.querySelector(".problem");
    const submit = form.querySelector("[type=submit]");
    problem.hidden = true;
    submit.disabled = true;
    try {
      const answer = await fetch(form.dataset.do, { method: "POST", headers, body: JSON.stringify({ host: form.elements.host?.value.trim() }) });
      if (answer.ok) form.closest("dialog").close();
      else {
        const told = await answer.json();
        throw new Error(told.hint ? `${told.error} (${told.hint})` : told.error);
      }
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
    submit.disabled = false;
  });
  document.getElementById("logout")?.addEventListener("click", async () => {
    await fetch("/logout", { method: "POST", headers, body: "{}" });
    location.href = "/login";
  });

  listen();
  startPlots();
})();
