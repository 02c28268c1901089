// Pictures as planes of floats: 3×H×W in 0..1, and what the network needs done to them.

/** RGBA bytes as three planes in 0..1. */
export function fromBytes(rgba, width, height) {
  const size = width * height;
  const data = new Float32Array(3 * size);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) data[c * size + i] = rgba[4 * i + c] / 255;
  }
  return { data, width, height };
}

/** Three planes as opaque RGBA bytes. Rounds as Python's `save_image` does. */
export function toBytes({ data, width, height }) {
  const size = width * height;
  const rgba = new Uint8ClampedArray(4 * size);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = Math.round(255 * data[c * size + i]);
    rgba[4 * i + 3] = 255;
  }
  return rgba;
}

/** The position in 0..n-1 that position i of a picture continued by reflection shows. */
function reflected(i, n) {
  const period = Math.max(1, 2 * (n - 1));
  const place = i % period;
  return place < n ? place : period - place;
}

/** Continue a picture below and to the right to multiples of 32, 32×32 to 32×64. */
export function pad(picture) {
  const { data, width, height } = picture;
  const tall = 32 * Math.ceil(height / 32);
  let wide = 32 * Math.ceil(width / 32);
  if (tall === 32 && wide === 32) wide = 64;
  if (tall === height && wide === width) return picture;
  const padded = new Float32Array(3 * tall * wide);
  for (let c = 0, to = 0; c < 3; c++) {
    for (let y = 0; y < tall; y++) {
      const row = (c * height + reflected(y, height)) * width;
      for (let x = 0; x < wide; x++) padded[to++] = data[row + reflected(x, width)];
    }
  }
  return { data: padded, width: wide, height: tall };
}

/** The upper left part of planes (floats or bytes), the inverse of `pad`. */
export function crop({ data, width, height }, newWidth, newHeight) {
  const planes = data.length / (width * height);
  const cut = new data.constructor(planes * newWidth * newHeight);
  for (let c = 0; c < planes; c++) {
    for (let y = 0; y < newHeight; y++) {
      const from = (c * height + y) * width;
      cut.set(data.subarray(from, from + newWidth), (c * newHeight + y) * newWidth);
    }
  }
  return { data: cut, width: newWidth, height: newHeight };
}

/**
 * Which places of `from` each of `to` places mixes, and by how much: linear
 * interpolation between pixel centres, widened when the picture shrinks.
 */
function mixture(from, to) {
  const scale = from / to;
  const reach = Math.max(1, scale);
  return Array.from({ length: to }, (_, i) => {
    const centre = scale * (i + 0.5);
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const end = Math.min(from, Math.floor(centre + reach + 0.5));
    const weights = [];
    for (let j = first; j < end; j++) {
      weights.push(Math.max(0, 1 - Math.abs((j + 0.5 - centre) / reach)));
    }
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => w / sum) };
  });
}

/** Another size of a picture, as PyTorch's antialiased bilinear interpolation. */
export function resize({ data, width, height }, newWidth, newHeight) {
  const planes = data.length / (width * height);
  const columns = mixture(width, newWidth);
  const rows = mixture(height, newHeight);
  const narrow = new Float32Array(planes * height * newWidth);
  for (let row = 0, to = 0; row < planes * height; row++) {
    for (const { first, weights } of columns) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) {
        sum += weights[k] * data[row * width + first + k];
      }
      narrow[to++] = sum;
    }
  }
  const out = new Float32Array(planes * newHeight * newWidth);
  for (let c = 0, to = 0; c < planes; c++) {
    for (const { first, weights } of rows) {
      for (let x = 0; x < newWidth; x++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * narrow[(c * height + first + k) * newWidth + x];
        }
        out[to++] = sum;
      }
    }
  }
  return { data: out, width: newWidth, height: newHeight };
}

/** The mean over 5×5 pixels around each, edges repeated. */
function boxMean({ data, width, height }) {
  const clamp = (i, n) => Math.min(n - 1, Math.max(0, i));
  const across = new Float32Array(data.length);
  const out = new Float32Array(data.length);
  for (let row = 0; row < data.length; row += width) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = -2; k <= 2; k++) sum += data[row + clamp(x + k, width)];
      across[row + x] = sum / 5;
    }
  }
  for (let plane = 0; plane < data.length; plane += width * height) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let k = -2; k <= 2; k++) {
          sum += across[plane + clamp(y + k, height) * width + x];
        }
        out[plane + y * width + x] = sum / 5;
      }
    }
  }
  return { data: out, width, height };
}

/** One plane of a picture, which shares its memory. */
function plane({ data, width, height }, c) {
  const size = width * height;
  return { data: data.subarray(c * size, (c + 1) * size), width, height };
}

const combine = (a, b, f) => ({ ...a, data: a.data.map((value, i) => f(value, b.data[i])) });

/**
 * The refined picture at full size, written over `full`: the difference made at a smaller
 * size is brought back along the edges of the full picture. He, Sun and Tang, ECCV 2010.
 */
export function bringBack(small, refined, full) {
  const difference = combine(refined, small, (r, s) => r - s);
  const [m, d] = [boxMean(small), boxMean(difference)];
  const product = boxMean(combine(small, difference, (s, x) => s * x));
  const square = boxMean(combine(small, small, (a, b) => a * b));
  const slope = { ...m, data: new Float32Array(m.data.length) };
  const offset = { ...m, data: new Float32Array(m.data.length) };
  for (let i = 0; i < m.data.length; i++) {
    const variance = square.data[i] - m.data[i] ** 2;
    slope.data[i] = (product.data[i] - m.data[i] * d.data[i]) / (variance + 1e-4);
    offset.data[i] = d.data[i] - slope.data[i] * m.data[i];
  }
  const size = full.width * full.height;
  const [means, bases] = [boxMean(slope), boxMean(offset)];
  for (let c = 0; c < 3; c++) {
    // a plane at a time and in place: a photograph of 12 megapixels has 144 MB
    const [a, b] = [means, bases].map((x) => resize(plane(x, c), full.width, full.height));
    const values = full.data.subarray(c * size, (c + 1) * size);
    for (let i = 0; i < size; i++) {
      const value = values[i] + a.data[i] * values[i] + b.data[i];
      values[i] = Math.min(1, Math.max(0, value));
    }
  }
  return full;
}
