// A page whose key was taken back, or whose server began anew, cannot connect again: its reader is sent to the login.

const SECONDS_BETWEEN_LOOKS = 3;
const hint = document.getElementById("proxy-hint");
const root = hint?.dataset.root ?? "";

// Behind a reverse proxy that changes the Host header, the server takes the page's own requests for a stranger's.
(async () => {
  if (!hint || hint.dataset.host.toLowerCase() === location.host.toLowerCase()) return;
  const answer = await fetch(`${root}/_pages/pages.js`, { method: "POST" });
  if (answer.status !== 403) return;
  document.title = hint.content.querySelector("h1").textContent;
  document.body.replaceChildren(hint.content.cloneNode(true));
})();

setInterval(async () => {
  const lost = document.getElementById("popup")?.getAttribute("aria-hidden") === "false";
  if (!lost) return;
  try {
    const answer = await fetch(`${root}/favicon.ico`, { cache: "no-store" });
    if (answer.status === 401) location.reload();
  } catch (error) {
    console.debug(`the server does not answer yet: ${error.message}`);
  }
}, SECONDS_BETWEEN_LOOKS * 1000);
