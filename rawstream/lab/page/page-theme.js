/* Light or dark, before the first paint (a classic script, so that nothing flashes). */
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("rawstream-theme");
    } catch {
      return null; // storage may be forbidden: the system's choice is then the only one
    }
  };
  const show = () => {
    root.dataset.theme = stored() ?? (system.matches ? "dark" : "light");
    dispatchEvent(new Event("themechange"));
  };
  system.addEventListener("change", show);
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      try {
        localStorage.setItem("rawstream-theme", root.dataset.theme === "dark" ? "light" : "dark");
        show();
      } catch {
        root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
        dispatchEvent(new Event("themechange"));
      }
    });
  });
  show();
})();
