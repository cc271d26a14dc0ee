// The gallery: a table of explanations, of which only the rows in view are in the page, with what can be heard and seen of each.
//
// `data` comes from `lmac.listen.gallery.gallery_data`: columns rather than rows. `file(row, kind)` gives the address of a file (input, sound, rest, picture, report), at once or
// later, or null; `noted` are marks and notes to begin with, `save` is told of all when one changes; `page` is true where the gallery has the page, and its keys, for itself.
// Names of recordings and classes are strangers' text: all of it goes in as text, never as markup.
function lmacGallery(root, data, { file, noted = {}, save = () => {}, page = false } = {}) {
  root.lmac?.end()
  const element = (tag, attributes = {}, ...children) => {
    const e = document.createElement(tag)
    for (const [k, v] of Object.entries(attributes)) if (k.startsWith('aria-') ? v != null : v !== false && v != null) k.startsWith('on') ? e.addEventListener(k.slice(2), v) : e.setAttribute(k, v === true && !k.startsWith('aria-') ? '' : v)
    e.append(...children.filter((c) => c != null))
    return e
  }
  const uid = `lmac-gallery-${(lmacGallery.count = (lmacGallery.count ?? 0) + 1)}`
  const icon = (d) => {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS('http://www.w3.org/2000/svg', 'path')
    svg.setAttribute('viewBox', '0 0 16 16')
    svg.setAttribute('aria-hidden', 'true')
    path.setAttribute('d', d)
    svg.append(path)
    return svg
  }
  const PLAY = 'M4 2.5v11l9-5.5z', PAUSE = 'M4 3h3v10H4zM9 3h3v10H9z', STAR = 'M8 1.6l2 4.1 4.5.6-3.3 3.1.8 4.5L8 11.8l-4 2.1.8-4.5L1.5 6.3 6 5.7z'

  // the table

  const n = data.n, rows = Array.from({ length: n }, (_, i) => i)
  const decoded = (c) => (c.v ? (i) => c.v[i] : c.k ? (i) => c.of[c.k[i]] : () => c.of[0])
  const columns = Object.fromEntries(Object.entries(data.columns).map(([name, c]) => [name, { text: !!c.text, at: decoded(c) }]))
  const get = (name, i) => columns[name]?.at(i) ?? null
  const text = (name, i) => String(get(name, i) ?? '')
  const TITLES = { recording: 'recording', label: 'class', predicted_label: 'predicted class', true_label: 'true class', probability: 'p', probability_masked_in: 'p in', probability_masked_out: 'p out',
    probability_heard: 'p heard', mask_mean: 'kept', verdict: 'verdict', duration_s: 'duration in s', gain_db: 'gain in dB', sample_rate: 'sample rate in Hz', padding_s: 'padding in s', heard_s: 'heard in s', error: 'error', mark: 'mark', note: 'note' }
  const SAYS = { probability: 'probability of the class on the whole recording', probability_masked_in: 'probability of the class on what the mask keeps', mask_mean: 'share of the spectrogram that the mask keeps',
    probability_masked_out: 'probability of the class on the rest', probability_heard: 'probability of the class on the sound that is played' }
  const title = (name) => TITLES[name] ?? name.replaceAll('_', ' ')
  const known = (name) => name in columns && rows.some((i) => text(name, i) !== '')
  const labelled = known('true_label'), failed = (i) => text('error', i) !== ''
  const wrong = (i) => text('true_label', i) !== '' && text('predicted_label', i) !== '' && text('true_label', i) !== text('predicted_label', i)
  const seen = new Map()
  const keys = rows.map((i) => {                            // of a row, whatever the order: recording and class; the second of two that are the same has a number
    const key = `${text('recording', i)}\n${text('label', i)}`, before = seen.get(key) ?? 0
    seen.set(key, before + 1)
    return before ? `${key}\n${before + 1}` : key
  })
  const number = (name, x) => {
    if (x == null || x === '') return '–'
    if (typeof x !== 'number') return String(x)
    if (name === 'mask_mean') return `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`
    if (name.startsWith('probability')) return x.toFixed(2)
    return Number.isInteger(x) ? String(x) : String(+x.toPrecision(4))
  }

  // marks and notes, kept in the browser

  const place = `lmac-gallery ${data.hash}`, at = `lmac-gallery at ${location.pathname}`
  let kept = true, marks = {}
  const clean = (found) => {
    const all = {}
    if (found && typeof found === 'object') for (const [k, v] of Object.entries(found)) if (v && typeof v === 'object' && (v.mark || v.note)) all[k] = { mark: !!v.mark, note: String(v.note ?? '') }
    return all
  }
  function stored(where = place) {
    try { return clean(JSON.parse(localStorage.getItem(where))) } catch { return {} }
  }
  function adopt() {                                        // of an earlier table of the same page, what is still in it
    try {
      const before = page && localStorage.getItem(at)
      if (before && before !== place && !localStorage.getItem(place)) {
        const old = stored(before), there = new Set(keys)
        marks = Object.fromEntries(Object.entries(old).filter(([k]) => there.has(k)))
        if (Object.keys(marks).length) localStorage.setItem(place, JSON.stringify(marks))
      }
      if (page) localStorage.setItem(at, place)
    } catch { kept = false }
  }
  const marked = (i) => !!marks[keys[i]]?.mark, note = (i) => marks[keys[i]]?.note ?? ''
  function change(changes) {                                // [row, what is new of it] …; another tab may have changed others
    if (kept) marks = { ...clean(noted), ...stored() }
    for (const [i, what] of changes) {
      const now = { mark: marked(i), note: note(i), ...what }
      if (now.mark || now.note) marks[keys[i]] = now
      else { delete marks[keys[i]]; delete noted[keys[i]] }
    }
    noted = { ...marks }
    try { localStorage.setItem(place, JSON.stringify(marks)); kept = true } catch {
      kept = false
      say('This browser keeps no marks for this page: export them before you close it.')
    }
    save({ ...marks })
  }

  // order and filters

  const NOTHING = { text: '', label: '', as: 'label', verdict: '', wrong: false, marked: false, ranges: {} }
  const filter = structuredClone(NOTHING), sort = { by: null, down: false }, ranks = new Map(), collator = new Intl.Collator(undefined, { numeric: true, sensitivity: 'base' })
  let sorted = rows, order = rows, texts = null
  function rank(name) {                                     // numbers to sort by; NaN, for nothing, goes last both ways
    if (name === 'mark') return Float64Array.from(rows, (i) => (marked(i) ? 0 : 1))
    if (name !== 'note' && ranks.has(name)) return ranks.get(name)
    const of = name === 'note' ? note : columns[name].at
    let found
    if (name !== 'note' && !columns[name].text) found = Float64Array.from(rows, (i) => of(i) ?? NaN)
    else {
      const place = new Map([...new Set(rows.map(of))].sort(collator.compare).map((x, k) => [x, k]))
      found = Float64Array.from(rows, (i) => (of(i) ? place.get(of(i)) : NaN))
    }
    ranks.set(name, found)
    return found
  }
  function sortBy(name, down = sort.by === name && !sort.down) {
    Object.assign(sort, { by: name, down })
    sorted = rows
    if (name) {
      const r = rank(name), way = down ? -1 : 1
      sorted = rows.slice().sort((a, b) => (Number.isNaN(r[a]) || Number.isNaN(r[b]) ? Number.isNaN(r[a]) - Number.isNaN(r[b]) : way * (r[a] - r[b])) || a - b)
    }
    apply()
  }
  const active = () => !!(filter.text || filter.label || filter.verdict || filter.wrong || filter.marked || Object.keys(filter.ranges).length)
  const verdict = (i) => (failed(i) ? 'failed' : text('verdict', i))
  function apply() {
    texts ??= rows.map((i) => ['recording', 'label', 'predicted_label', 'true_label', 'error'].map((k) => text(k, i)).join('\n').toLowerCase())
    const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean), ranges = Object.entries(filter.ranges)
    const is = filter.as === 'any' ? (i) => ['label', 'predicted_label', 'true_label'].some((k) => text(k, i) === filter.label) : (i) => text(filter.as, i) === filter.label
    order = active() ? sorted.filter((i) => (!filter.label || is(i)) && (!filter.verdict || verdict(i) === filter.verdict) && (!filter.wrong || wrong(i)) && (!filter.marked || marked(i))
      && ranges.every(([k, [low, high]]) => { const x = get(k, i); return typeof x === 'number' && x >= low && x <= high })
      && words.every((w) => texts[i].includes(w) || note(i).toLowerCase().includes(w))) : sorted
    if (current !== null && !order.includes(current)) { pause(); select(null) }
    else if (current === null) body.scrollTop = 0
    else reveal()
    told()
    render(true)
  }
  function set(what) { Object.assign(filter, what); apply() }
  function clear() { Object.assign(filter, structuredClone(NOTHING)); for (const c of controls) c.reset(); apply() }

  // what is above the table

  const notice = element('p', { class: 'lmac-notice', role: 'status' }), count = element('output', { class: 'lmac-count', 'aria-live': 'polite' }), controls = []
  const say = (what) => { notice.textContent = what }
  const choice = (name, options, on, first) => {            // a menu; options are [value, text]
    const e = element('select', { 'aria-label': name, onchange: () => on(e.value) }, ...options.map(([value, shown]) => element('option', { value }, shown)))
    controls.push({ reset: () => { e.value = first } })
    e.value = first
    return e
  }
  const toggle = (shown, what, on) => {
    const e = element('button', { type: 'button', 'aria-pressed': 'false', title: what, onclick: () => { press(e.getAttribute('aria-pressed') !== 'true'); on(e.getAttribute('aria-pressed') === 'true') } }, shown)
    const press = (yes) => e.setAttribute('aria-pressed', yes)
    controls.push({ reset: () => press(false) })
    return e
  }
  const tally = (of) => {
    const found = new Map()
    for (const i of rows) for (const x of new Set(of(i))) if (x) found.set(x, (found.get(x) ?? 0) + 1)
    return found
  }
  const percent = (x, of) => `${(100 * x / of).toFixed(of < 1000 ? 0 : 1)} %`
  const plural = (k, one, many) => `${k.toLocaleString('en')} ${k === 1 ? one : many}`
  const COLOURS = { explains: '#2f9e62', failed: '#c8455a', 'the recording is silent': '#8b8f98', 'the class was not likely': '#8b8f98' }
  const colour = (v) => COLOURS[v] ?? '#d08a1d'
  const verdicts = [...tally((i) => [verdict(i)])].sort(([a, x], [b, y]) => (b === 'explains') - (a === 'explains') || (a === 'failed') - (b === 'failed') || y - x)

  function summary() {
    const first = rows.filter((i) => i === 0 || text('recording', i) !== text('recording', i - 1)), judged = first.filter((i) => text('true_label', i) && text('predicted_label', i))
    const right = judged.filter((i) => !wrong(i)).length, explained = rows.filter((i) => verdict(i) === 'explains').length, broken = rows.filter(failed).length
    const facts = [first.length === n ? plural(n, 'recording', 'recordings') : `${plural(n, 'explanation', 'explanations')} of ${plural(first.length, 'recording', 'recordings')}`,
      n - broken ? `${explained.toLocaleString('en')} explained (${percent(explained, n)})` : null, judged.length ? `classifier right in ${percent(right, judged.length)}${judged.length < first.length ? ` of ${judged.length.toLocaleString('en')} with labels` : ''}` : null,
      broken ? `${broken.toLocaleString('en')} failed` : null]
    const bar = element('div', { class: 'lmac-bar', role: 'img', 'aria-label': `Verdicts: ${verdicts.map(([v, k]) => `${v} ${k}`).join(', ')}` }, ...verdicts.map(([v, k]) => {
      const e = element('i', { title: `${v}: ${k}` })
      e.style.flexGrow = k
      e.style.background = colour(v)
      return e
    }))
    return element('div', { class: 'lmac-summary' }, element('p', {}, facts.filter(Boolean).join(' · ')), verdicts.length ? bar : null)
  }

  function numbers() {                                      // a smallest and a largest value for each column of numbers
    const names = Object.keys(columns).filter((k) => !columns[k].text && k !== 'class_index' && known(k)), inputs = []
    const lines = names.map((name) => {
      const values = rows.map((i) => get(name, i)).filter((x) => x !== null), ends = [Math.min, Math.max].map((f) => values.reduce((a, b) => f(a, b)))
      if (ends[0] === ends[1]) return null
      const pair = ['least', 'most'].map((what, k) => element('input', { type: 'number', step: 'any', placeholder: +ends[k].toPrecision(3), 'aria-label': `${title(name)}, ${what}`, oninput: () => {
        const [low, high] = pair.map((e) => e.valueAsNumber), none = Number.isNaN(low) && Number.isNaN(high)
        if (none) delete filter.ranges[name]
        else filter.ranges[name] = [Number.isNaN(low) ? -Infinity : low, Number.isNaN(high) ? Infinity : high]
        apply()
      } }))
      inputs.push(...pair)
      return element('div', {}, element('span', { title: SAYS[name] }, title(name)), pair[0], '–', pair[1])
    }).filter(Boolean)
    const e = element('details', { class: 'lmac-numbers' }, element('summary', {}, 'Numbers'), element('div', { class: 'lmac-ranges' }, ...lines))
    controls.push({ reset: () => { for (const x of inputs) x.value = '' } })
    return lines.length ? e : null
  }

  const classes = tally((i) => ['label', 'predicted_label', 'true_label'].map((k) => text(k, i))), several = known('label') && rows.some((i) => text('label', i) !== text('predicted_label', i))
  const search = element('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search in names, classes and notes', oninput: () => set({ text: search.value }) })
  controls.push({ reset: () => { search.value = '' } })
  const sorter = element('select', { 'aria-label': 'Sort by', onchange: () => sortBy(sorter.value || null, false) }, element('option', { value: '' }, 'sort by …'),
    ...[...Object.keys(columns).filter(known), 'mark', 'note'].map((k) => element('option', { value: k }, title(k))))
  const flip = element('button', { type: 'button', class: 'lmac-flip', 'aria-label': 'The other way round', title: 'The other way round', onclick: () => { if (sort.by) sortBy(sort.by, !sort.down) } }, '↑')
  const reset = element('button', { type: 'button', hidden: true, onclick: () => { clear(); body.focus() } }, 'Show all')
  const exporter = element('button', { type: 'button', title: 'A table of the rows shown, with marks and notes', onclick: () => download() }, 'Export CSV')
  const picker = element('input', { type: 'file', accept: '.csv,text/csv', hidden: true, 'aria-label': 'A table that was exported', onchange: async () => { if (picker.files[0]) take(await picker.files[0].text()); picker.value = '' } })
  const importer = element('button', { type: 'button', class: 'lmac-import', title: 'Take marks and notes from a table that was exported', onclick: () => picker.click() }, 'Import')
  const helper = element('button', { type: 'button', 'aria-label': 'Keys', title: 'Keys (?)', onclick: () => help.showModal() }, '?')
  const as = [['label', 'explained'], ['predicted_label', 'predicted'], ['true_label', 'true'], ['any', 'any']].filter(([k]) => k === 'any' || known(k))
  const asChoice = as.length > 2 ? choice('The class as', as, (v) => set({ as: v }), 'label') : null
  if (asChoice) { asChoice.hidden = true; controls.push({ reset: () => { asChoice.hidden = true } }) }
  const filters = element('div', { class: 'lmac-filters', role: 'group', 'aria-label': 'Filters' }, search,
    classes.size ? choice('Class', [['', 'all classes'], ...[...classes.keys()].sort(collator.compare).map((k) => [k, k])], (v) => { if (asChoice) asChoice.hidden = !v; set({ label: v }) }, '') : null, asChoice,
    verdicts.length > 1 ? choice('Verdict', [['', 'all verdicts'], ...verdicts.map(([v, k]) => [v, `${v} (${k})`])], (v) => set({ verdict: v }), '') : null,
    labelled ? toggle('wrong', 'Only where the predicted class is not the true one', (v) => set({ wrong: v })) : null, toggle('marked', 'Only what is marked', (v) => set({ marked: v })), numbers(),
    element('span', { class: 'lmac-sort' }, sorter, flip))
  const folded = element('button', { type: 'button', class: 'lmac-fold', 'aria-expanded': 'false', onclick: () => {
    const open = root.toggleAttribute('data-filters')
    folded.setAttribute('aria-expanded', open)
  } }, 'Filter, sort')
  const heading = element(page ? 'h1' : 'p', { class: 'lmac-name' }, data.title)
  const links = page && (data.links ?? []).length ? element('nav', { 'aria-label': 'Beside this page' }, ...data.links.map(([href, shown]) => element('a', { href }, shown))) : null
  const head = element(page ? 'header' : 'div', { class: 'lmac-head' }, element('div', { class: 'lmac-top' }, element('div', {}, heading, summary()), links),
    element('div', { class: 'lmac-tools' }, folded, filters, element('span', { class: 'lmac-end' }, count, reset, exporter, importer, helper, picker)), notice)
  function told() {
    count.textContent = active() ? `${order.length.toLocaleString('en')} of ${n.toLocaleString('en')}` : plural(n, 'row', 'rows')
    reset.hidden = !active()
    sorter.value = sort.by ?? ''
    flip.textContent = sort.down ? '↓' : '↑'
    flip.disabled = !sort.by
    for (const [name, h] of heads) h.setAttribute('aria-sort', sort.by !== name ? 'none' : sort.down ? 'descending' : 'ascending')
  }

  // the rows in view

  const COLUMNS = ['mark', 'picture', 'recording', 'label', ...['probability', 'probability_masked_in', 'probability_masked_out', 'mask_mean', 'verdict'].filter((k) => k in columns)]
  const heads = new Map()
  const headRow = element('div', { role: 'row', class: 'lmac-row lmac-heads', 'aria-rowindex': '1' }, ...COLUMNS.map((name, k) => {
    const h = element('div', { role: 'columnheader', class: `lmac-c-${name.replace('probability', 'p')}${k > 3 && name !== 'verdict' ? ' lmac-num' : ''}`, 'aria-colindex': k + 1 })
    if (name === 'picture') h.append(element('span', {}, 'spectrogram'))
    else {
      h.append(element('button', { type: 'button', tabindex: '-1', title: SAYS[name] ?? `Sort by ${title(name)}`, 'aria-label': name === 'mark' ? 'mark' : null, onclick: () => { sortBy(name); body.focus({ preventScroll: true }) } }, name === 'mark' ? icon(STAR) : title(name)))
      heads.set(name, h)
    }
    return h
  }))
  const spacer = element('div', { role: 'presentation', class: 'lmac-space' })
  const list = element('div', { role: 'rowgroup', class: 'lmac-list' }, spacer)
  const body = element('div', { role: 'grid', class: 'lmac-grid', tabindex: '0', 'aria-label': 'Explanations', 'aria-rowcount': n + 1, 'aria-colcount': COLUMNS.length, 'aria-describedby': `${uid}-keys`, onscroll: () => later() },
    element('div', { role: 'rowgroup', class: 'lmac-headgroup' }, headRow), list)
  const nothing = element('p', { class: 'lmac-nothing', hidden: true })
  const shown = new Map(), broken = new Set(), pictures = new Map()
  let current = null, waiting = 0, height = 60, missing = 0

  function picture(i, image) {                              // into an image, when its address is known; what is missing is said once
    const fail = () => {
      broken.add(i)
      image.closest('.lmac-frame')?.classList.add('lmac-none')
      image.remove()
      if (!missing++) say('Some pictures are not where they were when this gallery was made: keep it beside the folders of its explanations.')
    }
    image.addEventListener('error', fail)
    const use = (url) => { if (url) image.src = url; else { image.closest('.lmac-frame')?.classList.add('lmac-none'); image.remove() } }
    const url = pictures.get(i) ?? file(i, 'picture')
    if (url?.then) url.then((u) => { pictures.set(i, u); use(u) }, fail)
    else use(url)
  }
  function frame(i, ...more) {
    const image = element('img', { alt: '', loading: 'lazy', decoding: 'async', draggable: 'false' }), e = element('span', { class: 'lmac-frame' }, image, ...more)
    if (broken.has(i) || failed(i)) { e.classList.add('lmac-none'); image.remove() } else picture(i, image)
    return e
  }
  const star = (i) => element('button', { type: 'button', tabindex: '-1', class: 'lmac-star', 'aria-pressed': marked(i), 'aria-label': `Mark ${text('recording', i)}`, title: 'Mark (m)', onclick: (e) => { e.stopPropagation(); mark(i) } }, icon(STAR))
  const dot = (v) => {
    const e = element('i', { class: 'lmac-dot' })
    e.style.background = colour(v)
    return e
  }
  function says(i) {                                        // below the class: what else it is
    const p = text('predicted_label', i), t = text('true_label', i), lines = []
    if (p && p !== text('label', i)) lines.push(`predicted ${p}`)
    if (wrong(i)) lines.push(`✗ is ${t}`)
    return lines.join(', ')
  }
  function cell(name, i, k) {
    const e = element('div', { role: 'gridcell', class: `lmac-c-${name.replace('probability', 'p')}${k > 3 && name !== 'verdict' ? ' lmac-num' : ''}`, 'aria-colindex': k + 1 })
    if (name === 'mark') e.append(star(i))
    else if (name === 'picture') e.append(element('button', { type: 'button', tabindex: '-1', class: 'lmac-listen', 'aria-label': `Play ${text('recording', i)}`, title: 'Play (space)',
      onclick: (x) => { x.stopPropagation(); i === current && playing ? pause() : (select(i), play()) } }, frame(i, element('b', { class: 'lmac-head-line', hidden: true })), element('span', { class: 'lmac-glyph' }, icon(PLAY))))
    else if (name === 'recording') {
      const whole = text(name, i), cut = whole.lastIndexOf('/') + 1
      e.append(element('span', { class: 'lmac-file', title: whole }, whole.slice(cut) || whole), element('small', {}, [whole.slice(0, cut).replace(/\/$/, ''), note(i) && `“${note(i).replace(/\s+/g, ' ').slice(0, 80)}”`].filter(Boolean).join(' · ')))
    } else if (name === 'label') {
      if (failed(i)) e.append(element('span', { class: 'lmac-error', title: text('error', i) }, text('error', i)))
      else e.append(element('span', { title: text('label', i) }, text('label', i)), element('small', { class: wrong(i) ? 'lmac-wrong' : false }, says(i)))
    } else if (name === 'verdict') { if (verdict(i)) e.append(dot(verdict(i)), element('span', { title: verdict(i) }, verdict(i))) }
    else {
      const x = get(name, i)
      e.append(element('span', { 'data-name': title(name) }, failed(i) ? '' : number(name, x)))
      if (typeof x === 'number') e.style.setProperty('--lmac-v', Math.min(Math.max(x, 0), 1))
    }
    return e
  }
  function make(p) {
    const i = order[p]
    return element('div', { role: 'row', class: `lmac-row${failed(i) ? ' lmac-failed' : ''}`, id: `${uid}-${i}`, 'data-row': i, 'aria-rowindex': p + 2, 'aria-selected': i === current,
      onclick: () => { select(i); if (!details.hidden) body.focus({ preventScroll: true }); else open() } }, ...COLUMNS.map((name, k) => cell(name, i, k)))
  }
  function later() { waiting ||= requestAnimationFrame(() => { waiting = 0; render() }) }
  function render(anew = false) {
    height = parseFloat(getComputedStyle(main).getPropertyValue('--lmac-row')) || 60
    spacer.style.height = `${order.length * height}px`
    nothing.hidden = order.length > 0
    nothing.textContent = n ? 'Nothing is left: the filters are too narrow.' : 'The table has no rows. Explain a folder of recordings: lmac-explain RECORDINGS --out FOLDER'
    const top = Math.max(0, body.scrollTop), first = Math.max(0, Math.floor(top / height) - 4), last = Math.min(order.length, Math.ceil((top + (body.clientHeight || 600)) / height) + 4)
    const wanted = new Map()
    for (let p = first; p < last; p++) wanted.set(order[p], p)
    for (const [i, e] of shown) if (anew || !wanted.has(i)) { e.remove(); shown.delete(i) }
    const added = document.createDocumentFragment()
    for (const [i, p] of wanted) {
      let e = shown.get(i)
      if (!e) { shown.set(i, (e = make(p))); added.append(e) }
      e.style.transform = `translateY(${p * height}px)`
    }
    list.append(added)
    lit()
  }
  function refresh(i) {                                     // one row, after its mark or note changed
    const e = shown.get(i), p = order.indexOf(i)
    if (e && p >= 0) {
      const anew = make(p)
      anew.style.transform = e.style.transform
      e.replaceWith(anew)
      shown.set(i, anew)
      lit()
    }
    if (i === current && !details.hidden) detailStar.replaceChildren(star(i))
  }
  function reveal() {                                       // the current row into view
    const p = order.indexOf(current)
    if (p < 0) return
    const above = p * height, room = body.clientHeight - headRow.offsetHeight
    if (above < body.scrollTop) body.scrollTop = above
    else if (above + height > body.scrollTop + room) body.scrollTop = above + height - room
  }
  function lit() {                                          // which row is current, and which one plays
    for (const [i, e] of shown) {
      e.setAttribute('aria-selected', i === current)
      e.classList.toggle('lmac-playing', i === loaded && playing)
      const path = e.querySelector('.lmac-glyph path')
      if (path) path.setAttribute('d', i === loaded && playing ? PAUSE : PLAY)
    }
    const there = current !== null && shown.has(current)
    there ? body.setAttribute('aria-activedescendant', `${uid}-${current}`) : body.removeAttribute('aria-activedescendant')
  }
  function select(i) {
    if (i === current) return
    const went = playing
    if (i !== null && i !== loaded) stop()
    current = i
    reveal()
    render()
    if (!details.hidden) i === null ? close() : fill()
    transport.hidden = i === null
    clock()
    if (went && i !== null && !failed(i)) play()
  }
  function step(by) {
    if (!order.length) return
    const p = order.indexOf(current)
    select(order[Math.min(Math.max((p < 0 && by < 0 ? order.length : p) + by, 0), order.length - 1)])
  }
  function mark(i, yes = !marked(i)) { change([[i, { mark: yes }]]); refresh(i); if (filter.marked) apply() }

  // what is heard: one position in three sounds

  const NAMES = { input: 'Input', sound: 'Explanation', rest: 'Residual' }
  const sounds = Object.fromEntries(Object.keys(NAMES).map((kind) => [kind, new Audio()]))
  let heard = 'sound', playing = false, loaded = null, lost = {}, asked = {}, moving = 0
  for (const [kind, a] of Object.entries(sounds)) {
    a.preload = 'none'
    a.addEventListener('ended', () => { if (kind === heard) { pause(); a.currentTime = 0; clock() } })
    a.addEventListener('error', () => { if (a.getAttribute('src')) gone(kind) })
    for (const event of ['loadedmetadata', 'seeked']) a.addEventListener(event, () => clock())
  }
  const readable = (url) => { try { return decodeURI(url) } catch { return url } }   // names of files may be no text
  function gone(kind) {
    const i = loaded, a = sounds[kind]
    lost[kind] = failed(i) && kind !== 'input' ? `${text('recording', i)} was not explained: ${text('error', i)}`
      : `The ${NAMES[kind].toLowerCase()} of ${text('recording', i)} can’t be played: ${a.dataset.at ? readable(a.dataset.at) : 'the file'} is not there, or the browser does not know its format.`
    if (kind === heard) { playing = false; tell(lost[kind]); lit(); clock() }
    for (const b of kinds) if (b.dataset.kind === kind) b.classList.add('lmac-lost')
  }
  function stop() { pause(); unload() }
  function unload() {
    for (const a of Object.values(sounds)) { a.removeAttribute('src'); a.load() }
    loaded = null
    lost = {}
    asked = {}
    tell('')
    for (const b of kinds) b.classList.remove('lmac-lost')
  }
  async function ready(kind) {                              // the sound's element with its address, or null
    const i = current, a = sounds[kind]
    if (loaded !== i) { unload(); loaded = i }
    if (!a.getAttribute('src')) {
      const url = await (asked[kind] ??= Promise.resolve(file(i, kind)).catch(() => null))
      if (loaded !== i) return null
      if (!url) { gone(kind); return null }
      if (!a.getAttribute('src')) {
        a.dataset.at = /^(data|blob):/.test(url) ? '' : url
        a.src = url
        const speed = kind === 'input' ? (data.slowed ? get('playing_speed', i) ?? 1 : 1) : 1
        a.preservesPitch = false
        a.playbackRate = Math.min(Math.max(speed, 0.0625), 16)
        a.volume = kind === 'input' ? 10 ** (Math.min(get('gain_db', i) ?? 0, 0) / 20) : 1   // as far down as the explanation was scaled, so that levels agree
      }
    }
    return lost[kind] ? null : a
  }
  const known_s = (a) => (Number.isFinite(a.duration) && a.duration > 0 ? a.duration : 0)
  const share = () => { const a = sounds[heard]; return known_s(a) ? Math.min(a.currentTime / known_s(a), 1) : 0 }
  async function metadata(a) {
    if (a.readyState) return true
    a.preload = 'auto'
    a.load()
    return new Promise((done) => { a.addEventListener('loadedmetadata', () => done(true), { once: true }); a.addEventListener('error', () => done(false), { once: true }); a.addEventListener('emptied', () => { if (!a.getAttribute('src')) done(false) }) })
  }
  async function play() {
    if (current === null) step(1)
    if (current === null || playing) return
    const i = current, was = heard
    playing = true
    lit()
    const a = await ready(heard)
    if (heard !== was && loaded === i) return               // another sound was chosen meanwhile, and has been started
    if (!a || !playing || loaded !== i) { if (loaded === i && lost[heard]) { playing = false; tell(lost[heard]); lit() } clock(); return }
    try { await a.play() } catch (e) { if (e.name === 'AbortError') return; if (e.name === 'NotAllowedError') { playing = false; lit() } }
    lit()
    tick()
    const other = heard === 'input' ? 'sound' : 'input'     // so that a switch is quick
    ready(other).then((b) => { if (b && loaded === i && !b.readyState) { b.preload = 'auto'; b.load() } })
  }
  function pause() {
    playing = false
    for (const a of Object.values(sounds)) a.pause()
    lit()
    clock()
  }
  async function hear(kind) {                               // the same moment of another sound
    if (kind === heard) return
    const before = sounds[heard], from_s = known_s(before), t = before.currentTime, i = current, went = playing
    heard = kind
    for (const b of kinds) b.setAttribute('aria-pressed', b.dataset.kind === kind)
    tell(lost[kind] ?? '')
    if (i === null) return
    const a = await ready(kind)
    if (!a || loaded !== i || heard !== kind) { if (heard === kind) { before.pause(); clock() } return }
    if (t || went) {
      if (!(await metadata(a)) || loaded !== i || heard !== kind) return
      const ratio = from_s && known_s(a) ? known_s(a) / from_s : 1, now = went ? before.currentTime : t
      a.currentTime = Math.min(now * (Math.abs(ratio - 1) < 0.03 ? 1 : ratio), Math.max(known_s(a) - 0.01, 0))
      if (playing) { try { await a.play() } catch { /* said by its error */ } }
    }
    if (heard !== kind) return
    for (const other of Object.values(sounds)) if (other !== a) other.pause()
    if (playing) tick()
    lit()
    clock()
  }
  async function seek(x) {                                  // in [0, 1]
    if (current === null) return
    const i = current, a = await ready(heard)
    if (!a || !(await metadata(a)) || loaded !== i) return
    a.currentTime = x * known_s(a)
    clock()
  }
  const tell = (what) => { told2.textContent = what }
  const told2 = element('span', { class: 'lmac-told', role: 'status' })
  const kinds = Object.entries(NAMES).map(([kind, name]) => element('button', { type: 'button', 'data-kind': kind, 'aria-pressed': kind === heard, title: { input: 'The whole recording (a)', sound: 'What the mask keeps (a)', rest: 'What it leaves out (r)' }[kind], onclick: () => hear(kind) }, name))
  const playButton = element('button', { type: 'button', class: 'lmac-play', 'aria-label': 'Play', title: 'Play (space)', onclick: () => (playing ? pause() : play()) }, icon(PLAY))
  const slider = element('input', { type: 'range', min: '0', max: '1', step: 'any', value: '0', 'aria-label': 'Position', oninput: () => seek(+slider.value) })
  const time = element('output', { class: 'lmac-time' }), named = element('span', { class: 'lmac-now' })
  const transport = element('div', { class: 'lmac-transport', role: 'group', 'aria-label': 'Player', hidden: true },
    element('button', { type: 'button', 'aria-label': 'Previous', title: 'Previous (k)', onclick: () => step(-1) }, '‹'), playButton, element('button', { type: 'button', 'aria-label': 'Next', title: 'Next (j)', onclick: () => step(1) }, '›'),
    element('span', { class: 'lmac-kinds', role: 'group', 'aria-label': 'What is heard' }, ...kinds), slider, time, named, told2)
  function clock() {
    const a = sounds[heard], x = share(), whole = known_s(a) || get('duration_s', current ?? 0) || 0
    slider.value = x
    time.textContent = current === null ? '' : `${(x * whole).toFixed(1)} / ${whole.toFixed(1)} s`
    slider.setAttribute('aria-valuetext', `${(x * whole).toFixed(1)} s of ${whole.toFixed(1)} s`)
    named.textContent = current === null ? '' : text('recording', current).split('/').pop()
    playButton.setAttribute('aria-label', playing ? 'Pause' : 'Play')
    playButton.querySelector('path').setAttribute('d', playing ? PAUSE : PLAY)
    for (const e of [shown.get(current)?.querySelector('.lmac-head-line'), details.querySelector('.lmac-head-line')]) if (e) { e.hidden = !x && !playing; e.style.left = `${100 * x}%` }
  }
  function tick() {
    cancelAnimationFrame(moving)
    if (playing) moving = requestAnimationFrame(() => { clock(); tick() })
  }

  // one row in full

  const detailStar = element('span', {}), detail = element('div', { class: 'lmac-detail' })
  const details = element('section', { class: 'lmac-details', 'aria-label': 'Details', hidden: true },
    element('div', { class: 'lmac-detail-head' }, detailStar, element('strong', { id: `${uid}-of`, tabindex: '-1' }), element('button', { type: 'button', 'aria-label': 'Close', title: 'Close (Esc)', onclick: () => { close(); body.focus() } }, '×')), detail)
  function open() { if (current === null) step(1); if (current === null) return; details.hidden = false; root.toggleAttribute('data-open', true); fill(); render(); reveal() }
  function close() { details.hidden = true; root.toggleAttribute('data-open', false); render(); reveal() }
  function fill() {
    const i = current, report = page ? file(i, 'report') : null
    detailStar.replaceChildren(star(i))
    details.querySelector('strong').textContent = text('recording', i)
    const big = frame(i, element('b', { class: 'lmac-head-line', hidden: true }))
    big.classList.add('lmac-big')
    big.addEventListener('click', (e) => { const box = big.getBoundingClientRect(); seek(Math.min(Math.max((e.clientX - box.left) / box.width, 0), 1)) })
    const area = element('textarea', { rows: '3', id: `${uid}-note`, oninput: () => change([[i, { note: area.value }]]), onchange: () => refresh(i) })
    area.value = note(i)
    const all = Object.keys(columns).filter((k) => !['recording', 'error', 'label', 'verdict'].includes(k) && text(k, i) !== '')
    detail.replaceChildren(failed(i) ? element('p', { class: 'lmac-error' }, text('error', i)) : big,
      ...(failed(i) ? [] : [element('p', { class: 'lmac-class' }, element('b', {}, text('label', i)), ` ${number('probability', get('probability', i))}`, says(i) ? element('span', {}, ` · ${says(i)}`) : null),
        text('verdict', i) ? element('p', { class: 'lmac-says' }, dot(verdict(i)), text('verdict', i)) : null]),
      ...(report ? [element('p', {}, element('a', { class: 'lmac-report', href: report, target: '_blank', rel: 'noopener' }, 'Open the report'))] : []),
      element('label', { for: `${uid}-note` }, 'Note'), area,
      element('table', {}, element('tbody', {}, ...all.map((k) => element('tr', {}, element('th', { scope: 'row', title: SAYS[k] }, title(k)), element('td', {}, number(k, get(k, i))))))))
    clock()
  }

  // tables out and in

  const guard = (x) => (/^'*[=+\-@\t\r]/.test(x) ? `'${x}` : x), bare = (x) => (/^'+[=+\-@\t\r]/.test(x) ? x.slice(1) : x)   // or a spreadsheet takes a name for a formula
  const quoted = (x) => { const s = typeof x === 'number' ? String(x) : guard(String(x ?? '')); return /[",;\t\r\n]/.test(s) ? `"${s.replaceAll('"', '""')}"` : s }
  function csv(which = order) {
    const names = Object.keys(columns).filter((k) => k !== 'recording')
    const lines = which.map((i) => [i + 1, text('recording', i), marked(i) ? 1 : '', note(i), ...names.map((k) => get(k, i))])
    return [['row', 'recording', 'mark', 'note', ...names], ...lines].map((line) => line.map(quoted).join(',')).join('\n') + '\n'
  }
  function download() {
    const url = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }))
    element('a', { href: url, download: `${data.name.replace(/[^\w.-]+/g, '-') || 'gallery'}-marks.csv` }).click()
    setTimeout(() => URL.revokeObjectURL(url), 1000)
  }
  function parse(content) {                                 // a table with commas, or semicolons or tabs as spreadsheets save them
    const s = content.replace(/^\ufeff/, ''), first = s.split(/\r?\n/, 1)[0], comma = [',', ';', '\t'].sort((a, b) => first.split(b).length - first.split(a).length)[0], lines = [[]]
    for (let k = 0; k < s.length;) {
      let x = ''
      if (s[k] === '"') {
        for (k++; k < s.length && !(s[k] === '"' && s[k + 1] !== '"'); k++) { x += s[k]; if (s[k] === '"') k++ }
        k++
      }
      while (k < s.length && s[k] !== comma && s[k] !== '\n') x += s[k++]
      lines.at(-1).push(x.replace(/\r$/, ''))
      if (k < s.length && s[k++] === '\n') lines.push([])
      else if (k >= s.length && s[k - 1] === comma) lines.at(-1).push('')
    }
    return lines.filter((line) => line.length)
  }
  function take(content) {
    const [names, ...lines] = parse(content), column = (k) => names?.indexOf(k) ?? -1
    if (column('recording') < 0 || (column('mark') < 0 && column('note') < 0)) { say('This is no table of marks: the columns recording, and mark or note, are expected.'); return }
    const of = new Map(), changes = []
    for (const i of rows) { const key = `${text('recording', i)}\n${text('label', i)}`; of.get(key)?.push(i) ?? of.set(key, [i]); const whole = `${text('recording', i)}\n`; if (whole !== key) of.get(whole)?.push(i) ?? of.set(whole, [i]) }
    let strangers = 0
    for (const line of lines) {
      const value = (k) => bare(line[column(k)] ?? ''), found = of.get(`${value('recording')}\n${column('label') < 0 ? '' : value('label')}`), i = found?.find((x) => x + 1 === +value('row')) ?? found?.[0]
      if (i === undefined) { strangers++; continue }
      changes.push([i, { ...(column('mark') < 0 ? {} : { mark: /^(1|1\.0|true|yes|x)$/i.test(value('mark').trim()) }), ...(column('note') < 0 ? {} : { note: value('note') }) }])
    }
    change(changes)
    say(`${plural(changes.length, 'row', 'rows')} taken: ${plural(changes.filter(([i]) => marked(i)).length, 'mark', 'marks')}, ${plural(changes.filter(([i]) => note(i)).length, 'note', 'notes')}.` + (strangers ? ` ${plural(strangers, 'row is', 'rows are')} of no recording here.` : ''))
    apply()
    if (!details.hidden && current !== null) fill()
  }

  // keys

  const KEYS = [['↓ ↑ or j k', 'next, previous'], ['space', 'play, pause'], ['a', 'input or explanation, at the same moment'], ['r', 'residual: what the mask leaves out'], ['← →', 'a second back, forward'],
    ['m', 'mark'], ['n', 'note'], ['Enter', 'details'], ['Esc', 'close'], ['/', 'search'], ['?', 'these keys']]
  const help = element('dialog', { class: 'lmac-help', 'aria-labelledby': `${uid}-help` }, element('h2', { id: `${uid}-help` }, 'Keys'),
    element('dl', {}, ...KEYS.flatMap(([k, what]) => [element('dt', {}, k), element('dd', {}, what)])), element('form', { method: 'dialog' }, element('button', { autofocus: true }, 'Close')))
  const hint = element('p', { class: 'lmac-keys', id: `${uid}-keys` }, '↓ ↑ next, previous · space plays · a: input or explanation · m marks · ? all keys')
  const ACTS = { ArrowDown: () => step(1), j: () => step(1), ArrowUp: () => step(-1), k: () => step(-1), PageDown: () => step(Math.max(1, Math.floor(body.clientHeight / height) - 1)), PageUp: () => step(-Math.max(1, Math.floor(body.clientHeight / height) - 1)),
    Home: () => step(-n), End: () => step(n), ' ': () => (playing ? pause() : play()), a: () => hear(heard === 'sound' ? 'input' : 'sound'), r: () => hear(heard === 'rest' ? 'sound' : 'rest'),
    ArrowLeft: () => nudge(-1), ArrowRight: () => nudge(1), m: () => { if (current !== null) mark(current) }, n: () => { open(); details.querySelector('textarea')?.focus() }, Enter: () => (details.hidden ? open() : close()),
    Escape: () => { if (!details.hidden) close(); else if (active()) clear() }, '/': () => { root.toggleAttribute('data-filters', true); folded.setAttribute('aria-expanded', 'true'); search.focus() }, '?': () => help.showModal() }
  function nudge(by_s) {
    const a = sounds[heard]
    if (known_s(a)) { a.currentTime = Math.min(Math.max(a.currentTime + by_s, 0), known_s(a)); clock() }
  }
  function key(e) {
    if (!page) e.stopPropagation()                          // a notebook has shortcuts of its own
    if (e.ctrlKey || e.metaKey || e.altKey || help.open) return
    const inText = e.target.matches?.('input:not([type=range]), textarea, select')
    if (inText) { if (e.key === 'Escape' && !e.target.matches('select')) { e.preventDefault(); e.target.blur(); body.focus() } return }
    if ([' ', 'Enter'].includes(e.key) && e.target.closest?.('button, summary, a')) return
    if (e.target.matches?.('input[type=range]') && /^(Arrow|Home|End|Page)/.test(e.key)) return
    const act = Object.hasOwn(ACTS, e.key) ? ACTS[e.key] : null
    if (!act || (!n && e.key !== '?')) return
    e.preventDefault()
    act()
    if (['ArrowDown', 'ArrowUp', 'j', 'k', 'Escape'].includes(e.key) && document.activeElement !== body && !help.open) body.focus({ preventScroll: true })
  }

  // together

  const main = element('div', { class: 'lmac-main' }, element('div', { class: 'lmac-table' }, body, nothing), details)
  root.classList.add('lmac-gallery')
  root.setAttribute('data-lm-suppress-shortcuts', 'true')
  root.replaceChildren(head, main, transport, hint, help)
  const target = page ? document : root
  target.addEventListener('keydown', key)
  const watch = new ResizeObserver(() => later())
  watch.observe(body)
  const elsewhere = (e) => {                                // another tab has marked something
    if (e.key !== place) return
    marks = stored()
    apply()
  }
  addEventListener('storage', elsewhere)
  adopt()
  marks = { ...clean(noted), ...marks, ...stored() }
  if (Object.keys(marks).length) save({ ...marks })
  apply()
  return (root.lmac = {
    select, step, play, pause, hear, seek, mark, sortBy, set, clear, csv, take, open, close,
    end: () => { stop(); target.removeEventListener('keydown', key); removeEventListener('storage', elsewhere); watch.disconnect(); cancelAnimationFrame(moving) },
    get state() { return { n, order: Array.from(order), current, playing, heard, position: share(), duration: known_s(sounds[heard]), sort: { ...sort }, marks: { ...marks }, rows: shown.size, lost: { ...lost }, volume: sounds[heard].volume } },
  })
}

