// The page: a recording comes in by a file, the microphone or a scene; a worker explains it; the player of everywhere else plays it.
import { readExplainer, sentence } from './explain.mjs'

const $ = (id) => document.getElementById(id), MINUTE = 60
const MOST = 2e7, SLOWED = 6e6                               // samples of a recording, as its sounds have to fit into the page; of one that is slowed down, as this takes a moment
const words = await fetch('vendor/words.json').then((answer) => answer.json()).catch(() => null)
// Everything takes time, and meanwhile something else may be asked for. `wanted` is the recording, or the explainer, that was asked for last: what was begun
// for another is dropped. `turn` counts what the worker is asked; an answer to anything but the latest is dropped.
const NOTHING = { samples: null, target: null, threshold: null }
const state = { about: null, own: null, turn: 0, wanted: NOTHING, asked: NOTHING, shown: null, answer: null, judged: null }   // `own`: explainer of one's own; `asked`: recording that the worker has; `shown`: that is seen and heard
let worker = null, loading = null, ready = null, waiting = [], player = null, recording = null, linked = {}

// what is said

function status(text) { if ($('status').textContent !== text) $('status').textContent = text }   // it is read aloud
function note(text) { $('note').textContent = text; $('note').hidden = !text }
function complain(text) { $('error').textContent = text; $('error').hidden = !text; if (text) status('') }
function busy(share) { $('progress').hidden = share === null; if (share !== null) $('progress').value = share }
function mark(name) { document.body.dataset.state = name }
function settle() { busy(null); mark(!state.shown ? 'ready' : state.judged ? 'judged' : 'heard') }
const html = (s) => s.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)

// the worker

let keeping = null
function kept() {                                           // whether what is loaded from now on is kept for later; does not wait for long
  return (keeping ??= (async () => {
    const all = navigator.serviceWorker
    if (!all) return
    try {
      const { active } = await all.register('sw.js', { updateViaCache: 'none' })
      if (!all.controller && !active) await Promise.race([new Promise((done) => all.addEventListener('controllerchange', done, { once: true })), new Promise((done) => setTimeout(done, 3000))])
      if (!all.controller) all.ready.then((it) => loading?.promise.then(() => it.active.postMessage('keep'))).catch(() => {})   // it came too late, and gets what was loaded from the browser's cache
    } catch { /* the page works without it */ }
  })())
}
function start() {
  if (worker) return
  worker = new Worker('worker.mjs', { type: 'module' })
  worker.onmessage = ({ data }) => heard[data.kind](data)
  worker.onerror = () => stop(new Error('This browser could not start the computation. Without a network the page works after its first visit; and it needs WebAssembly and module workers: Chrome or Edge 91, Firefox 114, Safari 16.4, or later.'))
  worker.postMessage({ act: 'words', words, version: self.VERSION })
}
function stop(error) {                                      // what waits for the worker hears why; who asks for something next gets another worker
  worker?.terminate()
  worker = loading = ready = null
  for (const one of waiting.splice(0)) one.failed(error)
}
function load(own) {                                        // once, or anew for an explainer of one's own: its name and bytes
  if (loading && !own) return loading.promise
  const mine = loading = { own: own ?? state.own }
  mine.promise = new Promise((done, failed) => Object.assign(mine, { done, failed }))
  mine.promise.catch(() => { if (loading === mine) loading = ready })
  waiting.push(mine)
  status(WHAT.loading)
  kept().then(() => {
    if (!waiting.includes(mine)) return
    start()
    worker.postMessage({ act: 'load', file: mine.own?.bytes ?? null, gpu: $('gpu').checked })
  })
  return mine.promise
}
function reload() {                                         // what is there, or under way, by another runtime
  const before = loading, others = waiting.splice(0)
  stop()
  if (!before) return
  const promise = load(before.own)
  for (const one of others) one.done(promise)
  if (state.wanted.samples) again(); else if (!others.length) promise.then(() => status(''), (e) => complain(e.message)).then(settle)
}
const WHAT = { loading: 'Loading the explainer, once …', preparing: 'Preparing the explainer …', explaining: 'Explaining …' }
const heard = {
  progress: ({ what, share }) => { status(WHAT[what]); busy(share) },
  loaded: ({ about, by }) => {
    const mine = ready = waiting.shift(), other = mine.own !== state.own
    Object.assign(state, { about, own: mine.own })
    const whose = mine.own ? mine.own.name : self.SERVED ? 'The explainer that is served here' : 'The explainer of the classifier of ten sounds of ESC-10'
    $('about').textContent = `${whose}: ${about.labels.length} classes at ${about.sample_rate} Hz; licence ${about.licence}; computed by ${by}. ${about.untrained ? `${UNTRAINED} ` : ''}${about.labels.slice(0, 12).join(', ')}${about.labels.length > 12 ? ' …' : ''}`
    if (other) clear()
    mine.done()
  },
  error: ({ act, turn, message }) => {
    if (act === 'load') {
      waiting.shift().failed(new Error(message))
      if (!ready && !waiting.length) stop()                 // a browser keeps what failed: another worker tries it anew
    } else if (turn === state.turn) {
      stop()                                                // after a failure the runtime may be of no use
      fail(message)
    }
  },
  lost: ({ turn }) => { if (turn === state.turn) again() },
  heard: (answer) => { if (answer.turn === state.turn) show(answer) },
  judged: (judged) => {
    if (judged.turn !== state.turn) return
    state.judged = judged
    const says = $('player').querySelector('.lmac-says')
    if (says) says.textContent = `${sentence({ ...judged, ...judged.found }, words)}${state.about.untrained ? ` ${UNTRAINED}` : ''}`
    settle()
  },
}
const UNTRAINED = 'Its decoder is not trained: its masks mean nothing.'

