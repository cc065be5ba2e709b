import { preprocess, toFrame } from "./preprocess.js";

const MOST_SAMPLES = 20000, WARMUP = 0.5;
const at = (id) => document.getElementById(id);
const config = await (await fetch("config.json")).json();
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
let calls = 0, opened = null, busy = false;

worker.onmessage = ({ data }) => {
  if ("progress" in data) return void (at("progress").value = Math.min(1, data.progress));
  const { done, fail } = waiting.get(data.id);
  waiting.delete(data.id);
  "error" in data ? fail(new Error(data.error)) : done(data.found);
};
worker.onerror = (event) => {
  for (const { fail } of waiting.values()) fail(new Error(event.message || "The worker stopped."));
  waiting.clear();
};

function ask(op, args = {}) {
  const id = ++calls;
  return new Promise((done, fail) => {
    waiting.set(id, { done, fail });
    worker.postMessage({ id, op, args });
  });
}

// ---- what this device is

async function describe() {
  const data = navigator.userAgentData;
  const about = data?.getHighEntropyValues ? await data.getHighEntropyValues(["model", "platformVersion", "architecture"]) : {};
  const parts = [about.model, data?.platform || navigator.platform, about.architecture];
  const cores = navigator.hardwareConcurrency || 1;
  let gpu = "";
  try {
    const info = (await navigator.gpu?.requestAdapter())?.info;
    gpu = info ? [info.vendor, info.architecture, info.description].filter(Boolean).join(" ") || "unnamed GPU" : "";
  } catch {
    gpu = "";
  }
  return { name: [...parts.filter(Boolean), `${cores} cores`].join(", "), cores, gpu };
}

function option(select, value, text) {
  const one = document.createElement("option");
  one.value = value;
  one.textContent = text;
  select.append(one);
}

function element(tag, text = "", kind = "") {
  const one = document.createElement(tag);
  one.textContent = text;
  one.className = kind;
  return one;
}

const say = (text) => (at("status").textContent = text);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// ---- verdict and figures, as this page sees them; where a server listens, its own judgement is shown

function judge(model, outputs) {
  let error = 0, largest = 0, agree = 0, rows = 0, broken = 0;
  model.expected.forEach((expected, k) => {
    for (const { name, shape, data } of expected) {
      const got = outputs[k][name], classes = shape[shape.length - 1];
      for (let i = 0; i < data.length; i++) {
        if (!Number.isFinite(got[i])) broken++;
        error = Math.max(error, Math.abs(got[i] - data[i]));
        largest = Math.max(largest, Math.abs(data[i]));
      }
      if (name !== "logits") continue;
      for (let row = 0; row < data.length; row += classes, rows++)
        agree += best(data.subarray(row, row + classes)) === best(got.subarray(row, row + classes)) ? 1 : 0;
    }
  });
  return { passed: !broken && error <= model.bounds.rel_max * largest, error, largest, agree, rows };
}

const best = (row) => row.reduce((top, value, i) => (value > row[top] ? i : top), 0);

function figures(samples) {
  const sorted = samples.map((s) => 1000 * s).sort((a, b) => a - b);
  const quantile = (q) => {
    const place = q * (sorted.length - 1), low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  return { p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99), min: sorted[0], max: sorted.at(-1), count: sorted.length };
}

// ---- one model

function card(model) {
  const article = element("article");
  article.append(element("h2", model.name));
  article.append(element("p", `${model.model}, ${model.precision}, ${megabytes(model.bytes)}${model.random ? ", random weights" : ""}`, "soft"));
  article.append(element("div", "", "found"));
  at("models").append(article);
  return article;
}

function show(article, rows, verdict, passed, stats) {
  const found = article.querySelector(".found");
  found.replaceChildren();
  const mark = element("p", verdict, `verdict ${passed ? "pass" : "fail"}`);
  found.append(mark);
  if (stats) {
    const line = element("p", `${stats.p50.toPrecision(3)} ms `, "latency");
    line.append(element("small", `p50 of ${stats.count} runs`));
    found.append(line);
  }
  const list = element("dl");
  for (const [name, value] of rows) list.append(element("dt", name), element("dd", value));
  found.append(list);
}

