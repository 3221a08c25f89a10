"use strict";

// Light, dark, or what the system says. A page opened from a folder may not be allowed to remember it.
(() => {
  const button = document.querySelector(".theme");
  const themes = ["auto", "light", "dark"];
  const names = { auto: "Automatic", light: "Light", dark: "Dark" };
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* not allowed here */ } };
  const show = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.lastChild.textContent = names[theme];
    button.dataset.shown = theme;
  };
  show(themes.includes(remembered()) ? remembered() : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(button.dataset.shown) + 1) % themes.length];
    show(next);
    remember(next);
  });
})();