// a recording

async function decoded(bytes) {                             // at the explainer's rate, by the browser; the mean of the channels
  try { return await new OfflineAudioContext(1, 1, state.about.sample_rate).decodeAudioData(bytes) } catch { return null }
}
function mono(audio, n) {
  const channels = audio.numberOfChannels, x = new Float32Array(n)
  for (let c = 0; c < channels; c++) { const y = audio.getChannelData(c); for (let i = 0; i < n; i++) x[i] += y[i] / channels }
  return x
}
async function take(coming, name, more = {}) {              // `coming`: the promise of a file's bytes
  const mine = state.wanted = { ...NOTHING, name, minutes: 1, scene: null, ...more }, left = () => mine !== state.wanted
  mine.of = ++state.turn
  complain('')
  note('')
  mark('busy')
  try {
    const bytes = await coming
    if (left()) return
    if (/\.onnx$/i.test(name)) return await adopt(bytes, name, left)
    await load()
    if (left()) return
    const audio = await decoded(bytes)
    if (left()) return
    if (!audio) throw new Error(more.unread ?? `${name} could not be read as sound by this browser. Try a WAV, FLAC, MP3, OGG or M4A file, or convert it: ffmpeg -i ${name.replace(/[^\w.-]/g, '_')} sound.wav`)
    if (!audio.length) throw new Error(`${name} holds no sound: it is empty.`)
    mine.audio = audio
    follow(mine)
    ask(mine, 1)
  } catch (e) { if (!left()) fail(e.message) }
}
async function adopt(bytes, name, left) {
  await readExplainer(new Uint8Array(bytes))                // before anything is loaded for it
  if (left()) return
  await load({ name, bytes })
  if (left()) return
  status(`${name} explains from now on. ${state.about.untrained ? `${UNTRAINED} ` : ''}Drop a recording.`)
  busy(null)
  mark('adopted')
}
function clear() {                                          // another explainer: nothing is known of what is shown
  player?.pause()
  $('result').hidden = true
  Object.assign(state, { shown: null, asked: NOTHING, answer: null, judged: null, turn: state.turn + 1 })
  if (state.wanted.samples) state.wanted = NOTHING
}
function fail(text) {                                       // back to what was asked before, which is finished where it was not
  complain(text)
  state.wanted = state.asked = worker ? state.asked : state.shown ?? NOTHING
  if (state.asked.samples && worker && (state.asked !== state.shown || !state.judged)) again(false); else settle()
}
function follow(mine) {                                     // what a link asks for, of the first recording
  const { threshold, label } = linked, { labels } = state.about
  linked = {}
  if (threshold !== undefined) mine.threshold ??= threshold
  if (label === undefined) return
  if (labels.includes(label)) mine.target = labels.indexOf(label)
  else note(`The explainer has no class '${label}': that of the link is left out.`)
}
function ask(mine, minutes) {
  const samples = mono(mine.audio, Math.min(mine.audio.length, Math.round(MINUTE * minutes * mine.audio.sampleRate), MOST))
  if (!Number.isFinite(samples.reduce((m, v) => Math.max(m, Math.abs(v)), 0))) throw new Error(`${mine.name} holds samples that are no numbers.`)
  Object.assign(mine, { samples, minutes })
  again()
}
async function again(anew = true) {                         // explain what is wanted; or, where that was done, round it otherwise
  const mine = state.asked = state.wanted, turn = ++state.turn
  if (anew) mine.id = turn
  mark('busy')
  if (anew) status(WHAT.explaining)
  try { await load() } catch (e) { if (turn === state.turn) fail(e.message); return }
  if (turn === state.turn) worker.postMessage({ act: anew ? 'explain' : 'threshold', id: mine.id, turn, threshold: mine.threshold, ...(anew && { of: mine.of, samples: mine.samples, target: mine.target }) })
}

