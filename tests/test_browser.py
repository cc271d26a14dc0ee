"""What a person sees and hears in a browser: the player, the study and the pages, operated in headless Chromium.

Effects are checked on samples and scores, not only on what is drawn. Every page is opened without network: a request to another host fails the test.
"""
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lmac.audio import fit_peak, make_scene
from lmac.listen.page import is_built
from lmac.player import player_html
from lmac.spectrogram import STFT

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from check_site import dead_links, page_problems, served, site_pages, watch  # noqa: E402
from render import reading_order  # noqa: E402


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


# sounds that nobody can hear

@pytest.fixture(scope="module")
def bat_file(tmp_path_factory):
    "A page with a player of a tone of 40 kHz in front of a soft one of 3 kHz, 0.4 s at 256 kHz, and the sounds"
    t = torch.arange(102400) / 256000
    high, low = .5 * torch.sin(2 * torch.pi * 40000 * t)[None], .05 * torch.sin(2 * torch.pi * 3000 * t)[None]
    file = tmp_path_factory.mktemp("bat")/"bat.html"
    page = player_html({"Input": high + low, "High": high, "Low": low}, 256000, STFT(512, 256)(high + low)[0][0], title="A bat", alt="Two lines")
    file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Player</title><body style="margin:0">{page}</body></html>')
    return file, [high + low, high, low]


def heard(page, k):
    "Strongest frequency in Hz, level in dB and length in seconds of a sound as the page plays it"
    found, rate = samples(page, k), page.evaluate(f"document.querySelector('.lmac-player').lmac.buffers[{k}].sampleRate")
    return np.abs(np.fft.rfft(found)).argmax() * rate / len(found), 10 * np.log10(np.mean(found**2) + 1e-12), len(found) / rate


def test_a_bat_is_heard_ten_times_slower(new_page, bat_file):
    page = new_page(bat_file[0].as_uri())
    assert page.get_by_label("speed").input_value() == "0.1" and page.get_by_text("Played 10 times slower.").is_visible()
    np.testing.assert_allclose(samples(page, 1), bat_file[1][1][0], atol=2**-14)   # the very samples, at another rate
    hz, level_db, duration_s = heard(page, 1)
    assert (hz, duration_s) == pytest.approx((4000, 4), abs=1) and level_db == pytest.approx(-9.03, abs=.05)
    assert "128 kHz" in page.locator(".lmac-hz").inner_text() and "0.4 s" in page.locator(".lmac-s").inner_text()


def test_the_playhead_runs_in_seconds_of_the_recording(new_page, bat_file):
    page = new_page(bat_file[0].as_uri())
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.lmac-player').lmac.state.position > 0")
    times = page.evaluate("""async () => {
        const at = () => [performance.now() / 1000, document.querySelector('.lmac-player').lmac.state.position], first = at()
        await new Promise((r) => setTimeout(r, 1000))
        return [first, at()]
    }""")
    (before_s, start), (after_s, end) = times
    assert (end - start) / (after_s - before_s) == pytest.approx(.1, rel=.15)
    assert re.fullmatch(r"0\.[12]\d\d s of 0\.400 s", page.locator(".lmac-clock").inner_text())
    left = page.locator(".lmac-playhead").evaluate("e => parseFloat(e.style.left)")
    assert left == pytest.approx(100 * state(page)["position"] / .4, abs=5)


def test_the_listener_chooses_the_speed(new_page, bat_file):
    "With the keyboard; the position stays, also while it plays; what is beyond hearing then is not folded back into it"
    page = new_page(bat_file[0].as_uri())
    act(page, "seek(.2)")
    page.get_by_label("speed").focus()
    page.keyboard.press("ArrowDown")
    assert state(page)["speed"] == .2 and state(page)["position"] == pytest.approx(.2) and page.get_by_text("Played 5 times slower.").is_visible()
    assert heard(page, 1)[0] == pytest.approx(8000, abs=1)
    page.get_by_label("speed").select_option("1")
    assert not page.locator(".lmac-pace").is_visible()
    assert heard(page, 1)[1] < -60 and heard(page, 2) == pytest.approx((3000, -29.03, .4), abs=1)
    page.get_by_label("speed").select_option("0.05")
    assert heard(page, 1) == pytest.approx((2000, -9.03, 8), abs=1)
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.lmac-player').lmac.state.position > .205")
    page.get_by_label("speed").select_option("0.1")
    before = state(page)["position"]
    page.wait_for_timeout(300)
    assert state(page)["playing"] and 0 < state(page)["position"] - before < .1


