// Keeps what was loaded once, so that the page works without a network; another version of the page keeps its own.
importScripts('vendor/version.js')                          // sets VERSION
const CACHE = `lmac-try-it ${VERSION}`, LARGE = ['vendor/ort.mjs', 'vendor/ort.wasm.gz', 'vendor/explainer.onnx']
const SHELL = ['./', 'index.html', 'try_it.css', 'vendor/version.js', 'vendor/player.css', 'vendor/player.js', 'try_it.mjs', 'explain.mjs', 'worker.mjs', 'vendor/words.json', 'vendor/dog-rain.wav', 'vendor/rooster-sea.wav', 'vendor/clock-helicopter.wav']
const older = async () => (await caches.keys()).filter((name) => name.startsWith('lmac-try-it') && name !== CACHE)

async function keep(urls) {                                 // of these, what is not kept yet; without room for it the page works with a network alone
  const cache = await caches.open(CACHE)
  await Promise.all(urls.map(async (url) => (await cache.match(url)) || cache.add(new Request(url, { cache: 'no-cache' })).catch(() => {})))
}
async function install() {
  const cache = await caches.open(CACHE), large = new Set()
  await cache.addAll(SHELL.map((url) => new Request(url, { cache: 'reload' })))   // not what the browser has of an older version
  if (!(await (await cache.match('vendor/version.js')).text()).includes(VERSION)) throw new Error('The page was published meanwhile.')
  for (const name of await older()) for (const { url } of await (await caches.open(name)).keys()) if (url.startsWith(self.registration.scope)) large.add(url)
  await keep([...large])                                    // so that who needed no network needs none after a new version
}
async function activate() {                                 // when no page of an older version is open any more
  for (const name of await older()) await caches.delete(name)
  await self.clients.claim()
}
self.addEventListener('install', (e) => e.waitUntil(install()))
self.addEventListener('activate', (e) => e.waitUntil(activate()))
self.addEventListener('message', (e) => e.waitUntil(keep(LARGE)))   // of a page that was there before this

// Whether the site has this version still, or can't be asked. Another one, or something else at this address, is shown as it is, and nothing of it kept: its own worker will.
let same = null
async function asked() {
  try {
    const answer = await fetch('vendor/version.js', { cache: 'no-store', signal: AbortSignal.timeout(2000) })
    return answer.status >= 500 || (answer.ok && (await answer.text()).includes(VERSION))
  } catch { return true }
}
self.addEventListener('fetch', (e) => {
  const url = new URL(e.request.url)
  if (e.request.method !== 'GET' || url.origin !== location.origin || !url.href.startsWith(self.registration.scope)) return
  if (e.request.mode === 'navigate' || !same) same = asked()
  e.respondWith((async () => {
    if (!(await same)) return fetch(e.request)
    const cache = await caches.open(CACHE), kept = await cache.match(e.request, { ignoreSearch: true })
    if (kept) return kept
    const answer = await fetch(e.request.url, { cache: 'no-cache' })   // nor of another version
    if (answer.status === 200) e.waitUntil(cache.put(e.request, answer.clone()).catch(() => {}))   // beside the answer, so that its progress is seen; there may be no room
    return answer
  })())
})
