/* Translate with an exported ONNX model in a browser. It needs onnxruntime-web, and nothing of the library.

`seq2seq export RUN DIR --format web` puts this file into DIR, next to the files that it needs:

    import { Translator } from "./translator.js";
    const translator = await Translator.load(new URL("./", import.meta.url));
    await translator.translate(["Go."]);                                   // greedy search
    await translator.translate(["Go."], { beamWidth: 5 });
    await translator.search(["Go."], { beamWidth: 5, nBest: 3 });          // with log-likelihoods

It is the same program as translator.py, `seq2seq/onnx_runtime.py`, function by function, for one text at a time.

Shapes: K hypotheses in parallel, 1 in greedy search; S source tokens; V vocabulary size. Scores are 32-bit floats. */

import * as ort from "./onnxruntime-web.js";

ort.env.wasm.numThreads = 1; // more would need a server that sends special headers
ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime-web.wasm", import.meta.url) };

const [PADDING, UNKNOWN, START, END] = [0, 1, 2, 3];
const RESERVED = ["", "[UNK]", "[START]", "[END]"];
const REPLACEMENT = "\ufffd"; // in text, an unknown token; in a vocabulary, the token that all unknown ones become
const STOPPED = ["end", "limit", "repetition"];
const [ENDED, LIMITED, REPEATED, RUNNING] = [0, 1, 2, -1];
const NEG_INF = -Infinity;
const PHRASE = 8; // the longest phrase whose repetition is noticed, in tokens
const LEAST_REPETITION = 16; // tokens of repetition that are allowed, or half the limit if that is more
const WHITESPACE = "\\t-\\r\\x85 \\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const float = Math.fround;

/* An exported model. `encoder` and `decoder` are sessions of onnxruntime-web, `vocabulary` what is in vocabulary.json. */
export class Translator {
  constructor(encoder, decoder, vocabulary) {
    Object.assign(this, { encoder, decoder, limit: vocabulary.limit, longestSource: vocabulary.longest_source });
    this.source = new Tokenizer(vocabulary.source);
    this.target = new Tokenizer(vocabulary.target);
    this.hasAttention = decoder.outputNames.includes("attention");
  }

  /* Loads the folder of that address. Throws an Error that names the file that is missing or damaged. */
  static async load(folder) {
    const files = ["encoder.onnx", "decoder.onnx", "vocabulary.json"];
    return new Translator(...(await Promise.all(files.map((name) => loadFile(new URL(name, folder))))));
  }

  /* The best translation of each text; the options are those of `search`. */
  async translate(texts, options = {}) {
    return (await this.search(texts, options)).map(([best]) => best.text);
  }

  /* Translate texts. For each, give its hypotheses, the best first: { text, score, rankedBy, stopped, ids }.

  The score is the log-likelihood in nats, NaN from greedy search, and `rankedBy` the score over the length penalty;
  `stopped` is "end", "limit" or "repetition"; `ids` are the target's, with END if there is one. A beam may find fewer
  different texts: then empty ones follow.

  beamWidth: the number of hypotheses of beam search; null for greedy search.
  nBest: how many hypotheses to return of each text, at most the beam's width.
  lengthPenalty: 0 compares log-likelihoods as they are, 1 nearly those per token.
  minLength, maxLength: limits in tokens. maxLength includes END; by default it depends on the source. */
  async search(texts, options = {}) {
    const { beamWidth = null, nBest = 1, lengthPenalty = 0.6, minLength = 0, maxLength = null } = options;
    if (typeof texts === "string") throw new RangeError("texts: expected a list of texts; for a single one, [text]");
    if (!(nBest >= 1 && nBest <= (beamWidth ?? 1)))
      throw new RangeError(`nBest=${nBest}: expected 1 or more, and at most the beam's width, ${beamWidth ?? 1}`);
    const [least, longest] = [Math.max(1, minLength), maxLength ?? 100_000];
    if (!(least <= longest && longest <= 100_000))
      throw new RangeError(`maxLength=${longest}: expected ${least} or more, and at most 100,000`);
    const [width, tokens] = [beamWidth ?? 1, this.target.size - END];
    if (!(width <= tokens && lengthPenalty >= 0 && lengthPenalty <= 10))
      throw new RangeError(`beamWidth=${width}, lengthPenalty=${lengthPenalty}: expected 1 to ${tokens}, 0 to 10`);
    const found = [];
    for (const text of texts) {
      const read = this.source.lookUp(text).slice(0, this.longestSource);
      const [source, unknown] = [read.map(([id]) => id), read.map(([, token]) => token).filter(Boolean)];
      const limit = maxLength ?? Math.max(16 + Math.ceil(2 * this.limit * source.length), minLength + 1);
      const model = await Steps.begin(this.encoder, this.decoder, source, limit);
      const hypotheses =
        beamWidth === null
          ? await greedy(model, limit, minLength)
          : await beam(model, limit, minLength, beamWidth, nBest, lengthPenalty);
      found.push(this.different(unknown, hypotheses, nBest));
    }
    return found;
  }

