// A script of its own, before the page is painted, so that it does not flash in the
// other colours.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("haldir-theme");
  } catch {
    // storage is forbidden: the system's colours it is
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
