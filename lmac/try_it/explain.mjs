// What an exported explainer says of itself, and the arithmetic around its graph: transform, masks, stretches, verdict. No page, no worker, so that Node can test it.

const MARK = Uint8Array.from([0x72, 0x4a, 0x0a, 0x06, ...'sha256'].map((c) => (typeof c === 'string' ? c.charCodeAt(0) : c)).concat([0x12, 0x40]))

// The metadata of an ONNX file, which is a protocol buffer: of its fields, number 14 are pairs of texts.
export function metadata(bytes) {
  const found = {}, text = new TextDecoder()
  let at = 0
  const number = () => { let x = 0, scale = 1, b; do { b = bytes[at++]; x += (b & 127) * scale; scale *= 128 } while (b & 128); return x }
  while (at < bytes.length) {
    const tag = number(), kind = tag % 8
    if (kind === 0) number()
    else if (kind === 1) at += 8
    else if (kind === 5) at += 4
    else if (kind === 2) {
      const size = number(), end = at + size
      if ((tag >> 3) === 14) {
        const pair = {}
        while (at < end) { const field = number() >> 3, n = number(); pair[field] = text.decode(bytes.subarray(at, at + n)); at += n }
        found[pair[1]] = pair[2]
      }
      at = end
    } else throw new Error('no ONNX')
  }
  return found
}

// Labels, rates and the like of a file of lmac-export; throws an `Error` whose message is for whoever dropped it.
export async function readExplainer(bytes) {
  const end = bytes.length - MARK.length - 64
  if (end < 0 || MARK.some((b, i) => bytes[end + i] !== b)) throw new Error('This is no explainer. A file that lmac-export wrote is wanted: lmac-export EXPLAINER --out explainer.onnx. Other ONNX files have no mask to hear.')
  const said = new TextDecoder().decode(bytes.subarray(end + MARK.length))
  if (globalThis.crypto?.subtle) {
    const sum = [...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes.subarray(0, end)))].map((b) => b.toString(16).padStart(2, '0')).join('')
    if (sum !== said) throw new Error('This explainer is damaged: its checksum does not fit its contents. Export it, or get it, again.')
  }
  const about = Object.fromEntries(Object.entries(metadata(bytes)).filter(([k]) => k !== 'sha256').map(([k, v]) => [k, JSON.parse(v)]))
  return { ...about, sha256: said }
}

// A transform of real frames of any length: radix 2 where the length is a power of two, by its definition where it is not.
class Frames {
  constructor(n) {
    this.n = n
    this.fast = (n & (n - 1)) === 0
    this.cos = Float64Array.from({ length: n }, (_, i) => Math.cos((2 * Math.PI * i) / n))
    this.sin = Float64Array.from({ length: n }, (_, i) => Math.sin((2 * Math.PI * i) / n))
    this.re = new Float64Array(n)
    this.im = new Float64Array(n)
    let bits = Math.log2(n)
    if (this.fast) this.order = Uint32Array.from({ length: n }, (_, i) => { let r = 0; for (let b = 0; b < bits; b++) r |= ((i >> b) & 1) << (bits - 1 - b); return r })
  }
  run(sign) {                                               // in place, of `re` and `im`; sign −1: forward
    const { n, re, im, cos, sin } = this
    if (!this.fast) {
      const x = re.slice(), y = im.slice()
      for (let k = 0; k < n; k++) {
        let a = 0, b = 0
        for (let i = 0, j = 0; i < n; i++, j = (j + k) % n) { const c = cos[j], s = sign * sin[j]; a += x[i] * c - y[i] * s; b += x[i] * s + y[i] * c }
        re[k] = a; im[k] = b
      }
      return
    }
    for (let i = 0; i < n; i++) { const j = this.order[i]; if (j > i) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]] } }
    for (let size = 2; size <= n; size *= 2) {
      const half = size / 2, step = n / size
      for (let start = 0; start < n; start += size) for (let i = 0; i < half; i++) {
        const c = cos[i * step], s = sign * sin[i * step], p = start + i, q = p + half
        const a = re[q] * c - im[q] * s, b = re[q] * s + im[q] * c
        re[q] = re[p] - a; im[q] = im[p] - b; re[p] += a; im[p] += b
      }
    }
  }
}