def test_other_sounds_come_at_their_own_speed_unless_one_was_chosen(new_page, player_file, bat_file):
    "As a widget gives them to the page, while it plays"
    page = new_page(player_file[0].as_uri())
    bat, dog = (re.search("<figure.*?</figure>", file.read_text(), re.S)[0] for file in (bat_file[0], player_file[0]))
    def give(html):
        "The state before and after, as nothing lasts long enough to be looked at from here"
        return page.evaluate("""async (html) => {
            const player = document.querySelector('.lmac-player').lmac
            player.seek(0)
            if (!player.state.playing) await player.play()
            const before = player.state
            await player.update(html)
            return [before, player.state]
        }""", html)
    for figure, speed, hz in ((bat, .1, 4000), (dog, 1, None), (bat, .1, 4000)):
        before, after = give(figure)
        assert after["playing"] and after["speed"] == speed != before["speed"] and 0 <= after["position"] < (.4 if hz else 3)
        assert page.get_by_label("speed").input_value() == f"{speed:g}" and (hz is None or heard(page, 1)[0] == pytest.approx(hz, abs=1))
    page.get_by_label("speed").select_option("0.2")
    assert {give(figure)[1]["speed"] for figure in (dog, bat)} == {.2} and heard(page, 1)[0] == pytest.approx(8000, abs=1)


def test_the_download_is_as_slow_as_what_is_heard(new_page, bat_file, tmp_path):
    import soundfile as sf
    page = new_page(bat_file[0].as_uri())
    with page.expect_download() as info: page.get_by_role("button", name="Download").click()
    assert info.value.suggested_filename == "input-10-times-slower.wav"
    info.value.save_as(tmp_path/"x.wav")
    assert sf.info(tmp_path/"x.wav").samplerate == 25600


