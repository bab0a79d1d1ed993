// Reloads the admin's pages of something that moves (a job, a bulk refund, a test of a node) every few seconds, unless a field has the focus.
document.addEventListener("DOMContentLoaded", () => {
  if (!document.querySelector("[data-live]")) return;
  setInterval(() => {
    if (!document.hidden && !document.querySelector("input:focus, textarea:focus")) location.reload();
  }, 4000);
});
