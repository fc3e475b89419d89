"""The demo: its table, and a page that works without network and script."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from drawings import BAR, PLUS, STEPS, WAVE

from epigraph.data.ink import read_ink, render
from epigraph.data.latex import is_valid
from epigraph.models.tokenization import CROHME_SYMBOLS
from epigraph.report import formula

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples" / "handwritten-math").glob("*.json"))


@pytest.fixture(scope="module")
def demo(reader, tmp_path_factory):
    """What the demo prints and writes for two right readings, a misreading, ink without truth, and a broken file."""
    folder = tmp_path_factory.mktemp("demo")
    for name, strokes, truth in (("plus", PLUS, "+"), ("steps", STEPS, "a ^ 2"), ("wave", WAVE, r"\sin < x")):
        (folder / f"{name}.json").write_text(json.dumps({"strokes": strokes, "text": truth}))
    (folder / "bar.json").write_text(json.dumps(BAR))
    (folder / "broken.json").write_text("[[0, 0")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import demo as script
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *values, **_: lines.append(" ".join(map(str, values))))
        output = folder / "page" / "demo.html"
        output.parent.mkdir()
        arguments = ["--model", str(reader), "--examples", str(folder), "--output", str(output), "--n-best", "2"]
        script.main(arguments)
    return lines, output


def test_table_says_what_was_read_and_what_was_drawn(demo):
    lines, output = demo
    rows = {line.split()[0]: line.split() for line in lines[1:6] if not line.startswith(" ")}
    assert rows["plus"][1] == "yes" and rows["plus"][-1] == "+" and 0 < float(rows["plus"][2]) <= 1
    assert rows["bar"][1] == "?" and rows["bar"][-1] == "1"
    assert rows["broken"][1] == "?" and "broken.json" in " ".join(rows["broken"][2:])
    text = "\n".join(lines)
    assert re.search(r"steps +yes .* a \^ { 2 }\n +truth  a \^ 2\n", text), "the same formula, spelt another way"
    assert re.search(r"wave +NO .* \\sin x\n +truth  \\sin < x\n", text)
    assert "2 of 3 right" in lines[-1] and str(output) in lines[-1]


class Collector(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


def test_page_is_one_file_without_scripts(demo):
    text = demo[1].read_text()
    collector = Collector()
    collector.feed(text)
    tags = [tag for tag, _ in collector.seen]
    assert "script" not in tags and "link" not in tags
    addresses = [value for _, given in collector.seen for name, value in given.items() if name in ("src", "href")]
    assert addresses and all(address.startswith("data:image/webp;base64,") for address in addresses)
    assert "url(" not in text and "@import" not in text
    assert tags.count("article") == 5 and tags.count("math") == 6, (
        "four readings, and the truth of the two that are written differently"
    )
    assert [given["class"] for tag, given in collector.seen if tag == "article"] == [
        "",
        "unread",
        "right",
        "right",
        "wrong",
    ]
    tokens = sum(len(text.split()) for text in ("1", "+", "a ^ { 2 }", r"\sin x"))
    for kind in ("attention", "coverage"):
        assert sum(given.get("class") == f"heat {kind}" for _, given in collector.seen) == tokens
    assert "default-src 'none'" in text and "2 of 3 formulas read right by reader-hme" in text
    assert r"\sin &lt; x" in text and r"\sin < x" not in text
    assert text.count("2 best readings") == 4
    assert all("alt" in given for tag, given in collector.seen if tag == "img")


def test_latex_that_cannot_be_rendered_is_shown_as_it_is():
    assert "<math" in formula(r"\frac { a } { b }")
    shown = formula(r"a ^ { b } ^ { c < d }")
    assert "cannot be rendered" in shown and "a ^ { b } ^ { c &lt; d }" in shown and "<math" not in shown


def test_every_example_can_be_read_and_has_a_truth_that_the_vocabulary_can_write(tmp_path):
    assert len(EXAMPLES) >= 8
    for path in EXAMPLES:
        ink = read_ink(path)
        assert is_valid(ink.label) and set(ink.label.split()) <= set(CROHME_SYMBOLS), path.name
        assert min(render(ink.strokes).size) > 20
        assert "<math" in formula(ink.label)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1200])
def test_page_in_a_browser(demo, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=True)
    page = context.new_page()
    page.goto(demo[1].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    article = page.locator("article").nth(3)
    opacity = "element => getComputedStyle(element).display === 'none' ? '-' : getComputedStyle(element).opacity"

    def shown(kind):
        page.wait_for_timeout(300)
        return [heat.evaluate(opacity) for heat in article.locator(f".heat.{kind}").all()]

    assert shown("attention") == ["1", "0", "0", "0", "0"] and set(shown("coverage")) == {"-"}
    article.locator("figcaption input").nth(1).focus()
    for place in (1, 2):  # the arrow keys walk from token to token
        page.keyboard.press("ArrowRight")
        assert shown("attention") == ["1" if token == place else "0" for token in range(5)]
    assert article.locator("output:visible").inner_text().startswith("{ ")
    article.locator(".switch input").first.focus()
    page.keyboard.press("ArrowRight")  # and from attention to coverage
    assert set(shown("attention")) == {"-"} and shown("coverage") == ["0", "0", "1", "0", "0"]
    picture, heat = (article.locator(f).nth(2 if "heat" in f else 0) for f in (".picture", ".heat.coverage"))
    assert heat.bounding_box() == pytest.approx(picture.bounding_box(), abs=0.5)
    context.close()


@pytest.mark.parametrize("arguments", [["scripts/demo.py"], ["scripts/evaluate.py", "--data", "nothing.parquet"]])
def test_scripts_report_an_error_in_one_sentence(run_python, arguments):
    done = run_python([str(ROOT / arguments[0]), *arguments[1:], "--model", "nowhere"], ok=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: nowhere: no such folder")