// what is shown

const axis = (top, n, unit) => Array.from({ length: n }, (_, i) => `<span>${+((top * i) / (n - 1)).toPrecision(3)}${i === n - 1 ? ` ${unit}` : ''}</span>`)
function axes(seconds) { return { '.lmac-hz': axis(state.about.sample_rate / 2000, 5, 'kHz').reverse().join(''), '.lmac-s': axis(seconds, 6, 's').join('') } }
function speeds(seconds) {                                  // what the player need not resample, or is through with soon
  const rate = state.about.sample_rate, plain = (s) => rate * s >= 8000 && rate * s <= 96000
  return [0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16].filter((s) => plain(s) || seconds * Math.max(rate, 48000 / s) <= SLOWED)
}
function figure({ sounds, gains, pictures, seconds }) {      // the markup of `lmac.player.figure_html`
  const { sample_rate: rate } = state.about, sides = axes(seconds)
  const names = ['Input', 'Explanation', 'Residual'], alt = `Spectrogram of the input, darker where the mask leaves it out.`
  const audio = sounds.map((s, i) => `<div>${names[i]}<audio controls preload="none" aria-label="${names[i]}" data-name="${names[i]}" data-gain="${gains[i].toFixed(5)}" src="data:audio/wav;base64,${s}"></audio></div>`)
  return `<figure class="lmac-player" data-duration="${seconds}" data-rate="${rate}" data-header="${rate}" data-speed="1" data-speeds="${speeds(seconds).join(' ')}"><figcaption class="lmac-title">Why “${html(state.about.labels[state.answer.target])}”? ${html(state.shown.name)}</figcaption>`
    + `<div class="lmac-stage"><div class="lmac-hz" aria-hidden="true">${sides['.lmac-hz']}</div><div class="lmac-view"><div class="lmac-picture"><img class="lmac-spectrogram" alt="${alt}" src="${pictures[0]}"><img class="lmac-mask" alt="" src="${pictures[1]}"></div></div>`
    + `<div class="lmac-s" aria-hidden="true">${sides['.lmac-s']}</div></div><div class="lmac-classes" role="group" aria-label="Class"></div><div class="lmac-sounds" role="group" aria-label="Sound"></div><div class="lmac-tools"></div>`
    + `<p class="lmac-pace" hidden></p><div class="lmac-plain">${audio.join('')}</div><p class="lmac-says" aria-live="polite"></p><p class="lmac-heard" aria-live="polite"></p></figure>`
}
function place(answer) {                                    // the player: position, loop and choices stay while the recording does
  const part = (selector) => $('player').querySelector(selector)
  if (!player) { $('player').innerHTML = figure(answer); player = lmacPlayer($('player').firstElementChild); player.choose(1); return }
  const allowed = speeds(answer.seconds)
  part('.lmac-player').dataset.speeds = allowed.join(' ')
  if (!allowed.includes(player.state.speed)) player.setSpeed(1)
  part('.lmac-speeds').replaceChildren()                    // so that the player lists them anew
  player.update(figure(answer)).catch(() => {})
  for (const [side, marks] of Object.entries(axes(answer.seconds))) part(side).innerHTML = marks
}
function show(answer) {
  const fresh = state.shown !== state.asked, { about, asked: mine } = state
  if (fresh && player) { player.pause(0); player.setLoop(null) }
  Object.assign(state, { answer, judged: null, shown: mine })
  $('result').hidden = false
  place(answer)
  const ranked = [...answer.p.keys()].sort((a, b) => answer.p[b] - answer.p[a]), shown = ranked.slice(0, 5)
  if (!shown.includes(answer.target)) shown.push(answer.target)
  const focused = document.activeElement?.dataset?.target
  $('classes').replaceChildren(Object.assign(document.createElement('span'), { textContent: 'What speaks for' }), ...shown.map((k) => {
    const b = Object.assign(document.createElement('button'), { type: 'button', onclick: () => explain(k), disabled: !about.class_conditional && k !== ranked[0] })
    b.append(`${about.labels[k]} `, Object.assign(document.createElement('span'), { className: 'p', textContent: answer.p[k].toFixed(2) }))
    b.dataset.target = k
    b.setAttribute('aria-pressed', k === answer.target)
    return b
  }))
  if (focused !== undefined) $('classes').querySelector(`[data-target="${focused}"]`)?.focus()
  slide(mine.threshold)
  const { audio, samples } = mine, whole = audio.length / audio.sampleRate, slowest = speeds(answer.seconds)[0], view = $('player').querySelector('.lmac-view')
  $('more').hidden = audio.length <= samples.length || samples.length >= MOST
  if (fresh && (document.activeElement === document.body || $('drop').contains(document.activeElement))) view.focus({ preventScroll: true })
  status([
    answer.seconds < whole - 0.01 ? `Explained: the first ${Math.round(answer.seconds)} s of ${Math.round(whole)} s${samples.length >= MOST ? ', which is all that fits into a page; lmac-explain takes the whole' : ''}.` : 'Explained.',
    ...(document.activeElement === view ? ['Space plays, 1 to 3 choose what is heard.'] : []),
    ...(slowest > 0.05 ? [`As long as this it can be played ${slowest < 1 ? `${+(1 / slowest).toPrecision(3)} times slower at most` : 'no slower than it was recorded'}.`] : []),
  ].join(' '))
  busy(null)
  mark('heard')
}
function slide(threshold) {                                 // as the slider says it
  $('soft').checked = threshold === null
  $('threshold').disabled = threshold === null
  if (threshold !== null) $('threshold').value = threshold
  $('threshold-value').textContent = threshold === null ? '' : threshold.toFixed(2)
}
function explain(target) {
  if (!state.wanted.samples) return                         // another recording is on its way
  complain('')
  state.wanted.target = target
  again()
}
function rethreshold(value) {
  const { wanted } = state
  if (wanted === NOTHING || value === wanted.threshold) return
  slide(value)
  wanted.threshold = value                                  // of a recording on its way, too
  if (wanted.samples) { complain(''); again(false) }
}

