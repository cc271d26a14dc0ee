// The listening study as a page: one trial after the other, each answer kept in the browser's storage before the next is shown.
// The plan (trials, orders, sounds) is in the page as JSON; a line of the file that is saved is what `lmac.listen.study` writes itself.
function lmacStudy(document) {
  const plan = JSON.parse(document.getElementById('plan').textContent), main = document.getElementById('study')
  const element = (tag, attributes = {}, ...children) => {
    const e = document.createElement(tag)
    for (const [k, v] of Object.entries(attributes)) k.startsWith('on') ? e.addEventListener(k.slice(2), v) : e.setAttribute(k, v)
    e.append(...children)
    return e
  }
  const letter = (k) => String.fromCharCode(65 + k)
  const place = (listener) => `lmac-study ${plan.id} ${listener}`
  const load = (listener) => JSON.parse(localStorage.getItem(place(listener)) ?? '[]')
  let listener = null

  function show(...children) {
    main.querySelector('.lmac-player')?.lmac?.pause()
    main.replaceChildren(element('h1', {}, plan.title), ...children)
    main.querySelector('h2')?.focus()
  }
  function heading(text) { return element('h2', { tabindex: '-1' }, text) }

  function welcome() {
    const number = element('input', { type: 'number', min: '0', step: '1', required: '', id: 'listener' })
    const form = element('form', { onsubmit: (e) => { e.preventDefault(); listener = number.valueAsNumber; next() } },
      element('p', {}, element('label', { for: 'listener' }, 'Your listener number (you were given one) '), number), element('button', { type: 'submit' }, 'Begin'))
    show(heading('Welcome'), element('p', {}, 'A computer has named the sound in short recordings. You will hear each recording, and other sounds made from it. ' +
      'Please use headphones in a quiet room. The first trials are for practice and do not count.'),
      element('p', {}, 'Your answers stay in this browser until you save them as a file at the end. You can close this page and go on later.'), form)
  }

  function next(note) {
    const answers = load(listener), done = new Set(answers.map((a) => a.trial)), order = plan.orders[listener % plan.orders.length]
    const step = order.find(([id]) => !done.has(id))
    step ? ask(plan.trials.find((t) => t.id === step[0]), step[1], answers.length, order.length) : end(order.length)
    if (note) main.querySelector('h2').after(element('p', { role: 'status' }, note))
  }

  function ask(trial, items, done, all) {
    const clip = plan.clips[trial.clip], began = performance.now()
    const figure = element('figure', { class: 'lmac-player', 'data-duration': clip.duration_s, 'data-rate': clip.sample_rate,
      'data-header': clip.header ?? clip.sample_rate, 'data-speed': clip.speed ?? 1 })   // one speed for all listeners: none to choose from
    figure.innerHTML = '<figcaption class="lmac-title"></figcaption><div class="lmac-stage"><div class="lmac-hz" aria-hidden="true"></div><div class="lmac-view"><div class="lmac-picture">' +
      '<img class="lmac-spectrogram" alt="Spectrogram of the clip"></div></div></div><div class="lmac-sounds" role="group" aria-label="Sound"></div><div class="lmac-tools"></div><p class="lmac-pace"></p><div class="lmac-plain"></div><p class="lmac-says"></p>'
    figure.querySelector('.lmac-title').textContent = `The classifier says: ${trial.label.replaceAll('_', ' ')}`
    figure.querySelector('img').src = clip.picture
    const sounds = [['Clip', clip.reference], ...items.map((t, k) => [letter(k), t])]
    figure.querySelector('.lmac-plain').append(...sounds.map(([name, t]) => element('audio', { 'data-name': name, 'data-gain': '1', src: plan.sounds[t], preload: 'none' })))

    const button = element('button', { type: 'submit', disabled: '' }, 'Next'), touched = new Set()
    const touch = (key, n) => { touched.add(key); button.disabled = touched.size < n }
    const form = element('form', { class: 'lmac-form', onsubmit: (e) => { e.preventDefault(); submit() } })
    let answer
    if (trial.kind === 'pair') {
      form.append(element('fieldset', {}, element('legend', {}, plan.pair), ...items.map((t, k) => element('label', {},
        element('input', { type: 'radio', name: 'choice', value: t, onchange: () => touch('choice', 1) }), ` ${letter(k)}`))))
      answer = () => ({ choice: new FormData(form).get('choice') })
    } else {
      const n = items.length * Object.keys(plan.scales).length
      for (const [scale, question] of Object.entries(plan.scales)) {
        form.append(element('fieldset', {}, element('legend', {}, question), ...items.map((t, k) => element('label', {}, `${letter(k)} `,
          element('input', { type: 'range', min: '0', max: '100', value: '50', name: `${t} ${scale}`, oninput: (e) => { e.target.nextSibling.value = e.target.value; touch(e.target.name, n) } }), element('output', {}, '–')))))
      }
      answer = () => ({ scores: Object.fromEntries(items.map((t) => [t, Object.fromEntries(Object.keys(plan.scales).map((s) => [s, +form.elements[`${t} ${s}`].value]))])) })
    }
    const warning = element('p', { role: 'alert' })
    form.append(button, warning)
    function submit() {
      const before = load(listener)   // read again: this listener may have answered in another tab
      if (before.some((a) => a.trial === trial.id)) return next('The last trial was answered in another tab; the first answer counts.')
      const line = { study: plan.id, listener, trial: trial.id, time: Date.now() / 1000, ...answer(), seconds: Math.round(performance.now() - began) / 1000 }
      try { localStorage.setItem(place(listener), JSON.stringify([...before, line])) }
      catch (e) { return warning.replaceChildren(`This browser did not keep the answer (${e.message}). Save the answers so far, and press Next again.`) }
      next()
    }
    show(heading(`${done + 1} of ${all}${trial.practice ? ' (practice)' : ''}`), figure, form,
      element('p', {}, element('button', { type: 'button', onclick: save }, 'Save the answers so far')))
    lmacPlayer(figure).match(false)                         // they were made equally loud when the study was built
  }

  function save() {
    const text = load(listener).map((a) => JSON.stringify(a) + '\n').join('')
    const url = URL.createObjectURL(new Blob([text], { type: 'application/x-ndjson' }))
    element('a', { href: url, download: `${plan.id}-${String(listener).padStart(3, '0')}.jsonl` }).click()
    setTimeout(() => URL.revokeObjectURL(url), 1000)
  }
  function end(all) {
    show(heading('Thank you!'), element('p', {}, `All ${all} trials are answered. Please save your answers as a file and send it back.`),
      element('button', { type: 'button', onclick: save }, 'Save my answers'))
  }
  welcome()
}
