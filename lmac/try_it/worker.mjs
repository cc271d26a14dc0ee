// Explains in a thread of its own, so that the page stays alive: loads onnxruntime and an explainer, runs the graph, draws the pictures.
import { STFT, base64, joined, readExplainer, remask, stretches, wav } from './explain.mjs'

const FADE_S = 0.01
let ort = null, providers = ['wasm'], session = null, about = null, stft = null, runs = null, newest = 0   // `runs`: of the recording in hand, a stretch each

const say = (kind, more = {}) => postMessage({ kind, ...more })

// A file of this site, with progress; what was packed is unpacked here, so that it is small whatever the server does.
async function fetched(name, from, share) {
  const answer = await fetch(name)
  if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}). Without a network the page works after its first visit.`)
  const total = +answer.headers.get('content-length') || 0, reader = answer.body.getReader(), pieces = []
  let n = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) break
    pieces.push(value); n += value.length
    if (total) say('progress', { what: 'loading', share: from + share * Math.min(n / total, 1) })
  }
  const packed = new Blob(pieces), magic = new Uint8Array(await packed.slice(0, 2).arrayBuffer())
  const whole = magic[0] === 0x1f && magic[1] === 0x8b ? new Response(packed.stream().pipeThrough(new DecompressionStream('gzip'))) : new Response(packed)
  return new Uint8Array(await whole.arrayBuffer())
}

async function runtime(gpu) {
  if (ort) return
  const adapter = gpu && (await navigator.gpu?.requestAdapter().catch(() => null))
  const name = adapter ? 'ort-gpu' : 'ort'
  ort = await import(`./vendor/${name}.mjs`)
  Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: (await fetched(`vendor/${name}.wasm.gz`, 0, 0.4)).buffer })
  ort.env.logLevel = 'error'
  providers = adapter ? ['webgpu', 'wasm'] : ['wasm']
}

async function load({ file, gpu }) {
  const bytes = file ? new Uint8Array(file) : null, given = bytes && (await readExplainer(bytes))   // before anything large is loaded
  await runtime(gpu)
  const data = bytes ?? (await fetched('vendor/explainer.onnx', 0.4, 0.5)), said = given ?? (await readExplainer(data))
  say('progress', { what: 'preparing', share: 0.95 })
  let made
  try { made = await ort.InferenceSession.create(data, { executionProviders: providers, logSeverityLevel: 3 }) }
  catch (e) { throw new Error(`This explainer can't be computed in a browser: ${String(e.message ?? e).split('\n')[0].slice(0, 200)}`) }
  await session?.release()
  ;[session, about, stft, runs] = [made, said, new STFT(said.stft), null]
  say('loaded', { about, provider: providers[0] })
}

async function graph(x, target, threshold = -1) {            // one stretch, padded where it is shorter than a clip
  const size = about.length ?? Math.max(x.length, Math.floor(about.duration_s * about.sample_rate)), clip = new Float32Array(size)
  clip.set(x.subarray(0, size))
  const found = await session.run({ waveform: new ort.Tensor('float32', clip, [1, size]), class_index: new ort.Tensor('int64', [BigInt(target)], [1]), threshold: new ort.Tensor('float32', [threshold], []) })
  const take = (name) => found[name].data
  return { clip, n: x.length, target: Number(take('class')[0]), p: take('probabilities'), mask: take('mask'), inside: take('masked_in').slice(0, x.length), outside: take('masked_out').slice(0, x.length),
    p_in: take('probabilities_masked_in'), p_out: take('probabilities_masked_out') }
}
const mean = (rows) => Float32Array.from(rows[0], (_, i) => rows.reduce((s, r) => s + r[i], 0) / rows.length)
const argmax = (x) => x.reduce((best, v, i) => (v > x[best] ? i : best), 0)

function whole(parts) { return joined(parts, runs.places, runs.n, Math.floor(FADE_S * about.sample_rate)) }

async function explain({ id, samples, target, threshold }) {
  newest = id
  const longest = about.length ?? Math.floor(about.longest_s * about.sample_rate), shortest = Math.floor(about.duration_s * about.sample_rate)
  const places = stretches(samples.length, longest, shortest), parts = []
  for (const [a, b] of places) {
    say('progress', { what: 'explaining', share: parts.length / places.length })
    parts.push(await graph(samples.subarray(a, b), target ?? -1))
    if (id !== newest) return
  }
  const p = mean(parts.map((r) => r.p)), chosen = target ?? argmax(p)
  for (const [i, [a, b]] of places.entries()) if (parts[i].target !== chosen) parts[i] = await graph(samples.subarray(a, b), chosen)
  runs = { id, places, parts, n: samples.length, p, chosen, samples, spectra: places.map(() => null) }
  const rounds = about.rounds && threshold !== null
  await answer(rounds ? remasked(threshold) : { inside: whole(parts.map((r) => r.inside)), outside: whole(parts.map((r) => r.outside)) }, rounds ? threshold : null)
}

function spectrum(i) { return (runs.spectra[i] ??= stft.analyse(runs.parts[i].clip)) }
function remasked(threshold) {
  const parts = runs.parts.map((r, i) => remask(stft, spectrum(i), r.mask, threshold, about.domain, r.n))
  return { inside: whole(parts.map((x) => x[0])), outside: whole(parts.map((x) => x[1])) }
}

