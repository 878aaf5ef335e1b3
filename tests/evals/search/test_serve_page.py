"""The live page in a browser: typing, captions, mixtures, keys, a phone, and what goes wrong."""

import asyncio
import json
import time

import browser
import pytest
from browser import BROWSER

pytestmark = [
    pytest.mark.usefixtures("one_device_mesh"),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here"),
]
# Of each column, the names of its photos.
NAMES = (
    "[...document.querySelectorAll('#sides section')]"
    ".map(s => [...s.querySelectorAll('.name')].map(n => n.textContent))"
)
HITS = (
    "[...document.querySelectorAll('#sides section')].map(s => s.querySelectorAll('.hit').length)"
)
SETTLED = "!timer && !running"
PROBLEM = "!byId('problem').hidden && byId('problem').textContent"
# As if a file were dropped on the page.
DROP = """(() => {{
  const data = new DataTransfer();
  data.items.add(new File([{content}], {name}));
  for (const kind of ["dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, {{ dataTransfer: data, bubbles: true }}));
}})()"""


def drop(content: bytes, name: str) -> str:
    array = f"new Uint8Array({list(content)})"
    return DROP.format(content=array, name=json.dumps(name))


@pytest.fixture
def driven(live, served, tmp_path):
    """Function of `drive(page, url)`, which it runs on a new page; the console must stay silent."""

    async def run(drive) -> None:
        with served(live) as url:
            async with browser.opened(tmp_path / "profile") as page:
                await drive(page, url)
                assert not [p for p in page.problems if "status of" not in p], page.problems

    return lambda drive: asyncio.run(run(drive))


def test_typing_shows_columns_and_keys_lead_through_them(driven, live):
    async def drive(page, url):
        await page.goto(url)
        assert "Type what to look for" in await page.value("byId('status').textContent")
        assert await page.value("document.querySelectorAll('#empty .hit img').length") == 12
        await page.value("document.activeElement.blur()")
        await page.press("/")
        await page.type("a dog")
        await page.until(f"{SETTLED} && ({HITS}).join() === '6,6,6'")
        wanted = [row["name"] for row in live.search("a dog", [20, 20], 6)["columns"][0]["rows"]]
        assert (await page.value(NAMES))[0] == wanted
        await page.until(
            "[...document.querySelectorAll('.hit img')].every(i => i.naturalWidth > 0)"
        )
        await page.press("ArrowDown")
        focus = "[...document.querySelectorAll('.hit')].indexOf(document.activeElement)"
        assert await page.value(focus) == 0
        await page.press("ArrowRight")
        assert await page.value(focus) == 1
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.value(outline) == "solid"  # where the focus is can be seen
        await page.press("Enter")
        assert await page.value("view") == "captions"
        assert await page.value("photo.name") == wanted[1]
        await page.type("a cat\nno cat\n\na cat")
        await page.until(f"{SETTLED} && document.querySelectorAll('.rank').length === 6")
        widths = "[...document.querySelectorAll('.bar')].map(b => b.getBoundingClientRect().width)"
        assert min(await page.value(widths)) > 0
        await page.press("Escape")
        await page.until(f"{SETTLED} && ({HITS}).join() === '6,6,6'")
        await page.press("Escape")
        await page.until("byId('query').value === '' && !byId('sides').offsetHeight")
        await page.value("byId('examples').children[1].click()")
        await page.until(f"{SETTLED} && ({HITS}).join() === '6,6,6'")
        assert await page.value("byId('query').value") == "no <b>cat</b>"

    driven(drive)