  /* The first hypotheses with different texts, of a source with these unknown tokens. */
  different(unknown, hypotheses, count) {
    const found = new Map();
    for (const [score, rankedBy, stopped, ids] of hypotheses) {
      const text = this.target.decode(ids, unknown);
      if (!found.has(text)) found.set(text, { text, score, rankedBy, stopped: STOPPED[stopped], ids });
    }
    const nothing = { text: "", score: NEG_INF, rankedBy: NEG_INF, stopped: STOPPED[LIMITED], ids: [] };
    return [...found.values(), ...Array(count).fill(nothing)].slice(0, count);
  }

  /* Where the decoder looks while it writes a translation, given by its ids: { source, target, weights }.

  The tokens of both sides, and for each target token a weight for each source token. Null without attention. */
  async attention(text, ids) {
    if (!this.hasAttention) return null;
    const source = this.source.encode(text).slice(0, this.longestSource);
    const model = await Steps.begin(this.encoder, this.decoder, source, Math.max(1, ids.length));
    const weights = [];
    for (let t = 0; t < ids.length; t++) {
      await model.take([t ? ids[t - 1] : START]);
      weights.push(Array.from(model.attention.data));
    }
    return { source: this.source.spell(source), target: this.target.spell(ids), weights };
  }
}

/* Read a JSON file, or make a session of a graph. */
export async function loadFile(url) {
  const response = await fetch(url).catch((error) => error);
  if (!response.ok) throw new Error(`${url}: cannot be loaded (${response.statusText || response.message})`);
  try {
    if (url.pathname.endsWith(".json")) return await response.json();
    return await ort.InferenceSession.create(await response.arrayBuffer(), { logSeverityLevel: 3 }); // errors
  } catch (error) {
    throw new Error(`${url}: cannot be read (${error.message})`);
  }
}

/* The model on one source: what the encoder found, and the decoder's state after the last step. */
class Steps {
  static async begin(encoder, decoder, source, steps) {
    const ids = source.length ? source : [PADDING];
    const found = await run(encoder, { source: int32(ids, [1, ids.length]), steps: int32([steps], []) });
    const named = (start) => Object.fromEntries(Object.entries(found).filter(([name]) => name.startsWith(start)));
    return Object.assign(new Steps(), { decoder, encoded: named("encoded"), state: named("state") });
  }

  /* Take a step with tokens `[K]`: the scores of the next ones, K rows of V. */
  async take(tokens) {
    const given = { token: int32(tokens, [tokens.length]), ...this.encoded, ...this.state };
    const { logits, attention, ...state } = await run(this.decoder, given);
    this.state = Object.fromEntries(Object.entries(state).map(([name, x]) => [name.replace("next_", ""), x]));
    this.attention = attention;
    return tokens.map((_, row) => logits.data.subarray(row * logits.dims[1], (row + 1) * logits.dims[1]));
  }

  /* Keeps these rows of the state, in this order. */
  keep(rows) {
    for (const [name, tensor] of Object.entries(this.state)) {
      const size = tensor.size / tensor.dims[0];
      const data = new tensor.data.constructor(rows.length * size);
      rows.forEach((row, place) => data.set(tensor.data.subarray(row * size, (row + 1) * size), place * size));
      this.state[name] = new ort.Tensor(tensor.type, data, [rows.length, ...tensor.dims.slice(1)]);
    }
  }
}

