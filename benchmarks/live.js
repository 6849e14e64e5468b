// What benchmarks/live.py asks of the page, as window.bench.
(() => {
  const view = () => document.querySelector(".lab-lines");
  const newest = () => document.querySelector(".lab-space").lastElementChild?.textContent ?? "";
  const frame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

  // [when, the time its newest line was written] for each frame in which the log has changed.
  const seen = [];
  function watch() {
    const note = async () => {
      await frame();
      const at = Number(newest().split(" ")[1]);
      if (at) seen.push([Date.now(), at]);
    };
    new MutationObserver(note).observe(document.querySelector(".lab-space"), { childList: true });
  }

  // Milliseconds from jumps in the log to the frames in which the lines there can be seen.
  async function scroll() {
    const took = [];
    for (let n = 0; n < 60; n++) {
      const began = performance.now();
      view().scrollTop = view().scrollHeight * ((n * 0.618) % 1);
      await frame();
      took.push(performance.now() - began);
    }
    return took;
  }

  // Milliseconds until a search has seen all lines, the longest time between two frames meanwhile, its words.
  async function find(text) {
    const input = document.querySelector(".lab-find input"), count = document.querySelector(".lab-count");
    let longest = 0, isDone = false;
    const began = performance.now();
    const beat = (last) => requestAnimationFrame((now) => {
      longest = Math.max(longest, now - last);
      if (!isDone) beat(now);
    });
    beat(began);
    input.value = text;
    input.dispatchEvent(new Event("input"));
    while (!/of [0-9,]+$|No match/.test(count.textContent)) await new Promise((resolve) => setTimeout(resolve));
    const took = performance.now() - began;
    await frame();
    isDone = true;
    return [took, longest, count.textContent];
  }

  // The numbers of all lines, read by scrolling through them as a person does, only faster.
  async function read() {
    const found = new Map();
    for (let top = 0; ; top += view().clientHeight) {
      view().scrollTop = top;
      await frame();
      for (const row of document.querySelectorAll(".lab-line")) found.set(parseInt(row.style.top), parseInt(row.textContent));
      if (top >= view().scrollHeight) return [...found].sort(([a], [b]) => a - b).map(([, number]) => number);
    }
  }

  window.bench = { seen, watch, scroll, find, read, newest: () => parseInt(newest() || -1) };
})();