async function floats(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file}: ${answer.status} ${answer.statusText}`);
  return new Float32Array(await answer.arrayBuffer());
}

function base64(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

async function open(model, provider, threads) {
  const key = `${model.file} ${provider} ${threads}`;
  if (opened?.key !== key) {
    opened = null;
    opened = { ...(await ask("open", { model: { file: model.file, external: model.external }, provider, threads })), key };
  }
  return opened;
}

async function trial(model, index, settings) {
  say(`${model.name}: loading ${megabytes(model.bytes)}`);
  const runtime = await open(model, settings.provider, settings.threads);
  model.expected ??= await Promise.all(
    model.cases.map(({ outputs }) => Promise.all(outputs.map(async (one) => ({ ...one, data: await floats(one.file) })))),
  );
  const outputs = [];
  for (const [k, { inputs }] of model.cases.entries()) {
    say(`${model.name}: proving, input ${k + 1} of ${model.cases.length}`);
    outputs.push(await ask("check", { inputs }));
  }
  const seen = judge(model, outputs);
  say(`${model.name}: measuring for ${settings.seconds} s`);
  const measuring = { inputs: model.cases[0].inputs, warmup: WARMUP, duration: settings.seconds, most: MOST_SAMPLES };
  const samples = await ask("measure", measuring);
  const stats = figures(samples);
  const rows = [
    ["largest error", `${seen.error.toExponential(1)} of ${seen.largest.toPrecision(3)}`],
    ...(seen.rows ? [["same class", `${seen.agree} of ${seen.rows}`]] : []),
    ["p95, p99", `${stats.p95.toPrecision(3)}, ${stats.p99.toPrecision(3)} ms`],
    ["least, most", `${stats.min.toPrecision(3)}, ${stats.max.toPrecision(3)} ms`],
    ["ran on", `${settings.provider === "webgpu" ? "WebGPU" : `WebAssembly, ${runtime.threads} thread${runtime.threads > 1 ? "s" : ""}`}`],
  ];
  let { passed } = seen, reason = "";
  if (config.post) ({ passed, reason } = await report(model, index, settings, runtime, samples, outputs));
  show(model.article, rows, passed ? "Outputs match PyTorch's" : `Outputs do not match PyTorch's. ${reason}`, passed, stats);
}