/* Calls a graph, which has only the inputs that it needs, with tensors by name. */
function run(session, given) {
  return session.run(Object.fromEntries(session.inputNames.map((name) => [name, given[name]])));
}

function int32(values, dims) {
  return new ort.Tensor("int32", Int32Array.from(values), dims);
}

/* Take the most likely token at every step. Return a list of one [NaN, NaN, stopped, ids]. */
async function greedy(model, limit, minLength) {
  const ids = [];
  const repetition = new Repetition(1);
  for (let token = START, why = RUNNING; ; ) {
    const [logits] = maskLogits(await model.take([token]), ids.length, minLength);
    token = END + argmax(logits);
    ids.push(token);
    repetition.add([token]);
    why = whyStopped(token, ids.length, limit, repetition.runs[0], minLength);
    if (why !== RUNNING) return [[NaN, NaN, why, ids]];
  }
}

/* Monotonic beam search, as `seq2seq.BeamSearch`. Return the hypotheses, the best first. */
async function beam(model, limit, minLength, width, nBest, lengthPenalty) {
  const kept = nBest === 1 ? 1 : 2 * nBest;
  const history = [];
  const repetition = new Repetition(width);
  const penalty = (length) => float(float((5 + length) / 6) ** float(lengthPenalty));
  let tokens = Array(width).fill(START);
  let scores = tokens.map((_, slot) => (slot ? NEG_INF : 0));
  let finished = [];
  model.keep(tokens.map(() => 0));

  for (let t = 0; t < limit && Math.max(...scores) > NEG_INF; t++) {
    const logits = await model.take(tokens);
    const offsets = logits.map((row, slot) => float(scores[slot] - logSumExp(row)));
    const totals = maskLogits(logits, t, minLength).map((row, slot) => row.map((logit) => logit + offsets[slot]));
    const filled = fillSlots(totals, width);
    tokens = filled.map((slot) => slot.token);
    const parents = filled.map((slot) => slot.parent);
    model.keep(parents);
    repetition.keep(parents);
    repetition.add(tokens);
    history.push({ tokens, parents });

    const slots = filled.map(({ score, token, parent }, slot) => {
      const stopped = whyStopped(token, t + 1, limit, repetition.runs[slot], minLength);
      return { rank: score, length: t + 1, token, parent, stopped };
    });
    scores = slots.map(({ rank, stopped }) => (stopped === RUNNING ? rank : NEG_INF));
    finished = bestFinished([...finished, ...slots.filter(hasFinished)], kept, penalty);
    // A log-likelihood can only fall: no rank can exceed the highest one now, with the penalty of the limit.
    const bestPossible = float(Math.max(...scores) / penalty(limit));
    const last = finished[kept - 1];
    if (last?.stopped === ENDED && bestPossible <= float(last.rank / penalty(last.length))) scores.fill(NEG_INF);
  }
  return finished.map((hypothesis) => {
    const { rank, length, stopped } = hypothesis;
    return [rank, float(rank / penalty(length)), stopped, backTrack(hypothesis, history)];
  });
}

/* Give each of the K slots the likeliest extension that is left among those of the slots up to it.

Of log-likelihoods, K rows of V - END. */
function fillSlots(totals, width) {
  const most = Math.min(totals[0].length, width);
  const best = totals.map((row) => likeliest(row, most));
  const offered = Float32Array.from(best.flatMap((tokens, slot) => tokens.map((token) => totals[slot][token])));
  return totals.map((_, slot) => {
    const at = argmax(offered.subarray(0, (slot + 1) * most));
    const parent = Math.floor(at / most);
    const found = { score: offered[at], token: END + best[parent][at % most], parent };
    offered[at] = NEG_INF;
    return found;
  });
}

/* The positions of the largest numbers, the largest first; of equals the first comes first. */
function likeliest(row, count) {
  const best = [];
  for (let token = 0; token < row.length; token++) {
    if (best.length === count && row[token] <= row[best[count - 1]]) continue;
    const place = best.findIndex((other) => row[token] > row[other]);
    best.splice(place < 0 ? best.length : place, 0, token);
    best.length = Math.min(best.length, count);
  }
  return best;
}