// The short-time Fourier transform of `lmac.spectrogram.STFT`, and its inverse. Two frames go through one complex transform.
export class STFT {
  constructor({ n_fft, hop_length, win_length = n_fft, window = 'hann', pad_mode = 'constant' }) {
    Object.assign(this, { n: n_fft, hop: hop_length, pad: pad_mode, freqs: (n_fft >> 1) + 1, frames: new Frames(n_fft), window: new Float64Array(n_fft) })
    const [a, b] = window === 'hamming' ? [0.54, 0.46] : [0.5, 0.5], before = (n_fft - win_length) >> 1
    for (let i = 0; i < win_length; i++) this.window[before + i] = a - b * Math.cos((2 * Math.PI * i) / win_length)
  }
  count(length) { return 1 + Math.ceil(length / this.hop) }
  analyse(x) {                                              // `(frame, freq)` real and imaginary parts
    const { n, hop, freqs, window, frames: f } = this, count = this.count(x.length), half = n >> 1
    const end = (count - 1) * hop + (n % 2), re = new Float32Array(count * freqs), im = new Float32Array(count * freqs)
    const sample = (i) => (i < 0 ? (this.pad === 'reflect' ? at(-i) : 0) : i >= end ? (this.pad === 'reflect' ? at(2 * end - 2 - i) : 0) : at(i)), at = (i) => x[i] ?? 0
    for (let t = 0; t < count; t += 2) {
      for (let i = 0; i < n; i++) { f.re[i] = window[i] * sample(t * hop + i - half); f.im[i] = t + 1 < count ? window[i] * sample((t + 1) * hop + i - half) : 0 }
      f.run(-1)
      for (let k = 0; k < freqs; k++) {
        const j = (n - k) % n, a = t * freqs + k, b = a + freqs
        re[a] = (f.re[k] + f.re[j]) / 2; im[a] = (f.im[k] - f.im[j]) / 2
        if (t + 1 < count) { re[b] = (f.im[k] + f.im[j]) / 2; im[b] = (f.re[j] - f.re[k]) / 2 }
      }
    }
    return { re, im, count }
  }
  synthesise(re, im, length) {                              // of `(frame, freq)`
    const { n, hop, freqs, window, frames: f } = this, count = re.length / freqs, half = n >> 1
    const total = new Float64Array((count - 1) * hop + n), weight = new Float64Array(total.length), even = n % 2 === 0
    for (let t = 0; t < count; t += 2) {
      for (let k = 0; k < n; k++) {
        const mirrored = k >= freqs, j = mirrored ? n - k : k, a = t * freqs + j, b = a + freqs, sign = mirrored ? -1 : 1
        const alone = j === 0 || (even && j === half), second = t + 1 < count
        const ar = re[a], ai = alone ? 0 : sign * im[a], br = second ? re[b] : 0, bi = second && !alone ? sign * im[b] : 0
        f.re[k] = ar - bi; f.im[k] = ai + br
      }
      f.run(1)
      for (let i = 0; i < n; i++) {
        total[t * hop + i] += (f.re[i] / n) * window[i]; weight[t * hop + i] += window[i] ** 2
        if (t + 1 < count) { total[(t + 1) * hop + i] += (f.im[i] / n) * window[i]; weight[(t + 1) * hop + i] += window[i] ** 2 }
      }
    }
    return Float32Array.from({ length }, (_, i) => total[half + i] / Math.max(weight[half + i], 1e-11))
  }
}

// Both parts of a clip for a mask `(freq, frame)` that is rounded at a threshold. `spectrum`: from `STFT.analyse` of the clip, padded as it was explained.
export function remask(stft, spectrum, mask, threshold, domain, length) {
  const { re, im, count } = spectrum, { freqs } = stft
  let peak = 0
  if (domain === 'decibel') for (let i = 0; i < re.length; i++) peak = Math.max(peak, Math.hypot(re[i], im[i]))
  const floor = Math.max(1e-3 * peak, 1e-12)                 // where the domain is in decibels, what is left out goes to 60 dB below the loudest bin, as in `lmac.masking`
  return [true, false].map((inside) => {
    const a = new Float32Array(re.length), b = new Float32Array(re.length)
    for (let t = 0; t < count; t++) for (let k = 0; k < freqs; k++) {
      const i = t * freqs + k, kept = (mask[k * count + t] > threshold) === inside
      const gain = kept ? 1 : domain === 'decibel' ? 1 / Math.max(Math.hypot(re[i], im[i]) / floor, 1e-3) : 0
      a[i] = re[i] * gain; b[i] = im[i] * gain
    }
    return stft.synthesise(a, b, length)
  })
}

