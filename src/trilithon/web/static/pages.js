// A page whose key was taken back, or whose server began anew, cannot connect again: its reader is sent to the login.

const SECONDS_BETWEEN_LOOKS = 3;

setInterval(async () => {
  const lost = document.getElementById("popup")?.getAttribute("aria-hidden") === "false";
  if (!lost) return;
  try {
    const answer = await fetch("/favicon.ico", { cache: "no-store" });
    if (answer.status === 401) location.reload();
  } catch (error) {
    console.debug(`the server does not answer yet: ${error.message}`);
  }
}, SECONDS_BETWEEN_LOOKS * 1000);