function hasFinished({ rank, stopped }) {
  return stopped !== RUNNING && rank > NEG_INF; // a rank of NEG_INF marks an empty slot
}

/* The best finished hypotheses, first those that ended. Of equals the earlier comes first. */
function bestFinished(hypotheses, count, penalty) {
  const order = ({ rank, length, stopped }) => (stopped === ENDED ? 0 : 1e6) - float(rank / penalty(length));
  return hypotheses.sort((one, other) => order(one) - order(other)).slice(0, count);
}

/* Read a finished hypothesis from its last token to its first; return its ids. */
function backTrack({ token, parent, length }, history) {
  const ids = [token];
  for (const { tokens, parents } of history.slice(0, length - 1).reverse()) {
    ids.push(tokens[parent]);
    parent = parents[parent];
  }
  return ids.reverse();
}

/* Logits of the tokens that may come, rows of V - END: never PADDING, UNKNOWN or START, and END if long enough. */
function maskLogits(logits, t, minLength) {
  return logits.map((row) => {
    const found = row.slice(END);
    if (t < minLength) found[0] = NEG_INF;
    return found;
  });
}

function argmax(numbers) {
  return numbers.reduce((best, number, place) => (number > numbers[best] ? place : best), 0);
}

function logSumExp(logits) {
  const most = logits.reduce((one, other) => Math.max(one, other), NEG_INF);
  return float(most + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0)));
}

/* How many tokens in a row have equalled the one p places before them: `runs[k][p - 1]` of each hypothesis. */
class Repetition {
  constructor(rows) {
    this.recent = Array.from({ length: rows }, () => Array(PHRASE).fill(PADDING));
    this.runs = Array.from({ length: rows }, () => Array(PHRASE).fill(0));
  }

  add(tokens) {
    this.runs = this.runs.map((runs, row) =>
      runs.map((count, p) => (this.recent[row][p] === tokens[row] ? count + 1 : 0)),
    );
    this.recent = this.recent.map((recent, row) => [tokens[row], ...recent.slice(0, -1)]);
  }

  keep(rows) {
    this.recent = rows.map((row) => this.recent[row]);
    this.runs = rows.map((row) => this.runs[row]);
  }
}

/* Why a hypothesis of this length stops after its newest token, as an index in STOPPED; RUNNING if it does not. */
function whyStopped(token, length, limit, runs, minLength) {
  if (token === END) return ENDED;
  const repeated = Math.max(...runs) >= Math.max(Math.floor(limit / 2), LEAST_REPETITION);
  if (repeated && length >= minLength) return REPEATED;
  return length >= limit ? LIMITED : RUNNING;
}

/* Text to ids and back, as vocabulary.json describes it. A character is a code point, as in Python. */
export class Tokenizer {
  constructor(saved) {
    this.kind = saved.kind;
    this.normalForm = saved.normal_form;
    this.fold = saved.fold && new Map(Object.entries(saved.fold));
    this.parts = (saved.columns ?? []).map(([part, ids]) => [new Tokenizer(part), ids]);
    this.names = saved.names ?? ["source"];
    this.separator = saved.separator ?? "";
    const tokens = saved.tokens ?? [];
    this.tokens = ["", REPLACEMENT, "", "", ...tokens];
    this.ids = new Map(tokens.map((token, number) => [token, END + 1 + number]));
    this.scores = new Map((saved.scores ?? []).map((score, number) => [tokens[number], float(score)]));
    this.longest = tokens.reduce((most, token) => Math.max(most, [...token].length), 1);
  }

  /* The number of ids. */
  get size() {
    return this.kind === "bytes" ? END + 1 + 256 : this.tokens.length;
  }

  /* The ids of a text. */
  encode(text) {
    return this.lookUp(text).map(([id]) => id);
  }

  /* The ids of a text, each with its token if that is unknown, else null. Of several columns, those of features
  (separator) always have null. */
  lookUp(text) {
    if (this.kind === "columns") {
      const columns = text.split("\t").slice(0, this.parts.length); // a missing column is empty
      return columns.flatMap((column, number) => {
        const [part, ids] = this.parts[number];
        return part.lookUp(column).map(([own, token]) => [ids[own], part.kind === "separator" ? null : token]);
      });
    }
    const normal = this.normalize(text);
    if (this.kind === "bytes") return Array.from(new TextEncoder().encode(normal), (byte) => [END + 1 + byte, null]);
    const unknown = this.ids.get(REPLACEMENT) ?? UNKNOWN;
    return this.split(normal).map((token) => {
      const id = this.ids.get(token) ?? unknown;
      return [id, id === unknown ? token : null];
    });
  }