// Addresses of the files beside a page: those of the explanation in its folder, the input where it lies.
function lmacFiles(data) {
  const at = (c) => (c ? (c.v ? (i) => c.v[i] : c.k ? (i) => c.of[c.k[i]] : () => c.of[0]) : () => null)
  const encoded = (path) => path.split('/').map(encodeURIComponent).join('/'), files = Object.fromEntries(['sound', 'rest', 'picture', 'report', 'input'].map((k) => [k, at(data.files[k])])), folder = at(data.columns.explanation), recording = at(data.columns.recording)
  return (i, kind) => {
    if (kind === 'input') return files.input(i) ?? (data.files.above == null ? null : data.files.above + encoded(recording(i)))
    return folder(i) && files[kind](i) ? `./${encoded(folder(i))}/${encoded(files[kind](i))}` : null
  }
}

// The gallery in a notebook with a kernel, for anywidget: files come when they are asked for.
function lmacGalleryWidget({ model, el }) {
  const waiting = new Map(), made = [], heavy = []
  const file = (row, kind) => new Promise((done) => {
    const key = `${row} ${kind}`
    waiting.get(key)?.push(done) ?? (waiting.set(key, [done]), model.send({ row, kind }))
  })
  const arrived = (message, buffers) => {
    const key = `${message.row} ${message.kind}`, url = buffers?.length ? URL.createObjectURL(new Blob([buffers[0]], { type: message.type })) : null
    if (url) made.push(url)
    if (url && message.kind !== 'picture' && heavy.push(url) > 40) URL.revokeObjectURL(heavy.shift())   // sounds that were heard long ago
    for (const done of waiting.get(key) ?? []) done(url)
    waiting.delete(key)
  }
  model.on('msg:custom', arrived)
  const root = document.createElement('div')
  el.append(root)
  const gallery = lmacGallery(root, JSON.parse(model.get('data')), { file, noted: model.get('noted'), save: (noted) => { model.set('noted', noted); model.save_changes() } })
  return () => {
    gallery.end()
    model.off('msg:custom', arrived)
    for (const url of made) URL.revokeObjectURL(url)
  }
}

// The gallery without a kernel: pictures and sounds are those of the plain table that stands there, and taken out of it.
function lmacGalleryStatic(figure) {
  if (figure.lmac) return figure.lmac
  const data = JSON.parse(figure.dataset.gallery), files = new Map()
  for (const e of figure.querySelectorAll('[data-file]')) files.set(e.dataset.file, e.src)
  return lmacGallery(figure, data, { file: (i, kind) => files.get(`${i} ${kind}`) ?? null })
}
