"""What a person sees and hears in a browser: the player, the study and the pages, operated in headless Chromium.

Effects are checked on samples and scores, not only on what is drawn. Every page is opened without network: a request to another host fails the test.
"""
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lmac.audio import make_scene
from lmac.player import player_html
from lmac.spectrogram import STFT

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from check_site import CHROMIUM, FLAGS, dead_links, page_problems, served, site_pages, watch  # noqa: E402
from render import reading_order  # noqa: E402


@pytest.fixture(scope="session")
def browser(driver):
    if CHROMIUM is None: pytest.fail("These tests need Chromium: apt install chromium, or another that is called so on the PATH.")
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def new_page(browser):
    "Open a page; at the end nothing must have been complained about, and no other host asked for anything"
    contexts, complaints = [], []

    def make(url, **options):
        context = browser.new_context(accept_downloads=True, **options)
        page = context.new_page()
        contexts.append(context)
        complaints.append(watch(page))
        page.goto(url)
        return page
    yield make
    for context in contexts: context.close()
    assert not any(complaints), complaints


# the player

RATE = 16000


@pytest.fixture(scope="module")
def player_file(tmp_path_factory):
    "A page with a player of three sounds, and the sounds"
    scene = make_scene({"dog": 0, "rain": -8}, 3.)
    magnitude, _ = STFT()(scene.waveform)
    sounds = {"Input": scene.waveform, "Dog alone": scene.sources["dog"], "Rain alone": .3 * scene.sources["rain"]}
    file = tmp_path_factory.mktemp("player")/"player.html"
    page = player_html(sounds, RATE, magnitude[0], torch.rand(magnitude[0].shape), title="A dog", alt="A dog barks")
    file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Player</title><body style="margin:0">{page}</body></html>')
    return file, sounds


def state(page): return page.evaluate("document.querySelector('.lmac-player').lmac.state")
def act(page, what): return page.evaluate(f"document.querySelector('.lmac-player').lmac.{what}")


def samples(page, k):
    "Samples of a sound, as the page decoded them"
    act(page, "decode()")
    return np.array(page.evaluate(f"Array.from(document.querySelector('.lmac-player').lmac.buffers[{k}].getChannelData(0))"), np.float32)


def test_the_player_holds_the_very_samples(new_page, player_file):
    file, sounds = player_file
    page = new_page(file.as_uri())
    for k, sound in enumerate(sounds.values()): np.testing.assert_allclose(samples(page, k), sound[0], atol=2**-14)   # browsers and files do not quite agree on what full scale is


def test_switching_keeps_the_position(new_page, player_file):
    page = new_page(player_file[0].as_uri())
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.lmac-player').lmac.state.position > .4")
    before = state(page)
    page.get_by_role("button", name="Dog alone").click()
    after = state(page)
    assert after["playing"] and after["name"] == "Dog alone" and 0 <= after["position"] - before["position"] < .5
    page.get_by_role("button", name="Pause").click()
    held = state(page)["position"]
    page.wait_for_timeout(150)
    assert not state(page)["playing"] and state(page)["position"] == held


def test_a_click_seeks_and_a_drag_loops(new_page, player_file):
    page = new_page(player_file[0].as_uri())
    view = page.locator(".lmac-view").bounding_box()
    def x(share): return view["x"] + share * view["width"]
    y = view["y"] + view["height"] / 2
    page.mouse.click(x(.5), y)
    assert state(page)["position"] == pytest.approx(1.5, abs=.02)
    page.mouse.move(x(.2), y)
    page.mouse.down()
    page.mouse.move(x(.3), y, steps=3)
    page.mouse.up()
    loop = state(page)["loop"]
    assert loop == pytest.approx([.6, .9], abs=.02)
    act(page, "play()")
    for _ in range(6):
        page.wait_for_timeout(120)
        assert loop[0] - .02 <= state(page)["position"] <= loop[1] + .02
    page.locator(".lmac-view").press("Escape")
    assert state(page)["loop"] is None


