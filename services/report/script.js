"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const byId = (id) => document.getElementById(id);

  // Texts of models go into the page as text, never as markup.
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };

  // Figures

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displayModeBar: false };

  // Paper is light and has its own width, whatever the screen is.
  const PAPER = { "--text": "#1b1e24", "--soft": "#565d6b", "--line": "#d5d9e0", "--back": "#ffffff" };
  const PAPER_WIDTH = 690;

  const themed = (layout, paper) => {
    const [text, soft, line, back] = Object.keys(PAPER).map((name) => (paper ? PAPER[name] : colour(name)));
    const narrow = innerWidth < 640;
    const result = {
      ...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: text },
      margin: { l: 50, r: 15, t: 30, b: 45, ...layout.margin },
      hoverlabel: { bgcolor: back, bordercolor: soft, font: { color: text }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { color: text }, ...layout.legend },
    };
    if (coarse || layout.dragmode === undefined) result.dragmode = false;
    for (const key of Object.keys({ xaxis: 0, yaxis: 0, ...layout })) {
      if (/^[xy]axis/.test(key)) {
        const axis = layout[key] || {};
        const title = axis.title && { ...axis.title, font: { color: soft }, standoff: 8 };
        result[key] = { automargin: true, gridcolor: line, zerolinecolor: line, linecolor: line, ...axis, ...(title && { title }) };
      }
    }
    return result;
  };

  const charts = new Map(data.charts.map((chart) => [chart.name, chart]));
  const drawn = new Map();
  const draw = (element) => {
    const chart = charts.get(element.dataset.chart);
    if (!chart || drawn.has(element)) return;
    drawn.set(element, chart.layout);
    Plotly.newPlot(element, chart.data, themed(chart.layout), config);
  };
  const plots = [...document.querySelectorAll("[data-chart]")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "600px" });
  plots.forEach((element) => seen.observe(element));

  const redraw = () => drawn.forEach((layout, element) => Plotly.relayout(element, themed(layout)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const onPaper = () => drawn.forEach((layout, element) => {
    Plotly.relayout(element, { ...themed(layout, true), autosize: false, width: Math.min(PAPER_WIDTH, element.clientWidth) });
  });
  const onScreen = () => drawn.forEach((layout, element) => {
    Plotly.relayout(element, { ...themed(layout), autosize: true, width: null });
  });

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((element) => { element.open = true; });
    plots.forEach(draw);
    onPaper();
  });
  addEventListener("afterprint", () => {
    closed.forEach((element) => { element.open = false; });
    onScreen();
  });

  // Tables

  document.querySelectorAll("[data-filters]").forEach((input) => {
    const rows = [...byId(input.dataset.filters).tBodies[0].rows];
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
    });
  });

  const value = (row, column) => row.cells[column].textContent.trim();
  const figure = (text) => {
    const found = text.replace(/\u2212/g, "-").replace(/,/g, "").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = make("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        [...head.parentNode.cells].forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => ({ row, text: value(row, column), number: figure(value(row, column)) }));
        const numbers = rows.filter((r) => !Number.isNaN(r.number)).length * 2 > rows.length;
        rows.sort((a, b) => {
          if (!numbers) return (up ? 1 : -1) * a.text.localeCompare(b.text);
          if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number);
          return (up ? 1 : -1) * (a.number - b.number);
        });
        body.append(...rows.map((r) => r.row));
      });
    });
  });

  // Items

  const words = { gained: "now right", lost: "now wrong", moved: "moved" };
  const PAGE = 20;

  const rounded = (value) => String(Number(value.toFixed(4)));

  // A text that does not fit its box scrolls, also for those who have a keyboard alone.
  const sizes = new ResizeObserver((changed) => changed.forEach(({ target }) => {
    if (target.scrollHeight > target.clientHeight + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }));
  const quote = (text) => {
    const box = make("pre", text);
    sizes.observe(box);
    return box;
  };

  const side = (title, answer, right) => {
    const box = make("div");
    const degree = answer.score === null ? title : `${title}: ${rounded(answer.score)}`;
    box.append(make("h5", right === undefined ? degree : `${title}: ${right ? "right" : "wrong"}`));
    if (answer.answer) box.append(quote(answer.answer));
    if (answer.reason) box.append(make("p", answer.reason, "why"));
    return box;
  };

  // Both ends of a prompt: few-shot prompts and passages have what differs at the end.
  const brief = (text) => {
    const folded = text.trim().replace(/\s+/g, " ");
    return folded.length > 160 ? `${folded.slice(0, 60)} … ${folded.slice(-95)}` : folded;
  };

  const card = (entry) => {
    const { item, group } = entry;
    const box = make("article", undefined, "item");
    const head = make("h4", group.task);
    head.append(make("span", words[item.change], `mark ${{ gained: "good", lost: "bad" }[item.change] || "plain"}`));
    head.append(make("small", [group.point, entry.arm, item.group, item.item].filter(Boolean).join(" · ")));
    const prompt = make("details");
    prompt.append(make("summary", brief(item.prompt) || "prompt"), quote(item.prompt));
    box.append(head, prompt);
    if (item.base.answer || item.tuned.answer || item.base.reason || item.tuned.reason) {
      const answers = make("div", undefined, "answers");
      const right = { gained: [false, true], lost: [true, false] }[item.change] || [];
      answers.append(side("base", item.base, right[0]), side(group.point, item.tuned, right[1]));
      box.append(answers);
    } else if (item.base.score !== null) {
      box.append(make("p", `${item.metric}: ${rounded(item.base.score)} of base, ${rounded(item.tuned.score)} of ${group.point}`));
    }
    if (item.reference) {
      box.append(make("h5", "reference"), quote(item.reference));
    }
    return box;
  };

  const several = new Set(data.compared.map((group) => group.arm)).size > 1;
  const entries = data.compared.flatMap((group) => group.items.map((item) => ({
    item, group, arm: several ? group.arm : "", model: several ? `${group.arm} · ${group.point}` : group.point,
    text: [item.item, item.prompt, item.reference, item.base.answer, item.tuned.answer, item.base.reason, item.tuned.reason]
      .join("\n").toLowerCase(),
  })));

  if (byId("items")) {
    const controls = { task: byId("item-task"), model: byId("item-model"), change: byId("item-change") };
    for (const [select, key] of [[controls.task, (e) => e.group.task], [controls.model, (e) => e.model]]) {
      for (const name of new Set(entries.map(key))) {
        const option = make("option", name);
        option.value = name;
        select.append(option);
      }
    }
    let shown = PAGE;
    const show = () => {
      const wanted = byId("item-search").value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = entries.filter((e) => (!controls.task.value || e.group.task === controls.task.value)
        && (!controls.model.value || e.model === controls.model.value)
        && (!controls.change.value || e.item.change === controls.change.value)
        && wanted.every((word) => e.text.includes(word)));
      byId("items").replaceChildren(...found.slice(0, shown).map(card));
      byId("item-count").textContent = `${found.length} of ${entries.length} items`
        + (found.length > shown ? `, the first ${shown} shown` : "");
      byId("item-more").hidden = found.length <= shown;
    };
    const again = () => { shown = PAGE; show(); };
    byId("item-controls").addEventListener("input", again);
    byId("item-controls").addEventListener("submit", (event) => event.preventDefault());
    byId("item-more").addEventListener("click", () => { shown += PAGE; show(); });
    show();
  }

  // Trade-off of two metrics

  const trade = byId("trade");
  if (trade) {
    const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down", "pentagon"];
    const colours = ["#2f7fd1", "#d4600a", "#0a8a62", "#a65cc0", "#d1445a", "#1590a8", "#a36f2c", "#7c8a12", "#d1579b"];
    const show = () => {
      const [x, y] = [byId("trade-x").value, byId("trade-y").value];
      const both = data.sweep.variants.filter((v) => x in v.mean && y in v.mean);
      const traces = both.map((v, i) => ({
        type: "scatter", mode: both.length <= 12 ? "markers+text" : "markers", name: escaped(v.name), showlegend: false,
        x: [v.mean[x]], y: [v.mean[y]], text: [escaped(v.name.length > 24 ? `${v.name.slice(0, 23)}…` : v.name)],
        textposition: "top center", cliponaxis: false, meta: escaped(v.name),
        error_x: { type: "data", array: [v.sd[x] || 0], thickness: 1.2 }, error_y: { type: "data", array: [v.sd[y] || 0], thickness: 1.2 },
        marker: { size: 11, color: colours[i % colours.length], symbol: symbols[i % symbols.length] },
        hovertemplate: "%{meta}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
      }));
      const better = (name) => escaped(name) + (data.sweep.lower.includes(name) ? " (less is better)" : " (more is better)");
      const layout = { xaxis: { title: { text: better(x) }, zeroline: false }, yaxis: { title: { text: better(y) }, zeroline: false } };
      drawn.set(trade, layout);
      Plotly.react(trade, traces, themed(layout), config);
    };
    byId("trade-x").addEventListener("change", show);
    byId("trade-y").addEventListener("change", show);
    show();
  }
})();