@pytest.mark.parametrize("name, rate, hz, speed, played_hz", [("whale", 500, 20, None, 160), ("hum", 16000, 20, None, 160), ("bat as recorded", 256000, 3000, 1., 3000)])
def test_audio_elements_play_without_a_script(new_page, tmp_path, name, rate, hz, speed, played_hz):
    "What no browser takes, 500 Hz or 256 kHz, is brought to a rate that it does; all samples are there for the script"
    sound = .5 * torch.sin(2 * torch.pi * hz * torch.arange(2 * rate) / rate)[None]
    page_html = player_html({name: sound}, rate, STFT(256, 64)(sound)[0][0], speed=speed)
    (tmp_path/"x.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>{page_html}')
    page = new_page((tmp_path/"x.html").as_uri())
    length_s = page.evaluate("() => new Promise((r) => { const a = new Audio(document.querySelector('audio').src); a.onloadedmetadata = () => r(a.duration); a.onerror = () => r(a.error.message) })")
    assert length_s == pytest.approx(2 / (8 if speed is None else speed), rel=.01)
    assert heard(page, 0) == pytest.approx((played_hz, -9.03, length_s), abs=.6)
    page.get_by_label("speed").select_option("0.5")
    assert heard(page, 0) == pytest.approx((hz / 2, -9.03, 4), abs=.6)


# several classes

@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    "A report, and its explanation"
    from lmac.explain import LMAC
    found = LMAC.from_pretrained("esc10-sources").explain(make_scene({"dog": 0, "rain": -8}, 3.).waveform, RATE)
    file = tmp_path_factory.mktemp("report")/"report.html"
    file.write_text(found.report())
    return file, found


@pytest.fixture(scope="module")
def several_file(tmp_path_factory):
    "A page with the player of three classes, and their explanations"
    from lmac.explain import LMAC
    scene = make_scene({"dog": 0, "rain": 0}, 3.)
    found = LMAC.from_pretrained("esc10-sources").explain(scene.waveform, RATE, targets=["dog", "rain", "rooster"])
    file = tmp_path_factory.mktemp("several")/"report.html"
    file.write_text(found.report())
    return file, found


def drawn(page): return page.locator(".lmac-view").screenshot()


def test_switching_the_class_changes_sound_and_mask_and_keeps_the_position(new_page, several_file):
    file, found = several_file
    page = new_page(file.as_uri())
    by_class, by_sound = page.get_by_role("group", name="Class"), page.get_by_role("group", name="Sound")
    def heard(): return page.locator(".lmac-heard").inner_text(), page.locator(".lmac-says").inner_text()
    def press(group, name): group.get_by_role("button", name=name, exact=True).click()
    assert [b.inner_text() for b in by_class.get_by_role("button").all()] == ["All in colours", "dog", "rain", "rooster"]
    assert [b.inner_text() for b in by_sound.get_by_role("button").all()] == ["Input", "dog", "rain", "rooster"] and state(page)["class"] == "all"
    assert page.locator(".lmac-heard").get_attribute("aria-live") == "polite" and heard() == ("Heard: Input", found.sentence())
    act(page, "seek(1.25)")
    pictures = {"all": drawn(page)}
    press(by_sound, "rain")
    assert heard()[0] == "Heard: Explanation, rain" and drawn(page) == pictures["all"]
    for k, ex in enumerate(found):
        press(by_class, ex.label)
        pictures[ex.label], now = drawn(page), state(page)
        assert heard() == (f"Heard: Explanation, {ex.label}", ex.sentence()) and page.locator('.lmac-boxes div:visible').count() == len(ex.regions())
        assert (now["class"], now["position"]) == (str(k), pytest.approx(1.25))
        assert [b.inner_text() for b in by_sound.get_by_role("button").all()] == ["Input", "Explanation", "Residual"]
        assert [b.inner_text() for b in page.get_by_role("button", pressed=True).all()] == [ex.label, "Explanation"]
        assert (samples(page, now["current"]) - ex.audio[0].numpy()).std() < .02*ex.audio[0].numpy().std()   # rounded, in a page
    assert len(set(pictures.values())) == 4
    press(by_sound, "Residual")
    by_class.get_by_role("button", name="rooster").press("c")   # round to all in colours, where each class has one sound
    assert heard()[0] == "Heard: Explanation, rooster" and drawn(page) == pictures["all"]
    page.locator(".lmac-view").press("1")
    press(by_class, "rain")
    assert heard() == ("Heard: Input", found["rain"].sentence())   # the input stays the input
    assert (samples(page, state(page)["current"]) - found[0].waveform[0].numpy()).std() < .02*found[0].waveform[0].numpy().std()
    page.locator(".lmac-view").press("3")
    assert heard()[0] == "Heard: Residual, rain"


def test_classes_while_it_plays_and_with_the_keyboard(new_page, several_file):
    page = new_page(several_file[0].as_uri())
    act(page, "play()")
    page.wait_for_function("document.querySelector('.lmac-player').lmac.state.position > .4")
    before = state(page)["position"]
    button = page.get_by_role("group", name="Class").get_by_role("button", name="rain", exact=True)
    button.focus()
    button.press("Enter")
    button.press("2")
    after = state(page)
    assert after["playing"] and after["label"] == "Explanation, rain" and 0 <= after["position"] - before < 1
    act(page, "pause()")
    with page.expect_download() as info: page.get_by_role("button", name="Download").click()
    assert info.value.suggested_filename == "explanation-rain.wav"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_pictures_of_a_report_are_those_of_its_player(new_page, report_file, width, scheme):
    "Five pictures of two images; as wide as the page, on axes in step with the player's, and nothing overflows"
    file, ex = report_file
    page = new_page(file.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    images = page.locator(".lmac-panels img").evaluate_all("all => all.map((i) => [i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().width, i.getBoundingClientRect().height, i.src])")
    whole, shade = (page.locator(f".lmac-player .{kind}").get_attribute("src") for kind in ("lmac-spectrogram", "lmac-mask"))
    assert [image[:2] for image in images] == [[ex.n_frames, ex.mask.shape[0]]] * 4 and [image[4] for image in images] == [whole, shade, whole, shade]
    stage = page.locator(".lmac-player .lmac-view").bounding_box()
    for *_, wide, high, _ in images: assert wide == pytest.approx(stage["width"], abs=1) and high == 150
    assert page.get_by_role("img", name="Spectrogram of the input.").count() == 1 and page.get_by_role("img", name="The mask: white is kept.").count() == 1
    assert page.locator(".lmac-panels .lmac-s span").all_text_contents() == page.locator(".lmac-player .lmac-s span").all_text_contents()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    text = page.evaluate("""() => { const c = document.createElement('canvas').getContext('2d'), lum = (s) => { c.fillStyle = s; c.fillRect(0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data[0] }
        return lum(getComputedStyle(document.querySelector('.lmac-panels figcaption')).color) }""")
    assert abs(text - {"light": 0, "dark": 255}[scheme]) < 60


def test_a_mask_in_a_report_is_white_where_it_is_kept(new_page, report_file):
    "What is drawn, sampled: the mask's panel follows the mask, and the explanation's is dark where the mask is closed"
    file, ex = report_file
    page, panels = new_page(file.as_uri(), viewport={"width": 1200, "height": 900}), []
    for k in range(3):
        shot = page.locator(".lmac-panels .lmac-seen").nth(k).screenshot()
        panels.append(np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(float) / 255)
    mask = torch.nn.functional.adaptive_avg_pool2d(ex.mask[None, :, :ex.n_frames].flip(1), panels[1].shape)[0].numpy()
    assert np.corrcoef(mask.ravel(), panels[1].ravel())[0, 1] > .9
    assert panels[2][mask < .05].mean() < .1 and panels[2][mask > .95].mean() == pytest.approx(panels[0][mask > .95].mean(), abs=.05)


def test_sounds_of_a_report_are_decoded(new_page, report_file):
    "FLAC, rounded, at the rate in its header: to the sample what was embedded"
    file, ex = report_file
    page = new_page(file.as_uri())
    act(page, "decode()")
    found = page.evaluate("document.querySelector('.lmac-player').lmac.buffers.map((b) => Array.from(b.getChannelData(0)))")
    for x, sound in zip(found, (ex.waveform, ex.audio, ex.residual)):
        x, sound = torch.tensor(x), fit_peak(sound)[0][0]
        assert len(x) == len(sound) and 10 * ((x - sound).square().mean() / sound.square().mean()).log10() < -38


def test_a_report_without_scripts(browser, report_file):
    "The player's picture and its sounds are there; panels that nobody fills are not"
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report_file[0].as_uri())
    assert page.locator("img.lmac-spectrogram").is_visible() and page.locator("audio").count() == 3 and not page.locator(".lmac-panels").is_visible()
    context.close()


def test_several_classes_on_a_telephone_for_all(browser, several_file):
    (several_file[0].parent/"favicon.ico").touch()   # browsers ask for it
    with served(several_file[0].parent) as address: assert not (problems := page_problems(browser, f"{address}/report.html")), "\n".join(problems)


def test_from_one_class_to_several_and_back(new_page, player_file, several_file):
    "As a widget does it: the figure stays, what it holds is replaced"
    file, found = several_file
    page = new_page(player_file[0].as_uri())
    one = page.locator(".lmac-player").evaluate("e => e.outerHTML")
    def names(group): return [b.inner_text() for b in page.locator(f".lmac-{group} button").all()]
    before = names("sounds")
    for _ in range(2):
        page.evaluate("html => document.querySelector('.lmac-player').lmac.update(html)", found.player_figure())
        assert names("classes") == ["All in colours", *found.targets] and names("sounds") == ["Input", *found.targets]
        page.get_by_role("group", name="Class").get_by_role("button", name="rooster").click()
        page.evaluate("html => document.querySelector('.lmac-player').lmac.update(html)", one)
        assert names("classes") == [] and names("sounds") == before and page.locator(".lmac-heard").inner_text() == "" and state(page)["class"] is None
        page.locator(".lmac-view").press("c")   # no class to switch to
        assert state(page)["current"] == 0


def test_several_classes_without_scripts(new_page, several_file):
    page = new_page(several_file[0].as_uri(), java_script_enabled=False)
    assert page.locator("audio").count() == 7 and page.get_by_role("button", name="rooster").is_visible()   # a legend, at least
    assert page.locator(".lmac-mask:visible").count() == 1


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


def kept(page, study, listener): return json.loads(page.evaluate(f"localStorage.getItem('lmac-study {study.plan['id']} {listener}')"))


def test_a_trial_that_was_answered_in_another_tab_is_not_answered_again(new_page, study):
    study, file = study
    one = new_page(file.as_uri())
    two = one.context.new_page()
    complaints = watch(two)
    two.goto(file.as_uri())
    for page in (one, two): begin(page, 0)
    answer_trial(one, 20)
    before = kept(one, study, 0)
    two.wait_for_function("n => Object.values(localStorage).some((x) => JSON.parse(x).length === n)", arg=1)
    answer_trial(two, 80)
    assert two.get_by_text("answered in another tab").is_visible() and two.get_by_text(f"2 of {len(study.plan['trials'])}").is_visible()
    assert kept(two, study, 0) == before
    answer_trial(two, 80)   # the next is this tab's
    answer_trial(one, 20)
    assert one.get_by_text("answered in another tab").is_visible() and two.get_by_text("answered in another tab").count() == 0
    assert [a["trial"] for a in kept(two, study, 0)] == [t for t, _ in study.order(0)[:2]] and not complaints


def test_an_answer_that_the_browser_does_not_keep_is_not_passed_over(new_page, study):
    study, file = study
    page = new_page(file.as_uri())
    begin(page, 0)
    page.evaluate("() => { window.setItem = Storage.prototype.setItem; Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') } }")
    answer_trial(page, 20)
    assert page.get_by_role("alert").inner_text().startswith("This browser did not keep the answer (full)") and page.get_by_text("1 of").is_visible()
    page.evaluate("() => { Storage.prototype.setItem = window.setItem }")
    page.get_by_role("button", name="Next").click()
    assert page.get_by_text("2 of").is_visible() and len(kept(page, study, 0)) == 1


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


def test_a_study_of_bats_has_one_speed_for_all(new_page, tmp_path):
    from lmac.listen.study import build_study, study_html
    from lmac.listen.widgets import ExplanationSession
    from test_speed import explainer_at
    explainer, rate = explainer_at(256000, .1), 256000
    calls = [.5 * torch.sin(2 * torch.pi * hz * torch.arange(25600) / rate)[None] for hz in (40000, 50000)]
    study = build_study([ExplanationSession(explainer, x, rate, name=f"{k}") for k, x in enumerate(calls)], tmp_path/"study", ["lmac", "energy"])
    (tmp_path/"study.html").write_text(study_html(study))
    page = new_page((tmp_path/"study.html").as_uri())
    begin(page, 0)
    hz, _, duration_s = heard(page, 0)
    assert hz == pytest.approx(4000, abs=10) and duration_s == pytest.approx(1) and state(page)["speed"] == .1   # the practice clip, ten times slower
    assert page.get_by_text("Played 10 times slower.").is_visible() and page.locator("select").count() == 0
    assert "of 0.100 s" in page.locator(".lmac-clock").inner_text()


# the site

@pytest.fixture(scope="session")
def site(once):
    "All pages, as `make site` makes them, with the page to try it where that was built"
    def make(folder):
        subprocess.run([sys.executable, ROOT/"docs"/"render.py", "--out", folder], check=True)
        if is_built(): subprocess.run([sys.executable, ROOT/"docs"/"page.py", "--site", folder], check=True)
    return once("site", make)


@pytest.fixture(scope="session")
def address(site):
    with served(site) as address: yield address


def test_links_anchors_and_alternative_texts(site):
    pages = site_pages(site)
    there = (site/"try_it").is_dir()
    assert len(pages) == len(reading_order()) + there and sum(p.read_text().count("<audio") for p in pages) > 20
    assert not (problems := [p for p in dead_links(site) if there or "try_it/index.html" not in p]), "\n".join(problems)


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
