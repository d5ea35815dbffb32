// Before anything is drawn: light or dark, where somebody chose; else as the computer has it.
const chosen = localStorage.getItem("theme");
if (chosen) document.documentElement.dataset.theme = chosen;
