// A log as lines: carriage returns, colours and other escape sequences as in a terminal, and a ring buffer.
// No line is ever HTML: a line is a text, or a text with the classes of its coloured parts.

const ENDS = /([^\r\n]*)(\r\n|\n|\r|$)/g;
// A sequence that begins with ESC (CSI, OSC, others), or a lone control character.
const ESCAPES = /\x1b(?:\[([0-9;]*)([ -?]*[@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/g;
const SPECIAL = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]/;

export const textOf = (line) => (typeof line === "string" ? line : line.text);

// The pen of a terminal: which colours and weight the next characters get.
class Pen {
  constructor() {
    this.reset();
  }

  reset() {
    this.fore = this.back = null;
    this.bold = this.dim = this.italic = this.under = false;
  }

  get classes() {
    const found = [];
    if (this.fore !== null) found.push(`ansi-${this.fore}`);
    if (this.back !== null) found.push(`ansi-on-${this.back}`);
    for (const name of ["bold", "dim", "italic", "under"]) if (this[name]) found.push(`ansi-${name}`);
    return found.join(" ");
  }

  // The numbers of one SGR sequence.
  take(numbers) {
    for (let i = 0; i < numbers.length; i++) {
      const n = numbers[i];
      if (n === 0) this.reset();
      else if (n === 1) this.bold = true;
      else if (n === 2) this.dim = true;
      else if (n === 3) this.italic = true;
      else if (n === 4) this.under = true;
      else if (n === 22) this.bold = this.dim = false;
      else if (n === 23) this.italic = false;
      else if (n === 24) this.under = false;
      else if (n >= 30 && n <= 37) this.fore = n - 30;
      else if (n >= 90 && n <= 97) this.fore = n - 82;
      else if (n === 39) this.fore = null;
      else if (n >= 40 && n <= 47) this.back = n - 40;
      else if (n >= 100 && n <= 107) this.back = n - 92;
      else if (n === 49) this.back = null;
      else if (n === 38 || n === 48) { // of 256 colours the first 16 are these; others are not told apart
        const color = numbers[i + 1] === 5 && numbers[i + 2] < 16 ? numbers[i + 2] : null;
        if (n === 38) this.fore = color;
        else this.back = color;
        i += numbers[i + 1] === 5 ? 2 : 4;
      }
    }
  }
}

// Turns a log, piece by piece, into lines.
class Reader {
  constructor() {
    this.pen = new Pen();
    this.open = null; // the last line, while it has no end: a progress bar may still write over it
    this.returned = false; // whether the last piece ended with a carriage return
  }

  // The lines of a piece; the first replaces the open line, if there was one.
  read(text) {
    const lines = this.open === null ? [] : [this.open];
    let isOpen = this.open !== null;
    for (const [, part, end] of text.matchAll(ENDS)) {
      if (part === "" && end === "") continue;
      if (this.returned && part === "" && end === "\n") { // a CR LF that was cut in two
        isOpen = this.returned = false;
        continue;
      }
      if (!isOpen) lines.push(this.line(part));
      else if (!(this.returned && part === "")) lines[lines.length - 1] = this.returned ? this.line(part) : joined(lines.at(-1), this.line(part));
      this.returned = end === "\r";
      isOpen = end !== "\n" && end !== "\r\n";
    }
    this.open = isOpen ? lines.at(-1) : null;
    return lines;
  }

  line(part) {
    const before = this.pen.classes;
    if (!before && !SPECIAL.test(part)) return part;
    const runs = [[0, before]];
    let text = "", at = 0;
    for (const match of part.matchAll(ESCAPES)) {
      text += part.slice(at, match.index);
      at = match.index + match[0].length;
      if (match[2] !== "m") continue;
      this.pen.take(match[1].split(";").map(Number));
      runs.push([text.length, this.pen.classes]);
    }
    text += part.slice(at);
    return runs.some(([, classes]) => classes) ? { text, runs } : text;
  }
}

function joined(a, b) {
  if (typeof a === "string" && typeof b === "string") return a + b;
  const [text, runs] = [textOf(a), (line) => line.runs ?? [[0, ""]]];
  return { text: text + textOf(b), runs: [...runs(a), ...runs(b).map(([at, classes]) => [at + text.length, classes])] };
}

// The newest lines of a log. A line keeps its number, whatever is added or dropped.
export class Lines {
  constructor(most) {
    this.most = most;
    this.clear();
  }

  clear() {
    this.reader = new Reader();
    this.lines = [];
    this.first = 0; // number of the first line
    this.marks = []; // [number of a line, byte of the log at which it begins]
    this.width = 0; // characters of the longest line
  }

  get end() {
    return this.first + this.lines.length;
  }

  // Byte of the log at which the first line begins.
  get start() {
    return this.marks[0]?.[1] ?? 0;
  }

  at(number) {
    return this.lines[number - this.first];
  }

  // Add a piece that begins at byte `start`. Returns the number of the first line that is new or has changed.
  add(text, start) {
    const isOpen = this.reader.open !== null;
    if (!isOpen) this.marks.push([this.end, start]);
    const changed = this.end - (isOpen ? 1 : 0);
    if (isOpen) this.lines.pop();
    this.push(this.reader.read(text));
    return changed;
  }

  push(fresh) {
    for (const line of fresh) {
      this.lines.push(line);
      if (textOf(line).length > this.width) this.width = textOf(line).length;
    }
  }

  // Insert a piece before all others. Returns the number of new lines.
  prepend(text, start) {
    const fresh = new Reader().read(text);
    if (text.endsWith("\r")) fresh.pop(); // what comes next has written over it
    this.width = fresh.reduce((most, line) => Math.max(most, textOf(line).length), this.width);
    this.lines = fresh.concat(this.lines);
    this.first -= fresh.length;
    this.marks.unshift([this.first, start]);
    return fresh.length;
  }

  // Drop pieces from the top while more than `most` lines would be left. Returns how many lines went.
  trim(most = this.most) {
    let pieces = 0;
    while (pieces + 1 < this.marks.length && this.end - this.marks[pieces + 1][0] >= most) pieces++;
    if (!pieces) return 0;
    this.marks.splice(0, pieces);
    const gone = this.marks[0][0] - this.first;
    this.lines.splice(0, gone);
    this.first += gone;
    return gone;
  }
}
