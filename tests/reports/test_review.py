"""The page of a review: self-contained, complete, and safe with hostile names and texts."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

import pytest

from qalam_core.reports.review import review_page
from qalam_core.review.results import Alarm
from qalam_core.review.summary import SECTIONS
from tests.reports.test_page import CHROMIUM, HOSTILE, LONG, Parsed
from tests.review.small_review import LOOSER, behaviour, data, review, tokenizer, weights

BIDI = "\u202eعكس\u2066 \x1b[31m"


def shown(text: str) -> str:
    return re.sub("</?bdi>", "", html.unescape(text))


def test_it_refers_to_no_other_file_and_needs_no_script() -> None:
    text = review_page(review(recipe=LOOSER))
    parsed = Parsed(text)
    assert not parsed.tags & {"script", "iframe", "object", "embed", "img", "image", "video", "audio", "base", "form"}
    assert all(place.startswith(("#", "data:")) for place in parsed.places), parsed.places
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text


def test_the_sections_are_in_the_order_of_reading() -> None:
    text = review_page(review(recipe=LOOSER))
    places = [text.index(f'id="{name}"') for name in ("verdict", "alarms", *SECTIONS)]
    assert places == sorted(places)
    assert places[2] < text.index("Code and versions") < places[3]


@pytest.mark.parametrize("hostile", [HOSTILE, BIDI, "</bdi></p><b>x", "{{ 7 * 7 }}"])
def test_names_and_texts_are_only_text(hostile: str) -> None:
    alarm = Alarm(section="words", severity="high", message=hostile)
    found = review(
        data=data(hostile, hostile), tokenizer=tokenizer(hostile), behaviour=behaviour(hostile, hostile, (alarm,)),
        weights=weights(hostile, (alarm,)),
    )  # fmt: skip
    text = review_page(found)
    assert "<img" not in text and "<b>x" not in text and "49" not in re.findall(r"<bdi[^>]*>(.*?)</bdi>", text)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x1b]", text)


def test_it_shows_what_was_found() -> None:
    text = shown(review_page(review(recipe=LOOSER)))
    for part in (
        "gate.tolerance", "2.10.0", "too short", "نص الوثيقة", "× 140", "+4.00", "1.6000", "raw text", "query, key",
        "embedding.weight[7]", "1 train -> test", "Position p", "10 of 40 documents", "KL(old ‖ new)",
    ):  # fmt: skip
        assert part in text, part
    for kind in ("dearer-1", "dearer-2", "dearer-3", "cheaper-1", "cheaper-3"):
        assert f'class="{kind}" title="' in text


def test_a_missing_section_says_so() -> None:
    text = shown(review_page(review(data=None, behaviour=None)))
    assert text.count("Not available: the corpus of run demo-old was deleted. This section was not looked at") == 2
    assert '<section class="verdict waits"' in text
    assert "None in what was looked at." in text


def test_long_tables_are_closed_with_their_count() -> None:
    row = data().sources[0]
    many = tuple(row.model_copy(update={"name": f"source {number}"}) for number in range(40))
    text = review_page(review(data=data().model_copy(update={"sources": many, "sources_changed": 90})))
    assert "<summary>40 sources changed</summary>" in text and "50 more sources changed" in text


PROBE = """<script>
const opened = [...document.querySelectorAll("details")].map(each => each.open = true).length;
const overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const background = getComputedStyle(document.body).backgroundColor;
document.body.dataset.found = [opened > 5, overflow <= 0, background].join(" ");
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
@pytest.mark.usefixtures("processes")
def test_a_browser_shows_it(tmp_path: Path, width: int, dark: bool) -> None:
    """Nothing that is long makes the page scroll sideways, also where everything is open."""
    long = LONG + "ك" * 300
    alarm = Alarm(section="words", severity="low", message=long)
    found = review(
        recipe=LOOSER, data=data(long, long), tokenizer=tokenizer(long), behaviour=behaviour(long, long, (alarm,)),
        weights=weights(long),
    )  # fmt: skip
    text = review_page(found)
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", PROBE + "</body>")
    (tmp_path / "page.html").write_text(probed, encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", f"--window-size={width},900", "--virtual-time-budget=2000",
         f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stdout[:500]
    assert match[1] == f"true true {'rgb(23, 22, 20)' if dark else 'rgb(253, 252, 249)'}"
    assert "CONSOLE" not in done.stderr
