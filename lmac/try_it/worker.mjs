// Explains in a thread of its own, so that the page stays alive: loads onnxruntime and an explainer, runs the graph, draws the pictures.
import './vendor/version.js'                                 // sets VERSION, as in the page: they must be of one
import { STFT, base64, joined, readExplainer, remask, stretches, wav } from './explain.mjs'

const FADE_S = 0.01, WIDEST = 16384                          // pixels of a picture: more than that not every browser has
const STALE = new Error('Something else was asked for meanwhile.')
const runtimes = {}                                          // by name, as they are loaded
let ort = null, session = null, about = null, stft = null, runs = null   // `runs`: of the recording in hand, a stretch each
let wish = { id: 0, turn: 0, threshold: null }, answered = 0, asked = 0   // what is wanted now: which explanation, rounded where, and the how manieth question that is; `asked`: explainers, so far

const say = (kind, more = {}) => postMessage({ kind, ...more })
const breath = () => new Promise((done) => setTimeout(done))  // onnxruntime computes without a pause: only here a newer wish is heard of

// A file of this site, with progress, unless another explainer was asked for meanwhile; what was packed is unpacked here, so that it is small whatever the server does.
async function fetched(name, from, share, current = () => true) {
  const answer = await fetch(name)
  if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status}). Without a network the page works after its first visit.`)
  const total = +answer.headers.get('content-length') || 0, reader = answer.body.getReader(), pieces = []
  let n = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (!current()) { reader.cancel(); throw STALE }
    if (done) break
    pieces.push(value); n += value.length
    if (total) say('progress', { what: 'loading', share: from + share * Math.min(n / total, 1) })
  }
  const packed = new Blob(pieces), magic = new Uint8Array(await packed.slice(0, 2).arrayBuffer())
  const whole = magic[0] === 0x1f && magic[1] === 0x8b ? new Response(packed.stream().pipeThrough(new DecompressionStream('gzip'))) : new Response(packed)
  return new Uint8Array(await whole.arrayBuffer())
}

async function runtime(name) {
  if (runtimes[name]) return runtimes[name]
  const program = await fetched(`vendor/${name}.wasm.gz`, 0, 0.4), made = await import(`./vendor/${name}.mjs`)
  Object.assign(made.env.wasm, { numThreads: 1, proxy: false, wasmBinary: program.buffer })
  made.env.logLevel = 'error'
  return (runtimes[name] = made)                            // only now, so that what could not be loaded is loaded the next time
}

// A session for a file, by the graphics card where `adapter`. Its runtime knows no double precision, which networks on waveforms need: what it can't load, the other one takes.
async function prepared(data, adapter) {
  const made = await runtime(adapter ? 'ort-gpu' : 'ort')
  try { return [made, adapter, await made.InferenceSession.create(data, { executionProviders: adapter ? ['webgpu', 'wasm'] : ['wasm'], logSeverityLevel: 3 })] }
  catch (e) {
    if (adapter) return prepared(data, false)
    throw new Error(`This explainer can't be computed in a browser: ${line(e)}`)
  }
}

async function load({ file, gpu, number }) {
  if (version !== self.VERSION) throw new Error('There is a new version of this page. Load it again.')   // which came between the page and this worker
  const bytes = file ? new Uint8Array(file) : null, given = bytes && (await readExplainer(bytes))   // before anything large is loaded
  const adapter = gpu && !!(await navigator.gpu?.requestAdapter().catch(() => null))
  await runtime(adapter ? 'ort-gpu' : 'ort')
  const data = bytes ?? (await fetched('vendor/explainer.onnx', 0.4, 0.5, () => number === asked)), said = given ?? (await readExplainer(data))
  say('progress', { what: 'preparing', share: 0.95 })
  const [made, card, one] = await prepared(data, adapter)
  await session?.release()
  ;[ort, session, about, stft, runs] = [made, one, said, new STFT(said.stft), null]
  say('loaded', { about, by: card ? 'WebGPU' : adapter ? "WebAssembly, since WebGPU can't" : 'WebAssembly' })
}
const line = (e) => String(e?.message ?? e).split('\n')[0].slice(0, 200)

