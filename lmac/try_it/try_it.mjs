// The page: a recording comes in by a file, the microphone or a scene; a worker explains it; the player of everywhere else plays it.
import { sentence } from './explain.mjs'

const $ = (id) => document.getElementById(id), MINUTE = 60
const words = await (await fetch('vendor/words.json')).json().catch(() => null)
const state = { about: null, samples: null, name: '', minutes: 1, target: null, threshold: null, id: 0, answer: null, judged: null, explainer: 'bundled' }
let worker = null, loading = null, player = null, buffer = null, recorder = null

// what is said

function status(text) { $('status').textContent = text }
function complain(text) { $('error').textContent = text; $('error').hidden = !text; if (text) { status(''); busy(null) } }
function busy(share) { $('progress').hidden = share === null; if (share !== null) $('progress').value = share }
const html = (s) => s.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)

// the worker

async function kept() {                                     // whether what is loaded from now on is kept for later; does not wait for long
  if (!navigator.serviceWorker) return
  try {
    await navigator.serviceWorker.register('sw.js')
    if (!navigator.serviceWorker.controller) await Promise.race([new Promise((done) => navigator.serviceWorker.addEventListener('controllerchange', done, { once: true })), new Promise((done) => setTimeout(done, 3000))])
  } catch { /* the page works without it */ }
}
function start() {
  if (worker) return
  worker = new Worker('worker.mjs', { type: 'module' })
  worker.onmessage = ({ data }) => heard[data.kind](data)
  worker.onerror = () => complain('This browser could not start the computation. It needs WebAssembly and module workers: Chrome or Edge 91, Firefox 114, Safari 16.4, or later.')
  worker.postMessage({ act: 'words', words })
}
function load(file = null) {                                // once, or anew for an explainer of one's own
  if (loading && !file) return loading.promise
  const before = loading, mine = loading = {}
  mine.promise = new Promise((done, failed) => Object.assign(mine, { done, failed }))
  mine.promise.catch(() => { loading = before })
  status(WHAT.loading)
  kept().then(() => { start(); worker.postMessage({ act: 'load', file, gpu: $('gpu').checked }, file ? [file] : []) })
  return mine.promise
}
const WHAT = { loading: 'Loading the explainer, once …', preparing: 'Preparing the explainer …', explaining: 'Explaining …' }
const heard = {
  progress: ({ what, share }) => { status(WHAT[what]); busy(share) },
  loaded: ({ about, provider }) => {
    state.about = about
    $('about').textContent = `${state.explainer === 'bundled' ? 'The explainer of the classifier of ten sounds of ESC-10' : state.explainer}: ${about.labels.length} classes at ${about.sample_rate} Hz; licence ${about.licence}; computed by ${provider === 'webgpu' ? 'WebGPU' : 'WebAssembly'}. ${about.labels.slice(0, 12).join(', ')}${about.labels.length > 12 ? ' …' : ''}`
    loading.done()
  },
  error: ({ id, act, message }) => {
    if (act === 'load') { complain(message); loading?.failed(new Error(message)) }
    else if (id === state.id) complain(message)
  },
  heard: (answer) => { if (answer.id === state.id) show(answer) },
  judged: (judged) => {
    if (judged.id !== state.id) return
    state.judged = judged
    const says = $('player').querySelector('.lmac-says')
    if (says) says.textContent = sentence({ ...judged.found, label: judged.label, predicted: judged.predicted, top: judged.top, window_s: judged.window_s }, words)
    document.body.dataset.state = 'judged'
  },
}

// a recording

async function decoded(bytes) {                             // at the explainer's rate, by the browser; the mean of the channels
  try { return await new OfflineAudioContext(1, 1, state.about.sample_rate).decodeAudioData(bytes) } catch { return null }
}
function mono(audio, seconds) {
  const n = Math.min(audio.length, Math.round(seconds * audio.sampleRate)), channels = audio.numberOfChannels, x = new Float32Array(n)
  for (let c = 0; c < channels; c++) { const y = audio.getChannelData(c); for (let i = 0; i < n; i++) x[i] += y[i] / channels }
  return x
}
async function take(file, name, kind = null) {
  complain('')
  document.body.dataset.state = 'busy'
  try {
    const bytes = await file.arrayBuffer()
    if (/\.onnx$/i.test(name)) return await adopt(bytes, name)
    await load()
    buffer = await decoded(bytes)
    if (!buffer) return complain(`${name} could not be read as sound by this browser. Try a WAV, FLAC, MP3, OGG or M4A file, or convert it: ffmpeg -i ${name.replace(/[^\w.-]/g, '_')} sound.wav`)
    if (!buffer.length) return complain(`${name} holds no sound: it is empty.`)
    Object.assign(state, { name, minutes: 1, target: kind?.target ?? null, threshold: kind?.threshold ?? null, scene: kind?.scene ?? null })
    ask()
  } catch (e) { complain(e.message) }
}
async function adopt(bytes, name) {
  const before = state.explainer
  state.explainer = name
  try { await load(bytes) } catch (e) { state.explainer = before; return }
  status(`${name} explains from now on. Drop a recording.`)
  busy(null)
  if (buffer) { buffer = null; $('result').hidden = true }
  document.body.dataset.state = 'adopted'
}
function ask() {
  state.samples = mono(buffer, MINUTE * state.minutes)
  const peak = state.samples.reduce((m, v) => Math.max(m, Math.abs(v)), 0)
  if (!Number.isFinite(peak)) return complain(`${state.name} holds samples that are no numbers.`)
  again()
}
function again() {
  state.id++
  document.body.dataset.state = 'busy'
  status('Explaining …')
  worker.postMessage({ act: 'explain', id: state.id, samples: state.samples, target: state.target, threshold: state.threshold })
}