async function report(model, index, settings, runtime, samples, outputs) {
  const body = {
    model: index, device: settings.device, agent: navigator.userAgent.slice(0, 400), gpu: settings.gpu.slice(0, 120),
    runtime: `onnxruntime-web ${runtime.version}`, provider: settings.provider, threads: runtime.threads, cores: settings.cores,
    samples,
    outputs: model.expected.map((expected, k) => Object.fromEntries(expected.map(({ name }) => [name, base64(outputs[k][name])]))),
  };
  const answer = await fetch(config.post, { method: "POST", body: JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return { passed: found.passed, reason: found.verification.reasons.join(" ") };
}

async function start() {
  const settings = {
    device: at("device").value.trim() || about.name, provider: at("provider").value, threads: Number(at("threads").value),
    seconds: Math.min(60, Math.max(0.2, Number(at("seconds").value) || 3)), cores: about.cores, gpu: about.gpu,
  };
  at("start").disabled = busy = true;
  document.body.dataset.state = "busy";
  at("progress").hidden = false;
  let failed = 0;
  for (const [index, model] of config.models.entries()) {
    at("progress").value = 0;
    try {
      await trial(model, index, settings);
    } catch (error) {
      failed++;
      opened = null;
      show(model.article, [], `It does not run here: ${error.message}`, false);
    }
  }
  at("progress").hidden = true;
  at("start").disabled = busy = false;
  document.body.dataset.state = failed ? "failed" : "done";
  say(failed ? `${failed} of ${config.models.length} did not run.` : config.post ? "Done. The figures are in the report." : "Done.");
}

// ---- live demo

// What the model takes of a picture: a tensor, or a camera frame where it has its preprocessing inside.
function given(picture, { input }) {
  if (input.frame) return { name: "image", dtype: "uint8", ...toFrame(picture, input.frame) };
  return { name: "image", dtype: "float32", shape: [1, ...input.shape], data: preprocess(picture, input) };
}

async function classify(source, width, height) {
  if (busy) return;
  const model = config.models[Number(at("which").value)];
  const canvas = at("shown");
  // A frame of a fixed size is filled, and what stands out is cut off.
  [canvas.height, canvas.width] = model.input.frame?.size ?? [height, width];
  const scale = Math.max(canvas.height / height, canvas.width / width);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const [left, top] = [(canvas.width - scale * width) / 2, (canvas.height - scale * height) / 2];
  pen.drawImage(source, left, top, scale * width, scale * height);
  canvas.hidden = source === at("video");
  const input = given(pen.getImageData(0, 0, canvas.width, canvas.height), model);
  busy = true;
  try {
    await open(model, at("provider").value, Number(at("threads").value));
    model.names ??= model.labels ? await (await fetch(model.labels)).json() : [];
    const { logits } = await ask("predict", { inputs: [input] });
    const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]);
    const sum = logits.reduce((total, value) => total + Math.exp(value - logits[order[0]]), 0);
    at("classes").replaceChildren(
      ...order.slice(0, 5).map((i) => element("li", `${model.names[i] ?? `class ${i}`}  ${((100 * Math.exp(logits[i] - logits[order[0]])) / sum).toFixed(1)} %`)),
    );
  } catch (error) {
    opened = null;
    at("classes").replaceChildren(element("li", `It does not run here: ${error.message}`, "fail"));
  } finally {
    busy = false;
  }
}

async function take(file) {
  if (!file) return;
  stopCamera();
  try {
    const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
    await classify(image, image.width, image.height);
  } catch (error) {
    at("classes").replaceChildren(element("li", `${file.name} is no image that can be read: ${error.message}`, "fail"));
  }
}

function stopCamera() {
  for (const track of at("video").srcObject?.getTracks() ?? []) track.stop();
  at("video").srcObject = null;
  at("video").hidden = true;
}

async function camera() {
  if (at("video").srcObject) return stopCamera();
  try {
    at("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    at("classes").replaceChildren(element("li", `No camera: ${error.message}`, "fail"));
    return;
  }
  at("shown").hidden = true;
  at("video").hidden = false;
  await at("video").play();
  while (at("video").srcObject) {
    await classify(at("video"), at("video").videoWidth, at("video").videoHeight);
    await new Promise(requestAnimationFrame);
  }
}

// ---- set up

const about = await describe();
at("device").value = about.name.slice(0, 80);
option(at("provider"), "wasm", "WebAssembly");
if (about.gpu) option(at("provider"), "webgpu", "WebGPU");
const most = self.crossOriginIsolated ? about.cores : 1;
for (const n of [1, 2, 4, 8, 16].filter((n) => n <= most)) option(at("threads"), n, n);
at("threads").value = 1;
config.models.forEach((model, i) => {
  model.article = card(model);
  option(at("which"), i, model.name);
});
at("demo").hidden = !config.models.some((model) => model.kind === "image" && (model.input.frame || model.cases[0].inputs[0].shape[0] === 1));
at("camera").hidden = !navigator.mediaDevices?.getUserMedia;
at("where").textContent = [
  `vitdeploy ${config.vitdeploy}, onnxruntime-web ${config.ort}`,
  about.gpu ? `GPU: ${about.gpu}` : "no WebGPU here",
  self.crossOriginIsolated ? "threads" : "one thread: this page is not isolated (threads need https or localhost)",
].join(" · ");
at("start").addEventListener("click", start);
at("file").addEventListener("change", () => take(at("file").files[0]));
at("camera").addEventListener("click", camera);
at("drop").addEventListener("dragover", (event) => (event.preventDefault(), at("drop").classList.add("over")));
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
at("start").disabled = false;
document.body.dataset.state = "ready";