@pytest.mark.slow
def test_the_newest_query_wins(driven, live, monkeypatch):
    answered = live.search

    def slow(query, *arguments):
        time.sleep(0.5 if query == "slow" else 0)
        return answered(query, *arguments)

    monkeypatch.setattr(live, "search", slow)

    async def drive(page, url):
        await page.goto(url)
        await page.value("shows = 0; show = (inner => (...x) => { shows++; inner(...x); })(show)")
        ask = "byId('query').value = '{}'; schedule(0);"
        await page.value(ask.format("slow"))
        await page.value(f"setTimeout(() => {{ {ask.format('quick')} }}, 200) && 0")
        await page.until(f"byId('query').value === 'quick' && {SETTLED} && ({HITS})[0] === 6")
        await asyncio.sleep(0.7)  # by now the slow one would have come
        wanted = [row["name"] for row in answered("quick", [20, 20], 6)["columns"][1]["rows"]]
        assert (await page.value(NAMES))[1] == wanted
        assert await page.value("shows") == 1

    driven(drive)


@pytest.mark.slow
def test_a_slider_mixes_and_at_0_the_columns_are_the_same(driven):
    async def drive(page, url):
        await page.goto(url)
        await page.type("a dog")
        await page.until(f"{SETTLED} && ({HITS})[1] === 6")
        assert await page.value("document.querySelectorAll('input[type=range]').length") == 2
        await page.value("document.querySelectorAll('input[type=range]')[1].focus()")
        await page.press("ArrowLeft")  # both towers differ: the photos are encoded again
        await page.until(f"{SETTLED} && alphas[1] === 0.95 && ({HITS})[2] === 6")
        await page.press("Home")
        await page.until(f"{SETTLED} && alphas[1] === 0")
        first, second, third = await page.value(NAMES)
        assert first == third != second

    driven(drive)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_screen(driven, dark):
    async def drive(page, url):
        await page.goto(url, width=390, height=844, dark=dark)
        widths = "[document.documentElement.scrollWidth, innerWidth]"
        assert await page.value(widths) == [390, 390]
        await page.type("a dog on " + "a" * 200)
        await page.until(f"{SETTLED} && ({HITS}).join() === '6,6,6'")
        assert await page.value(widths) == [390, 390]
        await page.value("document.querySelector('#sides .hit').click()")
        await page.type("a cat " + "b" * 200 + "\nno cat")
        await page.until(f"{SETTLED} && document.querySelectorAll('.rank').length === 6")
        assert await page.value(widths) == [390, 390]
        shade = await page.value(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0]"
        )
        assert (int(shade) < 80) == dark

    driven(drive)


def test_photos_are_dropped_and_those_that_are_none_are_told(driven, live, photos):
    async def drive(page, url):
        await page.goto(url)
        await page.value("byId('texts').value = 'a cat\\nno cat'")
        await page.value(drop((photos.data / "photos" / "3.png").read_bytes(), "3.png"))
        await page.until(f"{SETTLED} && document.querySelectorAll('.rank').length === 6")
        assert (await page.value("photo.url")).startswith("data:image/jpeg")
        live._uploads.clear()  # as after a restart of the server: the page sends the photo again
        await page.value("byId('texts').value = 'a cat\\nno cat\\na dog'; schedule(0)")
        await page.until(f"{SETTLED} && document.querySelectorAll('.rank').length === 9")
        await page.value(drop(b"no photo", "letter <b>.jpg"))
        told = await page.until(PROBLEM)
        assert told.startswith("letter <b>.jpg: this is not an image")
        assert await page.value("document.querySelectorAll('.rank').length") == 0
        await page.value("state.limits.bytes = 2 ** 20")
        await page.value(DROP.format(content="new Uint8Array(2 ** 21)", name='"large.jpg"'))
        assert "large.jpg has 2 MiB; 1 are taken" in await page.until(PROBLEM)
        await page.value("turnTo('captions')")
        await page.until("byId('problem').hidden")
        assert "Drop a photo" in await page.value("byId('status').textContent")

    driven(drive)


def test_a_server_that_is_gone_is_told_and_found_again(live, served, tmp_path):
    async def run() -> None:
        async with browser.opened(tmp_path / "profile") as page:
            with served(live) as url:
                await page.goto(url)
            await page.type("a dog")
            assert "server does not answer" in await page.until(PROBLEM)
            with served(live, int(url.rstrip("/").rpartition(":")[2])):
                await page.until(f"byId('problem').hidden && ({HITS})[1] === 6")

    asyncio.run(run())