// what is shown

function figure({ sounds, gains, pictures, seconds }) {      // the markup of `lmac.player.figure_html`
  const { sample_rate: rate, rounds } = state.about, axis = (top, n, unit) => Array.from({ length: n }, (_, i) => `<span>${+((top * i) / (n - 1)).toPrecision(3)}${i === n - 1 ? ` ${unit}` : ''}</span>`)
  const names = ['Input', 'Explanation', 'Residual'], alt = `Spectrogram of the input, darker where the mask leaves it out.`
  const audio = sounds.map((s, i) => `<div>${names[i]}<audio controls preload="none" aria-label="${names[i]}" data-name="${names[i]}" data-gain="${gains[i].toFixed(5)}" src="data:audio/wav;base64,${s}"></audio></div>`)
  return `<figure class="lmac-player" data-duration="${seconds}" data-rate="${rate}" data-header="${rate}" data-speed="1" data-speeds="0.05 0.1 0.2 0.5 1 2 4 8 16"><figcaption class="lmac-title">Why “${html(state.about.labels[state.answer.target])}”? ${html(state.name)}</figcaption>`
    + `<div class="lmac-stage"><div class="lmac-hz" aria-hidden="true">${axis(rate / 2000, 5, 'kHz').reverse().join('')}</div><div class="lmac-view"><div class="lmac-picture"><img class="lmac-spectrogram" alt="${alt}" src="${pictures[0]}"><img class="lmac-mask" alt="" src="${pictures[1]}"></div></div>`
    + `<div class="lmac-s" aria-hidden="true">${axis(seconds, 6, 's').join('')}</div></div><div class="lmac-classes" role="group" aria-label="Class"></div><div class="lmac-sounds" role="group" aria-label="Sound"></div><div class="lmac-tools"></div>`
    + `<p class="lmac-pace" hidden></p><div class="lmac-plain">${audio.join('')}</div><p class="lmac-says" aria-live="polite"></p><p class="lmac-heard" aria-live="polite"></p></figure>`
}
async function show(answer) {
  const fresh = !player
  state.answer = answer
  $('result').hidden = false
  if (fresh) { $('player').innerHTML = figure(answer); player = lmacPlayer($('player').firstElementChild); player.choose(1) }
  else await player.update(figure(answer))
  $('player').querySelector('.lmac-title').textContent = `Why “${state.about.labels[answer.target]}”? ${state.name}`
  const ranked = [...answer.p.keys()].sort((a, b) => answer.p[b] - answer.p[a]), shown = ranked.slice(0, 5)
  if (!shown.includes(answer.target)) shown.push(answer.target)
  const focused = document.activeElement?.dataset?.target
  $('classes').replaceChildren(Object.assign(document.createElement('span'), { textContent: 'What speaks for' }), ...shown.map((k) => {
    const b = Object.assign(document.createElement('button'), { type: 'button', onclick: () => { state.target = k; again() }, disabled: !state.about.class_conditional && k !== ranked[0] })
    b.append(`${state.about.labels[k]} `, Object.assign(document.createElement('span'), { className: 'p', textContent: answer.p[k].toFixed(2) }))
    b.dataset.target = k
    b.setAttribute('aria-pressed', k === answer.target)
    return b
  }))
  if (focused !== undefined) $('classes').querySelector(`[data-target="${focused}"]`)?.focus()
  for (const id of ['threshold-label', 'soft', 'threshold-value']) (id === 'soft' ? $(id).parentElement : $(id)).hidden = !state.about.rounds
  $('soft').checked = state.threshold === null
  $('threshold').disabled = state.threshold === null
  if (state.threshold !== null) $('threshold').value = state.threshold
  $('threshold-value').textContent = state.threshold === null ? '' : (+state.threshold).toFixed(2)
  $('more').hidden = buffer.length <= state.samples.length
  const shownS = answer.seconds, wholeS = buffer.length / buffer.sampleRate
  status(shownS < wholeS - 0.01 ? `Explained: the first ${Math.round(shownS)} s of ${Math.round(wholeS)} s.` : 'Explained. Space plays, 1 to 3 choose what is heard.')
  busy(null)
  document.body.dataset.state = 'heard'
}
function rethreshold(value) {
  if (value === state.threshold) return
  state.threshold = value
  $('threshold').disabled = value === null
  $('threshold-value').textContent = value === null ? '' : value.toFixed(2)
  if (!state.answer) return
  state.id++
  document.body.dataset.state = 'busy'
  worker.postMessage({ act: 'threshold', id: state.id, threshold: value })
}