def test_all_of_it_with_the_keyboard(new_page, player_file):
    page = new_page(player_file[0].as_uri())
    page.keyboard.press("Tab")
    page.locator(".lmac-view").focus()
    page.keyboard.press("End")
    assert state(page)["position"] == pytest.approx(3)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert state(page)["position"] == pytest.approx(.55)
    page.keyboard.press("3")
    assert state(page)["name"] == "Rain alone"
    page.keyboard.press(" ")
    page.wait_for_function("document.querySelector('.lmac-player').lmac.state.position > .6")
    page.keyboard.press(" ")
    assert not state(page)["playing"]
    page.keyboard.press("m")
    assert not state(page)["matched"] and state(page)["level"] == 1


def test_same_loudness_and_true_level(new_page, player_file):
    file, sounds = player_file
    page = new_page(file.as_uri())
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Rain alone").click()
    raised = state(page)["level"]
    page.get_by_label("same loudness").uncheck()
    assert raised > 2 and state(page)["level"] == 1   # it was made soft


@pytest.mark.parametrize("matched", [True, False])
def test_the_download_is_what_is_heard(new_page, player_file, tmp_path, matched):
    import soundfile as sf
    file, sounds = player_file
    page = new_page(file.as_uri())
    page.get_by_role("button", name="Rain alone").click()
    page.get_by_label("same loudness").set_checked(matched)
    level = state(page)["level"]
    with page.expect_download() as info: page.get_by_role("button", name="Download").click()
    assert info.value.suggested_filename == "rain-alone.wav"
    info.value.save_as(tmp_path/"x.wav")
    found, rate = sf.read(tmp_path/"x.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(found, level * sounds["Rain alone"][0].numpy(), atol=3 * level / 2**15)


def test_the_shade_follows_its_slider(new_page, player_file):
    page = new_page(player_file[0].as_uri())
    slider = page.get_by_label("mask")
    slider.fill("0.2")
    assert page.locator(".lmac-mask").evaluate("e => e.style.opacity") == "0.2"


@pytest.fixture
def regions_file(player_file, tmp_path):
    "A page with a player of a sound with two regions, and these"
    sounds = {"Input": player_file[1]["Input"]}
    regions = pd.DataFrame(dict(start_s=[.3, 1.5], end_s=[.9, 3.], low_hz=[800., 0.], high_hz=[4000., 8000.]))
    magnitude = STFT()(sounds["Input"])[0][0]
    page = player_html(sounds, RATE, magnitude, torch.ones_like(magnitude), regions=regions)
    (tmp_path/"regions.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Regions</title><body style="margin:0">{page}</body></html>')
    return tmp_path/"regions.html", regions


def test_regions_lie_where_they_are(new_page, regions_file):
    page = new_page(regions_file[0].as_uri())
    view = page.locator(".lmac-view").bounding_box()
    for box, r in zip(page.locator(".lmac-boxes div").all(), regions_file[1].itertuples(), strict=True):
        found = box.bounding_box()
        sides = [(found["x"] - view["x"]) / view["width"], found["width"] / view["width"], (found["y"] - view["y"]) / view["height"], found["height"] / view["height"]]
        assert sides == pytest.approx([r.start_s / 3, (r.end_s - r.start_s) / 3, 1 - r.high_hz / 8000, (r.high_hz - r.low_hz) / 8000], abs=.01)


def test_regions_are_hidden_and_shown_with_the_keyboard(new_page, regions_file, player_file):
    page = new_page(regions_file[0].as_uri())
    box, checkbox = page.locator(".lmac-boxes div").first, page.get_by_role("checkbox", name="regions")
    assert checkbox.is_checked() and box.is_visible()
    checkbox.focus()
    page.keyboard.press(" ")
    assert not checkbox.is_checked() and not box.is_visible() and not state(page)["regions"]
    page.evaluate("{ const f = document.querySelector('.lmac-player'); f.lmac.update(f.outerHTML) }")
    assert not page.locator(".lmac-boxes div").first.is_visible()   # new markup, the same choice
    page.locator(".lmac-view").press("b")
    assert checkbox.is_checked() and page.locator(".lmac-boxes div").first.is_visible()
    view = page.locator(".lmac-view").bounding_box()
    page.mouse.click(view["x"] + .2 * view["width"], view["y"] + .7 * view["height"])   # into a region
    assert state(page)["position"] == pytest.approx(.6, abs=.02)
    assert not new_page(player_file[0].as_uri()).get_by_role("checkbox", name="regions").is_visible()   # where there are none


def test_it_starts_where_scripts_are_run_anew(new_page, player_file, tmp_path):
    "As VS Code does: HTML is put into the page, and then its scripts are run, at the end of what holds it"
    twice, file = 2 * re.search("<style.*</script>", player_file[0].read_text(), re.S)[0], tmp_path/"anew.html"
    run = "for (const s of [...out.getElementsByTagName('script')]) { const anew = document.createElement('script'); anew.text = s.innerText; out.appendChild(anew).remove() }"
    content = json.dumps(twice).replace("</", "<\\/")
    file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Anew</title><body><div id="out"></div><script>out.innerHTML = {content}; {run}</script></body></html>')
    page = new_page(file.as_uri())
    assert page.locator(".lmac-player.lmac-ready").count() == 2
    page.get_by_role("button", name="Dog alone").nth(1).click()
    assert page.locator(".lmac-player").evaluate_all("all => all.map(e => e.lmac.state.name)") == ["Input", "Dog alone"]


def test_without_scripts_there_are_pictures_and_sounds(new_page, player_file):
    page = new_page(player_file[0].as_uri(), java_script_enabled=False)
    assert page.locator("audio").count() == 3 and page.locator("audio").first.is_visible()
    assert page.locator("img.lmac-spectrogram").get_attribute("alt") == "A dog barks"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_puts_nothing_between_shade_and_picture(new_page, player_file, tmp_path, theme):
    "A page may give its pictures a white background, for dark themes; behind the shade it would wash out what the mask lets through"
    text = player_file[0].read_text()
    player, style = re.search("<figure.*</script>", text, re.S)[0], re.search("<style>.*?</style>", text, re.S)[0]
    page_style = '<style>main img[src^="data:image/png"] { background: #fff }</style>'
    (tmp_path/"page.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>{page_style}{style}<main>{player}<img id="other" alt="" src="data:image/png;base64,"></main>')
    page = new_page((tmp_path/"page.html").as_uri(), color_scheme=theme)
    def background(selector): return page.locator(selector).evaluate("e => getComputedStyle(e).backgroundColor")
    assert background("img.lmac-mask") == "rgba(0, 0, 0, 0)" and background("#other") == "rgb(255, 255, 255)"


def test_it_fits_a_telephone(new_page, player_file):
    page = new_page(player_file[0].as_uri(), viewport=dict(width=400, height=800))
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


# the study

@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A study of two clips and two methods, one clip for practice, and its page"
    from lmac.explain import LMAC
    from lmac.listen.study import build_study, study_html
    from lmac.listen.widgets import ExplanationSession
    lmac, folder = LMAC.from_pretrained(), tmp_path_factory.mktemp("study")
    questions = [ExplanationSession(lmac, make_scene({name: 0, "rain": -8}, 1., seed=1).waveform, RATE, name=name) for name in ("dog", "rooster")]
    study = build_study(questions, folder/"study", ["lmac", "energy"])
    (folder/"study.html").write_text(study_html(study))
    return study, folder/"study.html"


def answer_trial(page, score):
    "Move every control of a trial and go on"
    for k, slider in enumerate(page.locator("form input[type=range]").all()): slider.fill(str(min(score + k, 100)))
    if (radio := page.locator("form input[type=radio]")).count(): radio.first.check()
    page.get_by_role("button", name="Next").click()


def begin(page, listener):
    page.get_by_label("listener number").fill(str(listener))
    page.get_by_role("button", name="Begin").click()


def test_a_study_from_start_to_end_twice_once_interrupted(new_page, study, browser, tmp_path):
    from lmac.listen.study import read_answers
    study, file = study
    n = len(study.plan["trials"])
    (tmp_path/"answers").mkdir()

    page = new_page(file.as_uri())
    begin(page, 0)
    assert page.get_by_role("button", name="Next").is_disabled()
    assert page.get_by_text("1 of").is_visible() and page.get_by_text("(practice)").is_visible()
    for _ in range(n): answer_trial(page, 40)
    save(page, "Save my answers", tmp_path/"answers")

    begin_again = file.as_uri()
    page.goto(begin_again)
    begin(page, 1)
    answer_trial(page, 60)
    shown = page.locator(".lmac-title").inner_text()
    page.goto("about:blank")   # closed in the middle of the second trial
    page.goto(begin_again)
    begin(page, 1)
    assert page.get_by_text(f"2 of {n}").is_visible() and page.locator(".lmac-title").inner_text() == shown
    for _ in range(n - 1): answer_trial(page, 60)
    save(page, "Save my answers", tmp_path/"answers")

    ratings, pairs = read_answers(study, tmp_path/"answers")
    assert set(ratings.listener) == {0, 1} and len(ratings) == 2 * 4 * 2 and len(pairs) == 2 * 1
    assert ratings[ratings.listener == 0].score.min() == 40 and ratings[ratings.listener == 1].score.min() == 60
    practice = [json.loads(line) for line in next((tmp_path/"answers").glob("*-000.jsonl")).read_text().splitlines()]
    assert len(practice) == n and all(a["seconds"] >= 0 for a in practice)


def save(page, name, folder):
    with page.expect_download() as info: page.get_by_role("button", name=name).click()
    info.value.save_as(folder/info.value.suggested_filename)


def test_the_sounds_of_a_trial_are_those_of_the_plan(new_page, study):
    from lmac.audio import load_audio
    study, file = study
    page = new_page(file.as_uri())
    begin(page, 5)
    trial, items = study.order(5)[0]
    act(page, "decode()")
    assert [b.inner_text() for b in page.locator(".lmac-sounds button").all()] == ["Clip", *"ABCD"]
    for k, token in enumerate(items): np.testing.assert_allclose(samples(page, k + 1), study.sound(token)[0][0], atol=2**-14)
    assert not state(page)["matched"]


# the site

@pytest.fixture(scope="session")
def site(once):
    "All pages, as `make site` makes them"
    def make(folder): subprocess.run([sys.executable, ROOT/"docs"/"render.py", "--out", folder], check=True)
    return once("site", make)


@pytest.fixture(scope="session")
def address(site):
    with served(site) as address: yield address


def test_links_anchors_and_alternative_texts(site):
    pages = site_pages(site)
    assert len(pages) == len(reading_order()) and sum(p.read_text().count("<audio") for p in pages) > 20
    assert not (problems := dead_links(site)), "\n".join(problems)


@pytest.mark.parametrize("path", reading_order(), ids=lambda p: p.removeprefix("nbs/").removesuffix(".ipynb"))
def test_a_page_opens_fits_sounds_and_can_be_used_by_all(browser, address, path):
    "No complaint of the browser, no other host, nothing wider than a telephone, all sounds play, and nothing that axe-core calls serious"
    assert not (problems := page_problems(browser, f"{address}/{Path(path).with_suffix('.html')}")), "\n".join(problems)


def test_the_check_of_the_site_finds_what_is_wrong(browser, tmp_path):
    silent = '<audio controls src="data:audio/wav;base64,AAAA"></audio>'
    wide = '<div style="width: 500px; color: #aaa; background: #fff">pale</div><img src="b.png">'
    elsewhere = '<img alt="" src="https://lmac.invalid/a.png"><a href="#no">no</a> <a href="none.html">none</a> <i id="x"></i><i id="x"></i>'
    (tmp_path/"page.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title><main>{silent}{wide}{elsewhere}</main>')
    found = "\n".join(dead_links(tmp_path))
    assert all(text in found for text in ("ids more than once: ['x']", "alternative text: b.png", "#no", "none.html"))
    with served(tmp_path) as address: found = "\n".join(page_problems(browser, f"{address}/page.html"))
    assert all(text in found for text in ("asks for https://lmac.invalid", " px wide", "1 sounds that cannot", "image-alt", "color-contrast", "dark: "))
