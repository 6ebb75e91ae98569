// The theme before the first paint: a classic script, which the browser runs before it draws. theme.mjs goes on from here.

try {
  const theme = JSON.parse(localStorage.getItem("bareloop.theme"));
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // storage is forbidden, or has something else: the page looks as the system does
}
