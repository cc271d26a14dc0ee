// Jupyter's widgets in VS Code's notebook view, shown by the manager that its Jupyter extension uses. The kernel is on the other side of
// the extension host, so that messages stand in for a socket.
import { ServerConnection } from '@jupyterlab/services'
import { KernelConnection } from '@jupyterlab/services/lib/kernel/default'
import { activate as provide } from './package/dist/ipywidgets.js'
import requirejs from './requirejs.txt'

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer
const base64 = (data) => btoa(Array.from(new Uint8Array(data.buffer ?? data), (v) => String.fromCharCode(v)).join(''))

export function activate(context) {
  const waiting = new Map()                                 // for scripts of widgets
  let socket = null, early = [], begin = null
  class Socket {
    static CONNECTING = 0; static OPEN = 1; static CLOSING = 2; static CLOSED = 3
    readyState = 0
    protocol = ''
    constructor() {
      socket = this
      setTimeout(() => { this.readyState = Socket.OPEN; this.onopen() })
    }
    send(data) { context.postMessage(typeof data === 'string' ? { text: data } : { binary: base64(data) }) }
    close() { this.readyState = Socket.CLOSED }
  }
  const hear = (frame) => socket.onmessage({ data: frame.text ?? bytes(frame.binary) })
  const started = new Promise((ok) => { begin = ok })
  context.onDidReceiveMessage((m) => {
    if (m.kernel) begin(m)
    if (m.frame) early ? early.push(m.frame) : hear(m.frame)
    if (m.script) waiting.get(m.script)(m.source)
  })

  const loading = new Map()
  async function load(name) {
    const source = await new Promise((ok) => { waiting.set(name, ok); context.postMessage({ script: name }) })
    window.requirejs.config({ paths: { [name]: URL.createObjectURL(new Blob([source], { type: 'text/javascript' })) } })
  }
  const scripts = {                                         // of widgets that are not Jupyter's own, such as anywidget's
    widgetsRegisteredInRequireJs: new Set(),
    loadWidgetScript: (name) => loading.get(name) ?? loading.set(name, load(name)).get(name),
    successHandler() {},
    errorHandler: (...what) => console.error('Error loading widget', ...what),
  }
  async function connect() {
    (0, eval)(requirejs)                                    // which is global or nothing
    provide()
    window.vscIPyWidgets8.load()
    document.head.append(Object.assign(document.createElement('style'), { textContent: '.cell-output-ipywidget-background { background: white !important }' }))
    context.postMessage({ open: true })
    const { kernel: model, past } = await started
    const serverSettings = ServerConnection.makeSettings({ baseUrl: 'http://127.0.0.1/', wsUrl: 'ws://127.0.0.1/', WebSocket: Socket, fetch: async () => new Response(JSON.stringify(model)) })
    const kernel = new KernelConnection({ model, serverSettings, handleComms: true })
    const manager = new window.vscIPyWidgets.WidgetManager(kernel, document.body, scripts, () => {})
    while (socket?.readyState !== Socket.OPEN) await new Promise((ok) => setTimeout(ok, 10))
    for (const frame of [...past, ...early]) hear(frame)
    early = null
    return manager
  }

  let connected = null
  return {
    async renderOutputItem(item, element) {
      const manager = await (connected ??= connect()), id = item.json().model_id, node = document.createElement('div')
      for (let tries = 0; !manager.has_model(id) && tries < 1200; tries++) await new Promise((ok) => setTimeout(ok, 50))
      element.classList.add('cell-output-ipywidget-background')   // white, in any theme, as the extension has it
      element.replaceChildren(node)
      await manager.display_view({}, await manager.create_view(await manager.get_model(id)), { node })
    },
  }
}
