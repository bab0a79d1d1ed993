// A job's page in the admin: while the job is live, look again every few seconds, unless somebody is typing.
document.addEventListener("DOMContentLoaded", () => {
  const live = /\b(Queued|Running|Storing)\b/.test(document.querySelector(".field-status")?.textContent ?? "");
  if (!live) return;
  setInterval(() => {
    if (!document.hidden && !document.querySelector("input:focus, textarea:focus")) location.reload();
  }, 4000);
});
