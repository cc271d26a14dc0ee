// The player in a notebook with a kernel, for anywidget: the kernel sends markup, the page sends what the listener does.
function lmacWidget({ model, el }) {
  let player = null, brush = null
  function begin() {                                        // the first markup may come later than the widget is shown
    el.innerHTML = model.get('html')
    const figure = el.querySelector('.lmac-player')
    if (!figure) return
    player = lmacPlayer(figure)
    player.choose(model.get('sound'))
    player.setOpacity(model.get('opacity'))
    if (model.get('brush')) brush = lmacBrush(figure, model)
  }
  const listeners = {
    'change:html': () => (player ? player.update(model.get('html')) : begin()),
    'change:sound': () => { if (player && player.state.current !== model.get('sound')) player.choose(model.get('sound')) },
    'change:opacity': () => player?.setOpacity(model.get('opacity')),
  }
  for (const [event, act] of Object.entries(listeners)) model.on(event, act)
  el.addEventListener('lmac-sound', (e) => { if (model.get('sound') !== e.detail) { model.set('sound', e.detail); model.save_changes() } })
  begin()
  return () => {
    player?.pause()
    for (const [event, act] of Object.entries(listeners)) model.off(event, act)
    brush?.()
  }
}

// Painting on the spectrogram: strokes go into a grid of 0 and 255, which the kernel gets when the pen is lifted.
function lmacBrush(figure, model) {
  const view = figure.querySelector('.lmac-view'), [rows, columns] = model.get('grid_shape')
  const canvas = document.createElement('canvas')
  Object.assign(canvas, { width: columns, height: rows, className: 'lmac-paint' })
  view.append(canvas)
  const ink = canvas.getContext('2d')
  let last = null

  function draw() {                                         // the kernel's grid, row 0 is the lowest frequency
    const grid = model.get('grid'), picture = ink.createImageData(columns, rows)
    const values = new Uint8Array(grid.buffer ?? grid, grid.byteOffset ?? 0, rows * columns)
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) if (values[r * columns + c]) picture.data.set([80, 220, 255, 255], 4 * ((rows - 1 - r) * columns + c))
    ink.putImageData(picture, 0, 0)
  }
  const at = (e) => {
    const box = view.getBoundingClientRect()
    return [((e.clientX - box.left) / box.width) * columns, ((e.clientY - box.top) / box.height) * rows]
  }
  function stroke(to) {
    ink.globalCompositeOperation = model.get('erase') ? 'destination-out' : 'source-over'
    ink.strokeStyle = 'rgb(80 220 255)'                     // opaque, so that one stroke paints or erases; the canvas is not
    ink.lineWidth = model.get('pen')
    ink.lineCap = 'round'
    ink.beginPath()
    ink.moveTo(...(last ?? to))
    ink.lineTo(to[0] + 0.01, to[1])
    ink.stroke()
    last = to
  }
  function send() {
    const pixels = ink.getImageData(0, 0, columns, rows).data, grid = new Uint8Array(rows * columns)
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) grid[r * columns + c] = pixels[4 * ((rows - 1 - r) * columns + c) + 3] > 127 ? 255 : 0
    model.set('grid', new DataView(grid.buffer))
    model.save_changes()
  }
  const down = (e) => { if (figure.dataset.brush && !e.button) { last = null; view.setPointerCapture(e.pointerId); stroke(at(e)) } }
  const move = (e) => { if (last) stroke(at(e)) }
  const up = () => { if (last) { last = null; send() } }
  const mode = () => { if (model.get('painting')) figure.dataset.brush = 'on'; else delete figure.dataset.brush }
  view.addEventListener('pointerdown', down)
  view.addEventListener('pointermove', move)
  for (const end of ['pointerup', 'pointercancel']) view.addEventListener(end, up)
  model.on('change:grid', draw)
  model.on('change:painting', mode)
  mode()
  draw()
  return () => { model.off('change:grid', draw); model.off('change:painting', mode) }
}

// Recording from the microphone: samples as 32-bit floats, when the recording is stopped. Nothing leaves the page but to the kernel.
function lmacRecorder({ model, el }) {
  const button = document.createElement('button'), says = document.createElement('span')
  button.type = 'button'
  button.textContent = 'Record'
  button.className = 'lmac-record'
  says.setAttribute('role', 'status')
  el.append(button, ' ', says)
  let stop = null
  async function start() {
    if (!navigator.mediaDevices?.getUserMedia) { says.textContent = 'This browser gives no microphone to this page (it needs https or localhost).'; return }
    let stream
    try { stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } }) }
    catch (e) { says.textContent = `No microphone: ${e.message}.`; return }
    const recorder = new MediaRecorder(stream), pieces = [], began = performance.now()
    recorder.ondataavailable = (e) => pieces.push(e.data)
    recorder.onstop = async () => {
      for (const track of stream.getTracks()) track.stop()
      const context = new AudioContext(), buffer = await context.decodeAudioData(await new Blob(pieces).arrayBuffer())
      const samples = buffer.getChannelData(0).slice()
      model.set('sample_rate', buffer.sampleRate)
      model.set('samples', new DataView(samples.buffer))
      model.save_changes()
      context.close()
      says.textContent = `${buffer.duration.toFixed(1)} s recorded`
    }
    const timer = setInterval(() => {
      const s = (performance.now() - began) / 1000
      says.textContent = `recording, ${s.toFixed(1)} s`
      if (s >= model.get('limit_s')) stop?.()
    }, 100)
    stop = () => { clearInterval(timer); recorder.stop(); stop = null; button.textContent = 'Record' }
    recorder.start()
    button.textContent = 'Stop'
  }
  button.addEventListener('click', () => (stop ? stop() : start()))
  return () => stop?.()
}
