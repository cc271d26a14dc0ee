// A kernel for VS Code's notebooks, in its extension host: cells run on a Jupyter server, and the kernel's messages go on to the widgets.
const fs = require('fs'), path = require('path'), { randomUUID } = require('crypto')
const vscode = require('vscode'), WebSocket = require('ws')

const { LMAC_JUPYTER: server, LMAC_TOKEN: token, LMAC_NBEXTENSIONS: scripts } = process.env
const SHOWN = ['application/vnd.jupyter.widget-view+json', 'text/html', 'image/png', 'text/markdown', 'text/plain']   // the best first

const text = (s) => (Array.isArray(s) ? s.join('') : s)
function item(mime, data) {
  if (mime.startsWith('image/')) return new vscode.NotebookCellOutputItem(Buffer.from(text(data), 'base64'), mime)
  return mime.endsWith('json') ? vscode.NotebookCellOutputItem.json(data, mime) : vscode.NotebookCellOutputItem.text(text(data), mime)
}
function output({ msg_type: type, content: c }) {
  const { NotebookCellOutput: Output, NotebookCellOutputItem: Item } = vscode
  if (type === 'stream') return new Output([c.name === 'stderr' ? Item.stderr(c.text) : Item.stdout(c.text)])
  if (type === 'display_data' || type === 'execute_result') return new Output(SHOWN.filter((m) => m in c.data).map((m) => item(m, c.data[m])))
  if (type === 'error') return new Output([Item.error({ name: c.ename, message: c.evalue, stack: c.traceback.join('\n') })])
}

async function connect(messaging) {                         // start a kernel; what comes back sends it a request
  const session = randomUUID(), headers = { Authorization: `token ${token}` }
  const kernel = await (await fetch(`${server}/api/kernels`, { method: 'POST', headers, body: '{"name": "python3"}' })).json()
  const socket = new WebSocket(`${server.replace('http', 'ws')}/api/kernels/${kernel.id}/channels?session_id=${session}`, { headers })
  await new Promise((opened, failed) => socket.on('open', opened).on('error', failed))
  const past = [], hearing = new Map(), views = new Set()
  socket.on('message', (data, binary) => {
    const frame = binary ? { binary: data.toString('base64') } : { text: data.toString() }
    past.push(frame)                                        // a view that opens later needs what made the widgets
    for (const editor of views) messaging.postMessage({ frame }, editor)
    if (binary) return
    const message = JSON.parse(frame.text), id = message.parent_header?.msg_id
    if (hearing.get(id)?.(message)) hearing.delete(id)
  })
  messaging.onDidReceiveMessage(({ editor, message: m }) => {
    if (m.open) { views.add(editor); messaging.postMessage({ kernel, past }, editor) }
    if (m.text) socket.send(m.text)
    if (m.binary) socket.send(Buffer.from(m.binary, 'base64'))
    if (m.script) messaging.postMessage({ script: m.script, source: fs.readFileSync(path.join(scripts, m.script, 'index.js'), 'utf8') }, editor)
  })
  return (type, content, hear) => {
    const header = { msg_id: randomUUID(), msg_type: type, username: '', session, version: '5.3', date: new Date().toISOString() }
    hearing.set(header.msg_id, hear)
    socket.send(JSON.stringify({ header, parent_header: {}, metadata: {}, content, channel: 'shell', buffers: [] }))
  }
}

exports.activate = function ({ subscriptions }) {
  const messaging = vscode.notebooks.createRendererMessaging('lmac-widgets')
  const controller = vscode.notebooks.createNotebookController('lmac-kernel', 'jupyter-notebook', 'Python')
  controller.supportedLanguages = ['python']
  let kernel = null
  async function run(cell) {
    const send = await (kernel ??= connect(messaging)), execution = controller.createNotebookCellExecution(cell)
    execution.start(Date.now())
    execution.clearOutput()
    const reply = await new Promise((done) => {
      let replied = null, idle = false
      send('execute_request', { code: cell.document.getText(), silent: false, store_history: true, allow_stdin: false, stop_on_error: true }, (message) => {
        const { msg_type: type, content: c } = message, shown = output(message)
        if (shown) execution.appendOutput(shown)
        if (type === 'execute_reply') replied = c
        if (type === 'status' && c.execution_state === 'idle') idle = true
        if (replied && idle) done(replied)                  // replies and outputs come each in its own order
        return replied && idle
      })
    })
    execution.executionOrder = reply.execution_count
    execution.end(reply.status === 'ok', Date.now())
  }
  controller.executeHandler = async (cells) => { for (const cell of cells) await run(cell) }
  subscriptions.push(controller)
}
