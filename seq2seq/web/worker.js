/* Translates for page.js next to it, which so never waits for a computation. */

import { Translator, loadFile } from "./translator.js";

const folder = new URL("./", import.meta.url);
let translator;

const answers = {
  /* Loads the model and translates once, as the first time takes longest. Tells the page what it shows. */
  async load() {
    translator = await Translator.load(folder);
    const { source, target } = translator;
    const widest = Math.min(10, target.size - 3); // no wider than the vocabulary: all ids but three can be written
    await translator.search(["."], { beamWidth: widest });
    const probe = await loadFile(new URL("probe.json", folder));
    return { names: source.names, widest, examples: Object.keys(probe).slice(0, 5) };
  },
  async search(text, options) {
    return (await translator.search([text], options))[0];
  },
  async attention(text, ids) {
    return translator.attention(text, ids);
  },
};

onmessage = async ({ data: [name, ...given] }) => {
  try {
    postMessage({ answer: await answers[name](...given) });
  } catch (error) {
    postMessage({ error: error.message });
  }
};