  /* Brings a text into the normal form, with its case folded before that if the model wants it. */
  normalize(text) {
    text = text.replace(/\p{Surrogate}/gu, "\ufffd\ufffd\ufffd"); // half a character, which is three bytes
    if (this.fold) text = [...text].map((character) => this.fold.get(character) ?? character).join("").normalize("NFC");
    return this.normalForm ? text.normalize(this.normalForm) : text;
  }

  /* The text of ids, up to END. With `unknown`, the unknown tokens of the source, the n-th U+FFFD that is a token
  is replaced by the n-th of them; surplus ones are left out. */
  decode(ids, unknown = null) {
    if (ids.includes(END)) ids = ids.slice(0, ids.indexOf(END));
    if (this.kind === "bytes") {
      const bytes = ids.flatMap((id) => (id > END ? [id - END - 1] : [...new TextEncoder().encode(this.tokens[id])]));
      return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes)); // keeps U+FEFF
    }
    const [copied, replaced] = [unknown?.values(), unknown ? this.ids.get(REPLACEMENT) : null];
    const written = ids.map((id) => (id === replaced ? copied.next().value : this.tokens[id]));
    const tokens = written.filter(Boolean);
    if (this.kind === "letters") return tokens.join("").normalize(this.normalForm ?? "NFC");
    if (this.kind === "subwords") return tokens.join("").replace(/▁+/g, " ").replace(/^[\t-\r ]+|[\t-\r ]+$/g, "");
    return tokens.join({ whitespace: " ", separator: this.separator }[this.kind] ?? "");
  }

  /* The tokens of ids, to show them. */
  spell(ids) {
    return ids.map((id) => {
      if (id <= END) return RESERVED[id];
      if (this.kind === "bytes") return spellByte(id - END - 1);
      for (const [part, every] of this.parts) if (every.includes(id)) return part.spell([every.indexOf(id)])[0];
      return this.tokens[id];
    });
  }

  split(text) {
    return {
      characters: (text) => [...text],
      letters: (text) => [...text.normalize("NFD")],
      whitespace: (text) => text.split(new RegExp(`[${WHITESPACE}]`)).filter(Boolean),
      separator: (text) => text.split(this.normalize(this.separator)).filter(Boolean),
      subwords: (text) => this.splitSubwords(text),
    }[this.kind](text);
  }

  /* The likeliest pieces by a unigram model (Kudo 2018), as SentencePiece finds them: the Viterbi algorithm. */
  splitSubwords(text) {
    const words = text.split(new RegExp(`[${WHITESPACE}▁]+`)).filter(Boolean);
    const characters = [...words.map((word) => `▁${word}`).join("")];
    const unknown = float(Math.min(...this.scores.values()) - 10);
    const best = [{ score: 0, start: 0 }]; // of each end: the score, and where its last piece begins
    for (let start = 0; start < characters.length; start++) {
      let piece = "";
      for (let end = start + 1; end <= Math.min(start + this.longest, characters.length); end++) {
        piece += characters[end - 1];
        const own = this.scores.get(piece) ?? (end === start + 1 ? unknown : null);
        if (own === null) continue;
        const score = float(best[start].score + own);
        if (!best[end] || score > best[end].score) best[end] = { score, start };
      }
    }
    const pieces = [];
    for (let end = characters.length; end; end = best[end].start)
      pieces.unshift(characters.slice(best[end].start, end).join(""));
    // Unknown pieces in a row are one.
    const kept = pieces.filter((piece, place) => !place || this.ids.has(piece) || this.ids.has(pieces[place - 1]));
    return kept.map((piece) => (this.ids.has(piece) ? piece : REPLACEMENT));
  }
}

function spellByte(byte) {
  return byte < 128 ? String.fromCharCode(byte) : `\\x${byte.toString(16)}`;
}
