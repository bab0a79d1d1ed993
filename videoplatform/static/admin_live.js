// Pages of the admin that show something that moves (a job, a refund of many, a test of a node) look again every few seconds, unless somebody is typing.
document.addEventListener("DOMContentLoaded", () => {
  if (!document.querySelector("[data-live]")) return;
  setInterval(() => {
    if (!document.hidden && !document.querySelector("input:focus, textarea:focus")) location.reload();
  }, 4000);
});
