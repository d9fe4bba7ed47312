/* The page of `seq2seq export --format web`. worker.js translates; this shows what it finds, as `seq2seq demo` does. */

const LONGEST_PICTURE = 100; // tokens; more make a picture that nobody can read
const find = (selector) => document.querySelector(selector);
const form = find("form");
const width = find("#width input");
const result = find("section");

/* An element with text or children. */
function make(name, content = [], attributes = {}) {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...(typeof content === "string" ? [content] : content));
  return element;
}

function say(message, failed = false) {
  find("#status").textContent = message;
  find("#status").hidden = !message;
  find("#status").classList.toggle("failed", failed);
}

/* Asks the worker, one question at a time. */
function ask(...question) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.answer));
    worker.onerror = () => reject(new Error("worker.js, translator.js or onnxruntime-web.js cannot be loaded"));
    worker.postMessage(question);
  });
}

/* What shall be translated, and how. The columns of a source are joined by tabs, each on one line as in a corpus. */
function wanted() {
  const [first, ...others] = [...form.querySelectorAll("textarea")].map((box) =>
    box.value.split(/\s+/).filter(Boolean).join(" "),
  );
  const beamWidth = width.valueAsNumber;
  const options = form.elements.search.value === "beam" ? { beamWidth, nBest: beamWidth } : {};
  return [first && [first, ...others].join("\t"), options];
}

/* Translates until what is shown is what is wanted. While one text is translated, only the last text typed waits. */
async function update() {
  find("#width").hidden = form.elements.search.value !== "beam";
  find("#width output").value = width.value;
  if (result.ariaBusy === "true") return;
  result.ariaBusy = "true";
  try {
    say(""); // of the text before
    for (let shown = null; shown !== JSON.stringify(wanted()); ) {
      const [text, options] = wanted();
      shown = JSON.stringify([text, options]);
      const hypotheses = text ? await ask("search", text, options) : [];
      showHypotheses(hypotheses.filter(({ rankedBy }) => rankedBy !== -Infinity)); // a beam may find fewer
      if (shown === JSON.stringify(wanted())) drawAttention(text, text && (await ask("attention", text, hypotheses[0].ids)));
    }
  } catch (error) {
    say(error.message, true);
  }
  result.ariaBusy = "false";
}

function showHypotheses(hypotheses) {
  find("#translation").value = hypotheses.length ? hypotheses[0].text : "";
  const figure = (number) => (Number.isNaN(number) ? "–" : number.toFixed(2)); // greedy search has none
  const rows = hypotheses.map(({ text, score, rankedBy, stopped }) => {
    const cells = [figure(score), figure(rankedBy), stopped, text];
    return make("tr", cells.map((cell) => make("td", cell)));
  });
  find(".hypotheses tbody").replaceChildren(...rows);
  find(".hypotheses").hidden = !rows.length;
}

/* A row for each target token, a column for each source token; the darker a cell, the more the decoder looked there. */
function drawAttention(text, alignment) {
  const figure = find("figure");
  figure.hidden = !alignment || Math.max(alignment.source.length, alignment.target.length) > LONGEST_PICTURE;
  if (figure.hidden) return;
  const label = (token) => token.replace(/\s/g, "␣");
  const above = alignment.source.map((token) =>
    make("th", [make("div", label(token), { className: [...token].length > 1 ? "long" : "" })]),
  );
  const rows = alignment.target.map((token, row) => {
    const cells = alignment.source.map((_, column) => make("td", [], { title: alignment.weights[row][column].toFixed(2) }));
    cells.forEach((cell, column) => cell.style.setProperty("--weight", alignment.weights[row][column]));
    return make("tr", [make("th", label(token)), ...cells]);
  });
  find(".weights").replaceChildren(make("thead", [make("tr", [make("th"), ...above])]), make("tbody", rows));
  find(".scroll").setAttribute("aria-label", `attention: ${text} → ${find("#translation").value}`);
}

/* Makes a box for each column of a source, and the examples. */
function prepare({ names, widest, examples }) {
  const boxes = names.map((name, number) => {
    const box = make("textarea", [], { id: `text-${number}`, rows: names.length > 1 ? 1 : 3, dir: "auto", spellcheck: false });
    box.placeholder = number ? "" : "Type a text";
    return box;
  });
  const labels = boxes.map((box, number) =>
    make("label", names.length > 1 ? names[number] : "Text", { className: "label", htmlFor: box.id }),
  );
  find("#texts").replaceChildren(...boxes.flatMap((box, number) => [labels[number], box]));
  const buttons = examples.map((example) => {
    const columns = example.split("\t");
    const button = make("button", columns.join(" | "), { type: "button" });
    button.onclick = () => {
      boxes.forEach((box, number) => (box.value = columns[number] ?? ""));
      update();
    };
    return button;
  });
  find("#examples").append(...buttons);
  find("#examples").hidden = !examples.length;
  width.max = widest;
  width.value = Math.min(5, widest);
  boxes[0].focus();
}

async function start() {
  if (location.protocol === "file:")
    throw new Error("A browser loads this page only from a server: run `python -m http.server` in its folder.");
  prepare(await ask("load"));
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  await update();
}

const worker = location.protocol === "file:" ? null : new Worker("worker.js", { type: "module" });
start().catch((error) => say(error.message, true));