// Where the stretches of a long recording begin and end, in samples, as in `lmac.scale.export`.
export function stretches(n, longest, shortest) {
  if (n <= longest) return [[0, n]]
  const starts = []
  for (let s = 0; s < n; s += longest) starts.push(s)
  if (n - starts.at(-1) < shortest) starts[starts.length - 1] = n - shortest
  return starts.map((s) => [s, Math.min(s + longest, n)])
}

// Sounds of stretches, each fading into the next.
export function joined(parts, places, n, fade) {
  if (parts.length === 1) return parts[0]
  const whole = new Float64Array(n), weight = new Float64Array(n)
  places.forEach(([a, b], p) => { for (let i = 0; i < b - a; i++) { const share = Math.min((Math.min(i, b - a - 1 - i) + 1) / fade, 1); whole[a + i] += share * parts[p][i]; weight[a + i] += share } })
  return Float32Array.from(whole, (x, i) => x / weight[i])
}

// The verdict and the sentence of `lmac.explanation`, whose words and thresholds the page has from there.
export function verdict({ p, p_in, p_out, kept, p_heard, silent }, t) {
  if (silent) return 'the recording is silent'
  if (!(p >= t.likely)) return 'the class was not likely'
  if (!(p_out <= t.rest * p)) return 'the rest is as convincing'
  if (!(p_in >= t.part * p)) return 'the part is not enough'
  if (kept > t.kept) return 'keeps too much'
  if (p_heard !== undefined && !(p_heard >= t.heard * p_in)) return 'the sound is not what was scored'
  return 'explains'
}
export function sentence({ label, predicted, top, window_s, heard_s, padding_s, ...found }, words) {
  const f = (x) => x.toFixed(2), { p, p_out, kept, p_heard, silent } = found
  if (silent) return `The recording is silent. There is nothing to explain: '${label}' is what the classifier says to silence.`
  const padded = padding_s ? ` of the clip and ${padding_s.toFixed(1)} s of padding, which it hears as sound,` : ''
  const when = window_s ? ` on average over windows of ${+window_s.toPrecision(6)} s` : heard_s ? ` of the first ${heard_s.toFixed(1)} s, which is what it hears,` : ''
  const says = `The classifier says '${predicted}'${when}${padded} with a probability of ${f(top)}`
  const parts = `On the explanation alone, ${Math.round(100 * kept)}% of the spectrogram, it is ${f(p_heard)}; on the rest, ${f(p_out)}.`
  let more = words.verdicts[verdict(found, words.thresholds)]
  more = more ? ` ${more}` : ''
  if (label === predicted) return `${says}. ${parts}${more}`
  if (p_heard <= 0.5) more = ` Not much in this recording speaks for '${label}'.`
  return `${says}. This explains '${label}', which has ${f(p)}. ${parts}${more}`
}

// A sound as a WAV file of 32-bit floats, which every browser decodes to the same samples.
export function wav(samples, rate) {
  const data = new DataView(new ArrayBuffer(44 + 4 * samples.length)), text = (at, s) => [...s].forEach((c, i) => data.setUint8(at + i, c.charCodeAt(0)))
  text(0, 'RIFF'); data.setUint32(4, 36 + 4 * samples.length, true); text(8, 'WAVEfmt ')
  data.setUint32(16, 16, true); data.setUint16(20, 3, true); data.setUint16(22, 1, true); data.setUint32(24, rate, true); data.setUint32(28, 4 * rate, true)
  data.setUint16(32, 4, true); data.setUint16(34, 32, true); text(36, 'data'); data.setUint32(40, 4 * samples.length, true)
  new Float32Array(data.buffer, 44).set(samples)
  return new Uint8Array(data.buffer)
}
export function base64(bytes) {
  let s = ''
  for (let i = 0; i < bytes.length; i += 0x8000) s += String.fromCharCode(...bytes.subarray(i, i + 0x8000))
  return btoa(s)
}
