// Keeps what was loaded once, so that the page works without a network; another version of the page keeps its own.
importScripts('vendor/version.js')                          // sets VERSION
const CACHE = `lmac-try-it ${VERSION}`
const SHELL = ['./', 'index.html', 'try_it.css', 'vendor/player.css', 'vendor/player.js', 'try_it.mjs', 'explain.mjs', 'worker.mjs', 'vendor/words.json', 'vendor/dog-rain.wav', 'vendor/rooster-sea.wav', 'vendor/clock-helicopter.wav']
self.addEventListener('install', (e) => e.waitUntil(caches.open(CACHE).then((c) => c.addAll(SHELL)).then(() => self.skipWaiting())))
self.addEventListener('activate', (e) => e.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith('lmac-try-it') && name !== CACHE) await caches.delete(name)
  await self.clients.claim()
})()))
self.addEventListener('fetch', (e) => {
  const url = new URL(e.request.url)
  if (e.request.method !== 'GET' || url.origin !== location.origin || !url.href.startsWith(self.registration.scope)) return
  e.respondWith((async () => {
    const cache = await caches.open(CACHE), kept = await cache.match(e.request, { ignoreSearch: true })
    if (kept) return kept
    const answer = await fetch(e.request)
    if (answer.ok && answer.status === 200) await cache.put(e.request, answer.clone())
    return answer
  })())
})
