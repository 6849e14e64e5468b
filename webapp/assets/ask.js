// Requests to the server. Without an answer, or with one from a proxy in between, they are `Lost` and retried.

const TIMEOUT_MS = 15000;

export const address = (path) => new URL(path, document.baseURI);

export class Lost extends Error {}

export async function ask(path, { signal, ...options } = {}) {
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  let reply;
  try {
    reply = await fetch(address(path), { cache: "no-store", ...options, signal: signal ? AbortSignal.any([signal, limit]) : limit });
  } catch (error) {
    throw new Lost(String(error));
  }
  if (reply.status >= 500) throw new Lost(`status ${reply.status}`);
  return reply;
}

// The answer as JSON, or null for 404.
export async function askJson(path, options) {
  const reply = await ask(path, options);
  if (reply.status === 404) return null;
  try {
    return await reply.json();
  } catch (error) {
    throw new Lost(String(error)); // cut off on the way, or a page of a proxy's
  }
}