async function graph(current, x, target, threshold = -1) {   // one stretch, padded where it is shorter than a clip; `current()`: whether it is still wanted
  await breath()
  if (!current()) throw STALE
  const size = about.length ?? Math.max(x.length, limits().shortest), clip = new Float32Array(size), n = Math.min(x.length, size)
  clip.set(x.subarray(0, size))
  const given = { waveform: new ort.Tensor('float32', clip, [1, size]), class_index: new ort.Tensor('int64', [BigInt(target)], [1]), threshold: new ort.Tensor('float32', [threshold], []) }
  if (session.inputNames.includes('n_samples')) given.n_samples = new ort.Tensor('int64', [BigInt(n)], [])   // where the classifier hears padding as sound
  let found
  try { found = await session.run(given) }
  catch (e) { throw new Error(`This explainer could not be computed for this recording${/memory|alloc|bounds/i.test(e?.message ?? e) ? ': it needs more memory than the browser gives. Take a shorter recording' : ` (${line(e)}). Take another recording, or export the explainer again`}.`) }
  const take = (name) => found[name].data
  if (take('probabilities').some(Number.isNaN)) throw new Error('This explainer gives no numbers for this recording. Take another one, or train the explainer again.')
  return { clip, n: x.length, target: Number(take('class')[0]), p: take('probabilities'), mask: take('mask'), inside: take('masked_in').slice(0, x.length), outside: take('masked_out').slice(0, x.length),
    p_in: take('probabilities_masked_in'), p_out: take('probabilities_masked_out') }
}
const limits = () => ({ shortest: Math.round(about.duration_s * about.sample_rate), longest: about.length ?? Math.round(about.longest_s * about.sample_rate) })   // of one pass, in samples
const shares = (places, n) => places.map(([, b], i) => (b - (i ? places[i - 1][1] : 0)) / n)   // of a recording, what the stretch before has not
const mean = (rows, share) => Float32Array.from(rows[0], (_, i) => rows.reduce((s, r, j) => s + share[j] * r[i], 0))
const argmax = (x) => x.reduce((best, v, i) => (v > x[best] ? i : best), 0)

function whole(parts) { return joined(parts, runs.places, runs.n, Math.floor(FADE_S * about.sample_rate)) }

async function explain({ id, of, samples, target }) {
  const current = () => id === wish.id, { longest, shortest } = limits()
  const places = stretches(samples.length, longest, shortest), share = shares(places, samples.length), parts = []
  const known = new Map(runs?.of === of ? runs.places.map((place, i) => [`${place}`, runs.parts[i]]) : [])   // another minute, or class, of the same recording
  for (const [a, b] of places) {
    say('progress', { what: 'explaining', share: parts.length / places.length })
    parts.push(known.get(`${[a, b]}`) ?? (await graph(current, samples.subarray(a, b), target ?? -1)))
  }
  const p = mean(parts.map((r) => r.p), share), chosen = target ?? argmax(p)
  for (const [i, [a, b]] of places.entries()) if (parts[i].target !== chosen) parts[i] = await graph(current, samples.subarray(a, b), chosen)
  runs = { id, of, places, share, parts, n: samples.length, p, chosen, samples, spectra: places.map(() => null) }
  await answer()
}

function spectrum(i) { return (runs.spectra[i] ??= stft.analyse(runs.parts[i].clip)) }
function sounds(threshold) {                                  // of both parts
  const parts = runs.parts.map((r, i) => (threshold === null ? [r.inside, r.outside] : remask(stft, spectrum(i), r.mask, threshold, about.domain, r.n)))
  return [0, 1].map((k) => whole(parts.map((x) => x[k])).slice())
}

