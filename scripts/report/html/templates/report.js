
// The threshold: findings below it are hidden in table, overview and close-ups.
(() => {
  const slider = document.getElementById("threshold");
  if (!slider) return;
  const shown = document.getElementById("threshold-shown");
  const count = document.getElementById("count");
  const none = document.getElementById("none-shown");
  const table = document.getElementById("table");
  const reset = document.getElementById("reset");
  const operating = slider.dataset.operating === "" ? null : Number(slider.dataset.operating);
  const parts = [...document.querySelectorAll("[data-probability]")];
  const rows = parts.filter((part) => part.tagName === "TR");

  const update = () => {
    const atStart = slider.value === slider.defaultValue;
    const least = atStart && operating !== null ? operating : Number(slider.value);
    const passes = (part) => Number(part.dataset.probability) >= least - 1e-9;
    parts.forEach((part) => part.toggleAttribute("hidden", !passes(part)));
    const visible = rows.filter(passes);
    const weaker = visible.filter((row) => operating !== null && Number(row.dataset.probability) < operating - 1e-9);
    shown.textContent = least.toFixed(2);
    slider.setAttribute("aria-valuetext", `at least ${least.toFixed(2)}`);
    reset.disabled = atStart;
    table.hidden = visible.length === 0;
    none.hidden = visible.length > 0;
    none.textContent = `No finding of this scan has a probability of ${least.toFixed(2)} or more. This does not mean that there is no nodule.`;
    let text = `${visible.length} of ${rows.length} findings shown`;
    if (operating !== null && Math.abs(least - operating) < 1e-9) text += ", at the operating threshold";
    if (weaker.length) text += `; ${weaker.length} below the operating threshold of ${operating} and not outlined`;
    count.textContent = `${text}.`;
  };
  slider.form.hidden = false;
  slider.form.addEventListener("submit", (event) => event.preventDefault());
  slider.addEventListener("input", update);
  reset.addEventListener("click", () => { slider.value = slider.defaultValue; update(); slider.focus(); });
  slider.value = slider.defaultValue; // a reload must not keep the former position
  update();

  // A row and its mark light up together.
  const light = (number, on) => {
    for (const part of parts) if (part.dataset.finding === number) part.classList.toggle("lit", on);
  };
  for (const part of parts) {
    if (part.tagName === "ARTICLE") continue;
    for (const [name, on] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) {
      part.addEventListener(name, () => light(part.dataset.finding, on));
    }
  }
})();

// Close-ups: a slider moves through the pictures of a view.
(() => {
  for (const figure of document.querySelectorAll(".stack")) {
    const scroller = figure.querySelector(".scroller");
    if (!scroller) continue;
    const picture = figure.querySelector(".picture");
    const place = figure.querySelector(".place");
    const outlines = [...figure.querySelectorAll("[data-picture]")];
    const middle = Number(scroller.max) / 2;
    const step = Number(figure.dataset.stepMm);
    const update = () => {
      const number = Number(scroller.value);
      const away = (number - middle) * step;
      const towards = away < 0 ? figure.dataset.first : figure.dataset.last;
      const text = away === 0 ? "centre" : `${Math.abs(away)} mm towards ${towards}`;
      figure.style.setProperty("--shown", number);
      outlines.forEach((group, n) => group.toggleAttribute("hidden", n !== number));
      place.textContent = text;
      scroller.setAttribute("aria-valuetext", text);
    };
    scroller.value = scroller.defaultValue;
    scroller.hidden = false;
    scroller.addEventListener("input", update);
    update();
    picture.addEventListener("click", () => scroller.focus());
    picture.addEventListener("wheel", (event) => {
      if (document.activeElement !== scroller || event.ctrlKey) return;
      event.preventDefault();
      scroller.value = Number(scroller.value) + Math.sign(event.deltaY);
      update();
    }, { passive: false });
  }
  const how = document.querySelector(".how");
  if (how && document.querySelector(".scroller")) how.hidden = false;
  const box = document.getElementById("outlines");
  if (!box) return;
  box.hidden = false;
  box.checked = true;
  document.getElementById("outlines-label").hidden = false;
  box.addEventListener("change", () => document.body.classList.toggle("no-outlines", !box.checked));
})();

// What is folded away on the screen is printed.
(() => {
  const folded = [...document.querySelectorAll("details")];
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = folded.filter((part) => !part.open);
    closed.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
