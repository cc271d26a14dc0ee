// Search, dark mode, and a navigation that folds on narrow screens
{
  const root = document.documentElement, theme = document.getElementById('theme')
  const show = () => { theme.textContent = root.dataset.theme === 'dark' ? 'Light mode' : 'Dark mode' }
  theme.addEventListener('click', () => { localStorage.lmacTheme = root.dataset.theme = root.dataset.theme === 'dark' ? 'light' : 'dark'; show() })
  show()
  for (const e of document.querySelectorAll('pre, table, p, li, math, .jp-OutputArea-output, .jp-RenderedHTMLCommon')) if (e.scrollWidth > e.clientWidth) e.tabIndex = 0  // so that the keyboard can scroll it
  if (innerWidth < 800) document.querySelector('.columns > nav details').open = false

  const box = document.getElementById('search'), found = document.getElementById('found')
  function search() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean)
    const hits = words.length ? PAGES.map((p) => {
      const text = p.text.toLowerCase(), title = p.title.toLowerCase()
      if (!words.every((w) => text.includes(w) || title.includes(w))) return null
      const score = words.reduce((sum, w) => sum + text.split(w).length - 1 + (title.includes(w) ? 20 : 0), 0)
      const at = Math.max(text.indexOf(words[0]), 0)
      return { ...p, score, excerpt: p.text.slice(Math.max(at - 40, 0), at + 90) }
    }).filter(Boolean).sort((a, b) => b.score - a.score).slice(0, 8) : []
    found.hidden = !words.length
    found.replaceChildren(...(hits.length ? hits.map((h) => {
      const item = document.createElement('li'), link = document.createElement('a'), text = document.createElement('small')
      link.href = `${SITE}/${h.href}`
      link.textContent = h.title
      text.textContent = `… ${h.excerpt.trim()} …`
      item.append(link, text)
      return item
    }) : [Object.assign(document.createElement('li'), { textContent: 'Nothing found' })]))
  }
  box.addEventListener('input', search)
  box.addEventListener('keydown', (e) => { if (e.key === 'Escape') { box.value = ''; search() } })
}