// hands

const drop = $('drop')
for (const kind of ['dragenter', 'dragover']) document.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.add('over') })
for (const kind of ['dragleave', 'drop']) document.addEventListener(kind, (e) => { e.preventDefault(); drop.classList.remove('over') })
document.addEventListener('drop', (e) => { const file = e.dataTransfer.files[0]; if (file) take(file.arrayBuffer(), file.name); else complain('What was dropped is no file. Drop a recording from a folder of this computer.') })
$('file').addEventListener('change', (e) => { const file = e.target.files[0]; if (file) take(file.arrayBuffer(), file.name); e.target.value = '' })
$('threshold').addEventListener('input', (e) => rethreshold(+e.target.value))
$('soft').addEventListener('change', (e) => rethreshold(e.target.checked ? null : +$('threshold').value))
$('more').addEventListener('click', () => {
  const { wanted } = state
  if (!wanted.samples) return
  complain('')
  try { ask(wanted, wanted.minutes + 1) } catch (e) { complain(e.message) }
})
$('link').addEventListener('click', async () => {
  const { scene, target, threshold } = state.shown
  location.hash = new URLSearchParams({ ...(scene && { scene }), ...(target !== null && { class: state.about.labels[target] }), ...(threshold !== null && { threshold }) })
  let copied = true
  try { await navigator.clipboard.writeText(location.href) } catch { copied = false }
  status(`${copied ? 'The link is copied' : 'The link is in the address line'}: it keeps class and threshold${scene ? '' : ', and not the recording, which stays on this computer'}.`)
})