// hands

const drop = $('drop')
for (const kind of ['dragenter', 'dragover']) document.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.add('over') })
for (const kind of ['dragleave', 'drop']) document.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.remove('over') })
document.addEventListener('drop', (e) => { const file = e.dataTransfer.files[0]; if (file) take(file, file.name); else complain('What was dropped is no file. Drop a recording from a folder of this computer.') })
$('file').addEventListener('change', (e) => { const file = e.target.files[0]; if (file) take(file, file.name); e.target.value = '' })
$('threshold').addEventListener('input', (e) => rethreshold(+e.target.value))
$('soft').addEventListener('change', (e) => rethreshold(e.target.checked ? null : +$('threshold').value))
$('more').addEventListener('click', () => { state.minutes++; state.target = null; ask() })
$('link').addEventListener('click', async () => {
  const said = { ...(state.scene && { scene: state.scene }), ...(state.answer && state.target !== null && { class: state.about.labels[state.target] }), ...(state.threshold !== null && { threshold: state.threshold }) }
  location.hash = new URLSearchParams(said)
  let copied = true
  try { await navigator.clipboard.writeText(location.href) } catch { copied = false }
  status(`${copied ? 'The link is copied' : 'The link is in the address line'}: it keeps class and threshold${state.scene ? '' : ', and not the recording, which stays on this computer'}.`)
})

async function record() {
  if (recorder) return recorder.stop()
  complain('')
  if (!navigator.mediaDevices?.getUserMedia) return complain('This browser gives no microphone to this page: it needs https, or localhost.')
  let stream
  try { stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } }) }
  catch (e) { return complain(e.name === 'NotFoundError' ? 'There is no microphone. Connect one, or choose a file.' : 'The microphone was not allowed. Allow it for this page in the address line of the browser and try again, or choose a file.') }
  const pieces = [], began = performance.now()
  recorder = new MediaRecorder(stream)
  const clock = setInterval(() => { const s = (performance.now() - began) / 1000; status(`Recording, ${s.toFixed(1)} s. Nothing leaves this computer.`); if (s >= MINUTE) recorder?.stop() }, 100)
  recorder.ondataavailable = (e) => pieces.push(e.data)
  recorder.onstop = () => {
    clearInterval(clock)
    for (const track of stream.getTracks()) track.stop()
    recorder = null
    $('record').textContent = 'Record'
    take(new Blob(pieces), 'your recording')
  }
  recorder.start()
  $('record').textContent = 'Stop'
}
$('record').addEventListener('click', record)

async function scene(name, kind = {}) {
  complain('')
  const answer = await fetch(`vendor/${name}.wav`).catch(() => null)
  if (!answer?.ok) return complain(`The scene ${name} could not be loaded. Without a network the page works after its first visit.`)
  await take(await answer.blob(), words.scenes[name], { scene: name, ...kind })
}
function begin() {
  if (!words) return complain('This page was not built: its files are missing. Run `npm ci` and `python docs/page.py`, as CONTRIBUTING.md says.')
  for (const [name, title] of Object.entries(words.scenes)) $('scenes').append(Object.assign(document.createElement('button'), { type: 'button', textContent: title, onclick: () => scene(name) }))
  if (/\/try_it\/(index\.html)?$/.test(location.pathname)) $('home').href = '../nbs/index.html'   // as a part of the site
  const said = new URLSearchParams(location.hash.slice(1)), threshold = said.has('threshold') ? Math.min(1, Math.max(0, +said.get('threshold') || 0)) : null
  if (threshold !== null) { state.threshold = threshold; $('soft').checked = false; $('threshold').disabled = false; $('threshold').value = threshold }
  if (words.scenes[said.get('scene')]) load().then(() => scene(said.get('scene'), { threshold, target: said.has('class') && state.about.labels.includes(said.get('class')) ? state.about.labels.indexOf(said.get('class')) : null })).catch(() => {})
  navigator.gpu?.requestAdapter().then((adapter) => { $('gpu').parentElement.hidden = !adapter }).catch(() => {})
  document.body.dataset.state = 'ready'
}
$('gpu').addEventListener('change', () => { worker?.terminate(); worker = loading = null; if (buffer) load().then(again).catch(() => {}) })
window.lmacTryIt = state                                    // for tests, and for the curious
begin()
