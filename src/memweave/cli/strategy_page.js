// Draws what `memweave strategies show` found. Every text is data: it is only ever set as the text of an element.
"use strict";
(() => {
  const view = JSON.parse(document.getElementById("graph").textContent);
  const LAYERS = ["query", "path", "strategy"];
  const NAMES = { query: "Queries", path: "Paths", strategy: "Strategies" };
  const HEIGHT = { query: 22, path: 72, strategy: 58 };
  const GAP = { query: 4, path: 8, strategy: 10 };
  const NARROWEST = 900, MARGIN = 14, SWEEPS = 12, ROWS = 25, NEAR = 7, BUSY = 120, MANY = 300, LONG = 92;
  const KINDS = ["contrast", "speculative", "positive"];
  const at = (id) => document.getElementById(id);

  // ---- making elements

  function make(tag, props, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(props || {})) {
      if (name === "class") made.className = value;
      else if (name === "click") made.addEventListener("click", value);
      else made.setAttribute(name, value);
    }
    made.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined));
    return made;
  }
  const number = (value) => (value === null || value === undefined ? "-" : value.toFixed(2));
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(2);
  const count = (n, noun) => n + " " + (n === 1 ? noun : noun.endsWith("y") ? noun.slice(0, -1) + "ies" : noun + "s");
  const when = (text) => text.slice(0, 16).replace("T", " ");

  const band = (score) => (score < 50 ? "low" : score < 70 ? "medium" : "high");  // as `confidence_of`
  function meter(score) {
    const bar = make("i");
    bar.style.width = score + "%";
    return make("span", { class: "meter " + band(score) }, bar);
  }
  function share(right, wrong) {
    const bar = make("i");
    bar.style.width = right + wrong ? (100 * right) / (right + wrong) + "%" : "0";
    return make("span", { class: "meter share" + (right + wrong ? "" : " none") }, bar);
  }

  // ---- the graph

  const nodes = new Map(), columns = { query: [], path: [], strategy: [] };
  function enter(layer, id, data, text) {
    const node = { layer, id, data, text, find: (text + " " + id).toLowerCase(), before: [], after: [], label: text };
    nodes.set(id, node);
    columns[layer].push(node);
    return node;
  }

  // States that every path has tell none from another; long names are cut word by word, so that a path fits its box.
  const every = view.paths.length > 1
    ? view.paths.map((each) => new Set(each.states)).reduce((left, right) => new Set([...left].filter((s) => right.has(s))))
    : new Set();
  const cut = (state, most) => state.replace(/[A-Z][a-z]+/g, (word) => word.slice(0, most));
  function brief(states, whole) {
    const told = states.filter((each) => !every.has(each)), parts = [];
    for (const state of told.length && !whole ? told : states) {
      const last = parts[parts.length - 1];
      if (last && last[0] === state) last[1] += 1;
      else parts.push([state, 1]);
    }
    const said = (most) => parts.map(([s, n]) => (most ? cut(s, most) : s) + (n > 1 ? " \u00d7" + n : "")).join(" \u203a ");
    return [0, 6, 4].map(said).find((each) => each.length <= LONG) || said(3);
  }

  for (const query of view.queries) enter("query", query.id, query, query.text).find += " " + (query.query_id || "").toLowerCase();
  for (const path of view.paths) enter("path", path.id, path, path.states.join(" \u203a ")).label = brief(path.states);
  const briefs = new Map();
  for (const node of columns.path) briefs.set(node.label, (briefs.get(node.label) || 0) + 1);
  for (const node of columns.path) if (briefs.get(node.label) > 1) node.label = brief(node.data.states, true);
  for (const each of view.strategies) {
    const node = enter("strategy", each.strategy.id, each, each.strategy.summary);
    node.find += " " + each.strategy.principles.map((one) => one.text).join(" ").toLowerCase();
  }
  const edges = [];
  for (const given of view.edges) {
    const from = nodes.get(given.source), to = nodes.get(given.target);
    if (!from || !to) continue;
    const edge = { from, to, data: given, weight: given.weight };
    edges.push(edge);
    from.after.push(edge);
    to.before.push(edge);
  }
  const visits = new Map(view.paths.map((path) => [path.id, []]));
  for (const query of view.queries) for (const visit of query.visits) if (visits.has(visit.path)) visits.get(visit.path).push([query, visit]);
  const heaviest = edges.reduce((most, each) => Math.max(most, each.weight), 0);

  function lineage(node) {
    const found = new Set([node]);
    const back = (from) => from.before.forEach((edge) => { found.add(edge.from); back(edge.from); });
    const on = (from) => from.after.forEach((edge) => { found.add(edge.to); on(edge.to); });
    back(node);
    on(node);
    return found;
  }
  const within = (node) => {
    const kept = lineage(node);
    return (edge) => kept.has(edge.from) && kept.has(edge.to);
  };

  // ---- what is shown

  const state = { find: "", kinds: new Set(KINDS), least: 0, alone: nodes.size > BUSY, selected: null, zoom: 1, flat: null };
  let shown = new Set(), drawn = [], matches = new Set(), place = new Map(), width = NARROWEST, height = 0;

  function choose() {
    const filtered = state.least > 0 || state.kinds.size < KINDS.length;
    const strategies = columns.strategy.filter((each) => state.kinds.has(each.data.strategy.kind));
    let kept = new Set(nodes.values());
    if (filtered) {
      // What leads, over edges that are heavy enough, to a strategy of these kinds.
      kept = new Set();
      const heavy = (edge) => edge.weight >= state.least;
      for (const strategy of strategies) {
        const paths = strategy.before.filter(heavy);
        if (paths.length || !strategy.before.length) kept.add(strategy);
        for (const edge of paths) {
          kept.add(edge.from);
          edge.from.before.filter(heavy).forEach((below) => kept.add(below.from));
        }
      }
    }
    matches = new Set();
    if (state.find) {
      const near = new Set();
      for (const node of kept) if (node.find.includes(state.find)) matches.add(node);
      for (const node of matches) lineage(node).forEach((each) => near.add(each));
      kept = new Set([...kept].filter((each) => near.has(each)));
    }
    if (state.selected && state.alone) {
      const near = lineage(state.selected);
      kept = new Set([...kept].filter((each) => near.has(each)));
      kept.add(state.selected);
    }
    shown = kept;
    const allowed = state.selected && state.alone ? within(state.selected) : () => true;
    drawn = edges.filter((each) => kept.has(each.from) && kept.has(each.to) && each.weight >= state.least && allowed(each));
  }

  // ---- where it is drawn

  function mean(pairs) {
    let sum = 0, weights = 0;
    for (const [value, weight] of pairs) { sum += value * weight; weights += weight; }
    return weights ? sum / weights : null;
  }

  function layout() {
    const cols = LAYERS.map((layer) => columns[layer].filter((each) => shown.has(each)));
    const near = new Map([...shown].map((each) => [each, [[], []]]));
    for (const edge of drawn) {
      near.get(edge.to)[0].push([edge.from, edge.weight + 0.1]);
      near.get(edge.from)[1].push([edge.to, edge.weight + 0.1]);
    }
    // Barycentres, swept to and fro: each node goes to the mean place of what it is connected to.
    const rank = new Map();
    const number = (column) => column.forEach((node, i) => rank.set(node, (i + 0.5) / column.length));
    cols.forEach(number);
    const sort = (column, sides) => {
      const wish = new Map(column.map((node) => {
        const found = mean(sides.flatMap((side) => near.get(node)[side]).map(([other, weight]) => [rank.get(other), weight]));
        return [node, found === null ? rank.get(node) : found];
      }));
      column.sort((a, b) => wish.get(a) - wish.get(b) || rank.get(a) - rank.get(b));
      number(column);
    };
    for (let i = 0; i < SWEEPS; i++) {
      sort(cols[1], [0]);
      sort(cols[2], [0]);
      sort(cols[1], [1]);
      sort(cols[0], [1]);
    }
    // The tallest column stands without gaps; the others are spread over its height, so that what is connected is near and never overlaps.
    height = MARGIN + Math.max(0, ...cols.map((column, i) => column.length * (HEIGHT[LAYERS[i]] + GAP[LAYERS[i]])));
    place = new Map();
    cols.forEach((column, i) => column.forEach((node, k) => {
      place.set(node, ((k + 0.5) / column.length) * (height - MARGIN) + MARGIN / 2 - HEIGHT[LAYERS[i]] / 2);
    }));
  }
  const middle = (node) => place.get(node) + HEIGHT[node.layer] / 2;

  // ---- drawing

  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(SVG, "svg"), board = at("board"), scroller = at("scroller");
  board.append(svg);
  const left = (layer) => ({ query: 0.012, path: 0.395, strategy: 0.715 })[layer] * width;
  const wide = (layer) => ({ query: 0.308, path: 0.245, strategy: 0.273 })[layer] * width;

  function facts(node) {
    const data = node.data;
    if (node.layer === "query") return [data.right + "/" + (data.right + data.wrong)];
    if (node.layer === "path") return [share(data.n_success, data.n_failure), data.n_success + " right, " + data.n_failure + " wrong"];
    const strategy = data.strategy;
    return [
      strategy.kind + " ", meter(strategy.score), band(strategy.score) + " " + strategy.score + "  +" + strategy.evidence
      + (strategy.contradictions ? " \u2212" + strategy.contradictions : "") + "  w " + number(data.weight),
    ];
  }
  function element(node) {
    if (node.element) return node.element;
    const kind = node.layer === "strategy" ? " " + node.data.strategy.kind : "";
    const parts = [make("span", { class: "label" }, node.label), make("span", { class: "facts" }, facts(node))];
    const made = make("button", { type: "button", class: "node " + node.layer + kind, "data-id": node.id, tabindex: "-1", "aria-pressed": "false" }, parts);
    made.setAttribute("aria-label", node.text + ", " + parts[1].textContent);
    made.addEventListener("click", () => select(state.selected === node ? null : node));
    made.addEventListener("focus", () => rove(node));
    made.addEventListener("mouseenter", () => light(node));
    made.addEventListener("mouseleave", () => light(null));
    node.element = made;
    return made;
  }

  function draw() {
    width = Math.max(NARROWEST, scroller.clientWidth);
    choose();
    layout();
    for (const node of nodes.values()) if (node.element && !shown.has(node)) node.element.remove();
    const column = (layer) => columns[layer].filter((each) => shown.has(each)).sort((a, b) => place.get(a) - place.get(b));
    const order = LAYERS.flatMap(column);
    for (const node of order) {
      const made = element(node), style = made.style;
      style.left = left(node.layer) + "px";
      style.top = place.get(node) + "px";
      style.width = wide(node.layer) + "px";
      style.height = HEIGHT[node.layer] + "px";
      made.classList.toggle("match", matches.has(node));
      made.setAttribute("aria-pressed", String(node === state.selected));
    }
    board.append(...order.map((node) => node.element));
    board.classList.toggle("busy", drawn.length > MANY);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    svg.replaceChildren(...[...drawn].sort((a, b) => a.weight - b.weight).map(line));
    at("heads").replaceChildren(...LAYERS.map((layer) => head(layer)));
    at("empty").hidden = shown.size > 0;
    if (state.flat !== null) flatten(); else zoom();
    at("shown").textContent = shown.size === nodes.size
      ? count(nodes.size, "node") + ", " + count(edges.length, "edge")
      : shown.size + " of " + count(nodes.size, "node") + (state.find ? ", " + count(matches.size, "match").replace("matchs", "matches") : "");
    stops();
    light(null);
  }
  function head(layer) {
    const all = columns[layer].length, seen = columns[layer].filter((each) => shown.has(each)).length;
    const made = make("div", { "data-layer": layer }, NAMES[layer] + " ", make("span", { class: "soft" }, seen === all ? String(all) : seen + " of " + all));
    made.style.left = left(layer) * state.zoom + "px";
    made.style.width = wide(layer) * state.zoom + "px";
    return made;
  }
  function line(edge) {
    const x = left(edge.from.layer) + wide(edge.from.layer), end = left(edge.to.layer), half = (x + end) / 2;
    const y = middle(edge.from), down = middle(edge.to);
    const made = document.createElementNS(SVG, "path"), { updates } = edge.data;
    const moved = updates ? (edge.weight > view.initial_weight ? " up" : edge.weight < view.initial_weight ? " down" : "") : "";
    made.setAttribute("class", "edge" + moved);
    made.setAttribute("d", "M" + x + " " + y + "C" + half + " " + y + " " + half + " " + down + " " + end + " " + down);
    made.setAttribute("stroke-width", (0.6 + (heaviest ? (4.4 * edge.weight) / heaviest : 0)).toFixed(2));
    edge.element = made;
    return made;
  }
  function zoom() {
    board.style.transform = "scale(" + state.zoom + "," + tallness() + ")";
    board.classList.toggle("flat", state.flat !== null);
    board.style.width = width + "px";
    board.style.height = height + "px";
    for (const each of [at("sizer"), at("heads")]) each.style.width = Math.max(width * state.zoom, scroller.clientWidth) + "px";
    at("sizer").style.height = height * tallness() + "px";
    for (const each of at("heads").children) {
      each.style.left = left(each.dataset.layer) * state.zoom + "px";
      each.style.width = wide(each.dataset.layer) * state.zoom + "px";
    }
    at("zoom").textContent = Math.round(100 * state.zoom) + "%";
  }
  // The whole height at a glance: only the height is scaled, and the boxes lose their labels.
  function flatten() {
    state.zoom = 1;
    state.flat = Math.min(1, (scroller.clientHeight - at("heads").offsetHeight - 2) / height);
    zoom();
  }
  const tallness = () => (state.flat === null ? state.zoom : state.flat);
  function zoomTo(wanted, x, y) {
    const before = state.zoom, tall = tallness(), px = x === undefined ? scroller.clientWidth / 2 : x, py = y === undefined ? scroller.clientHeight / 2 : y;
    state.zoom = Math.min(2.5, Math.max(0.3, wanted));
    state.flat = null;
    zoom();
    scroller.scrollLeft = ((scroller.scrollLeft + px) * state.zoom) / before - px;
    scroller.scrollTop = ((scroller.scrollTop + py) * state.zoom) / tall - py;
  }

  // ---- what lights up, and what the pointer is told

  const tip = at("tip");
  function light(node) {
    const about = node || (state.alone ? null : state.selected);
    board.classList.toggle("lit", about !== null);
    const kept = about ? lineage(about) : new Set(), allowed = about ? within(about) : () => false;
    for (const each of shown) each.element.classList.toggle("hot", kept.has(each));
    for (const edge of drawn) edge.element.classList.toggle("hot", allowed(edge));
  }
  function tell(text, x, y) {
    tip.textContent = text;
    tip.hidden = !text;
    if (!text) return;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
    tip.style.top = Math.max(4, y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  }
  function about(edge) {
    const { updates, gap_sum } = edge.data;
    const trained = updates ? count(updates, "update") + ", mean gap " + signed(gap_sum / updates) : "never trained";
    return "weight " + number(edge.weight) + ", " + trained + "\n" + edge.from.text + "\n\u2193\n" + edge.to.text;
  }
  // All edges between two columns bend alike, so the one below the pointer can be computed: nothing has to be hit.
  function under(event) {
    const box = board.getBoundingClientRect(), x = (event.clientX - box.left) / state.zoom, y = (event.clientY - box.top) / tallness();
    let best = null, nearest = NEAR;
    for (const [from, to] of [["query", "path"], ["path", "strategy"]]) {
      const begin = left(from) + wide(from), u = (x - begin) / (left(to) - begin);
      if (u <= 0 || u >= 1) continue;
      let low = 0, high = 1;
      for (let i = 0; i < 24; i++) {
        const t = (low + high) / 2;
        if (1.5 * t - 1.5 * t * t + t * t * t < u) low = t; else high = t;
      }
      const part = 3 * low * low - 2 * low * low * low;
      for (const edge of drawn) {
        if (edge.from.layer !== from) continue;
        const off = Math.abs(middle(edge.from) + (middle(edge.to) - middle(edge.from)) * part - y);
        if (off < nearest) { nearest = off; best = edge; }
      }
    }
    return best;
  }
  scroller.addEventListener("mousemove", (event) => {
    const box = event.target.closest(".node");
    if (box) {
      const node = nodes.get(box.dataset.id);
      return tell(node.text + "\n" + box.querySelector(".facts").textContent, event.clientX, event.clientY);
    }
    const edge = event.target.closest(".sizer") ? under(event) : null;
    return tell(edge ? about(edge) : "", event.clientX, event.clientY);
  });
  scroller.addEventListener("mouseleave", () => tell(""));

  // ---- keys

  const stopAt = {};
  function stops() {
    for (const layer of LAYERS) {
      const seen = columns[layer].filter((each) => shown.has(each));
      if (!seen.includes(stopAt[layer])) stopAt[layer] = seen.sort((a, b) => place.get(a) - place.get(b))[0];
      for (const each of seen) each.element.tabIndex = each === stopAt[layer] ? 0 : -1;
    }
  }
  function rove(node) {
    const last = stopAt[node.layer];
    if (last && last.element) last.element.tabIndex = -1;
    stopAt[node.layer] = node;
    node.element.tabIndex = 0;
  }
  board.addEventListener("keydown", (event) => {
    const node = event.target.dataset && nodes.get(event.target.dataset.id);
    if (!node) return;
    const column = columns[node.layer].filter((each) => shown.has(each)).sort((a, b) => place.get(a) - place.get(b));
    const here = column.indexOf(node), heavy = (list) => [...list].sort((a, b) => b.weight - a.weight)[0];
    const ways = {
      ArrowDown: () => column[here + 1], ArrowUp: () => column[here - 1], Home: () => column[0], End: () => column[column.length - 1],
      ArrowRight: () => { const edge = heavy(drawn.filter((each) => each.from === node)); return edge ? edge.to : undefined; },
      ArrowLeft: () => { const edge = heavy(drawn.filter((each) => each.to === node)); return edge ? edge.from : undefined; },
    };
    if (!(event.key in ways) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = ways[event.key]();
    if (next) {
      next.element.focus({ preventScroll: true });
      next.element.scrollIntoView({ block: "nearest", inline: "nearest" });
      light(next);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (at("dialog").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (event.target === at("find") && at("find").value) return;
      select(null);
    } else if (!/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
      if (event.key === "/") { event.preventDefault(); at("find").focus(); }
      if (event.key === "+") zoomTo(state.zoom * 1.2);
      if (event.key === "-") zoomTo(state.zoom / 1.2);
      if (event.key === "0") zoomTo(1);
    }
  });

  // ---- selecting, and the panel

  function select(node) {
    const anchor = node || state.selected;
    const before = anchor && anchor.element && anchor.element.isConnected ? anchor.element.getBoundingClientRect().top : null;
    const focused = document.activeElement, inPanel = at("panel").contains(focused);
    if (node && !shown.has(node)) { state.find = ""; at("find").value = ""; }
    state.selected = node;
    if (node) rove(node);
    draw();
    if (node && !shown.has(node)) { everything(); draw(); }
    tell("");
    panel(node);
    if (anchor && anchor.element && anchor.element.isConnected) {
      if (before !== null && before > 0 && before < innerHeight) scroller.scrollTop += anchor.element.getBoundingClientRect().top - before;
      const box = anchor.element.getBoundingClientRect(), frame = scroller.getBoundingClientRect();
      if (box.top < frame.top + 34 || box.bottom > frame.bottom) scroller.scrollTop += box.top - frame.top - frame.height / 2;
      if (board.contains(focused)) anchor.element.focus({ preventScroll: true });
    }
    if (inPanel) at("panel").focus();
  }
  function everything() {
    Object.assign(state, { find: "", kinds: new Set(KINDS), least: 0 });
    at("find").value = "";
    at("least").value = "0";
    at("least-said").textContent = "0";
    for (const box of at("kinds").querySelectorAll("input")) box.checked = true;
  }

  const go = (node, text) => make("button", { type: "button", class: "go", click: () => select(node) }, text || node.text);
  const list = (pairs) => make("dl", {}, pairs.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const part = (title, ...body) => make("section", {}, make("h3", {}, title), body);

  // Shows the first rows and a button for the others: a strategy may have thousands of runs behind it.
  function some(items, row, holder, outer) {
    let from = 0;
    const box = make("div", {}, outer || holder), button = make("button", { type: "button", class: "more" });
    const more = () => {
      holder.append(...items.slice(from, from + ROWS).map(row));
      from += ROWS;
      if (from >= items.length) button.remove();
      else button.textContent = "show " + Math.min(ROWS, items.length - from) + " more of " + (items.length - from);
    };
    button.addEventListener("click", more);
    box.append(button);
    more();
    return box;
  }
  function grid(columns, items, row) {
    const body = make("tbody");
    const heads = columns.map(([name, kind]) => make("th", { class: kind, scope: "col" }, name));
    const table = make("table", {}, make("thead", {}, make("tr", {}, heads)), body);
    return some(items, (item) => make("tr", {}, row(item).map((value, i) => make("td", { class: columns[i][1] }, value))), body, table);
  }
  const byWeight = (list) => [...list].sort((a, b) => b.weight - a.weight);
  function reached(title, list, side, name) {
    const columns = [[name, ""], ["weight", "n"], ["updates", "n"], ["gap", "n"]];
    const row = (edge) => [
      go(edge[side], edge[side].layer === "path" ? edge[side].label : edge[side].text), number(edge.weight), String(edge.data.updates),
      edge.data.updates ? signed(edge.data.gap_sum / edge.data.updates) : "-",
    ];
    return list.length ? part(title + " (" + list.length + ")", grid(columns, byWeight(list), row)) : null;
  }

  function command(id) {
    return /^[0-9a-fA-F-]{4,}$/.test(id) ? "memweave traces show " + id + view.trace_options : "";
  }
  function links(id) {
    const told = view.traces.find((each) => each.id === id), typed = command(id);
    return [
      make("div", {}, typed ? make("code", {}, typed) : make("span", { class: "small" }, "trace " + id + " (an id of its own)")),
      told ? make("button", { type: "button", class: "open", "data-trace": id, click: () => open(told) }, "open the trace") : null,
      typed ? make("button", { type: "button", click: (event) => copy(typed, event.target) }, "copy") : null,
    ];
  }
  function copy(text, button) {
    const done = (said) => { button.textContent = said; };
    if (!navigator.clipboard) return done("select it");
    return navigator.clipboard.writeText(text).then(() => done("copied"), () => done("select it"));
  }
  function open(trace) {
    at("dialog-name").textContent = "Trace " + trace.id;
    at("dialog-command").textContent = command(trace.id) + " --full";
    at("dialog-text").textContent = trace.lines.join("\n");
    at("dialog").showModal();
    at("dialog").scrollTop = 0;
  }
  at("dialog-close").addEventListener("click", () => at("dialog").close());

  function runs(found) {
    if (!found.length) return part("Traces behind it", make("p", { class: "soft" }, "No rollout of what is shown took these paths."));
    const row = ({ query, path, reward, trace_id }) => make("div", { class: "trace" },
      make("div", {}, make("span", { class: reward === 1 ? "right" : "wrong" }, reward === 1 ? "\u2713 right " : reward === 0 ? "\u2717 wrong " : "\u2717 " + number(reward) + " "),
        query ? go(nodes.get(query.id)) : null),
      path ? make("div", { class: "small soft" }, nodes.get(path).label) : null,
      trace_id ? links(trace_id) : make("span", { class: "small soft" }, "not recorded"));
    return part("Traces behind it (" + found.length + ")", some(found, row, make("div")));
  }
  function updates(found) {
    if (!found.length) return part("Weight updates", make("p", { class: "soft" }, "None: its weights were never trained on it."));
    const row = (step) => make("div", { class: "trace" },
      make("div", {}, make("b", { class: step.gap > 0 ? "right" : step.gap < 0 ? "wrong" : "soft" }, "gap " + signed(step.gap)),
        " = " + number(step.reward_with) + " with it \u2212 " + number(step.reward_without) + " without"),
      make("div", {}, step.query),
      make("div", { class: "small soft" }, "version " + step.version + ", " + when(step.recorded_at) + ", p " + number(step.probability)
        + ", gradient " + number(step.gradient_norm) + ", " + count(step.edges, "edge")),
      step.trace_with ? make("div", {}, make("span", { class: "small" }, "with "), links(step.trace_with)) : null,
      step.trace_without ? make("div", {}, make("span", { class: "small" }, "without "), links(step.trace_without)) : null);
    return part("Weight updates (" + found.length + ")", some([...found].reverse(), row, make("div")));
  }

  const PANELS = {
    strategy(node) {
      const { strategy, weight, history } = node.data, of = node.before.map((edge) => edge.from);
      const found = of.flatMap((path) => visits.get(path.id)).map(([query, visit]) => ({ query, ...visit }));
      const queries = [...new Set(of.flatMap((path) => path.before.map((edge) => edge.from)))];
      return [
        list([
          ["kind", strategy.kind], ["confidence", make("span", {}, meter(strategy.score), band(strategy.score) + " " + strategy.score)],
          ["evidence", count(strategy.evidence, "time")], ["contradicted", count(strategy.contradictions, "time")],
          ["mean weight", number(weight)], ["version", strategy.version + ", written " + when(strategy.recorded_at)], ["id", strategy.id],
        ]),
        strategy.principles.length ? part("Principles", make("ol", {}, strategy.principles.map((each) =>
          make("li", {}, each.text + " ", make("span", { class: "soft small" }, meter(each.score), band(each.score) + " " + each.score))))) : null,
        strategy.uncertainty ? part("What may be wrong with it", make("p", {}, strategy.uncertainty)) : null,
        reached("Paths that lead to it", node.before, "from", "path"),
        runs(found), updates(node.data.updates),
        queries.length ? part("Queries behind them (" + queries.length + ")", some(queries, (each) =>
          make("li", {}, go(each), make("span", { class: "soft small" }, " " + each.data.right + "/" + (each.data.right + each.data.wrong) + " right")), make("ul"))) : null,
        history.length ? part("History", make("ul", {}, history.map((each) => make("li", {}, make("span", { class: "soft small" },
          when(each.recorded_at) + " " + each.kind + " by " + each.actor + ": "), each.reason)))) : null,
      ];
    },
    path(node) {
      const { data } = node, found = visits.get(node.id).map(([query, visit]) => ({ query, reward: visit.reward, trace_id: visit.trace_id }));
      return [
        list([["rollouts", make("span", {}, share(data.n_success, data.n_failure), data.n_success + " right, " + data.n_failure + " wrong")], ["machine", data.machine], ["id", data.id]]),
        part("States", make("ol", {}, data.states.map((each) => make("li", {}, each)))),
        reached("Strategies it leads to", node.after, "to", "strategy"), reached("Queries that took it", node.before, "from", "query"), runs(found),
      ];
    },
    query(node) {
      const { data } = node;
      return [
        list([["answered", make("span", {}, share(data.right, data.wrong), data.right + " right, " + data.wrong + " wrong")], ["name", data.query_id || "-"], ["split", data.split || "-"], ["added", when(data.recorded_at)], ["id", data.id]]),
        reached("Paths it took", node.after, "to", "path"), runs(data.visits.map((visit) => ({ ...visit, query: null }))),
      ];
    },
  };
  function panel(node) {
    const box = at("panel");
    box.scrollTop = 0;
    if (node) {
      const named = node.layer === "path" ? node.label : node.text;
      box.replaceChildren(make("span", { class: "soft" }, node.layer), make("h2", {}, named), ...PANELS[node.layer](node).filter(Boolean));
      return;
    }
    const best = [...columns.strategy].sort((a, b) => (b.data.weight || 0) - (a.data.weight || 0)).slice(0, 12);
    box.replaceChildren(make("h2", {}, "Nothing is selected"),
      make("p", { class: "soft" }, "Select a strategy, a path or a query for what is behind it, and for the traces of the runs. A query leads to the paths that its rollouts took, a path to the strategies that were made of it."),
      ...(best.length ? [part("Heaviest strategies", grid([["strategy", ""], ["confidence", "n"], ["weight", "n"]], best, (each) =>
        [go(each), String(each.data.strategy.score), number(each.data.weight)]))] : []));
  }

  // ---- tools

  for (const kind of KINDS) {
    const box = make("input", { type: "checkbox", name: kind });
    box.checked = true;
    box.addEventListener("change", () => { state.kinds[box.checked ? "add" : "delete"](kind); draw(); });
    at("kinds").append(make("label", {}, box, kind + " " + columns.strategy.filter((each) => each.data.strategy.kind === kind).length));
  }
  at("find").addEventListener("input", (event) => { state.find = event.target.value.trim().toLowerCase(); draw(); scroller.scrollTop = 0; });
  at("find").addEventListener("keydown", (event) => {
    const first = [...matches].sort((a, b) => place.get(a) - place.get(b))[0];
    if (event.key !== "Enter" || !first) return;
    event.preventDefault();  // or it would press the node at once
    first.element.focus();
    light(first);
  });
  at("least").max = String(Math.max(heaviest, 0.01));
  at("least").addEventListener("input", (event) => { state.least = Number(event.target.value); at("least-said").textContent = state.least ? number(state.least) : "0"; draw(); });
  at("alone").checked = state.alone;
  at("alone").addEventListener("change", (event) => { state.alone = event.target.checked; select(state.selected); });
  at("reset").addEventListener("click", () => { everything(); select(null); });
  at("smaller").addEventListener("click", () => zoomTo(state.zoom / 1.2));
  at("larger").addEventListener("click", () => zoomTo(state.zoom * 1.2));
  at("usual").addEventListener("click", () => zoomTo(1));
  at("fit").addEventListener("click", () => {
    if (state.flat === null) return flatten();
    zoomTo(1);
    if (state.selected) state.selected.element.scrollIntoView({ block: "center" });
  });
  scroller.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const frame = scroller.getBoundingClientRect();
    zoomTo(state.zoom * Math.exp(-event.deltaY / 400), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });
  let last = 0;
  addEventListener("resize", () => { if (scroller.clientWidth !== last) { last = scroller.clientWidth; draw(); } });

  draw();
  panel(null);
})();
