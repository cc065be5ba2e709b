// Runs models with onnxruntime-web, away from the page, so that drawing takes nothing from a measurement.

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array, int32: Int32Array };
let ort = null, session = null;

async function bytes(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

async function open({ model, provider, threads }) {
  await close();
  ort = await import(provider === "webgpu" ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const externalData = await Promise.all(
    model.external.map(async ({ path, file }) => ({ path, data: new Uint8Array(await bytes(file)) })),
  );
  const options = { executionProviders: [provider], graphOptimizationLevel: "all" };
  if (externalData.length) options.externalData = externalData;
  const started = performance.now();
  session = await ort.InferenceSession.create(new Uint8Array(await bytes(model.file)), options);
  const used = self.crossOriginIsolated ? ort.env.wasm.numThreads : 1;
  return { threads: used, version: ort.env.versions.web ?? ort.env.versions.common, ms: performance.now() - started };
}

async function close() {
  await session?.release();
  session = null;
}

const feed = (inputs) =>
  Object.fromEntries(inputs.map(({ name, dtype, shape, data }) => [name, new ort.Tensor(dtype, data, shape)]));

async function load(inputs) {
  return Promise.all(inputs.map(async (one) => ({ ...one, data: new ARRAYS[one.dtype](await bytes(one.file)) })));
}

async function run(inputs) {
  const given = feed(inputs), results = await session.run(given), found = {};
  for (const [name, tensor] of Object.entries(results)) {
    const data = await tensor.getData();
    found[name] = data instanceof Float32Array ? data.slice() : Float32Array.from(data, Number);
    tensor.dispose();
  }
  return found;
}

async function check({ inputs }) {
  return run(await load(inputs));
}

async function predict({ inputs }) {
  return run(inputs);
}

// Seconds of every run, after runs that are not counted.
async function measure({ inputs, warmup, duration, most }) {
  const given = feed(await load(inputs)), samples = [];
  const once = async () => {
    const started = performance.now();
    const results = await session.run(given);
    for (const tensor of Object.values(results)) await tensor.getData();
    return (performance.now() - started) / 1000;
  };
  for (const end = performance.now() + 1000 * warmup; performance.now() < end; ) await once();
  const started = performance.now();
  let told = started;
  do {
    samples.push(await once());
    const now = performance.now();
    if (now - told > 200) {
      told = now;
      postMessage({ progress: (now - started) / 1000 / duration });
    }
  } while (performance.now() - started < 1000 * duration && samples.length < most);
  return samples;
}

const WORK = { open, close, check, predict, measure };

self.onmessage = async ({ data: { id, op, args } }) => {
  try {
    postMessage({ id, found: await WORK[op](args) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
