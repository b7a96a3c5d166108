"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(hover: none)");
  const button = document.getElementById("theme");
  let printing = false;
  root.classList.add("scripted");

  const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark"
                                                        : prefersDark.matches);

  function paint(trace, theme) {
    const {colour, ...rest} = trace;
    const c = theme.colours[colour];
    const painted = {...rest, line: {...rest.line, color: c}, marker: {...rest.marker, color: c}};
    if (rest.fill) {
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16));
      painted.fillcolor = `rgba(${r},${g},${b},0.2)`;
    }
    if (rest.error_y) painted.error_y = {...rest.error_y, color: c};
    return painted;
  }

  function layoutOf(figure, view, theme) {
    const axis = {gridcolor: theme.grid, zeroline: false, linecolor: theme.axis, ticks: "outside",
                  tickcolor: theme.axis, showline: true, automargin: true};
    const narrow = !printing && innerWidth < 550;
    const title = (text) => ({font: {size: 13}, text: narrow && text.length > 34 ?
                              text.replace(" (", "<br>(") : text});
    return {
      xaxis: {...axis, ...figure.layout.xaxis, title: title(figure.layout.xaxis.title.text)},
      yaxis: {...axis, ...figure.layout.yaxis, title: title(view.y_label)},
      paper_bgcolor: theme.paper, plot_bgcolor: theme.paper,
      font: {color: theme.ink, size: 13, family: getComputedStyle(document.body).fontFamily},
      hoverlabel: {bgcolor: theme.paper, bordercolor: theme.axis, align: "left",
                   font: {color: theme.ink}},
      margin: {l: 50, r: 12, t: 12, b: 40},
      legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom",
               title: {text: view.legend, side: narrow ? "top" : "left", font: {size: 13}}},
      showlegend: view.traces.length > 1,
      hovermode: "closest", dragmode: touch.matches ? false : "zoom",
      autosize: !printing, ...(printing ? {width: 640, height: 300} : {}),
    };
  }

  const plots = [...document.querySelectorAll("[data-figure]")].map((element) => {
    const figure = data.figures[Number(element.dataset.figure)];
    return {figure, div: element.querySelector(".plot"), view: figure.views[0], drawn: false,
            selects: [...element.querySelectorAll("select")]};
  });

  function draw(plot) {
    const theme = isDark() ? data.themes.dark : data.themes.light;
    plot.drawn = true;
    const config = {
      responsive: !printing, displaylogo: false, typesetMath: false, doubleClick: "reset",
      displayModeBar: touch.matches ? false : "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      toImageButtonOptions: {format: "png", scale: 3, filename: plot.figure.name},
    };
    return Plotly.react(plot.div, plot.view.traces.map((t) => paint(t, theme)),
                        layoutOf(plot.figure, plot.view, theme), config);
  }

  // The view that has the changed control's value and the most of the other choices.
  function choose(plot, changed) {
    const wanted = Object.fromEntries(plot.selects.map((s) => [s.dataset.control, s.value]));
    const same = (view) => (c) => view.choice[c] === wanted[c];
    const common = (view) => plot.figure.controls.filter(same(view)).length;
    const name = changed.dataset.control;
    const fitting = plot.figure.views.filter((v) => v.choice[name] === changed.value);
    plot.view = fitting.reduce((best, v) => common(v) > common(best) ? v : best);
    for (const s of plot.selects) s.value = plot.view.choice[s.dataset.control];
    draw(plot);
  }

  for (const plot of plots) {
    for (const select of plot.selects) {
      select.value = plot.view.choice[select.dataset.control];
      select.addEventListener("change", () => choose(plot, select));
    }
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const plot = plots.find((p) => p.div === entry.target);
      if (entry.isIntersecting && !plot.drawn) draw(plot);
    }
  }, {rootMargin: "400px"});
  for (const plot of plots) seen.observe(plot.div);

  function redraw(all) {
    for (const plot of plots) if (all || plot.drawn) draw(plot);
    const dark = isDark();
    button.textContent = dark ? "Light" : "Dark";
    button.title = dark ? "Change to the light theme" : "Change to the dark theme";
    button.setAttribute("aria-pressed", String(dark));
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw(false);
  });
  prefersDark.addEventListener("change", () => redraw(false));
  addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details").forEach((d) => { d.dataset.was = d.open; d.open = true; });
    redraw(true);
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.querySelectorAll("details").forEach((d) => { d.open = d.dataset.was === "true"; });
    redraw(false);
  });
  redraw(false);
})();