// First what is heard and seen, at once; then what the classifier says to it, which takes as long as the explanation did. To the latest wish, and once.
async function answer() {
  const { id, turn, threshold } = wish
  if (turn === answered) return
  if (runs?.id !== id) return say('lost', { turn })
  answered = turn
  const current = () => turn === wish.turn, { places, share, p, chosen, samples, parts } = runs, [inside, outside] = sounds(threshold), peak = Math.max(1, top(inside), top(outside))
  if (peak > 1) for (const x of [inside, outside]) x.forEach((v, i) => { x[i] = v / peak })
  const files = [samples, inside, outside].map((x) => base64(wav(x, about.sample_rate)))
  say('heard', { turn, sounds: files, gains: gains([samples, inside, outside]), pictures: await pictures(threshold), p, target: chosen, threshold, seconds: samples.length / about.sample_rate, raw: { input: samples.slice(), inside: inside.slice(), outside: outside.slice() } })
  const rounded = threshold === null ? parts : [], heard = []
  if (threshold !== null) for (const [a, b] of places) rounded.push(await graph(current, samples.subarray(a, b), chosen, threshold))   // one after the other: a graphics card takes no two at once
  for (const [a, b] of places) heard.push((await graph(current, inside.subarray(a, b), chosen)).p[chosen])
  const average = (x) => x.reduce((s, v, i) => s + share[i] * v, 0), { sample_rate: rate, heard_s, padded_s } = about, seconds = samples.length / rate
  say('judged', { turn, threshold, found: { p: p[chosen], p_in: average(rounded.map((r) => r.p_in[chosen])), p_out: average(rounded.map((r) => r.p_out[chosen])), kept: kept(rounded), p_heard: average(heard), silent: !samples.some((v) => v) },
    label: about.labels[chosen], predicted: about.labels[argmax(p)], top: Math.max(...p), window_s: places.length > 1 ? limits().longest / rate : null,
    heard_s: places.length === 1 && heard_s && Math.floor((heard_s * rate) / stft.hop) < Math.floor(samples.length / stft.hop) ? heard_s : null, padding_s: Math.max(0, (padded_s ?? 0) - seconds) })
}
const top = (x) => x.reduce((m, v) => Math.max(m, Math.abs(v)), 0)
function kept(parts) {                                       // mean of the masks over the frames of the recording, as `Explanation.kept`; where two overlap, of the later one
  let sum = 0, count = 0
  parts.forEach(({ n, mask }, i) => {
    const frames = mask.length / stft.freqs, next = runs.places[i + 1], own = next ? Math.round((next[0] - runs.places[i][0]) / stft.hop) : 1 + Math.floor(n / stft.hop), m = Math.min(frames, own)
    for (let k = 0; k < stft.freqs; k++) for (let t = 0; t < m; t++) sum += mask[k * frames + t]
    count += m * stft.freqs
  })
  return sum / count
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
function painted(paint) {                                    // `paint(pixels, at, stretch, frame, bin)`, low frequencies at the bottom; of a long recording not every frame
  const frames = runs.parts.map((r, i) => Math.min(spectrum(i).count, 1 + Math.floor(r.n / stft.hop))), n = frames.reduce((a, b) => a + b), width = Math.min(n, WIDEST), { freqs } = stft, image = new ImageData(width, freqs)
  for (let x = 0, i = 0, first = 0; x < width; x++) {
    const frame = Math.floor((x * n) / width)
    while (frame - first >= frames[i]) first += frames[i++]
    for (let k = 0; k < freqs; k++) paint(image.data, 4 * ((freqs - 1 - k) * width + x), i, frame - first, k)
  }
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

let words = null, version = null, queue = Promise.resolve()
const acts = { words: (message) => { ({ words, version } = message) }, load, explain, threshold: answer }
onmessage = ({ data }) => {
  if (data.turn) wish = data                                 // what is under way for an older wish ends at its next breath
  if (data.act === 'load') data.number = ++asked
  queue = queue.then(async () => {
    if (data.id && data.id !== wish.id) return
    try { await acts[data.act](data) } catch (e) { if (e !== STALE || data.act === 'load') say('error', { turn: data.turn, act: data.act, message: String(e?.message ?? e) }) }
  })
}
