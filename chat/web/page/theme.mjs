// Light, dark, or as the system has it. theme.js has set what was remembered.

import { remember } from "./base/storage.mjs";

export const THEMES = ["system", "light", "dark"];

/** The chosen theme. */
export function theme() {
  const name = document.documentElement.dataset.theme;
  return THEMES.includes(name) ? name : "system";
}

/** Choose a theme, and remember it. */
export function setTheme(name) {
  remember("theme", name);
  document.documentElement.dataset.theme = name;
}
