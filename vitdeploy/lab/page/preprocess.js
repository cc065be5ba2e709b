// From an image's pixels to the model's input, as vitdeploy's data/images.py does it: Pillow's resize, step by step,
// across and then down. (Some of its versions go down first where that is cheaper, and differ by a level here and there.)

const BITS = 22; // Pillow's fixed point for 8-bit pixels

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (x === 0 ? 1 : Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)))],
  bicubic: [2, (x) => {
    const a = -0.5, t = Math.abs(x);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// Half to even, as Python rounds.
function even(x) {
  const low = Math.floor(x);
  return x - low !== 0.5 ? Math.round(x) : low % 2 ? low + 1 : low;
}

// [height, width] that an image is resized to before it is cropped.
export function resizedSize(height, width, spec) {
  const [wantHeight, wantWidth] = spec.shape.slice(-2).map((side) => Math.floor(side / spec.crop_pct));
  if (spec.crop_mode === "squash") return [wantHeight, wantWidth];
  if (spec.crop_mode === "center" && wantHeight === wantWidth) {
    const short = Math.min(height, width);
    return [Math.trunc((wantHeight * height) / short), Math.trunc((wantWidth * width) / short)];
  }
  const ratios = [height / wantHeight, width / wantWidth];
  const ratio = spec.crop_mode === "border" ? Math.max(...ratios) : Math.min(...ratios);
  return [Math.max(1, even(height / ratio)), Math.max(1, even(width / ratio))];
}

// For each output place: the first input place that it reads, and fixed-point weights.
function weights(from, to, name) {
  const [support, filter] = FILTERS[name];
  const scale = from / to, stretch = Math.max(scale, 1), reach = support * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const raw = [];
    for (let x = first; x < last; x++) raw.push(filter((x - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0) || 1;
    const whole = raw.map((w) => {
      const scaled = (w / sum) * 2 ** BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { first, whole };
  });
}

// One pass along one axis; `step` is between neighbours on that axis, `lines` are where its lines begin.
function pass(pixels, out, places, step, lines, outStep, outLines) {
  for (let l = 0; l < lines.length; l++) {
    for (let i = 0; i < places.length; i++) {
      const { first, whole } = places[i];
      let sum = 2 ** (BITS - 1);
      for (let k = 0, at = lines[l] + first * step; k < whole.length; k++, at += step) sum += pixels[at] * whole[k];
      const value = Math.floor(sum / 2 ** BITS);
      out[outLines[l] + i * outStep] = value < 0 ? 0 : value > 255 ? 255 : value;
    }
  }
}

const range = (n, f) => Array.from({ length: n }, (_, i) => f(i));

// Places that are added up step by step, for the same roundings at ties.
function nearest(from, to) {
  const step = from / to;
  let place = step * 0.5;
  return range(to, () => {
    const here = Math.floor(place);
    place += step;
    return here;
  });
}

// uint8 pixels, channels last, to another size.
export function resize(pixels, height, width, channels, toHeight, toWidth, name) {
  if (height === toHeight && width === toWidth) return pixels;
  const out = new Uint8Array(toHeight * toWidth * channels);
  if (name === "nearest") {
    const [rows, columns] = [nearest(height, toHeight), nearest(width, toWidth)];
    for (let y = 0, at = 0; y < toHeight; y++)
      for (let x = 0; x < toWidth; x++)
        for (let c = 0; c < channels; c++) out[at++] = pixels[(rows[y] * width + columns[x]) * channels + c];
    return out;
  }
  let middle = pixels;
  if (width !== toWidth) {
    middle = new Uint8Array(height * toWidth * channels);
    const start = (i, side) => Math.floor(i / channels) * side * channels + (i % channels);
    const starts = (side) => range(height * channels, (i) => start(i, side));
    pass(pixels, middle, weights(width, toWidth, name), channels, starts(width), channels, starts(toWidth));
  }
  if (height === toHeight) return middle;
  const columns = range(toWidth * channels, (i) => i);
  pass(middle, out, weights(height, toHeight, name), toWidth * channels, columns, toWidth * channels, columns);
  return out;
}

const offset = (target, side) => (target > side ? Math.floor((target - side) / 2) : -even((side - target) / 2));

// ImageData to float32 (channels, height, width).
export function preprocess(image, spec) {
  const [channels] = spec.shape, [height, width] = spec.shape.slice(-2);
  const count = image.width * image.height;
  const pixels = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [image.data[4 * i], image.data[4 * i + 1], image.data[4 * i + 2]];
    if (channels === 1) pixels[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else pixels.set([r, g, b], 3 * i);
  }
  const [toHeight, toWidth] = resizedSize(image.height, image.width, spec);
  const resized = resize(pixels, image.height, image.width, channels, toHeight, toWidth, spec.interpolation);
  const [top, left] = [offset(height, toHeight), offset(width, toWidth)];
  const out = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++) {
    const fill = spec.crop_mode === "border" ? even(255 * spec.mean[c]) : 0;
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const [fromY, fromX] = [y - top, x - left];
        const inside = fromY >= 0 && fromY < toHeight && fromX >= 0 && fromX < toWidth;
        const value = inside ? resized[(fromY * toWidth + fromX) * channels + c] : fill;
        const [mean, std] = [Math.fround(spec.mean[c]), Math.fround(spec.std[c])];
        out[(c * height + y) * width + x] = Math.fround(Math.fround(Math.fround(value / 255) - mean) / std);
      }
  }
  return out;
}

// ImageData to a camera frame, as data/frames.py makes one: { data, shape }.
export function toFrame(image, { format }) {
  const { width, height, data } = image;
  if (format === "nv21") return toNv21(image);
  const channels = format === "rgb" ? 3 : 4, places = format === "bgra" ? [2, 1, 0, 3] : [0, 1, 2, 3];
  const out = new Uint8Array(width * height * channels);
  for (let i = 0; i < width * height; i++)
    for (let c = 0; c < channels; c++) out[channels * i + c] = c === 3 ? 255 : data[4 * i + places[c]];
  return { data: out, shape: [height, width, channels] };
}

// Luma, and under it V and U in turn, the mean of each 2 x 2 pixels; of an odd width or height the last is left out.
function toNv21(image) {
  const width = image.width & ~1, height = image.height & ~1;
  const out = new Uint8Array((width * height * 3) / 2);
  const tints = new Float32Array((width * height) / 2);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [r, g, b] = image.data.subarray(4 * (y * image.width + x), 4 * (y * image.width + x) + 3);
      out[y * width + x] = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
      const at = (y >> 1) * width + (x & ~1);
      tints[at] += Math.round(128 + 0.5 * r - 0.418688 * g - 0.081312 * b) / 4;
      tints[at + 1] += Math.round(128 - 0.168736 * r - 0.331264 * g + 0.5 * b) / 4;
    }
  tints.forEach((tint, i) => (out[width * height + i] = Math.min(255, even(tint))));
  return { data: out, shape: [(height * 3) / 2, width] };
}
