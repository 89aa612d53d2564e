// Unpacks the plotting library, draws the charts, and draws them again when the reader changes between light and dark.
(async () => {
  "use strict";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const darkOf = JSON.parse(document.getElementById("dark-colours").textContent);
  const plots = [...document.querySelectorAll(".plot")];

  const load = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (sign) => sign.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
  };

  const draw = () => Promise.all(plots.map((place) => {
    let figure = document.getElementById(place.dataset.figure).textContent;
    if (dark.matches) {
      for (const [light, other] of Object.entries(darkOf)) figure = figure.replaceAll(light, other);
    }
    const { data, layout } = JSON.parse(figure);
    return Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
  }));

  try {
    if (plots.length) {
      await load();
      await draw();
      dark.addEventListener("change", draw);
    }
    document.documentElement.dataset.drawn = "yes";
  } catch (error) {
    // An old browser: the numbers below each chart say the same.
    for (const place of plots) {
      place.textContent = "This browser cannot draw the chart; its numbers are below.";
      place.style.height = "auto";
    }
    document.querySelectorAll("figure details").forEach((details) => { details.open = true; });
    document.documentElement.dataset.drawn = "no";
    console.error(error);
  }
})();