const NO_MICROPHONE = {
  NotFoundError: 'There is no microphone. Connect one, or choose a file.',
  NotReadableError: 'The microphone gives no sound: another program may be using it. Close that and try again, or choose a file.',
}
async function record() {
  if (recording) return recording.stop?.()                  // `{}`: it is being asked for
  complain('')
  if (!navigator.mediaDevices?.getUserMedia) return complain('This browser gives no microphone to this page: it needs https, or localhost.')
  recording = {}
  let stream = null, clock = 0, began = 0
  const pieces = [], ended = () => {
    clearInterval(clock)
    for (const track of stream?.getTracks() ?? []) track.stop()
    recording = null
    $('record').textContent = 'Record'
    $('elapsed').textContent = ''
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } })
    const recorder = new MediaRecorder(stream), seconds = () => (performance.now() - began) / 1000
    recorder.ondataavailable = (e) => { if (e.data.size) pieces.push(e.data) }
    recorder.onstop = () => {
      const lasted = seconds(), nothing = 'Nothing was recorded: it was stopped at once. Press Record, make a sound, then press Stop.'
      ended()
      status('')
      if (pieces.length && lasted > 0.2) take(new Blob(pieces).arrayBuffer(), 'your recording', { unread: nothing }); else complain(nothing)
    }
    player?.pause()                                         // which would be recorded
    recorder.start()
    began = performance.now()
    recording.stop = () => { if (recorder.state !== 'inactive') recorder.stop() }
    clock = setInterval(() => { $('elapsed').textContent = `${seconds().toFixed(1)} s`; if (seconds() >= MINUTE) recording.stop() }, 100)   // beside the status, which is read aloud
  } catch (e) { ended(); return complain(NO_MICROPHONE[e.name] ?? 'The microphone was not allowed. Allow it for this page in the address line of the browser and try again, or choose a file.') }
  status('Recording. Nothing leaves this computer.')
  $('record').textContent = 'Stop'
}
$('record').addEventListener('click', record)

async function fetched(name) {
  const answer = await fetch(`vendor/${name}.wav`).catch(() => null)
  if (!answer?.ok) throw new Error(`The scene ${name} could not be loaded. Without a network the page works after its first visit.`)
  return answer.arrayBuffer()
}
function scene(name) { return take(fetched(name), words.scenes[name], { scene: name }) }
function begin() {
  if (!words) return complain('This page was not built: its files are missing. Run `npm ci` and `python docs/page.py`, as CONTRIBUTING.md says.')
  for (const [name, title] of Object.entries(words.scenes)) $('scenes').append(Object.assign(document.createElement('button'), { type: 'button', textContent: title, onclick: () => scene(name) }))
  if (/\/try_it\/(index\.html)?$/.test(location.pathname)) $('home').href = '../nbs/index.html'   // as a part of the site
  const said = new URLSearchParams(location.hash.slice(1)), [name, label, threshold] = ['scene', 'class', 'threshold'].map((k) => said.get(k)), left = []
  if (threshold !== null) {
    if (threshold.trim() && Number.isFinite(+threshold)) slide(linked.threshold = Math.min(1, Math.max(0, +threshold)))
    else left.push(`The threshold of the link is no number: '${threshold}' is left out.`)
  }
  if (label !== null) linked.label = label
  if (name !== null) { if (Object.hasOwn(words.scenes, name)) scene(name); else left.push(`There is no scene '${name}'. Choose one of those above.`) }
  note(left.join(' '))
  navigator.gpu?.requestAdapter().then((adapter) => { $('gpu').parentElement.hidden = !adapter }).catch(() => {})
  mark('ready')
}
$('gpu').addEventListener('change', reload)
window.lmacTryIt = state                                    // for tests, and for the curious
begin()
