"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PRINTED_WIDTH = 980; // pixels: A4 landscape between its margins

  function template(isDark) {
    const ink = isDark ? "#e2e6eb" : "#1c2128";
    const axis = {
      gridcolor: isDark ? "#2f363f" : "#e4e8ec", linecolor: isDark ? "#59636e" : "#9aa4b0",
      zerolinecolor: isDark ? "#59636e" : "#c2c9d0", showline: true, ticks: "outside", automargin: true,
    };
    return {
      layout: {
        font: { family: 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif', size: 13, color: ink },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
        hoverlabel: { align: "left", bgcolor: isDark ? "#2a3038" : "#ffffff", font: { color: ink } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: isDark ? "#5d6772" : "#b3bbc4", activecolor: ink },
        xaxis: axis, yaxis: axis,
      },
    };
  }

  function draw(isDark, width) {
    for (const [name, chart] of Object.entries(charts)) {
      const { data, layout } = structuredClone(chart); // plotly writes into what it is given
      const size = width ? { width, autosize: false } : { autosize: true };
      Plotly.react(name, data, { ...layout, ...size, template: template(isDark) }, {
        responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      });
    }
  }

  const redraw = () => draw(dark.matches);
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => draw(false, PRINTED_WIDTH));
  window.addEventListener("afterprint", redraw);
  redraw();
})();