// First what is heard and seen, at once; then what the classifier says to it, which takes as long as the explanation did.
async function answer({ inside, outside }, threshold) {
  const { id, p, chosen, samples, parts } = runs, peak = Math.max(1, top(inside), top(outside))
  if (peak > 1) for (const x of [inside, outside]) x.forEach((v, i) => { x[i] = v / peak })
  const sounds = [samples, inside, outside].map((x) => base64(wav(x, about.sample_rate)))
  say('heard', { id, sounds, gains: gains([samples, inside, outside]), pictures: await pictures(threshold), p, target: chosen, threshold, seconds: samples.length / about.sample_rate, raw: { input: samples.slice(), inside: inside.slice(), outside: outside.slice() } })
  const rounded = threshold === null ? parts : await Promise.all(runs.places.map(async ([a, b]) => graph(samples.subarray(a, b), chosen, threshold)))
  if (id !== newest) return
  const heard = []
  for (const [a, b] of runs.places) { heard.push((await graph(inside.subarray(a, b), chosen)).p[chosen]); if (id !== newest) return }
  const average = (x) => x.reduce((s, v) => s + v, 0) / x.length
  say('judged', { id, threshold, found: { p: p[chosen], p_in: average(rounded.map((r) => r.p_in[chosen])), p_out: average(rounded.map((r) => r.p_out[chosen])), kept: average(rounded.map(kept)), p_heard: average(heard), silent: !samples.some((v) => v) },
    label: about.labels[chosen], predicted: about.labels[argmax(p)], top: Math.max(...p), window_s: runs.places.length > 1 ? about.longest_s : null })
}
const top = (x) => x.reduce((m, v) => Math.max(m, Math.abs(v)), 0)
function kept(r) {                                           // mean of the mask over the frames of the recording, as `Explanation.kept`
  const frames = r.mask.length / stft.freqs, n = Math.min(frames, 1 + Math.floor(r.n / stft.hop))
  let sum = 0
  for (let k = 0; k < stft.freqs; k++) for (let t = 0; t < n; t++) sum += r.mask[k * frames + t]
  return sum / (n * stft.freqs)
}
function gains(sounds) {                                     // as loud as the first by its level, by 24 dB at most, and none beyond full scale
  const db = sounds.map((x) => 10 * Math.log10(x.reduce((s, v) => s + v * v, 0) / x.length + 1e-20))
  const raised = db.map((d) => (d > -150 && db[0] > -150 ? 10 ** (Math.min(db[0] - d, 24) / 20) : 1)), highest = Math.max(1, ...sounds.map((x, i) => raised[i] * top(x)))
  return raised.map((g) => g / highest)
}

// The spectrogram in magma over 80 dB, once for a recording, and what the mask leaves out as black above it.
async function png(image) {
  const canvas = new OffscreenCanvas(image.width, image.height)
  canvas.getContext('2d').putImageData(image, 0, 0)
  return `data:image/png;base64,${base64(new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer()))}`
}
function painted(paint) {                                    // `paint(pixel, stretch, frame, bin)`, low frequencies at the bottom
  const frames = runs.parts.map((r, i) => Math.min(spectrum(i).count, 1 + Math.floor(r.n / stft.hop))), width = frames.reduce((a, b) => a + b), { freqs } = stft, image = new ImageData(width, freqs)
  let left = 0
  frames.forEach((n, i) => { for (let t = 0; t < n; t++) for (let k = 0; k < freqs; k++) paint(image.data, 4 * ((freqs - 1 - k) * width + left + t), i, t, k); left += n })
  return png(image)
}
function levels() {
  const { palette } = words, { freqs } = stft
  let peak = 1e-12
  for (const i of runs.parts.keys()) { const { re, im } = spectrum(i); for (let j = 0; j < re.length; j++) peak = Math.max(peak, re[j] ** 2 + im[j] ** 2) }
  return painted((pixels, at, i, t, k) => {
    const { re, im } = spectrum(i), j = t * freqs + k, bright = Math.round(255 * Math.min(1, Math.max(0, 1 + Math.log10((re[j] ** 2 + im[j] ** 2) / peak + 1e-30) / 8)))
    pixels[at] = palette[3 * bright]; pixels[at + 1] = palette[3 * bright + 1]; pixels[at + 2] = palette[3 * bright + 2]; pixels[at + 3] = 255
  })
}
function shade(threshold) {
  return painted((pixels, at, i, t, k) => {
    const { mask } = runs.parts[i], m = mask[(k * mask.length) / stft.freqs + t]
    pixels[at + 3] = 255 * (1 - (threshold === null ? Math.min(1, m) : m > threshold ? 1 : 0))
  })
}
async function pictures(threshold) { return Promise.all([(runs.level ??= levels()), shade(threshold)]) }

let words = null, queue = Promise.resolve()
const acts = {
  words: (message) => { words = message.words },
  load,
  explain,
  threshold: ({ id, threshold }) => { if (!runs) return; newest = runs.id = id; return answer(threshold === null ? { inside: whole(runs.parts.map((r) => r.inside)).slice(), outside: whole(runs.parts.map((r) => r.outside)).slice() } : remasked(threshold), threshold) },
}
onmessage = ({ data }) => {
  if (data.id !== undefined) newest = data.id                // what is under way for an older wish ends early
  queue = queue.then(async () => {
    if (data.id !== undefined && data.id !== newest) return
    try { await acts[data.act](data) } catch (e) { say('error', { id: data.id, act: data.act, message: String(e?.message ?? e) }) }
  })
}
