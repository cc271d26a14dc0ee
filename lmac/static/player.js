// The player: makes a figure of pictures and <audio> elements one instrument with a playhead.
//
// The figure is plain HTML made by `lmac.player.figure_html` and works without this script, as a picture with audio elements.
// The script takes the sounds out of these elements, plays all of them at once, in step to the sample, and lets one be heard. So the
// position survives a switch by construction. Sounds may be played slower or faster than they were recorded (`data-speed`); all times here are
// those of the recording, but for those of the audio clock. Where there are several classes, each brings sounds and a layer of the picture of its own, and
// one class, or all in colours, is chosen at a time. `lmacPlayer(figure)` returns what a widget or a test needs to drive it.
function lmacPlayer(figure) {
  if (figure.lmac) return figure.lmac
  const $ = (selector) => figure.querySelector(selector)
  const view = $('.lmac-view'), buttons = $('.lmac-sounds'), tools = $('.lmac-tools')
  const FADE = 0.008                                        // seconds, against clicks
  let context, recorded = [], buffers = [], nodes = [], names = [], levels = [], owners = []   // owners: the class of each sound, undefined for those of all
  let speed = +(figure.dataset.speed ?? 1), chosen = false  // as recorded: 1
  let current = 0, shownClass = 'all', playing = false, startedAt = 0, offset = 0, loop = null, matched = true, ready = null, frame = 0

  const element = (tag, attributes = {}, ...children) => {
    const e = document.createElement(tag)
    for (const [k, v] of Object.entries(attributes)) k.startsWith('on') ? e.addEventListener(k.slice(2), v) : e.setAttribute(k, v)
    e.append(...children)
    return e
  }
  const duration = () => +figure.dataset.duration
  const clamp = (t) => Math.min(Math.max(t, 0), duration())
  const shown = (t) => `${t.toFixed(duration() < 1 ? 3 : 1)} s`
  const words = (s) => (s === 1 ? 'as recorded' : s < 1 ? `${+(1 / s).toPrecision(3)} times slower` : `${+s.toPrecision(3)} times faster`)

  // sounds

  const bytes = (uri) => Uint8Array.from(atob(uri.slice(uri.indexOf(',') + 1)), (c) => c.charCodeAt(0)).buffer
  const sources = () => [...figure.querySelectorAll('.lmac-plain audio')]
  const played = () => Math.round(+figure.dataset.rate * speed)
  function open() {                                         // a context at the rate of what is played, where every browser has it: samples stay as they are
    const rate = played() >= 8000 && played() <= 96000 ? played() : 48000
    if (context?.sampleRate === rate) return
    if (context) offset = position()
    nodes = []
    context?.close()
    context = new AudioContext({ sampleRate: rate })
    startedAt = context.currentTime
  }
  function fit() {
    buffers = recorded.map((x) => {
      const y = lmacResampled(x, context.sampleRate / played()), buffer = new AudioBuffer({ length: y.length, sampleRate: context.sampleRate })
      buffer.copyToChannel(y, 0)
      return buffer
    })
  }
  function decode() {                                       // once, at the first need; a new promise after an update
    open()
    const decoder = new OfflineAudioContext(1, 1, +(figure.dataset.header ?? figure.dataset.rate))
    return ready ??= Promise.all(sources().map((a) => decoder.decodeAudioData(bytes(a.dataset.all ?? a.src)))).then((found) => {
      recorded = found.map((x) => x.getChannelData(0))
      fit()
    })
  }
  const level = (k) => (k === current ? (matched ? levels[k] : 1) : 0)

  function launch(from) {                                   // all sounds, in step; only the current one is let through
    const at = context.currentTime
    nodes = buffers.map((buffer, k) => {
      const source = new AudioBufferSourceNode(context, { buffer, loop: !!loop, loopStart: (loop?.[0] ?? 0) / speed, loopEnd: (loop?.[1] ?? 0) / speed })
      const gain = new GainNode(context, { gain: 0 })
      gain.gain.linearRampToValueAtTime(level(k), at + FADE)
      source.connect(gain).connect(context.destination)
      source.start(at, from / speed)
      return { source, gain }
    })
    startedAt = at
    offset = from
    if (nodes.length && !loop) nodes[0].source.onended = (e) => { if (playing && e.target === nodes[0]?.source) pause(0) }
  }
  function silence() {
    const at = context?.currentTime ?? 0
    for (const { source, gain } of nodes) {
      gain.gain.setTargetAtTime(0, at, FADE / 3)
      source.stop(at + 2 * FADE)
    }
    nodes = []
  }
  function position() {
    if (!playing) return offset
    const t = offset + (context.currentTime - startedAt) * speed
    if (loop && t >= loop[1]) return loop[0] + ((t - loop[0]) % (loop[1] - loop[0]))
    return clamp(t)
  }

  // classes

  const classes = () => [...figure.querySelectorAll('.lmac-classes button')]
  const audible = () => names.map((_, k) => k).filter((k) => !owners[k] || owners[k] === shownClass || (shownClass === 'all' && owners.indexOf(owners[k]) === k))
  const className = (c) => classes().find((b) => b.dataset.class === c)?.textContent
  const label = (k) => (owners[k] ? `${names[k]}, ${className(owners[k])}` : names[k] ?? '')
  function show(c) {                                        // a class's layer, sentence and sounds; of all classes, the first sound of each
    shownClass = c
    figure.dataset.shown = classes().length ? c : ''
    for (const layer of figure.querySelectorAll('.lmac-mask[data-class]')) layer.hidden = layer.dataset.class !== c
    for (const box of figure.querySelectorAll('.lmac-boxes [data-class]')) box.hidden = c !== 'all' && box.dataset.class !== c
    const says = classes().find((b) => b.dataset.class === c)?.dataset.says
    if (says !== undefined) $('.lmac-says').textContent = says
    buttons.replaceChildren(...audible().map((k, i) => element('button', { type: 'button', title: `key ${i + 1}`, 'data-sound': k, onclick: () => choose(k) },
      c === 'all' && owners[k] ? className(owners[k]) : names[k])))
  }

  // what a listener can do

  async function play() {
    if (playing) return
    playing = true
    await decode()
    await context.resume()
    if (!playing) return
    for (const other of document.querySelectorAll('.lmac-player')) if (other !== figure) other.lmac?.pause()
    let from = offset >= duration() - 0.01 * speed ? 0 : offset
    if (loop && !(from >= loop[0] && from < loop[1])) from = loop[0]
    launch(from)
    render()
    tick()
  }
  function pause(at = position()) {
    if (playing) silence()
    playing = false
    offset = at
    render()
  }
  function seek(t) {
    const target = clamp(t)
    if (loop && (target < loop[0] || target > loop[1])) loop = null
    if (playing && nodes.length) { silence(); launch(Math.min(target, duration() - 0.001 * speed)) } else offset = target
    render()
  }
  function choose(k) {
    if (k < 0 || k >= names.length) return
    current = k
    if (!audible().includes(k)) show(owners[k])
    fade()
    render()
    figure.dispatchEvent(new CustomEvent('lmac-sound', { detail: k, bubbles: true }))
  }
  function select(c) {                                      // another class: the input stays the input, an explanation becomes that of the class
    const was = owners[current], name = names[current]
    show(c)
    if (was) current = audible().find((k) => owners[k] && (c === 'all' ? owners[k] === was : names[k] === name)) ?? audible().find((k) => owners[k]) ?? 0
    choose(current)
  }
  function nextClass() {
    const all = classes().map((b) => b.dataset.class)
    select(all[(all.indexOf(shownClass) + 1) % all.length])
  }
  function fade() {
    nodes.forEach(({ gain }, k) => gain.gain.setTargetAtTime(level(k), context.currentTime, FADE / 3))
  }
  function match(on) { matched = on; fade(); render() }
  function setLoop(region) {
    const from = position()
    loop = region && Math.abs(region[1] - region[0]) >= 0.05 * speed ? [clamp(Math.min(...region)), clamp(Math.max(...region))] : null
    if (playing && nodes.length) { silence(); launch(loop && !(from >= loop[0] && from < loop[1]) ? loop[0] : Math.min(from, duration() - 0.001 * speed)) }
    else if (loop) offset = loop[0]
    render()
  }
  function setSpeed(value) {
    rush(value)
    if (context && recorded.length) { open(); fit() }
    if (playing && buffers.length) context.resume().then(() => { if (playing && !nodes.length) launch(Math.min(position(), duration() - 0.001 * speed)) })
    render()
  }
  function rush(value) {                                    // the position stays; what plays has to be launched anew
    const from = position()
    if (playing) { silence(); startedAt = context?.currentTime ?? 0 }
    offset = from
    speed = value
  }
  function setOpacity(value) {
    for (const mask of figure.querySelectorAll('.lmac-mask')) mask.style.opacity = value
    if (opacity) opacity.value = value
  }
  function showRegions(on) { regionBox.checked = on; figure.toggleAttribute('data-no-boxes', !on) }   // on the figure, which an update leaves as it is
  function wav() {                                          // what is heard, as 16-bit PCM
    const buffer = buffers[current], samples = buffer.getChannelData(0), gain = matched ? levels[current] : 1
    const data = new DataView(new ArrayBuffer(44 + 2 * samples.length))
    const text = (at, s) => [...s].forEach((c, i) => data.setUint8(at + i, c.charCodeAt(0)))
    text(0, 'RIFF'); data.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt ')
    data.setUint32(16, 16, true); data.setUint16(20, 1, true); data.setUint16(22, 1, true)
    data.setUint32(24, buffer.sampleRate, true); data.setUint32(28, 2 * buffer.sampleRate, true)
    data.setUint16(32, 2, true); data.setUint16(34, 16, true); text(36, 'data'); data.setUint32(40, 2 * samples.length, true)
    samples.forEach((x, i) => data.setInt16(44 + 2 * i, Math.round(32767 * Math.min(Math.max(gain * x, -1), 1)), true))
    return new Blob([data], { type: 'audio/wav' })
  }
  async function download() {
    await decode()
    const url = URL.createObjectURL(wav())
    element('a', { href: url, download: `${[label(current), ...(speed === 1 ? [] : [words(speed)])].join(' ').toLowerCase().replace(/[^a-z0-9]+/g, '-')}.wav` }).click()
    setTimeout(() => URL.revokeObjectURL(url), 1000)
  }

  // what is seen

  const playhead = element('div', { class: 'lmac-playhead' }), region = element('div', { class: 'lmac-region', hidden: '' })
  view.append(region, playhead)
  Object.entries({ tabindex: '0', role: 'slider', 'aria-label': 'Position', 'aria-valuemin': '0' }).forEach(([k, v]) => view.setAttribute(k, v))
  const toggle = element('button', { type: 'button', class: 'lmac-play', onclick: () => (playing ? pause() : play()) }, 'Play')
  const clock = element('output', { class: 'lmac-clock' })
  const levelBox = element('input', { type: 'checkbox', onchange: (e) => match(e.target.checked) })
  const opacity = $('.lmac-mask') && element('input', { type: 'range', min: 0, max: 1, step: 0.05, value: 0.7, oninput: (e) => setOpacity(e.target.value) })
  const unloop = element('button', { type: 'button', onclick: () => setLoop(null) }, 'End loop')
  tools.append(toggle, clock, unloop, element('label', {}, levelBox, ' same loudness'))
  if (opacity) tools.append(element('label', {}, 'mask ', opacity))
  const speeds = element('select', { class: 'lmac-speeds', onchange: (e) => { chosen = true; setSpeed(+e.target.value) } })
  if (figure.dataset.speeds) tools.append(element('label', {}, 'speed ', speeds))
  const regionBox = element('input', { type: 'checkbox', checked: '', onchange: (e) => showRegions(e.target.checked) }), regionLabel = element('label', {}, regionBox, ' regions')
  tools.append(regionLabel)
  tools.append(element('button', { type: 'button', onclick: download }, 'Download'))

  function place() {                                        // the playhead alone, once per frame
    const t = position(), at = `${(100 * t) / duration()}%`
    playhead.style.left = at
    clock.textContent = `${shown(t)} of ${shown(duration())}`
    view.setAttribute('aria-valuenow', t.toFixed(duration() < 1 ? 4 : 2))
    view.setAttribute('aria-valuetext', `${shown(t)}, ${label(current)}`)
  }
  function tick() {
    cancelAnimationFrame(frame)
    if (!figure.isConnected) return pause()
    place()
    if (playing) frame = requestAnimationFrame(tick)
  }
  function render() {
    toggle.textContent = playing ? 'Pause' : 'Play'
    levelBox.checked = matched
    unloop.hidden = region.hidden = !loop
    if (loop) Object.assign(region.style, { left: `${(100 * loop[0]) / duration()}%`, width: `${(100 * (loop[1] - loop[0])) / duration()}%` })
    ;[...buttons.children].forEach((b) => b.setAttribute('aria-pressed', +b.dataset.sound === current))
    for (const b of classes()) b.setAttribute('aria-pressed', b.dataset.class === shownClass)
    const heard = $('.lmac-heard'), says = classes().length ? `Heard: ${label(current)}` : ''
    if (heard && heard.textContent !== says) heard.textContent = says   // said when it changes, not with each step
    view.setAttribute('aria-valuemax', duration())
    if (+speeds.value !== speed) {
      const all = [...new Set([...(figure.dataset.speeds ?? '').split(' ').filter(Boolean).map(Number), speed])].sort((a, b) => a - b)
      speeds.replaceChildren(...all.map((s) => element('option', { value: s }, words(s))))
      speeds.value = speed
    }
    const pace = $('.lmac-pace')
    if (pace) { pace.hidden = speed === 1; pace.textContent = `Played ${words(speed)}.` }
    figure.dataset.state = playing ? 'playing' : 'paused'
    place()
  }

  // hands

  let drag = null
  const timeAt = (e) => { const box = view.getBoundingClientRect(); return clamp(((e.clientX - box.left) / box.width) * duration()) }
  view.addEventListener('pointerdown', (e) => {
    if (e.button || figure.dataset.brush) return
    drag = { x: e.clientX, t: timeAt(e) }
    view.setPointerCapture(e.pointerId)
  })
  view.addEventListener('pointermove', (e) => {
    if (!drag || Math.abs(e.clientX - drag.x) < 5) return
    const ends = [drag.t, timeAt(e)].sort((a, b) => a - b)
    region.hidden = false
    Object.assign(region.style, { left: `${(100 * ends[0]) / duration()}%`, width: `${(100 * (ends[1] - ends[0])) / duration()}%` })
  })
  view.addEventListener('pointerup', (e) => {
    if (!drag) return
    if (Math.abs(e.clientX - drag.x) < 5) seek(drag.t); else setLoop([drag.t, timeAt(e)])
    drag = null
  })
  view.addEventListener('pointercancel', () => { drag = null; render() })
  figure.addEventListener('keydown', (e) => {
    if (e.altKey || e.ctrlKey || e.metaKey || e.target.matches('input, select, textarea, audio')) return
    const step = (e.shiftKey ? 0.05 : 0.5) * speed
    const keys = {
      ArrowLeft: () => seek(position() - step), ArrowRight: () => seek(position() + step), Home: () => seek(0), End: () => seek(duration()),
      Escape: () => setLoop(null), m: () => match(!matched), b: () => showRegions(!regionBox.checked), ' ': () => (playing ? pause() : play()),
      ...(classes().length && { c: nextClass }),
    }
    const act = /^[1-9]$/.test(e.key) && +e.key <= audible().length ? () => choose(audible()[+e.key - 1]) : keys[e.key]
    if (!act || (e.key === ' ' && e.target.matches('button') && e.target !== toggle)) return
    e.preventDefault()
    e.stopPropagation()                                     // a notebook has shortcuts of its own
    act()
  })

  // the sounds of the markup, now and after each change of it

  function adopt() {
    const items = sources()
    names = items.map((a) => a.dataset.name)
    levels = items.map((a) => +a.dataset.gain)
    owners = items.map((a) => a.dataset.class)
    current = Math.min(current, Math.max(names.length - 1, 0))
    for (const b of classes()) { b.disabled = false; b.onclick = () => select(b.dataset.class) }
    show(classes().some((b) => b.dataset.class === shownClass) ? shownClass : 'all')
    if (!audible().includes(current)) current = 0
    ready = null
    regionLabel.hidden = !$('.lmac-boxes div')
    render()
  }
  async function update(html) {                             // new pictures and sounds; the position, the choice and the loop stay
    const fresh = element('template')
    fresh.innerHTML = html
    const next = fresh.content.querySelector('.lmac-player')
    const { rate, header, ...given } = next.dataset, wanted = chosen ? speed : +given.speed
    if (wanted !== speed || rate !== figure.dataset.rate) rush(wanted)
    Object.assign(figure.dataset, { duration: given.duration, rate, header })
    for (const part of ['.lmac-picture', '.lmac-classes', '.lmac-plain', '.lmac-title', '.lmac-says']) {
      const old = $(part), made = next.querySelector(part)
      if (old && made) old.replaceWith(made)
    }
    if (opacity) setOpacity(opacity.value)
    adopt()
    if (playing) {
      await decode()
      await context.resume()
      if (!playing) return
      const from = position()
      silence()
      launch(Math.min(from, duration() - 0.001 * speed))
    } else if (context) await decode()
  }

  figure.classList.add('lmac-ready')
  setOpacity(0.7)
  adopt()
  return (figure.lmac = {
    play, pause, seek, choose, select, match, setLoop, setSpeed, setOpacity, showRegions, update, decode, wav, position,
    get state() { return { playing, current, name: names[current], label: label(current), class: classes().length ? shownClass : null, loop, matched, regions: regionBox.checked, speed, level: matched ? levels[current] : 1, position: position() } },
    get buffers() { return buffers },
  })
}

// Samples at `ratio` times their rate, band-limited: a windowed sinc over 16 zero crossings to either side, from a table.
function lmacResampled(x, ratio) {
  if (ratio === 1) return x
  const fine = 512, table = Float32Array.from({ length: 16 * fine + 2 }, (_, i) => {
    const u = Math.PI * i / fine
    return i > 16 * fine ? 0 : (i ? Math.sin(u) / u : 1) * (0.5 + 0.5 * Math.cos(u / 16))
  })
  const cut = Math.min(1, ratio), reach = 16 / cut, y = new Float32Array(Math.ceil(x.length * ratio))
  for (let n = 0; n < y.length; n++) {
    const t = n / ratio, last = Math.min(x.length - 1, Math.floor(t + reach))
    let sum = 0
    for (let k = Math.max(0, Math.ceil(t - reach)); k <= last; k++) {
      const at = Math.abs(t - k) * cut * fine, i = at | 0
      sum += x[k] * (table[i] + (at - i) * (table[i + 1] - table[i]))
    }
    y[n] = cut * sum
  }
  return y
}
